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
    lengths = [end - start for start, end in pairwise(cu_seqlens)]
    if len(set(lengths)) == 1:  # equal lengths (frames, pictures of one size): one batched call
        split = (len(lengths), lengths[0])
        q, k, v = (x.unflatten(0, split) for x in (q_tnh, k_tkh, v_tkh))
        return _attended(q, k, v, causal=causal).flatten(0, 1)
    # one call for each length; a `split` has one backward, slices one each
    pieces = [x.split(lengths) for x in (q_tnh, k_tkh, v_tkh)]
    parts: list[Tensor] = [q_tnh] * len(lengths)
    for length in dict.fromkeys(lengths):
        at = [i for i, one in enumerate(lengths) if one == length]
        q, k, v = (torch.stack([piece[i] for i in at]) for piece in pieces)
        for i, part in zip(at, _attended(q, k, v, causal=causal), strict=True):
            parts[i] = part
    return torch.cat(parts)


def _attended(q_blnh: Tensor, k_blkh: Tensor, v_blkh: Tensor, *, causal: bool) -> Tensor:
    """[B, L, n, h] of as many sequences of one length."""
    q, k, v = (x.transpose(1, 2) for x in (q_blnh, k_blkh, v_blkh))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    return out.transpose(1, 2)


class PackedCausal:
    """`Attend` without a cache: every sequence is whole in this pass."""

    def __init__(self, cu_seqlens: Sequence[int]) -> None:
        self.cu_seqlens = cu_seqlens

    def __call__(self, layer: int, q_tnh: Tensor, k_tkh: Tensor, v_tkh: Tensor) -> Tensor:
        return packed_attention(q_tnh, k_tkh, v_tkh, self.cu_seqlens, causal=True)
