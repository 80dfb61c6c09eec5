"""A quantised checkpoint into the empty model: GPTQ, AWQ and FP8, in the decoder's layers.

Main path: make_places (from the headers) -> checkpoint.match and fill -> check_filled -> packing,
which reads the stored layers one by one; where nothing is packed, dequantise.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator

import torch
from torch import nn

from qvl.errors import ModelFormatError
from qvl.kernels.linear import GROUP
from qvl.kernels.stored import STAND_INS, GptqLinear, GroupedLinear, StoredLinear, ordinary
from qvl.loading.checkpoint import Checkpoint, forget_module
from qvl.loading.gpu import computes_fp8
from qvl.loading.names import parameter_name
from qvl.models.decoder import Router
from qvl.models.qwen_vl import QwenVL
from qvl.types import DType

log = logging.getLogger(__name__)
MARKS = {"gptq": "qweight", "awq": "qweight", "fp8": "weight_scale_inv"}  # only a quantised layer's


def make_places(model: QwenVL, checkpoint: Checkpoint) -> None:
    """Put a StoredLinear for each linear layer that the files hold quantised.

    A quantised router or layer elsewhere gets none, and does not match then; so do FP8 experts in
    one tensor whose outputs are no whole blocks: they would share scales.
    """
    how = model.config.quantisation
    if how is None:
        return
    names = {parameter_name(stored, model.config.generation) for stored in checkpoint.tensors}
    layers = model.model.language_model.layers
    for name, linear in list(layers.named_modules(prefix="model.language_model.layers")):
        if not isinstance(linear, nn.Linear) or isinstance(linear, Router):
            continue
        marks = {f"{name}.{MARKS[how.method]}", f"{q_k_and_v(name)}.{MARKS[how.method]}"}
        fused = f"{all_experts(name)}_scale_inv"
        if marks & names or (fused in names and not linear.out_features % how.group):
            extra_bias = linear.bias is None and f"{name}.bias" in names
            place = STAND_INS[how.method](how, linear, extra_bias=extra_bias)
            model.set_submodule(name, place)


def all_experts(layer: str) -> str:
    """The name of the tensor of all experts in which an expert's layer may lie."""
    owner, _, leaf = layer.rpartition(".")
    joint = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}.get(leaf, leaf)
    return f"{owner.rpartition('.')[0]}.{joint}"


def q_k_and_v(layer: str) -> str:
    """The name of the one layer that the first Qwen-VL has for q, k and v; others come back."""
    owner, _, leaf = layer.rpartition(".")
    return f"{owner}.qkv_proj" if leaf in ("q_proj", "k_proj", "v_proj") else layer


def stored_layers(model: nn.Module) -> Iterator[tuple[str, StoredLinear]]:
    for name, module in list(model.named_modules()):
        if isinstance(module, StoredLinear):
            yield name, module


def exact_dtypes(model: QwenVL) -> dict[str, str]:
    """The stored dtype that the tensors of quantised layers must have; any float for all others."""
    known = {torch.int32: "I32", torch.float8_e4m3fn: "F8_E4M3"}
    buffers = model.named_buffers()
    return {name: known[tensor.dtype] for name, tensor in buffers if tensor.dtype in known}


def own_dtypes(model: QwenVL, device: torch.device) -> tuple[DType, ...]:
    """What a checkpoint runs in by itself, the best first; nothing for one that is not quantised.

    int4 where all the layers keep their integers. GPTQ with 8 bits runs in int8 on a processor, FP8
    in fp8 on a card that has it: both are rounded again, to one scale an output. Everything else,
    FP8 on a processor and act-order among it, is dequantised, there to int8 if bf16 has no room.
    """
    how = model.config.quantisation
    if how is None:
        return ()
    if device.type != "mps" and how.bits == 4 and how.group == GROUP and not how.act_order:
        layers = model.model.language_model.layers
        plain = (m for m in layers.modules() if isinstance(m, nn.Linear))
        if all(isinstance(module, Router) for module in plain):
            return ("int4",)
    if device.type == "cpu":
        return ("int8",) if how.method == "gptq" and how.bits == 8 else ("bf16", "int8")
    return ("fp8",) if how.method == "fp8" and computes_fp8(device) else ("bf16",)


def check_filled(model: QwenVL, dtype: DType) -> None:
    """Look at what only the data says.

    Older GPTQ files hold a bias for every layer: one that the architecture lacks is dropped if it
    is zero. Raises ModelFormatError for another, and for inputs in groups that are not there.
    """
    rounded = 0
    for name, stored in stored_layers(model):
        if stored.extra_bias and stored.bias is not None:
            if stored.bias.any():
                raise ModelFormatError(
                    f"{name}.bias is not zero, and this generation's layer has no bias"
                )
            stored.bias = None
        if isinstance(stored, GptqLinear):
            low, high = stored.g_idx.aminmax()
            if low < 0 or high >= len(stored.scales):
                raise ModelFormatError(
                    f"{name}.g_idx holds {low}..{high}, there are {len(stored.scales)} groups"
                )
        rounded += not (isinstance(stored, GroupedLinear) and stored.fits_int4())
    if dtype == "int4" and rounded:
        log.warning(
            "%d quantised layers are not stored as int4 keeps them (4 bits, groups of %d neighbours) "
            "and are rounded again; dtype bf16 keeps their weights", rounded, GROUP,
        )  # fmt: skip


def dequantise(model: QwenVL, dtype: torch.dtype, mapped: Container[str]) -> None:
    """Make each stored layer an ordinary one, one after the other, and all parameters that dtype."""
    for name, stored in stored_layers(model):
        model.set_submodule(name, ordinary(stored, dtype))
        forget_module(stored, name, mapped)
    model.to(dtype)
