"""Attention on a CPU, compiled: of one step over the KV cache, and of whole pictures in the tower.

`attend_causal` and `models.attention.packed_attention` are the same in PyTorch.

Each token is computed by itself, in the order of the tokens before it: the same bits alone, among
others, in whatever part of a prompt, and as a guess that is being checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from qvl.kernels.build import library
from qvl.kernels.linear import pointer
from qvl.models.attention import packed_attention

WIDTH = 32  # a head's width is a multiple of this


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where the T tokens of a step stand: of each, its position and where its sequence's blocks begin."""

    tables: Tensor  # int32, the blocks of all sequences one after the other
    starts_t: Tensor  # int64, indexes into `tables`
    positions_t: Tensor  # int64


@runtime_checkable
class OverCache(Protocol):
    """The `Attend` of a step over a KV cache, of which a compiled layer needs no more than this."""

    places: Places | None
    cache: Caches


class Caches(Protocol):
    def layer(self, layer: int, k_tkh: Tensor) -> Tensor:
        """Keys and values of a layer [2, blocks, tokens, kv_heads, h], made for such keys."""
        ...


def places(spans: Sequence[tuple[Tensor, int, int]]) -> Places | None:
    """Of each sequence its blocks, and the first and the last position + 1 of its new tokens.

    None where this kernel does not run: not on a CPU, or not compiled.
    """
    if spans[0][0].device.type != "cpu" or library() is None:
        return None
    starts, offset = [], 0
    for blocks, start, stop in spans:
        starts.append(torch.full((stop - start,), offset))
        offset += len(blocks)
    return Places(
        tables=torch.cat([blocks for blocks, _, _ in spans]).int(),
        starts_t=torch.cat(starts),
        positions_t=torch.cat([torch.arange(start, stop) for _, start, stop in spans]),
    )


def takes(q_tnh: Tensor) -> bool:
    return q_tnh.dtype == torch.float32 and q_tnh.shape[2] % WIDTH == 0


def attend(kv: Tensor, q_tnh: Tensor, k_tkh: Tensor, v_tkh: Tensor, where: Places) -> Tensor:
    """Keys and values into kv [2, blocks, tokens, kv_heads, h]; causal attention [T, n, h] over it."""
    kernels = library()
    assert kernels is not None
    q_tnh, k_tkh, v_tkh = rows_in_place(q_tnh), rows_in_place(k_tkh), rows_in_place(v_tkh)
    if k_tkh.stride(0) != v_tkh.stride(0):
        k_tkh, v_tkh = k_tkh.contiguous(), v_tkh.contiguous()
    tokens, heads, width = q_tnh.shape
    out_tnh = q_tnh.new_empty(tokens, heads, width)
    kernels.qvl_attend(
        pointer(q_tnh), pointer(k_tkh), pointer(v_tkh), q_tnh.stride(0), k_tkh.stride(0),
        pointer(kv), kv.shape[1], kv.shape[2], pointer(where.tables), pointer(where.starts_t),
        pointer(where.positions_t), pointer(out_tnh), tokens, heads, k_tkh.shape[1], width,
    )  # fmt: skip
    return out_tnh


def attend_whole(
    q_tnh: Tensor, k_tkh: Tensor, v_tkh: Tensor, cu_seqlens: Sequence[int], *, causal: bool
) -> Tensor:
    """models.attention.packed_attention of a vision tower; a segment is the same alone.

    Multiplied as packed bf16 layers are: in bf16 where the processor does that.
    """
    kernels, (tokens, heads, width) = library(), q_tnh.shape
    if kernels is None or causal or width % 2 or q_tnh.dtype != torch.float32:
        return packed_attention(q_tnh, k_tkh, v_tkh, cu_seqlens, causal=causal)
    q_tnh, k_tkh, v_tkh = (rows_in_place(x) for x in (q_tnh, k_tkh, v_tkh))
    if not q_tnh.stride(0) == k_tkh.stride(0) == v_tkh.stride(0):
        q_tnh, k_tkh, v_tkh = (x.contiguous() for x in (q_tnh, k_tkh, v_tkh))
    bounds, out_tnh = torch.tensor(cu_seqlens), q_tnh.new_empty(tokens, heads, width)
    kernels.qvl_attend_whole(
        pointer(q_tnh), pointer(k_tkh), pointer(v_tkh), q_tnh.stride(0), pointer(bounds),
        len(bounds) - 1, pointer(out_tnh), heads, width,
    )  # fmt: skip
    return out_tnh


def rows_in_place(x_tnh: Tensor) -> Tensor:
    """Itself where the heads of a token lie together, otherwise a copy."""
    _, heads, width = x_tnh.shape
    together = x_tnh.stride(2) == 1 and (heads == 1 or x_tnh.stride(1) == width)
    return x_tnh if together else x_tnh.contiguous()


def attend_causal(q_mnh: Tensor, k_ckh: Tensor, v_ckh: Tensor) -> Tensor:
    """Attention [m, n, h] of the last m of c tokens: query i sees the first c - m + i + 1 keys."""
    new, cached = len(q_mnh), len(k_ckh)
    k, v = (x.transpose(0, 1).unsqueeze(0) for x in (k_ckh, v_ckh))
    if new == 1:
        # the query heads that share a key head become rows: the same numbers, and on CPU ten times
        # as fast as one row per head
        q = q_mnh.unflatten(1, (k_ckh.shape[1], -1))
        return F.scaled_dot_product_attention(q, k, v).flatten(1, 2)
    q = q_mnh.transpose(0, 1).unsqueeze(0)
    if new == cached:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    else:  # is_causal would align the first query with the first key
        mask = torch.ones(new, cached, dtype=torch.bool, device=q.device).tril(cached - new)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return out.squeeze(0).transpose(0, 1)
