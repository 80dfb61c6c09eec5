"""Linear layers with packed weights: bf16, int8 (W8A8) and int4 (W4A8 in groups of 128).

Main path: packed(linear, kind) -> a module that takes and gives fp32. cpu.c says how the weights lie
and sums; where it cannot be compiled, `plain` computes the same numbers in PyTorch, slower.
A row of the input gives the same row of the output, bit for bit, alone or among others.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from abc import abstractmethod
from functools import cache
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.kernels.build import library

PackedName = Literal["bf16", "int8", "int4"]
PANEL, GROUP = 16, 128
TILE, FEW_ROWS = 12, 8  # WIDE_ROWS of cpu.c, or more; FEW_ROWS there
# of everything below that a packed folder on disk holds; each change of it takes the next number
LAYOUT = 2
OUTPUTS_AT_ONCE = 2048  # of a weight that `plain` unpacks
PACKED_AT_ONCE = 1 << 20  # numbers, so that packing needs little memory beside the packed weight


class LinearStruct(ctypes.Structure):
    """`linear` of cpu.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("panels", "scales", "zeros", "bias")),
        *((name, ctypes.c_long) for name in ("kind", "n", "k")),
    )


class PackedLinear(nn.Module):
    """y = x W^T + b for x [..., K] in fp32; N and K are those of the weight it was made from.

    Of a weight on the meta device only the names and sizes are made, there.
    """

    KIND: ClassVar[int]  # of cpu.c
    panels: Tensor
    bias: Tensor | None

    def __init__(self, weight_nk: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_nk.shape
        self.register_buffer("bias", None if bias is None else bias.detach().float().contiguous())
        panels = -(-self.out_features // PANEL)
        if weight_nk.is_meta:
            one = self.one_panel(self.in_features).items()
            self.keep({n: p.new_empty(panels, *p.shape[1:], device="meta") for n, p in one})
            return
        step = max(1, PACKED_AT_ONCE // (PANEL * self.in_features))
        whole: dict[str, Tensor] = {}
        for first in range(0, panels, step):
            rows_nk = weight_nk[first * PANEL : (first + step) * PANEL]
            rows_nk = F.pad(rows_nk, (0, 0, 0, -len(rows_nk) % PANEL))
            for name, part in self.pack(rows_nk).items():
                if name not in whole:
                    whole[name] = in_large_pages(part.new_empty(panels, *part.shape[1:]))
                whole[name][first : first + step] = part
        self.keep(whole)

    @staticmethod
    @abstractmethod
    def pack(weight_nk: Tensor) -> dict[str, Tensor]:
        """Full panels of outputs as this kind keeps them, by name; [N / 16, ...] each."""

    @classmethod
    @cache
    def one_panel(cls, width: int) -> dict[str, Tensor]:
        """Zeros, packed: what a panel of this width is made of."""
        return cls.pack(torch.zeros(PANEL, width, device="cpu"))

    def keep(self, packed: dict[str, Tensor]) -> None:
        for name, tensor in packed.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        rows_mk = x.reshape(-1, self.in_features).float().contiguous()
        kernels = library()
        if kernels is None:
            return self.plain(rows_mk).view(*x.shape[:-1], self.out_features)
        y_mn = rows_mk.new_empty(len(rows_mk), self.out_features)
        if len(rows_mk):
            room = scratch(len(rows_mk), self.in_features)
            kernels.qvl_linear(
                ctypes.byref(self.struct()), pointer(rows_mk), pointer(room), pointer(y_mn),
                len(rows_mk),
            )  # fmt: skip
        return y_mn.view(*x.shape[:-1], self.out_features)

    def struct(self) -> LinearStruct:
        """Where its parts lie; good as long as they stay there."""
        return LinearStruct(
            panels=pointer(self.panels), scales=pointer(self._buffers.get("scales")),
            zeros=pointer(self._buffers.get("zeros")), bias=pointer(self.bias),
            kind=self.KIND, n=self.out_features, k=self.in_features,
        )  # fmt: skip

    def plain(self, rows_mk: Tensor) -> Tensor:
        """The same numbers in PyTorch, up to the order of sums in fp32."""
        y_mn = self.product(rows_mk)[:, : self.out_features]
        return y_mn if self.bias is None else y_mn + self.bias

    @abstractmethod
    def product(self, rows_mk: Tensor) -> Tensor:
        """x W^T in PyTorch, [M, N rounded up]."""

    @abstractmethod
    def weight(self) -> Tensor:
        """What the packed weight stands for, fp32 [N, K]."""


def in_large_pages(tensor: Tensor) -> Tensor:
    """Itself, its memory asked for in pages of 2 MB where the system gives them on demand (Linux).

    For what is not written yet. In pages of 4 KB a processor reads a third slower, because it waits
    for where they lie.
    """
    if sys.platform == "linux" and tensor.device.type == "cpu":
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        last = tensor.data_ptr() + tensor.numel() * tensor.element_size()
        if last > first:  # what it answers does not matter: it is a wish
            advise = ctypes.CDLL(None).madvise
            advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_HUGEPAGE)
    return tensor


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def scratch(rows: int, width: int) -> Tensor:
    """Room for rows of the input as any of the kinds lays them out; many are laid in whole tiles.

    A number takes up to four bytes; a row (int8), or each of its groups (int4), a scale and a sum.
    """
    rows += TILE if rows > FEW_ROWS else 0
    return torch.empty(rows * (4 * width + 8 * -(-width // GROUP)), dtype=torch.uint8)


def rows_of(panels: Tensor) -> Tensor:
    """[N/16, K/j, 16, j] -> [N, K]."""
    return panels.transpose(1, 2).flatten(2).flatten(0, 1)


class Bf16Linear(PackedLinear):
    KIND = 0

    @staticmethod
    def pack(weight_nk: Tensor) -> dict[str, Tensor]:
        pairs = weight_nk.bfloat16().unflatten(0, (-1, PANEL)).unflatten(2, (-1, 2))
        return {"panels": pairs.transpose(1, 2)}  # [N/16, K/2, 16, 2]

    def weight(self) -> Tensor:
        return rows_of(self.panels)[: self.out_features].float()

    def product(self, rows_mk: Tensor) -> Tensor:
        step = OUTPUTS_AT_ONCE // PANEL
        parts = [rows_mk @ rows_of(panels).float().T for panels in self.panels.split(step)]
        return torch.cat(parts, dim=1)


class Bf16Embedding(nn.Module):
    """The rows of a packed head as an embedding table: the same numbers, kept once."""

    def __init__(self, head: Bf16Linear) -> None:
        super().__init__()
        self.shared = (head,)  # in a tuple, so that its weights are the head's alone, by one name

    def forward(self, ids_t: Tensor) -> Tensor:
        panels = self.shared[0].panels[ids_t // PANEL, :, ids_t % PANEL]  # [T, K/2, 2]
        return panels.flatten(1).float()


def quantised_rows(rows_mk: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """int8 [M, K], and per `group` of a row its scale fp32 and its sum int32, [M, K / group]."""
    groups = rows_mk.unflatten(1, (-1, group))
    most = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(most > 0, 127 / most, 0)
    values = (groups * inverse).round().to(torch.int8)
    return values.flatten(1), most.squeeze(-1) / 127, values.sum(-1, dtype=torch.int32)


class Int8Linear(PackedLinear):
    """A scale for each output; K a multiple of 4."""

    KIND = 1
    scales: Tensor

    @staticmethod
    def pack(weight_nk: Tensor) -> dict[str, Tensor]:
        weight = weight_nk.float()
        scales = weight.abs().amax(1) / 127
        inverse = torch.where(scales > 0, 1 / scales, 0).unsqueeze(1)
        values = (weight * inverse).round_().add_(128).to(torch.uint8)
        fours = values.unflatten(0, (-1, PANEL)).unflatten(2, (-1, 4))
        return {
            "panels": fours.transpose(1, 2),  # [N/16, K/4, 16, 4]
            "scales": scales.unflatten(0, (-1, PANEL)),
        }

    def values(self) -> Tensor:
        """The weight's integers, int8 [N rounded up, K]."""
        return (rows_of(self.panels).to(torch.int16) - 128).to(torch.int8)

    def weight(self) -> Tensor:
        return (self.values().float() * self.scales.flatten().unsqueeze(1))[: self.out_features]

    def product(self, rows_mk: Tensor) -> Tensor:
        values, scales, _ = quantised_rows(rows_mk, self.in_features)
        exact = torch._int_mm(values, self.values().T)
        return exact.float() * (self.scales.flatten() * scales)


class Int4Linear(PackedLinear):
    """A scale and a zero point for each output and 128 inputs; K a multiple of 128."""

    KIND = 2
    scales: Tensor
    zeros: Tensor

    @staticmethod
    def pack(weight_nk: Tensor) -> dict[str, Tensor]:
        groups = weight_nk.float().unflatten(1, (-1, GROUP))  # [N, G, 128]
        low = groups.amin(-1).clamp(max=0)
        scales = ((groups.amax(-1).clamp(min=0) - low) / 15).half()
        inverse = torch.where(scales > 0, 1 / scales.float(), 0)
        zeros = (-low * inverse).round().clamp(0, 15)
        values = (groups * inverse.unsqueeze(-1)).round_().add_(zeros.unsqueeze(-1)).clamp_(0, 15)
        return Int4Linear.laid_out(values.to(torch.uint8), scales, zeros.to(torch.uint8))

    @staticmethod
    def laid_out(values: Tensor, scales: Tensor, zeros: Tensor) -> dict[str, Tensor]:
        """From integers 0 .. 15 [N, G, 128], fp16 scales and integer zero points [N, G]."""
        eight = values.flatten(1).unflatten(0, (-1, PANEL)).unflatten(2, (-1, 2, 4))
        eight = eight.permute(0, 2, 3, 1, 4)  # [N/16, K/8, 2, 16, 4]
        return {
            "panels": eight[:, :, 0] | eight[:, :, 1] << 4,
            "scales": scales.unflatten(0, (-1, PANEL)).transpose(1, 2),  # [N/16, G, 16]
            "zeros": zeros.unflatten(0, (-1, PANEL)).transpose(1, 2),
        }

    @classmethod
    def of_integers(
        cls, values: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None
    ) -> Int4Linear:
        """Without loss, from what laid_out takes, of any number of outputs."""
        layer = cls(values.new_empty(len(values), values[0].numel(), device="meta"), bias)
        rest = -len(values) % PANEL
        laid_out = cls.laid_out(
            F.pad(values, (0, 0, 0, 0, 0, rest)),
            F.pad(scales, (0, 0, 0, rest)),
            F.pad(zeros, (0, 0, 0, rest)),
        )
        layer.keep({name: tensor.contiguous() for name, tensor in laid_out.items()})
        return layer

    def values(self) -> Tensor:
        """The weight's integers 0 .. 15, uint8 [N rounded up, G, 128]."""
        eight = torch.stack((self.panels & 15, self.panels >> 4), 2)  # [N/16, K/8, 2, 16, 4]
        return eight.permute(0, 3, 1, 2, 4).flatten(2).flatten(0, 1).unflatten(1, (-1, GROUP))

    def per_output(self) -> tuple[Tensor, Tensor]:
        """Scales and zero points, fp32 [N rounded up, G]."""
        scales, zeros = (
            part.transpose(1, 2).flatten(0, 1).float() for part in (self.scales, self.zeros)
        )
        return scales, zeros

    def weight(self) -> Tensor:
        scales, zeros = (part.unsqueeze(-1) for part in self.per_output())
        return ((self.values().float() - zeros) * scales).flatten(1)[: self.out_features]

    def product(self, rows_mk: Tensor) -> Tensor:
        values, row_scales, sums = quantised_rows(rows_mk, GROUP)
        groups_gmk = values.unflatten(1, (-1, GROUP)).transpose(0, 1).float()
        scales, zeros = self.per_output()
        parts = []
        for start in range(0, len(scales), OUTPUTS_AT_ONCE):
            some = slice(start, start + OUTPUTS_AT_ONCE)
            weight_gkn = self.values()[some].permute(1, 2, 0).float()
            above = groups_gmk @ weight_gkn  # whole numbers below 2^24: exact in fp32
            above = above - zeros[some].T.unsqueeze(1) * sums.T.unsqueeze(-1)
            scaled = above * scales[some].T.unsqueeze(1) * row_scales.T.unsqueeze(-1)
            parts.append(scaled.sum(0))
        return torch.cat(parts, dim=1)


KINDS: dict[PackedName, type[PackedLinear]] = {
    "bf16": Bf16Linear,
    "int8": Int8Linear,
    "int4": Int4Linear,
}


def packed(weight_nk: Tensor, bias: Tensor | None, kind: PackedName) -> PackedLinear:
    """The layer in the wanted kind, or the next finer one that its width allows."""
    width = weight_nk.shape[1]
    if kind == "int4" and width % GROUP:
        kind = "int8"
    if kind == "int8" and width % 4:
        kind = "bf16"
    return KINDS[kind](weight_nk, bias)
