"""What this machine can do at most: bytes read a second, numbers multiplied a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

READ_BYTES = 1 << 29  # far more than any cache holds
GEMM_SIDE = 1536
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """bytes/s of reading memory and fp32 operations/s of a matrix product, all threads together."""

    read_bytes_s: float
    gemm_flop_s: float


def measured() -> Limits:
    numbers = torch.ones(READ_BYTES // 4)
    a, b = torch.randn(2, GEMM_SIDE, GEMM_SIDE).unbind()
    return Limits(
        read_bytes_s=READ_BYTES / best_s(numbers.sum),
        gemm_flop_s=2 * GEMM_SIDE**3 / best_s(lambda: a @ b),
    )


def best_s(work: Callable[[], object]) -> float:
    """The shortest of some runs after a first one: what the machine can do undisturbed."""
    work()
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
