"""What one forward pass needs, all of it: the model keeps nothing between calls.

Shape suffixes used in `models/` and `engine/`: t packed tokens of all sequences, s patches,
v visual tokens, d hidden, n query heads, k key/value heads, h head dim, b wanted rows,
3 = time, row, column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Attend(Protocol):
    """How the queries of this pass find their keys: packed, masked, or through a KV cache."""

    def __call__(self, layer: int, q_tnh: Tensor, k_tkh: Tensor, v_tkh: Tensor) -> Tensor:
        """Attention output [T, n, h]; keys and queries are already rotated."""
        ...


@dataclass(frozen=True, slots=True)
class VisionFeatures:
    """What the tower says about V visual tokens: [V, D], and [V, D] for each deepstack level."""

    rows_vd: Tensor
    deepstack_vd: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, levels: Iterable[Tensor]) -> VisionFeatures:
        rows_vd, *deepstack_vd = levels
        return cls(rows_vd, tuple(deepstack_vd))

    @classmethod
    def joined(cls, features: Iterable[VisionFeatures]) -> VisionFeatures:
        levels = zip(*(f.levels for f in features), strict=True)
        return cls.of(torch.cat(parts) for parts in levels)

    @property
    def levels(self) -> tuple[Tensor, ...]:
        return (self.rows_vd, *self.deepstack_vd)

    @property
    def size_bytes(self) -> int:
        return sum(level.numel() * level.element_size() for level in self.levels)

    def part(self, first: int, last: int) -> VisionFeatures:
        return self.of(level[first:last] for level in self.levels)

    def split(self, counts: Sequence[int]) -> list[VisionFeatures]:
        """One for each picture, in memory of its own, so that each can be let go alone."""
        parts = zip(*(level.split(list(counts)) for level in self.levels), strict=True)
        return [self.of(level.clone() for level in part) for part in parts]


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """T packed tokens of several sequences; logits are computed for the `wanted_b` tokens only."""

    ids_t: Tensor  # int64 [T]
    positions_3t: Tensor  # int64 [3, T]
    attend: Attend
    wanted_b: Tensor  # int64 [B], indexes into T
    vision: VisionFeatures | None = None
    vision_at_v: Tensor | None = None  # int64 [V], indexes into T where the rows go
    stretch_t: Tensor | None = None  # int64 [T], rope.stretch of each token's sequence; None: all 1
