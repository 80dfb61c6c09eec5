"""Which weights of a model are trained, and how: low-rank adapters beside frozen layers, or the whole.

Main path: load_base -> make_trainable -> the trained parameters, always fp32. What an adapter computes
is PEFT 0.21's (peft/tuners/lora/layer.py, dora.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.errors import InvalidParamError, ModelFormatError
from qvl.kernels.linear import PackedLinear, packed
from qvl.kernels.stored import StoredLinear, ordinary
from qvl.loading.checkpoint import fill
from qvl.loading.model import empty_model, open_source
from qvl.loading.packed import packed_form
from qvl.loading.quantised import check_filled
from qvl.models.config import ModelConfig
from qvl.models.decoder import Router, SparseMLP
from qvl.models.qwen_vl import QwenVL

Method = Literal["lora", "dora", "full"]
Section = Literal["decoder", "merger", "tower"]
Base = Literal["fp32", "bf16", "int8", "int4"]
SECTIONS: tuple[Section, ...] = ("decoder", "merger", "tower")


def load_base(folder: Path, config: ModelConfig, base: Base, device: torch.device) -> QwenVL:
    """The checkpoint's model, frozen: plain layers in fp32 or bf16, or linear ones quantised.

    Quantised checkpoints are dequantised layer by layer, and quantised again if `base` says so.
    Raises ModelFormatError for a checkpoint that cannot be used.
    """
    if packed_form(folder) is not None:
        raise ModelFormatError(
            f"{folder.name!r} is packed, and only plain weights can be trained",
            hint="take the checkpoint that it was made from",
        )
    dtype = torch.float32 if base == "fp32" else torch.bfloat16
    model = empty_model(config)
    checkpoint, stored = open_source(folder, model)
    quantised = config.quantisation is not None
    fill(model, stored, checkpoint, dtype=None if quantised else dtype, device=torch.device("cpu"))
    check_filled(model, "bf16")
    for name, module in list(model.named_modules()):
        if isinstance(module, StoredLinear):
            model.set_submodule(name, ordinary(module, dtype))
    if base in ("int8", "int4"):
        for name, module in list(model.model.language_model.layers.named_modules()):
            if isinstance(module, nn.Linear) and not isinstance(module, Router):
                frozen = Frozen(packed(module.weight, module.bias, base))
                model.model.language_model.layers.set_submodule(name, frozen)
    model.requires_grad_(False)
    return model.to(device=device) if quantised or device.type != "cpu" else model


class Product(torch.autograd.Function):
    """x W^T with a frozen weight that is made from its packed form each time it is needed, so that only
    one layer's is in memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return x @ layer.weight().to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad @ ctx.layer.weight().to(grad.dtype), None


class Frozen(nn.Module):
    """A quantised layer, to train beside (QLoRA, Dettmers et al. 2023, arXiv 2305.14314).

    It computes with the weight that the integers stand for; that inputs are rounded too when the
    model runs, the training does not see.
    """

    def __init__(self, layer: PackedLinear) -> None:
        super().__init__()
        self.layer = layer
        self.in_features, self.out_features = layer.in_features, layer.out_features

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    @property
    def weight(self) -> Tensor:
        return self.layer.weight()

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y = Product.apply(x, self.layer)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class TrainedLowRank(nn.Module):
    """A frozen layer y = W x + b, and what is learnt beside it: s B A x; of DoRA also how long the rows
    of W + s B A are, through which no gradient goes (arXiv 2402.09353, section 4.3).
    """

    def __init__(self, base: nn.Linear | Frozen, rank: int, scale: float, *, dora: bool) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        device = base.weight.device
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features, device=device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.magnitude: nn.Parameter | None = None
        if dora:
            self.magnitude = nn.Parameter(base.weight.float().norm(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        added = self.scale * F.linear(F.linear(x.to(self.lora_a.dtype), self.lora_a), self.lora_b)
        if self.magnitude is None:
            return y + added.to(y.dtype)
        with torch.no_grad():
            weight = self.base.weight.float() + self.scale * (self.lora_b @ self.lora_a)
            lengths = weight.norm(dim=1)
        gain = self.magnitude / lengths
        bias = self.base.bias
        plain = y if bias is None else y - bias
        turned = gain * (plain + added)
        return (turned if bias is None else turned + bias).to(y.dtype)


def make_trainable(
    model: QwenVL,
    method: Method,
    sections: Sequence[Section],
    *,
    rank: int = 16,
    alpha: float = 32,
    seed: int = 0,
) -> list[tuple[str, nn.Parameter]]:
    """Change the model so that these sections are trained; the parameters that are, by name.

    Raises InvalidParamError where there is nothing to train.
    """
    if method == "full":
        for name, parameter in model.named_parameters():
            if section_of(name) in sections:
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
        if any(isinstance(module, Frozen) for module in model.modules()):
            raise InvalidParamError(
                "quantised weights cannot be trained as a whole", hint="use lora, or bf16"
            )
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, layer in list(adaptable(model, sections)):
                low_rank = TrainedLowRank(layer, rank, alpha / rank, dora=method == "dora")
                model.set_submodule(name, low_rank)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise InvalidParamError(f"the model has nothing to train in {', '.join(sections)}")
    return trained


def section_of(name: str) -> Section:
    if not name.startswith("model.visual."):
        return "decoder"
    return "merger" if "merger" in name or "attn_pool" in name else "tower"


def adaptable(
    model: QwenVL, sections: Sequence[Section]
) -> Iterator[tuple[str, nn.Linear | Frozen]]:
    """The linear layers of the sections. Of a mixture not its experts, which PEFT has no names for."""
    experts = [n for n, m in model.named_modules() if isinstance(m, SparseMLP)]
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Frozen) or isinstance(module, Router):
            continue
        if name == "lm_head" or any(name.startswith(f"{mixture}.") for mixture in experts):
            continue
        if section_of(name) in sections:
            yield name, module
