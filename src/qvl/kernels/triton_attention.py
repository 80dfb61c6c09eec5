"""Attention of packed sequences in one Triton kernel: paged and causal, or whole segments.

Main path: attend -> attend_kernel, and combine_kernel where the keys of a sequence were split.
The query heads that share a key head are rows of one tile, so keys and values are read once for
all of them. Online softmax in fp32 (FlashAttention, arXiv 2205.14135); a sequence of few new tokens
has its keys split over programs (Flash-Decoding) at SPLIT keys each, whatever else is in the batch:
a row's sums are in the same order in any company. Imported only where Triton is (see paged.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvl.kernels.paged import SHORT, SPLIT, Sequences

LOG2E = 1.4426950408889634


@triton.jit
def attend_kernel(
    q, k, v, out, part, part_sums, table, cu_q, k_lens,
    scale, splits, tokens, pages,
    q_t, q_n, k_t, k_k, v_t, v_k, out_t, out_n,
    GROUP: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, PAGE: tl.constexpr, SPLIT: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    """One tile of M rows (new tokens x GROUP query heads) of a sequence and key head.

    PAGE 0: the keys of a sequence lie where its queries do. SPLIT 0: all keys, straight to `out`;
    otherwise SPLIT keys, to `part` [splits, tokens, heads, HEAD] and `part_sums` [.., 2].
    """
    tile, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    head, seq = tl.program_id(1), tl.program_id(2)
    q_first = tl.load(cu_q + seq)
    q_len = tl.load(cu_q + seq + 1) - q_first
    k_len = tl.load(k_lens + seq)
    if (q_len <= SHORT) != (SPLIT > 0):  # the other launch's
        return
    if tile * M >= q_len * GROUP:
        return
    first = split * SPLIT
    last = k_len
    if SPLIT > 0:
        if first >= k_len:  # combine_kernel does not look at it
            return
        last = tl.minimum(k_len, first + SPLIT)
    offset = k_len - q_len
    if CAUSAL:  # the tile's last token sees no further
        last = tl.minimum(last, offset + tl.minimum((tile * M + M - 1) // GROUP, q_len - 1) + 1)

    rows = tile * M + tl.arange(0, M)
    token = rows // GROUP
    query_head = head * GROUP + rows % GROUP
    in_rows = token < q_len
    d = tl.arange(0, D)
    in_head = d < HEAD
    at = (q_first + token).to(tl.int64)
    q_md = tl.load(
        q + (at * q_t + query_head * q_n)[:, None] + d[None, :],
        mask=in_rows[:, None] & in_head[None, :],
        other=0.0,
    )
    most = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, D), tl.float32)
    for start in range(first, last, N):
        j = start + tl.arange(0, N)
        in_keys = j < last
        if PAGE > 0:
            page = tl.load(table + seq * pages + j // PAGE, mask=in_keys, other=0)
            slot = page.to(tl.int64) * PAGE + j % PAGE
        else:
            slot = (q_first + j).to(tl.int64)
        seen = in_keys[:, None] & in_head[None, :]
        k_nd = tl.load(k + (slot * k_t + head * k_k)[:, None] + d[None, :], mask=seen, other=0.0)
        v_nd = tl.load(v + (slot * v_t + head * v_k)[:, None] + d[None, :], mask=seen, other=0.0)
        s = tl.dot(q_md, tl.trans(k_nd), input_precision="ieee") * scale
        visible = in_keys[None, :]
        if CAUSAL:
            visible = visible & (j[None, :] <= (token + offset)[:, None])
        s = tl.where(visible, s, float("-inf"))
        higher = tl.maximum(most, tl.max(s, 1))
        level = tl.where(higher == float("-inf"), 0.0, higher)  # a row that sees none of these
        p = tl.exp2(s - level[:, None])
        keep = tl.exp2(most - level)
        total = total * keep + tl.sum(p, 1)
        acc = acc * keep[:, None]
        acc += tl.dot(p.to(v_nd.dtype), v_nd, input_precision="ieee")
        most = higher
    mask = in_rows[:, None] & in_head[None, :]
    if SPLIT > 0:
        heads = tl.num_programs(1) * GROUP
        row = (split.to(tl.int64) * tokens + at) * heads + query_head
        tl.store(part + row[:, None] * HEAD + d[None, :], acc, mask=mask)
        tl.store(part_sums + row * 2, most, mask=in_rows)
        tl.store(part_sums + row * 2 + 1, total, mask=in_rows)
    else:
        acc = acc / tl.where(total == 0, 1.0, total)[:, None]
        place = out + (at * out_t + query_head * out_n)[:, None] + d[None, :]
        tl.store(place, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def combine_kernel(
    part, part_sums, out, cu_q, k_lens, tokens, out_t, out_n,
    HEAD: tl.constexpr, D: tl.constexpr, SPLIT: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    """The splits of one token and query head, in order, into `out`."""
    token, head, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    q_first = tl.load(cu_q + seq)
    q_len = tl.load(cu_q + seq + 1) - q_first
    if (q_len > SHORT) | (token >= q_len):
        return
    splits = tl.cdiv(tl.load(k_lens + seq), SPLIT)
    heads = tl.num_programs(1)
    at = (q_first + token).to(tl.int64)
    d = tl.arange(0, D)
    in_head = d < HEAD
    most = float("-inf")
    total = 0.0
    acc = tl.zeros((D,), tl.float32)
    for split in range(splits):
        row = (split * tokens.to(tl.int64) + at) * heads + head
        top = tl.load(part_sums + row * 2)
        higher = tl.maximum(most, top)
        level = tl.where(higher == float("-inf"), 0.0, higher)
        keep, scale = tl.exp2(most - level), tl.exp2(top - level)
        total = total * keep + tl.load(part_sums + row * 2 + 1) * scale
        acc = acc * keep + tl.load(part + row * HEAD + d, mask=in_head, other=0.0) * scale
        most = higher
    acc = acc / tl.where(total == 0, 1.0, total)
    tl.store(out + at * out_t + head * out_n + d, acc.to(out.dtype.element_ty), mask=in_head)


def attend(
    q_tnh: Tensor, k_ckh: Tensor, v_ckh: Tensor, sequences: Sequences, *, causal: bool
) -> Tensor:
    """Attention [T, n, h] of packed queries; the last dimension of all must be contiguous.

    With a table, k and v are a layer's whole cache [slots, kv_heads, h] and slot page * page_tokens +
    offset holds a token; without, they are packed as the queries are. Causal: query i of m new
    tokens sees the first k_len - m + i + 1 keys.
    """
    tokens, heads, head_dim = q_tnh.shape
    kv_heads, group = k_ckh.shape[1], heads // k_ckh.shape[1]
    d = max(16, triton.next_power_of_2(head_dim))
    out = torch.empty(tokens, heads, head_dim, dtype=q_tnh.dtype, device=q_tnh.device)
    table = sequences.table_bw
    short = SHORT if table is not None else 0
    keys_at_once = 32 if q_tnh.dtype == torch.float32 else 64  # what fits in 99 KB beside the tile
    count = len(sequences.k_lens_b)

    def launch(rows: int, most_tokens: int, split: int, part: Tensor, part_sums: Tensor) -> None:
        splits = -(-sequences.max_k // split) if split else 1
        grid = (-(-most_tokens * group // rows) * splits, kv_heads, count)
        attend_kernel[grid](
            q_tnh, k_ckh, v_ckh, out, part, part_sums,
            sequences.cu_q if table is None else table, sequences.cu_q, sequences.k_lens_b,
            head_dim**-0.5 * LOG2E, splits, tokens, 0 if table is None else table.shape[1],
            *q_tnh.stride()[:2], *k_ckh.stride()[:2], *v_ckh.stride()[:2], *out.stride()[:2],
            GROUP=group, HEAD=head_dim, D=d, M=rows, N=keys_at_once,
            CAUSAL=causal, PAGE=0 if table is None else sequences.page_tokens,
            SPLIT=split, SHORT=short, num_warps=4, num_stages=2,
        )  # fmt: skip

    if sequences.long_q:
        launch(64, sequences.long_q, 0, out, out)
    if sequences.short_q:
        splits = -(-sequences.max_k // SPLIT)
        part = torch.empty(splits, tokens, heads, head_dim, device=out.device)
        part_sums = torch.empty(splits, tokens, heads, 2, device=out.device)
        launch(16, sequences.short_q, SPLIT, part, part_sums)
        combine_kernel[(sequences.short_q, heads, count)](
            part, part_sums, out, sequences.cu_q, sequences.k_lens_b, tokens, *out.stride()[:2],
            HEAD=head_dim, D=d, SPLIT=SPLIT, SHORT=short,
        )  # fmt: skip
    return out
