"""Attention of one step over the KV cache on a CPU, compiled; engine/cache.py has it in PyTorch.

Each token is computed by itself, in the order of the tokens before it: the same bits alone, among
others, in whatever part of a prompt, and as a guess that is being checked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qvl.kernels.build import library
from qvl.kernels.linear import pointer

BLOCK_TOKENS = 16  # in cpu.c
LANES = 32  # a head's width is a multiple of this


def runs_on(q_tnh: Tensor) -> bool:
    """Whether this kernel can take such queries."""
    fits = q_tnh.dtype == torch.float32 and q_tnh.shape[2] % LANES == 0
    return q_tnh.device.type == "cpu" and fits and library() is not None


class Places:
    """Where the tokens of a step stand: of each, the position and the blocks of its sequence."""

    def __init__(self, spans: Sequence[tuple[Tensor, int, int]]) -> None:
        """A span is its sequence's blocks, and the first and the last position + 1 of its tokens."""
        self.tables = torch.cat([blocks for blocks, _, _ in spans]).int()
        self.positions_t = torch.cat([torch.arange(start, stop) for _, start, stop in spans])
        starts, offset = [], 0
        for blocks, start, stop in spans:
            starts.append(torch.full((stop - start,), offset))
            offset += len(blocks)
        self.starts_t = torch.cat(starts)


def attend(kv: Tensor, q_tnh: Tensor, k_tkh: Tensor, v_tkh: Tensor, places: Places) -> Tensor:
    """Keys and values into kv [2, blocks, 16, kv_heads, h]; causal attention [T, n, h] over it."""
    kernels = library()
    assert kernels is not None
    q_tnh, k_tkh, v_tkh = rows_in_place(q_tnh), rows_in_place(k_tkh), rows_in_place(v_tkh)
    if k_tkh.stride(0) != v_tkh.stride(0):
        k_tkh, v_tkh = k_tkh.contiguous(), v_tkh.contiguous()
    tokens, heads, width = q_tnh.shape
    out_tnh = q_tnh.new_empty(tokens, heads, width)
    kernels.qvl_attend(
        pointer(q_tnh), pointer(k_tkh), pointer(v_tkh), q_tnh.stride(0), k_tkh.stride(0),
        pointer(kv), kv.shape[1], pointer(places.tables), pointer(places.starts_t),
        pointer(places.positions_t), pointer(out_tnh), tokens, heads, k_tkh.shape[1], width,
    )  # fmt: skip
    return out_tnh


def rows_in_place(x_tnh: Tensor) -> Tensor:
    """Itself where the heads of a token lie together, otherwise a copy."""
    _, heads, width = x_tnh.shape
    together = x_tnh.stride(2) == 1 and (heads == 1 or x_tnh.stride(1) == width)
    return x_tnh if together else x_tnh.contiguous()
