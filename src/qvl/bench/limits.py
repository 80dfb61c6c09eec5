"""What this machine or its GPU can do at most: bytes read a second, numbers multiplied a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from qvl.kernels.linear import in_large_pages

READ_BYTES = {"cpu": 1 << 29, "cuda": 1 << 32}  # far more than any cache holds
GEMM_SIDE = {"cpu": 1536, "cuda": 8192}
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """bytes/s of reading memory and operations/s of a matrix product in `dtype`, all of the device."""

    read_bytes_s: float
    gemm_flop_s: float
    dtype: torch.dtype = torch.float32


def measured(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Limits:
    """Of a device, the product in `dtype`; one other than CUDA is measured as a CPU is."""
    kind = torch.device(device).type
    read_bytes, side = (sizes.get(kind, sizes["cpu"]) for sizes in (READ_BYTES, GEMM_SIDE))
    numbers = in_large_pages(torch.empty(read_bytes // 4, device=device)).fill_(1)
    a, b = torch.randn(2, side, side, device=device).to(dtype).unbind()
    # the items wait for the device
    return Limits(
        read_bytes_s=read_bytes / best_s(lambda: numbers.sum().item()),
        gemm_flop_s=2 * side**3 / best_s(lambda: (a @ b)[0, 0].item()),
        dtype=dtype,
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
