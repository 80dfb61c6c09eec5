"""A decoder layer with packed weights, and the norm, as the compiled kernels run them.

They stand in for those of models/ once a model is packed: what multiplies the same input is packed
side by side, and all layers of a step over the cache are one compiled call (`layers_at_once`); any
other layer is two, with the attention between. Without a compiler the same is computed in PyTorch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import CDLL

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.kernels.attention import OverCache
from qvl.kernels.build import library
from qvl.kernels.linear import (
    Int4Linear,
    LinearStruct,
    PackedLinear,
    PackedName,
    packed,
    pointer,
    scratch,
)
from qvl.kernels.stored import StoredLinear, int4_of, weight_of
from qvl.models.batch import Attend
from qvl.models.decoder import MLP, DecoderLayer, Router, SparseMLP, one_after_the_other
from qvl.models.norm import RMSNorm
from qvl.models.rope import rotate
from qvl.models.vision import GatedMLP, gelu_tanh, quick_gelu, rotate_both

WIDTH = 32  # the compiled calls take heads and rows of a multiple of this
# x sigmoid(a x + b x^3); of gelu_tanh: 1 + tanh(u) = 2 sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
GATES: dict[Callable[[Tensor], Tensor], tuple[float, float]] = {
    quick_gelu: (1.702, 0.0),
    gelu_tanh: (1.5957691216057308, 0.07135481627159732),
}


class RowNorm(RMSNorm):
    def __init__(self, norm: RMSNorm) -> None:
        super().__init__(len(norm.weight), norm.eps)
        self.weight = nn.Parameter(norm.weight.float())

    def forward(self, x: Tensor) -> Tensor:
        kernels, width = library(), x.shape[-1]
        if kernels is None or width % WIDTH:
            return super().forward(x)
        x, y = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        kernels.qvl_norm(
            pointer(x), pointer(self.weight), self.eps, pointer(y), x.numel() // width, width
        )
        return y


def compiled_act(act: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same activation of a vision MLP; it may change its input."""
    a, b = GATES[act]

    def gate(x: Tensor) -> Tensor:
        kernels = library()
        if kernels is None or x.numel() % WIDTH:
            return act(x)
        x = x.contiguous()
        kernels.qvl_gate(pointer(x), a, b, x.numel())
        return x

    return gate


def rotate_in_place(q_snh: Tensor, k_snh: Tensor, angles: tuple[Tensor, Tensor]) -> list[Tensor]:
    """models.vision.rotate_both of views of one fp32 [S, 3, n, h], which it changes."""
    kernels, (rows, heads, width) = library(), q_snh.shape
    step, cos, sin = heads * width, *(a.contiguous() for a in angles)
    beside = k_snh.data_ptr() == q_snh.data_ptr() + 4 * step
    beside = beside and q_snh.stride() == (3 * step, width, 1)
    if kernels is None or not beside or q_snh.dtype != torch.float32 or width % 2:
        return rotate_both(q_snh, k_snh, angles)
    kernels.qvl_rotate(
        pointer(q_snh), None, None, 0.0, pointer(cos), pointer(sin), rows, heads, heads, width
    )
    return [q_snh, k_snh]


class LayerStruct(ctypes.Structure):
    """`layer` of cpu.c."""

    _fields_ = (
        *((name, LinearStruct) for name in ("qkv", "o", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("before", "after", "q_norm", "k_norm")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_long) for name in ("heads", "kv_heads", "width")),
    )


class PackedMLP(nn.Module):
    """The gated MLP of the decoder, of one expert and of Qwen2.5-VL's vision tower."""

    def __init__(self, mlp: MLP | GatedMLP, kind: PackedName) -> None:
        super().__init__()
        self.gate_up_proj = side_by_side([mlp.gate_proj, mlp.up_proj], kind)
        self.down_proj = side_by_side([mlp.down_proj], kind)

    def forward(self, x_td: Tensor) -> Tensor:
        gate_up = self.gate_up_proj(x_td)
        width, kernels = gate_up.shape[-1] // 2, library()
        if kernels is None or width % WIDTH:
            gate, up = gate_up.chunk(2, dim=-1)
            return self.down_proj(F.silu(gate) * up)
        inner = gate_up.new_empty(len(gate_up), width)
        kernels.qvl_silu_mul(pointer(gate_up), pointer(inner), len(gate_up), width)
        return self.down_proj(inner)


