"""Attention of packed sequences on a GPU, paged or not: in Triton where it is, else in PyTorch.

`triton_attend` says which; decode steps of fixed shapes have `attend_decode` in PyTorch as well, the
other steps engine/cache.py, pictures models/attention.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from qvl.models.attention import packed_attention

log = logging.getLogger(__name__)
SHORT = 8  # new tokens of a sequence, up to which its keys are split over programs
SPLIT = 256  # keys of one program then; fixed, so that no row's sums depend on the others


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """How queries are packed and where each of B sequences has its keys; int32, on the device.

    The counts are what the grid of a launch must reach; greater ones give the same numbers.
    """

    cu_q: Tensor  # [B + 1], first query of each sequence
    k_lens_b: Tensor
    table_bw: Tensor | None  # pages of each sequence; None: keys are packed as queries are
    page_tokens: int
    short_q: int  # most new tokens of the sequences that have at most SHORT; 0: there are none
    long_q: int  # of those with more
    max_k: int


def sequences(
    q_lens: Sequence[int],
    k_lens: Sequence[int],
    tables: Sequence[Sequence[int]] | None,
    page_tokens: int,
    device: torch.device,
) -> Sequences:
    """From lengths and pages on the host; packed segments have no tables and are never split."""
    limit = SHORT if tables is not None else 0
    table = None
    if tables is not None:
        width = max(map(len, tables))
        rows = [[*pages, *[0] * (width - len(pages))] for pages in tables]
        table = torch.tensor(rows, dtype=torch.int32).to(device)
    return Sequences(
        cu_q=torch.tensor([0, *accumulate(q_lens)], dtype=torch.int32).to(device),
        k_lens_b=torch.tensor(k_lens, dtype=torch.int32).to(device),
        table_bw=table,
        page_tokens=page_tokens,
        short_q=max((n for n in q_lens if n <= limit), default=0),
        long_q=max((n for n in q_lens if n > limit), default=0),
        max_k=max(k_lens),
    )


@lru_cache(maxsize=4)
def whole_segments(lengths: tuple[int, ...], device: torch.device) -> Sequences:
    """Of whole segments without pages; every layer of a vision tower asks for the same."""
    return sequences(lengths, lengths, None, 0, device)


@cache
def triton_attend(device: torch.device) -> Callable[..., Tensor] | None:
    """triton_attention.attend where it runs, else None; the reason goes to the log, once."""
    if device.type != "cuda":
        return None
    if torch.cuda.get_device_capability(device) < (8, 0):
        log.info("attention runs in PyTorch: the Triton kernels are for Ampere and later")
        return None
    try:
        from qvl.kernels.triton_attention import attend
    except ImportError:
        log.warning("attention runs in PyTorch, slower: Triton is not installed")
        return None
    return attend


def segment_attention(
    q_tnh: Tensor, k_tkh: Tensor, v_tkh: Tensor, cu_seqlens: Sequence[int], *, causal: bool
) -> Tensor:
    """models.attention.packed_attention, in one launch where lengths differ; without gradients."""
    lengths = tuple(b - a for a, b in pairwise(cu_seqlens))
    attend = triton_attend(q_tnh.device)
    if attend is None or len(set(lengths)) == 1:  # of equal ones PyTorch makes one call too
        return packed_attention(q_tnh, k_tkh, v_tkh, cu_seqlens, causal=causal)
    where = whole_segments(lengths, q_tnh.device)
    return attend(q_tnh, k_tkh, v_tkh, where, causal=causal)


def paged_kernel(
    q_lens: Sequence[int],
    k_lens: Sequence[int],
    tables: Sequence[Sequence[int]],
    page_tokens: int,
    device: torch.device,
) -> Callable[..., Tensor] | None:
    """Causal attention of such a step, a function of q, k and v, where there is a kernel for it."""
    attend = triton_attend(device)
    if attend is None:
        return None
    where = sequences(q_lens, k_lens, tables, page_tokens, device)
    return partial(attend, sequences=where, causal=True)


def attend_decode(q_bnh: Tensor, k_ckh: Tensor, v_ckh: Tensor, where: Sequences) -> Tensor:
    """Attention [B, n, h] of one new token a sequence; shapes depend on nothing but shapes.

    k and v are a layer's whole cache [slots, kv_heads, h].
    """
    triton = triton_attend(q_bnh.device)
    if triton is not None:
        return triton(q_bnh, k_ckh, v_ckh, where, causal=True)
    assert where.table_bw is not None
    offsets = torch.arange(where.page_tokens, device=q_bnh.device)
    slots_bc = (where.table_bw.unsqueeze(-1) * where.page_tokens + offsets).flatten(1)
    seen_bc = torch.arange(slots_bc.shape[1], device=q_bnh.device) < where.k_lens_b.unsqueeze(1)
    # what is not written yet may be no number, which no mask takes away
    k, v = (
        x[slots_bc].masked_fill(~seen_bc[..., None, None], 0).transpose(1, 2)
        for x in (k_ckh, v_ckh)
    )
    q = q_bnh.unflatten(1, (k.shape[1], -1))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_bc[:, None, None])
    return out.flatten(1, 2)
