"""Rotary positions: two axes in the vision tower, three (M-RoPE) in the decoder.

Both follow transformers 5.23 models/qwen2_vl and models/qwen3_vl. Angles, cosines and sines are
fp32; the frequencies are computed on the fly, so that no `.bfloat16()` can round them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

VISION_THETA = 10_000.0


def rotate(x_tnh: Tensor, cos_th: Tensor, sin_th: Tensor) -> Tensor:
    """x rotated by angles shared by all heads: x cos + (-x2, x1) sin, halves x1 and x2.

    Computed in the wider of the two dtypes, returned in that of x.
    """
    first, second = x_tnh.chunk(2, dim=-1)
    half = first.shape[-1]
    cos, sin = cos_th.unsqueeze(1), sin_th.unsqueeze(1)
    return torch.cat(
        (
            first * cos[..., :half] - second * sin[..., :half],
            second * cos[..., half:] + first * sin[..., half:],
        ),
        dim=-1,
    ).to(x_tnh.dtype)


def stretch(prompt_tokens: int, start: int) -> int:
    """By how much the first Qwen-VL stretches the positions of a sequence, for good (dynamic NTK).

    1 for a prompt of up to `start` tokens, then 3, 7, 15 .. with each doubling. (modeling_qwen.py,
    get_ntk_alpha: 2^ceil(log2(tokens / start) + 1) - 1.)
    """
    doublings = 0
    while start << doublings < prompt_tokens:
        doublings += 1
    return (2 << doublings) - 1


def stretched_theta(theta: float, stretch_t: Tensor, head_dim: int) -> Tensor:
    """The base of each token's frequencies, fp32 [T, 1]."""
    return theta * stretch_t.float().unsqueeze(-1) ** (head_dim / (head_dim - 2))


def log_n(positions_t: Tensor, start: int) -> Tensor:
    """What the first Qwen-VL multiplies the query of its nth token by: ln n / ln start, if over 1."""
    return ((positions_t + 1).float().log() / math.log(start)).clamp(min=1)


def frequencies(dim: int, theta: float | Tensor, device: torch.device) -> Tensor:
    """theta^(-2i / dim) for i < dim / 2, fp32 [dim / 2], or [T, dim / 2] for a theta [T, 1]."""
    steps = torch.arange(0, dim, 2, dtype=torch.float32, device=device)
    return 1.0 / (theta ** (steps / dim))


def vision_angles(rows_cols_s2: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """fp32 (cos, sin) [S, head_dim] of patches at (row, column): a quarter each, then repeated."""
    inv = frequencies(head_dim // 2, VISION_THETA, rows_cols_s2.device)
    angles = (rows_cols_s2.float().unsqueeze(-1) * inv).flatten(1)  # [S, head_dim / 2]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def mrope_axes(section: Sequence[int], *, interleaved: bool) -> list[int]:
    """Which axis (0 time, 1 row, 2 column) drives each of the head_dim / 2 frequencies.

    In blocks (Qwen2-VL, Qwen2.5-VL): all of time, then rows, then columns. Interleaved (Qwen3-VL):
    t h w t h w ... while rows and columns have frequencies left, then time.
    """
    time, rows, cols = section
    if not interleaved:
        return [0] * time + [1] * rows + [2] * cols
    axes = [0] * (time + rows + cols)
    axes[1 : 3 * rows : 3] = [1] * rows
    axes[2 : 3 * cols : 3] = [2] * cols
    return axes


@cache
def _indexes(axes: tuple[int, ...], device: torch.device) -> Tensor:
    """On the device once: a CUDA graph cannot copy from the host."""
    return torch.tensor(axes, device=device)


def mrope_angles(
    positions_3t: Tensor,
    *,
    head_dim: int,
    theta: float | Tensor,
    axes: Sequence[int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """(cos, sin) [T, head_dim], computed in fp32 and then cast to the model's dtype."""
    inv = frequencies(head_dim, theta, positions_3t.device)
    chosen = positions_3t[_indexes(tuple(axes), positions_3t.device)]  # [head_dim / 2, T]
    angles = chosen.T.float() * inv
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)
