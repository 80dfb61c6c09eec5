"""What learning takes is what PyTorch counts while it learns; the benchmark holds a rate against it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import oracle
import tiny
from qvl.loading.model import read_parts
from qvl.training.data import Unit
from qvl.training.examples import Encoder
from qvl.training.flop import flop_a_token
from qvl.training.passes import Loss, collate
from qvl.training.rows import Row
from qvl.training.trainable import load_base, make_trainable
from qvl.types import Message, Text

ROOT = Path(__file__).parents[2]
LAYERS = {"num_hidden_layers": 10}
PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm)  # attention's own are others


@pytest.mark.parametrize("generation", tiny.GENERATIONS)
def test_it_is_what_is_counted(tmp_path: Path, generation: str) -> None:
    tiny.save_tiny(tmp_path, generation, **LAYERS)
    parts = read_parts(tmp_path)
    asked = Message.user(oracle.picture(168, 140, seed=1), "what is this? " * 20)
    row = Row("a", (asked, Message("assistant", (Text("hello the on " * 12),))))
    example = Encoder(parts, thinks=False).example(row)
    model = load_base(tmp_path, parts.config, "fp32", torch.device("cpu"))
    make_trainable(model, "lora", ("decoder",), rank=1)
    loss, counter = Loss(model), FlopCounterMode(display=False)
    with counter:
        loss(collate([example])).backward()
    counts = counter.get_flop_counts()["Global"]
    counted = sum(counts.get(kind, 0) for kind in PRODUCTS)
    visual = sum(image.tokens for image in example.images)
    unit = Unit((0,), len(example.ids), example.said, visual)
    told = flop_a_token(parts.config, [unit]) * unit.tokens
    # with the adapter, but without what goes back through the first layer
    assert told == pytest.approx(counted, rel=0.12)


@pytest.mark.slow
def test_the_benchmark_prints_the_share_of_a_made_up_peak(tmp_path: Path) -> None:
    tiny.save_tiny(tmp_path, "qwen3_vl")
    options = [
        "--steps",
        "3",
        "--batch",
        "2",
        "--repeat",
        "1",
        "--dtype",
        "fp32",
        "--peak",
        "0.001",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training", str(tmp_path), *options],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (rate,) = re.findall(r"\| qvl \| (\d+) ", done)
    ((flop, share, peak),) = re.findall(
        r"takes ([\d.e-]+) GFLOP, so qvl uses ([\d.]+)% of ([\d.]+)", done
    )
    assert float(peak) == 0.001
    expected = 100 * float(flop) * 1e9 * float(rate) / 1e9
    assert float(share) == pytest.approx(expected, rel=0.02, abs=0.1)
