"""Attention over several packed sequences: each sees only itself, without a dense T x T mask."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def packed_attention(
    q_tnh: Tensor, k_tkh: Tensor, v_tkh: Tensor, cu_seqlens: Sequence[int], *, causal: bool
) -> Tensor:
    """Softmax attention [T, n, h] within each segment cu_seqlens[i] .. cu_seqlens[i + 1]."""
    lengths = {end - start for start, end in pairwise(cu_seqlens)}
    if len(lengths) == 1:  # equal lengths (frames, pictures of one size): one batched call
        split = (len(cu_seqlens) - 1, lengths.pop())
        q, k, v = (x.unflatten(0, split).transpose(1, 2) for x in (q_tnh, k_tkh, v_tkh))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)
    parts = [
        packed_attention(q_tnh[a:b], k_tkh[a:b], v_tkh[a:b], (0, b - a), causal=causal)
        for a, b in pairwise(cu_seqlens)
    ]
    return torch.cat(parts)


class PackedCausal:
    """`Attend` without a cache: every sequence is whole in this pass."""

    def __init__(self, cu_seqlens: Sequence[int]) -> None:
        self.cu_seqlens = cu_seqlens

    def __call__(self, layer: int, q_tnh: Tensor, k_tkh: Tensor, v_tkh: Tensor) -> Tensor:
        return packed_attention(q_tnh, k_tkh, v_tkh, self.cu_seqlens, causal=True)
