"""Memory and cores as a process may use them, from the kernel's tables of both kinds of container."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvl.loading.machine import (
    bf16_instructions,
    memory_bytes,
    processor_name,
    usable_cores,
)

MIB = 1024**2
MEMINFO = "MemTotal:       8388608 kB\nMemFree:  100 kB\nMemAvailable:   4194304 kB\nHugePages: x\n"


def write(folder: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n")
    return folder


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    return write(tmp_path / "proc", {"meminfo": MEMINFO}) / "meminfo"


V2 = {"memory.max": 1024 * MIB, "memory.current": 900 * MIB}
V1 = {
    "memory/memory.limit_in_bytes": 1024 * MIB,
    "memory/memory.usage_in_bytes": 900 * MIB,
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (8192, 4096)),
        ({"memory.max": "max", "memory.current": 5}, (8192, 4096)),
        ({"memory/memory.limit_in_bytes": 9223372036854771712}, (8192, 4096)),
        (V2, (1024, 124)),
        (V2 | {"memory.stat": f"anon 1\ninactive_file {800 * MIB}"}, (1024, 924)),
        (V1 | {"memory/memory.stat": f"total_inactive_file {100 * MIB}"}, (1024, 224)),
        ({"memory.max": 1024 * MIB, "memory.current": 1100 * MIB}, (1024, 0)),
        ({"memory.max": 7168 * MIB, "memory.current": 10 * MIB}, (7168, 4096)),
    ],
)
def test_memory_is_the_smaller_of_machine_and_container(
    files: dict[str, object], expected: tuple[int, int], meminfo: Path, tmp_path: Path
):
    found = memory_bytes(meminfo, write(tmp_path / "cgroup", files))
    assert found == (expected[0] * MIB, expected[1] * MIB)


def test_memory_is_unknown_without_the_kernels_table(tmp_path: Path):
    assert memory_bytes(tmp_path / "absent", tmp_path) is None


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 4),
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "900000 100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": 300000, "cpu/cpu.cfs_period_us": 100000}, 3),
        ({"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100000}, 4),
    ],
)
def test_cores_are_the_affinity_within_the_containers_quota(
    files: dict[str, object], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert usable_cores(write(tmp_path, files)) == cores


def test_the_processors_flags_are_words_not_parts_of_words(tmp_path: Path):
    cpuinfo = write(
        tmp_path, {"cpuinfo": "model name\t: Chip 9\nflags\t: fpu avx512_bf16x amx_bf16"}
    )
    assert bf16_instructions(cpuinfo / "cpuinfo") == ["amx_bf16"]
    assert processor_name(cpuinfo / "cpuinfo") == "Chip 9"
    assert bf16_instructions(tmp_path / "absent") == []
    assert processor_name(tmp_path / "absent") is None
