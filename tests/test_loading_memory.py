"""Loading takes about as much memory as the weights themselves, at its peak too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tiny
from qvl.loading.config import model_config
from qvl.models.qwen_vl import QwenVL

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
LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "vocab_size": 8192,
    "tie_word_embeddings": True,
    "vision": {"out_hidden_size": 1024},
}


def write_large(folder: Path) -> int:
    """A bf16 checkpoint in two shards of about equal size; returns the bytes of its weights."""
    config = tiny.config_json("qwen3_vl", **LARGE)
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in QwenVL(model_config(config)).named_parameters()}
    weights, shards = 0, {}
    total = sum(shape.numel() for shape in shapes.values())
    for name, shape in shapes.items():
        shards[name] = f"part-{weights * 2 // total}.safetensors"
        weights += shape.numel()
    for file in set(shards.values()):
        names = [name for name in shapes if shards[name] == file]
        save_file({n: torch.zeros(shapes[n], dtype=torch.bfloat16) for n in names}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return 2 * weights


def peak_bytes(folder: Path, dtype: str) -> int:
    command = [sys.executable, "-c", CHILD, str(folder), dtype]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return int(done.stdout) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")
def test_the_peak_is_hardly_more_than_the_weights(tmp_path: Path) -> None:
    """Over what the same loading of a tiny checkpoint takes."""
    tiny.save_tiny(tmp_path, "qwen3_vl")
    idle = peak_bytes(tmp_path, "bf16")
    weights = write_large(tmp_path)
    assert weights > 200e6
    bf16, fp32 = ((peak_bytes(tmp_path, d) - idle) / weights for d in ("bf16", "fp32"))
    assert 0.9 <= bf16 <= 1.15
    # converted to twice the size: never more than one of the two shards is mapped beside that
    assert 1.9 <= fp32 <= 2 + 0.5 + 0.15
