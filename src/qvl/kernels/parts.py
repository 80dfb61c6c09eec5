"""The parts of a decoder layer around packed weights: norm, attention's heads, MLP.

They stand in for the modules of models/decoder.py once its weights are packed: what multiplies the
same input is packed side by side, and what lies between two products is one compiled call. Without a
compiler the same is computed in PyTorch. Only rows of fp32 on a CPU go through the compiled calls.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.kernels.build import library
from qvl.kernels.linear import PackedLinear, PackedName, packed, pointer
from qvl.models.batch import Attend
from qvl.models.decoder import MLP, Attention
from qvl.models.norm import RMSNorm
from qvl.models.rope import rotate

WIDTH = 32  # the compiled calls take rows of a multiple of this


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


class PackedMLP(nn.Module):
    def __init__(self, mlp: MLP, kind: PackedName) -> None:
        super().__init__()
        self.gate_up = side_by_side([mlp.gate_proj, mlp.up_proj], kind)
        self.down_proj = side_by_side([mlp.down_proj], kind)

    def forward(self, x_td: Tensor) -> Tensor:
        gate_up = self.gate_up(x_td)
        kernels, width = library(), gate_up.shape[1] // 2
        if kernels is None or width % WIDTH:
            gate, up = gate_up.chunk(2, dim=-1)
            return self.down_proj(F.silu(gate) * up)
        inner = gate_up.new_empty(len(gate_up), width)
        kernels.qvl_silu_mul(pointer(gate_up), pointer(inner), len(gate_up), width)
        return self.down_proj(inner)


class PackedAttention(nn.Module):
    def __init__(self, attention: Attention, kind: PackedName) -> None:
        super().__init__()
        self.layer, self.head_dim = attention.layer, attention.head_dim
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.heads, self.kv_heads = (p.out_features // self.head_dim for p in projections[:2])
        self.qkv_proj = side_by_side(projections, kind)
        self.o_proj = side_by_side([attention.o_proj], kind)
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm

    def forward(self, x_td: Tensor, angles: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        qkv_tnh = self.qkv_proj(x_td).unflatten(-1, (-1, self.head_dim))
        if library() is None or self.head_dim % WIDTH:
            q, k, v = qkv_tnh.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
            q, k = rotate(self.q_norm(q), *angles), rotate(self.k_norm(k), *angles)
        else:
            self.rotate_in_place(qkv_tnh, *angles)
            q, k, v = qkv_tnh.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        return self.o_proj(attend(self.layer, q, k, v).flatten(1))

    def rotate_in_place(self, qkv_tnh: Tensor, cos_th: Tensor, sin_th: Tensor) -> None:
        kernels, eps = library(), 0.0
        assert kernels is not None
        weights: list[int | None] = [None, None]
        if isinstance(self.q_norm, RMSNorm) and isinstance(self.k_norm, RMSNorm):
            weights, eps = (
                [pointer(self.q_norm.weight), pointer(self.k_norm.weight)],
                self.q_norm.eps,
            )
        kernels.qvl_rotate(
            pointer(qkv_tnh), *weights, eps, pointer(cos_th), pointer(sin_th), len(qkv_tnh),
            self.heads, self.kv_heads, self.head_dim,
        )  # fmt: skip


def side_by_side(layers: list[nn.Linear], kind: PackedName) -> PackedLinear:
    """One packed layer that gives the outputs of all of them, one after the other."""
    weight_nk = torch.cat([layer.weight for layer in layers]) if layers[1:] else layers[0].weight
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    return packed(weight_nk, torch.cat(biases) if biases else None, kind)
