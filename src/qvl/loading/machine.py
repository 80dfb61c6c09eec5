"""What this machine gives to a model: memory, cores, bf16 instructions; a container's limits count.

Reads the kernel's own tables (Linux: /proc and cgroup v1 or v2), which are arguments for the tests.
Elsewhere the answers are None, all cores and none.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
CPUINFO = Path("/proc/cpuinfo")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is ARM's


def memory_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> tuple[int, int] | None:
    """(total, available), or None where the system does not say.

    Pages of files, which the kernel drops when asked, count as available, in a container too.
    """
    table = _table(meminfo)
    if "MemTotal:" not in table:
        return None
    total = table["MemTotal:"] * 1024
    available = table.get("MemAvailable:", table["MemTotal:"]) * 1024
    limit, used = _cgroup_memory(cgroup)
    if limit is None or limit >= total:  # v1 writes a number near 2**63 for no limit
        return total, available
    return limit, max(0, min(available, limit - used))


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Cores that this process may keep busy: its affinity, and the container's quota rounded up."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota, period = _cpu_quota(cgroup)
    if quota is None or not period:
        return cores
    return max(1, min(cores, math.ceil(quota / period)))


def bf16_instructions(cpuinfo: Path = CPUINFO) -> list[str]:
    """The flags of the processor by which it computes in bf16; empty if it would have to emulate."""
    return sorted(BF16_FLAGS.intersection(_read(cpuinfo).split()))


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Large allocations within get pages of their own, so that many of them leave no holes.

    glibc by itself moves them into its heap once one has been freed: a packed model of 4.3 GB then
    takes 4.9. Afterwards its limits are those that it would reach by itself. Elsewhere: nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 64 << 20)


def processor_name(cpuinfo: Path = CPUINFO) -> str | None:
    for line in _read(cpuinfo).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return None


def _cgroup_memory(cgroup: Path) -> tuple[int | None, int]:
    """(limit or None, bytes in use that cannot be dropped)."""
    v1 = cgroup / "memory"
    for limit, usage, stat, droppable in (
        ("memory.max", "memory.current", cgroup / "memory.stat", "inactive_file"),
        (
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            v1 / "memory.stat",
            "total_inactive_file",
        ),
    ):
        if (stat.parent / limit).is_file():
            used = _number(_read(stat.parent / usage)) or 0
            cached = _table(stat).get(droppable, 0)
            return _number(_read(stat.parent / limit)), max(0, used - cached)
    return None, 0


def _cpu_quota(cgroup: Path) -> tuple[int | None, int | None]:
    """(quota or None, period) in microseconds."""
    words = _read(cgroup / "cpu.max").split()  # v2: "200000 100000" or "max 100000"
    if len(words) != 2:
        v1 = cgroup / "cpu"
        words = [_read(v1 / "cpu.cfs_quota_us"), _read(v1 / "cpu.cfs_period_us")]
    return _number(words[0]), _number(words[1])


def _table(path: Path) -> dict[str, int]:
    """`name number ...` a line, as meminfo and memory.stat write it."""
    rows = (line.split() for line in _read(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdigit()}


def _number(text: str) -> int | None:
    """None for the kernel's words for no limit: max, -1, an empty file."""
    return int(text) if text.strip().isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
