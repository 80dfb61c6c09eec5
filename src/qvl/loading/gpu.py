"""A model whose weights lie in host memory, onto a GPU: quantised if asked for, in part if too large.

Main path: to_gpu -> quantise (layer by layer, so that the card never holds more than the result),
offload.plan, offload.offload.
"""

from __future__ import annotations

import logging
from collections.abc import Container

import torch
from torch import nn

from qvl.errors import InvalidParamError
from qvl.kernels.paged import segment_attention
from qvl.kernels.quantised import GpuKind, Int4WeightLinear, quantised
from qvl.kernels.stored import StoredLinear, int4_of, ordinary
from qvl.loading.checkpoint import forget_pages
from qvl.loading.offload import offload, plan, tensors
from qvl.models.config import DecoderConfig
from qvl.models.decoder import DecoderLayer, Router
from qvl.models.qwen_vl import QwenVL
from qvl.models.vision import VisionAttention
from qvl.types import DType

log = logging.getLogger(__name__)
WEIGHTS_SHARE = 0.8  # of the card's free memory; the rest is for the KV cache and a step's work


def gpu_kind(dtype: DType, device: torch.device) -> GpuKind | None:
    """How the decoder's linear layers are kept, None for as they are.

    Raises InvalidParamError for what the device does not compute.
    """
    on_gpu = device.type == "cuda"
    if dtype == "int4" and on_gpu:
        return "int4"
    if dtype == "fp8":
        if computes_fp8(device):
            return "fp8"
        raise InvalidParamError(
            f"fp8 runs on a GPU of the kind of Ada, Hopper or later, not on {device}",
            hint="use dtype bf16, or int4",
        )
    if dtype in ("int8", "int4") and device.type != "cpu":
        hint = "use dtype bf16" + (", fp8 or int4" if on_gpu else "")
        raise InvalidParamError(f"{dtype} does not run on {device}", hint=hint)
    return None


def computes_fp8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def to_gpu(
    model: QwenVL,
    kind: GpuKind | None,
    dtype: torch.dtype,
    device: torch.device,
    *,
    room_bytes: int,
    mapped: Container[str] = (),
) -> None:
    """Move the model in place, what is not quantised in `dtype`.

    Decoder layers that do not fit into `room_bytes` beside the others stay in host memory, and the
    log says how many bytes a step moves. The vision tower and the head are never quantised. Raises
    OutOfMemoryError, before anything is moved, when not even that fits.
    """
    layers = model.model.language_model.layers
    prefix = "model.language_model.layers."
    others = [p.numel() for name, p in model.named_parameters() if not name.startswith(prefix)]
    planned = plan(
        layers=len(layers),
        layer_bytes=layer_bytes(model.config.decoder, kind, dtype),
        other_bytes=sum(others) * dtype.itemsize,
        room_bytes=room_bytes,
    )
    if planned.moved_bytes:
        log.warning(
            "the card has room for %d of %d layers: %.2f GiB come from host memory in every step",
            planned.kept, len(layers), planned.moved_bytes / 2**30,
        )  # fmt: skip
    for name, parameter in model.named_parameters():
        if not name.startswith(prefix):
            move(parameter, dtype, device, forget=name in mapped)
    for index, layer in enumerate(layers):
        stays = torch.device("cpu") if index >= planned.kept else device
        stored = dict(layer.named_buffers())
        quantise(layer, kind, dtype, device, stays)
        for name, tensor in stored.items():
            if f"{prefix}{index}.{name}" in mapped:
                forget_pages(tensor)
        for name, parameter in layer.named_parameters():
            move(parameter, dtype, stays, forget=f"{prefix}{index}.{name}" in mapped)
    if planned.moved_bytes:
        offload(layers, planned.kept, device)
    for module in model.modules():
        if isinstance(module, VisionAttention):
            module.attend = segment_attention


def layer_bytes(config: DecoderConfig, kind: GpuKind | None, dtype: torch.dtype) -> int:
    """What a decoder layer takes, told by one without memory."""
    nowhere = torch.device("meta")
    with nowhere:
        layer = DecoderLayer(config, 0)
    quantise(layer, kind, dtype, nowhere, nowhere)
    for parameter in layer.parameters():
        move(parameter, dtype, nowhere, forget=False)
    return sum(tensor.nbytes for tensor in tensors(layer).values())


def quantise(
    layer: nn.Module,
    kind: GpuKind | None,
    dtype: torch.dtype,
    device: torch.device,
    stays: torch.device,
) -> None:
    """Its linear layers, computed on the device and kept where they stay.

    Those that a checkpoint stores quantised become ordinary ones in `dtype` where the kind is None.
    """
    for name, module in list(layer.named_modules()):
        new = None
        if isinstance(module, StoredLinear):
            new = from_stored(module.to(device), kind) or ordinary(module, dtype)
        elif isinstance(module, nn.Linear) and not isinstance(module, Router) and kind is not None:
            bias = None if module.bias is None else module.bias.to(device)
            new = quantised(module.weight.to(device), bias, kind)
        if new is not None:
            layer.set_submodule(name, new.to(stays))


def from_stored(layer: StoredLinear, kind: GpuKind | None) -> nn.Module | None:
    """In the wanted kind, its integers as they are where int4 keeps them; None as for `quantised`."""
    if kind == "int4" and (parts := int4_of(layer)) is not None:
        return Int4WeightLinear(*parts, layer.bias)
    return None if kind is None else quantised(layer.dense(), layer.bias, kind)


def move(
    parameter: nn.Parameter, dtype: torch.dtype, device: torch.device, *, forget: bool
) -> None:
    before = parameter.data
    parameter.data = before.to(device=device, dtype=dtype)
    if forget and parameter.data_ptr() != before.data_ptr():
        forget_pages(before)
