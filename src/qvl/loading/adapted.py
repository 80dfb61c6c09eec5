"""An adapter onto a model: a second view that shares the weights, or merged into them.

Main path: adapted -> _place (where packing has put the layer) -> _adapted_layer (factors in the kind
that the layer's own weight has) -> _put (into copies of the modules on the way there).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.errors import InvalidParamError
from qvl.kernels.linear import PANEL, PackedLinear, packed
from qvl.kernels.parts import PackedLayer
from qvl.kernels.quantised import Fp8Linear, Int4WeightLinear
from qvl.loading.offload import StreamedLayer
from qvl.models.lora import Adapted, Adapter, LowRank
from qvl.models.qwen_vl import QwenVL

# what kernels.parts packs side by side, in that order
JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
Linear = nn.Linear | PackedLinear | Fp8Linear | Int4WeightLinear
M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def adapted(model: QwenVL, adapter: Adapter) -> QwenVL:
    """The model with the adapter in it; `model` itself stays as it is, and the weights are shared.

    The model may be of any kind that `load_model` gives. Factors are kept in bf16 beside packed
    layers, else in the dtype that the model computes in.
    """
    modules = {_without_stream(name): name for name, _ in model.named_modules()}
    places: dict[str, dict[int, LowRank]] = {}  # by the layer's name, then its part of that layer
    for path, low in adapter.layers.items():
        place, index = _place(modules, path)
        places.setdefault(place, {})[index] = low
    view = _own(model)
    device = next(model.parameters()).device
    for place, lows in places.items():
        base = model.get_submodule(place)
        assert isinstance(base, Linear)
        layer = _adapted_layer(base, lows, _sizes(model, place, base), model.dtype, device)
        _put(view, model, place, layer)
    for module in view.modules():
        if isinstance(module, StreamedLayer):
            module.renamed = _moved(module.layer)
    view.adapter = adapter.digest
    view.tower_adapter = adapter.digest if adapter.changes_tower else ""
    return view


@torch.no_grad()
def merge(model: QwenVL, adapter: Adapter) -> None:
    """Put the adapter into the weights, in place, in the dtype that they have.

    Raises InvalidParamError where a layer is packed or quantised: its numbers would be rounded twice.
    """
    modules = dict(model.named_modules())
    for path, low in adapter.layers.items():
        layer = modules.get(path)
        if not isinstance(layer, nn.Linear):
            raise InvalidParamError(
                f"{path} is packed or quantised, and adapters are merged into plain weights only",
                hint="merge it into the checkpoint as published, and quantise what comes of that",
            )
        # a new tensor: the old one may be a view of the checkpoint's file
        merged = low.merged(layer.weight).to(layer.weight.dtype)
        layer.weight = nn.Parameter(merged, requires_grad=False)


def _without_stream(name: str) -> str:
    """A layer in host memory is wrapped in one more module."""
    return re.sub(r"(\.layers\.\d+)\.layer\b", r"\1", name)


def _place(modules: Mapping[str, str], path: str) -> tuple[str, int]:
    """The name of the layer of that path, and which part of it, where several are packed as one."""
    head, _, leaf = path.rpartition(".")
    if path in modules:
        return modules[path], 0
    for around in (head, head.removesuffix(".self_attn")):  # packed layers do without the latter
        if (alone := f"{around}.{leaf}") in modules:
            return modules[alone], 0
        for joint, leaves in JOINED.items():
            if leaf in leaves and (together := f"{around}.{joint}") in modules:
                return modules[together], leaves.index(leaf)
    raise InvalidParamError(f"the model has no layer {path}")


def _sizes(model: QwenVL, place: str, base: Linear) -> list[int]:
    """The outputs of each of the layers that are one at that place."""
    head, _, leaf = place.rpartition(".")
    if leaf == "gate_up_proj":
        return [base.out_features // 2] * 2
    layer = model.get_submodule(head)
    if leaf == "qkv_proj" and isinstance(layer, PackedLayer):
        return [heads * layer.head_dim for heads in layer.sizes]
    return [base.out_features]


def _adapted_layer(
    base: Linear,
    lows: Mapping[int, LowRank],
    sizes: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> Adapted:
    """The layer, or the layers that are one, with what is added to each of them, by their place.

    All A are one, and all B, block by block: two products more, however many they are for.
    """
    a_rk = torch.cat([lows[i].a_rk.float() for i in sorted(lows)]).to(device)
    b_nr = torch.block_diag(
        *(
            low.scale * low.b_nr.float() if (low := lows.get(i)) else torch.empty(size, 0)
            for i, size in enumerate(sizes)
        )
    ).to(device)
    if isinstance(base, PackedLinear):
        # rows are packed in panels: as many are computed, whatever the ranks
        missing = -len(a_rk) % PANEL
        down = packed(F.pad(a_rk, (0, 0, 0, missing)), None, "bf16")
        up = packed(F.pad(b_nr, (0, missing)), None, "bf16")
    else:
        down, up = _plain(a_rk.to(dtype)), _plain(b_nr.to(dtype))
    if all(low.magnitude_n is None for low in lows.values()):
        return Adapted(base, down, up).eval()
    weight = base.weight if isinstance(base, nn.Linear) else base.weight()
    gains = [
        low.to(device).gain(rows) if (low := lows.get(i)) else rows.new_ones(len(rows)).float()
        for i, rows in enumerate(weight.to(device).split(list(sizes)))
    ]
    bias = None if base.bias is None else base.bias.detach().to(device)
    return Adapted(base, down, up, torch.cat(gains), bias).eval()


def _plain(weight_nk: Tensor) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight_nk.shape[1], len(weight_nk), bias=False)
    linear.weight = nn.Parameter(weight_nk, requires_grad=False)
    return linear


def _own(module: M) -> M:
    """A copy with its own list of parts, which are the same ones."""
    own = copy.copy(module)
    own.__dict__["_modules"] = dict(module._modules)
    return own


def _put(view: nn.Module, model: nn.Module, place: str, layer: nn.Module) -> None:
    """The layer into the view alone: modules on the way that are the model's, too, are copied first."""
    names = place.split(".")
    for count in range(1, len(names)):
        way = ".".join(names[:count])
        if view.get_submodule(way) is model.get_submodule(way):
            view.set_submodule(way, _own(view.get_submodule(way)))
    view.set_submodule(place, layer)


def _moved(layer: nn.Module) -> dict[str, str]:
    """What the tensors of adapted layers are called now, by what they were called before."""
    return {
        f"{path}.{name}": f"{path}.base.{name}"
        for path, module in layer.named_modules()
        if isinstance(module, Adapted)
        for name in (*dict(module.base.named_parameters()), *dict(module.base.named_buffers()))
    }