class PackedLayer(nn.Module):
    """Of a mixture of experts only what comes before the MLP is one compiled call."""

    def __init__(self, layer: DecoderLayer, kind: PackedName) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.layer, self.head_dim = attention.layer, attention.head_dim
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.sizes = [p.out_features // self.head_dim for p in projections]
        self.input_layernorm = layer.input_layernorm
        self.qkv_proj = side_by_side(projections, kind)
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.o_proj = side_by_side([attention.o_proj], kind)
        self.post_attention_layernorm = layer.post_attention_layernorm
        if isinstance(mlp, SparseMLP):
            self.mlp: SparseMLP | PackedMLP = packed_experts(mlp, kind)
        else:
            self.mlp = PackedMLP(mlp, kind)
        self.struct: LayerStruct | None = None  # made when the weights are in their places

    def fits(self) -> bool:
        """Are its widths those that the compiled calls take, and its weights all packed?"""
        linears = [self.qkv_proj, self.o_proj]
        if isinstance(self.mlp, PackedMLP):
            linears += [self.mlp.gate_up_proj, self.mlp.down_proj]
        if not all(isinstance(linear, PackedLinear) for linear in linears):
            return False  # an adapter is in between
        widths = [self.head_dim, self.o_proj.out_features]
        if isinstance(self.mlp, PackedMLP):
            widths.append(self.mlp.down_proj.in_features)
        return not any(width % WIDTH for width in widths)

    def is_compiled(self) -> bool:
        return isinstance(self.mlp, PackedMLP) and self.fits()

    def forward(self, x_td: Tensor, angles: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        kernels = library()
        if kernels is None or not self.fits():
            return self.plain(x_td, angles, attend)
        return self.compiled(kernels, x_td.contiguous(), angles, attend)

    def placed(self) -> LayerStruct:
        if self.struct is None:
            self.struct = struct_of(self)
        return self.struct

    def rooms(self, x_td: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What a compiled call needs to write on: its work, the scratch, queries with keys and values."""
        layer, (rows, hidden) = self.placed(), x_td.shape
        return (
            x_td.new_empty(rows * (hidden + 3 * layer.down.k)),
            scratch(rows, max(layer.o.k, hidden, layer.down.k)),
            x_td.new_empty(rows, sum(self.sizes), self.head_dim),
        )

    def compiled(
        self, kernels: CDLL, x_td: Tensor, angles: tuple[Tensor, Tensor], attend: Attend
    ) -> Tensor:
        layer, rows = ctypes.byref(self.placed()), len(x_td)
        work, room, qkv_tnh = self.rooms(x_td)
        kernels.qvl_before_attention(
            layer, pointer(x_td), pointer(angles[0]), pointer(angles[1]), pointer(work),
            pointer(room), pointer(qkv_tnh), rows,
        )  # fmt: skip
        attended = attend(self.layer, *qkv_tnh.split_with_sizes(self.sizes, dim=1)).contiguous()
        if isinstance(self.mlp, SparseMLP):
            return self.after(x_td, attended)
        out_td = torch.empty_like(x_td)
        kernels.qvl_after_attention(
            layer, pointer(x_td), pointer(attended), pointer(work), pointer(room),
            pointer(out_td), rows,
        )  # fmt: skip
        return out_td

    def plain(self, x_td: Tensor, angles: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        qkv_tnh = self.qkv_proj(self.input_layernorm(x_td)).unflatten(-1, (-1, self.head_dim))
        q, k, v = qkv_tnh.split(self.sizes, dim=1)
        q, k = rotate(self.q_norm(q), *angles), rotate(self.k_norm(k), *angles)
        return self.after(x_td, attend(self.layer, q, k, v))

    def after(self, x_td: Tensor, attended_tnh: Tensor) -> Tensor:
        x_td = x_td + self.o_proj(attended_tnh.flatten(1))
        return x_td + self.mlp(self.post_attention_layernorm(x_td))


def layers_at_once(
    layers: Sequence[nn.Module], x_td: Tensor, angles: tuple[Tensor, Tensor], attend: Attend
) -> Tensor:
    """models.decoder.one_after_the_other in one compiled call, where the attention is over a cache:
    between short calls Python would take a tenth of a step, of quantised weights a fifth.
    """
    kernels = library()
    alike = [p for p in layers if isinstance(p, PackedLayer) and p.is_compiled()]
    if (
        kernels is None
        or not isinstance(attend, OverCache)
        or (where := attend.places) is None
        or x_td.dtype != torch.float32
        or not alike
        or len(alike) < len(layers)
    ):
        return one_after_the_other(layers, x_td, angles, attend)
    first, rows = alike[0], len(x_td)
    x_td = x_td.clone(memory_format=torch.contiguous_format)
    work, room, qkv_tnh = first.rooms(x_td)
    heads, kv_heads, _ = first.sizes
    attended = x_td.new_empty(rows, heads, first.head_dim)
    keys = qkv_tnh[:, :kv_heads]
    caches = [attend.cache.layer(layer.layer, keys) for layer in alike]
    pointers = ctypes.c_void_p * len(alike)
    kernels.qvl_layers(
        pointers(*(ctypes.addressof(layer.placed()) for layer in alike)), len(alike),
        pointer(x_td), pointer(angles[0]), pointer(angles[1]), pointers(*map(pointer, caches)),
        caches[0].shape[1], caches[0].shape[2], pointer(where.tables), pointer(where.starts_t),
        pointer(where.positions_t), pointer(work), pointer(room), pointer(qkv_tnh),
        pointer(attended), rows,
    )  # fmt: skip
    return x_td


def packed_experts(mlp: SparseMLP, kind: PackedName) -> SparseMLP:
    """The mixture with each expert packed, in place; its router keeps its precision."""
    assert isinstance(mlp.gate, Router)
    mlp.gate = packed(mlp.gate.weight, None, "bf16")
    for index, expert in enumerate(mlp.experts):
        assert isinstance(expert, MLP)
        mlp.experts[index] = PackedMLP(expert, kind)
    return mlp


def side_by_side(layers: Sequence[nn.Linear | StoredLinear], kind: PackedName) -> PackedLinear:
    """One packed layer that gives the outputs of all of them, one after the other.

    Integers that are stored as int4 keeps them stay what they are; all others are quantised anew.
    """
    biases = [layer.bias.data for layer in layers if layer.bias is not None]
    bias = joined(biases) if biases else None
    if kind == "int4":
        parts = [part for layer in layers if (part := int4_of(layer)) is not None]
        if len(parts) == len(layers):
            values, scales, zeros = (joined(list(tensors)) for tensors in zip(*parts, strict=True))
            return Int4Linear.of_integers(values, scales, zeros, bias)
    return packed(joined([weight_of(layer) for layer in layers]), bias, kind)


def joined(parts: list[Tensor]) -> Tensor:
    """torch.cat, which without memory (on the meta device) would import the compiler: two seconds."""
    if not parts[1:]:
        return parts[0]
    dtype = parts[0].dtype if len({part.dtype for part in parts}) == 1 else torch.float32
    whole, start = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:], dtype=dtype), 0
    for part in parts:
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def struct_of(layer: PackedLayer) -> LayerStruct:
    """Where the layer's weights lie; good as long as they stay there."""
    norms, mlp = [layer.q_norm, layer.k_norm], layer.mlp
    dense = (mlp.gate_up_proj, mlp.down_proj) if isinstance(mlp, PackedMLP) else ()
    q_norm, k_norm = (pointer(n.weight) if isinstance(n, RMSNorm) else None for n in norms)
    return LayerStruct(
        qkv=layer.qkv_proj.struct(),
        o=layer.o_proj.struct(),
        **{name: p.struct() for name, p in zip(("gate_up", "down"), dense, strict=False)},
        before=pointer(layer.input_layernorm.weight),
        after=pointer(layer.post_attention_layernorm.weight),
        q_norm=q_norm,
        k_norm=k_norm,
        eps=layer.input_layernorm.eps,
        heads=layer.sizes[0],
        kv_heads=layer.sizes[1],
        width=layer.head_dim,
    )
