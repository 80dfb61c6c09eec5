"""Triton kernels of the quantised linear layers: rows to fp8, and rows times int4 weights.

Imported only where Triton is, by quantised.py, which says how the weights lie.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def fp8_rows_kernel(
    x, values, scales, width, most_fp8, least,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    """One row: its largest number decides the scale."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, AT_ONCE)
    most = tl.zeros((AT_ONCE,), tl.float32)
    for start in range(0, width, AT_ONCE):
        part = tl.load(x + row * width + start + k, mask=start + k < width, other=0.0)
        most = tl.maximum(most, tl.abs(part.to(tl.float32)))
    scale = tl.maximum(tl.max(most, 0), least) / most_fp8
    tl.store(scales + row, scale)
    for start in range(0, width, AT_ONCE):
        inside = start + k < width
        part = tl.load(x + row * width + start + k, mask=inside, other=0.0).to(tl.float32)
        scaled = tl.minimum(tl.maximum(part / scale, -most_fp8), most_fp8)
        tl.store(values + row * width + start + k, scaled.to(values.dtype.element_ty), mask=inside)


def fp8_rows(x_mk: Tensor, dtype: torch.dtype, least: float) -> tuple[Tensor, Tensor]:
    """(values [M, K], fp32 scales [M, 1]) of contiguous rows."""
    values = torch.empty(x_mk.shape, dtype=dtype, device=x_mk.device)
    scales = torch.empty(len(x_mk), 1, device=x_mk.device)
    fp8_rows_kernel[(len(x_mk),)](
        x_mk, values, scales, x_mk.shape[1], torch.finfo(dtype).max, least, AT_ONCE=1024
    )
    return values, scales


@triton.jit
def int4_kernel(
    x, nibbles, scales, zeros, bias, y, m, n, groups,
    M: tl.constexpr, N: tl.constexpr, HALF: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """A tile [M, N] of x times the weight: whole numbers times x, then each group's scale in fp32."""
    rows = tl.program_id(1) * M + tl.arange(0, M)
    outputs = tl.program_id(0) * N + tl.arange(0, N)
    in_rows, in_outputs = (rows < m)[:, None], outputs < n
    k = tl.arange(0, HALF)
    width = groups * 2 * HALF
    x_rows = x + rows.to(tl.int64)[:, None] * width + k[None, :]
    at_nibbles = nibbles + outputs.to(tl.int64)[:, None] * (groups * HALF) + k[None, :]
    acc = tl.zeros((M, N), tl.float32)
    for group in range(groups):
        two = tl.load(at_nibbles + group * HALF, mask=in_outputs[:, None], other=0).to(tl.int32)
        zero = tl.load(zeros + outputs * groups + group, mask=in_outputs, other=0).to(tl.int32)
        scale = tl.load(scales + outputs * groups + group, mask=in_outputs, other=0.0)
        first = tl.load(x_rows + group * 2 * HALF, mask=in_rows, other=0.0)
        second = tl.load(x_rows + group * 2 * HALF + HALF, mask=in_rows, other=0.0)
        low = ((two & 15) - zero[:, None]).to(first.dtype)
        high = ((two >> 4) - zero[:, None]).to(first.dtype)
        part = tl.dot(first, tl.trans(low), input_precision="ieee")
        part += tl.dot(second, tl.trans(high), input_precision="ieee")
        acc += part * scale.to(tl.float32)[None, :]
    if BIASED:
        acc += tl.load(bias + outputs, mask=in_outputs, other=0.0).to(tl.float32)[None, :]
    place = y + rows.to(tl.int64)[:, None] * n + outputs[None, :]
    tl.store(place, acc.to(y.dtype.element_ty), mask=in_rows & in_outputs[None, :])


def int4_rows(
    x_mk: Tensor, nibbles: Tensor, scales_ng: Tensor, zeros_ng: Tensor, bias_n: Tensor | None
) -> Tensor:
    """y [M, N] of contiguous rows x in their dtype; nibbles uint8 [N, G, 64]."""
    m, (n, groups) = len(x_mk), scales_ng.shape
    y_mn = torch.empty(m, n, dtype=x_mk.dtype, device=x_mk.device)
    tile_m, tile_n = 16, 32  # of few rows the weights set the pace: many narrow programs
    int4_kernel[(triton.cdiv(n, tile_n), triton.cdiv(m, tile_m))](
        x_mk, nibbles, scales_ng, zeros_ng, x_mk if bias_n is None else bias_n, y_mn,
        m, n, groups, M=tile_m, N=tile_n, HALF=nibbles.shape[2], BIASED=bias_n is not None,
        num_warps=4, num_stages=4,
    )  # fmt: skip
    return y_mn
