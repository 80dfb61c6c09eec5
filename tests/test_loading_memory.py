"""Loading takes about as much memory as the weights themselves, at its peak too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tiny

# loads, reads every parameter once so that mapped pages count, and prints the peak in KiB
CHILD = """
import sys
from pathlib import Path
from qvl.loading.model import load_model

loaded = load_model(Path(sys.argv[1]), dtype=sys.argv[2])
for parameter in loaded.model.parameters():
    parameter.sum()
status = Path("/proc/self/status").read_text()
print(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])
"""


def peak_bytes(folder: Path, dtype: str) -> int:
    command = [sys.executable, "-c", CHILD, str(folder), dtype]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return int(done.stdout) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")
def test_the_peak_is_hardly_more_than_the_weights(tmp_path: Path) -> None:
    """Over what the same loading of a tiny checkpoint takes."""
    tiny.save_tiny(tmp_path, "qwen3_vl")
    idle = peak_bytes(tmp_path, "bf16")
    weights = tiny.save_large(tmp_path)
    assert weights > 200e6
    bf16, fp32 = ((peak_bytes(tmp_path, d) - idle) / weights for d in ("bf16", "fp32"))
    assert 0.9 <= bf16 <= 1.15
    # converted to twice the size: never more than one of the two shards is mapped beside that
    assert 1.9 <= fp32 <= 2 + 0.5 + 0.15
