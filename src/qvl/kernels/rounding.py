"""A linear layer's weight to a few bits so that its outputs, not its weights, change least.

What a layer's inputs X [T, K] are is known by H = X^T X alone: an error D of the weight changes the
outputs by the sum of squares tr(D H D^T). `gptq` rounds column after column and lets the columns to
come make up for each error (Frantar et al. 2022, arXiv 2210.17323); `awq_scale` finds by what the
inputs are to be divided and the weight multiplied, so that inputs that are large lose less (Lin et al.
2023, arXiv 2306.00978), before `nearest` rounds. N outputs, K inputs, G groups of inputs that share a
scale; zero is a number that is kept as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DAMP = 0.01  # of the mean of H's diagonal
CLIPS = tuple(1 - step / 20 for step in range(11))  # of a group's range that is kept, to one half
FEW_CLIPS = CLIPS[:7:2]  # while scales are searched for
POWERS = tuple(step / 10 for step in range(10))
LEAST_SCALE = 2.0**-24  # of fp16


@dataclass(frozen=True, slots=True)
class Grid:
    """The numbers of a group, scale (q - zero), q of that many bits; symmetric: zero is the middle."""

    bits: int
    group: int
    symmetric: bool

    def over(self, weight: Tensor, keep: float = 1.0) -> tuple[Tensor, Tensor]:
        """Scales, fp32 that are fp16 numbers, and zeros, fp32, of groups [..., g]: [..., 1] each."""
        largest = 2**self.bits - 1
        low = weight.amin(-1, keepdim=True).clamp(max=0) * keep
        high = weight.amax(-1, keepdim=True).clamp(min=0) * keep
        if self.symmetric:
            high = torch.maximum(high, -low)
            low = -high
        scale = ((high - low) / largest).half().float()
        scale = torch.where(scale > 0, scale, LEAST_SCALE)
        if self.symmetric:
            return scale, torch.full_like(scale, 2 ** (self.bits - 1))
        return scale, (-low / scale).round().clamp(0, largest)

    def rounded(self, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """q, fp32 of weight's shape."""
        return ((weight / scale).round() + zero).clamp(0, 2**self.bits - 1)


@dataclass(frozen=True, slots=True)
class Rounded:
    """values uint8 [N, K]; scales fp16 and zeros uint8 [N, G]."""

    values: Tensor
    scales: Tensor
    zeros: Tensor

    def weight(self) -> Tensor:
        """fp32 [N, K]; as kernels.stored reads it back."""
        by_group = self.values.float().unflatten(1, (self.scales.shape[1], -1))
        by_group = by_group.sub_(self.zeros.float().unsqueeze(-1))
        return by_group.mul_(self.scales.float().unsqueeze(-1)).flatten(1)

    def split(self, outputs: Sequence[int]) -> list[Rounded]:
        parts = (x.split(list(outputs)) for x in (self.values, self.scales, self.zeros))
        return [Rounded(*part) for part in zip(*parts, strict=True)]


def nearest(
    weight: Tensor, grid: Grid, hessian: Tensor | None = None, clips: Sequence[float] = CLIPS
) -> Rounded:
    """Each number of the weight to the nearest; with H each group in the best of some ranges."""
    groups = weight.unflatten(1, (-1, grid.group))
    scale, zero = grid.over(groups)
    if hessian is not None:
        scale, zero = best_range(groups, grid, hessian, clips)
    values = grid.rounded(groups, scale, zero)
    return Rounded(
        values.flatten(1).to(torch.uint8), scale[..., 0].half(), zero[..., 0].to(torch.uint8)
    )


def best_range(
    groups: Tensor, grid: Grid, hessian: Tensor, clips: Sequence[float] = CLIPS
) -> tuple[Tensor, Tensor]:
    """Scales and zeros [N, G, 1] of groups [N, G, g] whose range, cut, changes the outputs least.

    Each group is looked at alone, by its own block of H.
    """
    size = groups.shape[-1]
    own = hessian.unflatten(0, (-1, size)).unflatten(2, (-1, size)).diagonal(dim1=0, dim2=2)
    own_gkk = own.permute(2, 0, 1)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for keep in clips:
        scale, zero = grid.over(groups, keep)
        error = (grid.rounded(groups, scale, zero) - zero) * scale - groups
        lost = (torch.einsum("ngk,gkj->ngj", error, own_gkk) * error).sum(-1, keepdim=True)
        if best is None:
            best = scale, zero, lost
        else:
            better = lost < best[2]
            best = (
                torch.where(better, scale, best[0]),
                torch.where(better, zero, best[1]),
                torch.where(better, lost, best[2]),
            )
    if best is None:
        raise ValueError("no ranges to try")
    return best[0], best[1]


def gptq(weight: Tensor, hessian: Tensor, grid: Grid) -> Rounded:
    """The weight [N, K] column by column, in its order, blocks of a group.

    Inputs that were never anything but zero are rounded to the nearest, and so is everything where no
    input was seen at all.
    """
    upper = inverse_root(hessian)
    left = weight.clone()
    values = torch.empty(weight.shape, dtype=torch.uint8)
    scales, zeros = [], []
    for first in range(0, weight.shape[1], grid.group):
        some = slice(first, first + grid.group)
        block, own = left[:, some].clone(), upper[some, some]
        scale, zero = best_range(block.unsqueeze(1), grid, hessian[some, some])
        scale, zero = scale[:, 0], zero[:, 0]
        errors = torch.empty_like(block)
        for column in range(grid.group):
            now = block[:, column : column + 1]
            q = grid.rounded(now, scale, zero)
            values[:, first + column] = q[:, 0].to(torch.uint8)
            errors[:, column] = ((now - (q - zero) * scale) / own[column, column])[:, 0]
            block[:, column:].addr_(errors[:, column], own[column, column:], alpha=-1)
        left[:, some.stop :].addmm_(errors, upper[some, some.stop :], alpha=-1)
        scales.append(scale.half())
        zeros.append(zero.to(torch.uint8))
    return Rounded(values, torch.cat(scales, 1), torch.cat(zeros, 1))


def inverse_root(hessian: Tensor) -> Tensor:
    """U, upper triangular, with U^T U the inverse of H, which is made well-conditioned first."""
    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1
    damp = DAMP * diagonal.mean()
    while True:
        diagonal += damp
        lower, info = torch.linalg.cholesky_ex(damped)
        if not info:
            upper, info = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not info:
                return upper
        damp = damp * 10


def awq_scale(layers: Sequence[tuple[Tensor, Tensor]], size_k: Tensor, grid: Grid) -> Tensor:
    """By what to multiply the columns of the weights that share inputs: fp32 [K], around 1.

    layers: the weights with their H; size_k: the mean magnitude of each input, whose best power of
    POWERS is taken. Power 0 is among them, so that nothing gets worse.
    """
    size_k = size_k.clamp(min=1e-4 * float(size_k.max())) if size_k.any() else size_k + 1
    found: list[tuple[float, Tensor]] = []
    for power in POWERS:
        scale = size_k**power
        scale = scale / (scale.max() * scale.min()).sqrt()
        lost = 0.0
        for weight, hessian in layers:
            divided = hessian / (scale.unsqueeze(-1) * scale)
            error = nearest(weight * scale, grid, divided, FEW_CLIPS).weight() - weight * scale
            lost += float(((error @ divided) * error).sum())
        found.append((lost, scale))
    return min(found, key=lambda one: one[0])[1]
