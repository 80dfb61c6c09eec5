"""Converted by llama.cpp's own converter, the embedded model says in its server what it says here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLOSEST = 0.05  # log-probabilities of the same tokens in F32, where its GELU is a table in F16


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("llama-server") is None or "LLAMA_CPP" not in os.environ,
    reason="needs llama-server on PATH, and LLAMA_CPP: see benchmarks/same_words.py",
)
@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_its_greedy_texts_are_ours(kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.same_words", "--kind", kind, "--items", "60"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    ((equal, asked, apart),) = re.findall(
        r"(\d+) of (\d+) texts .* most ([\d.]+) apart", done.stdout
    )
    assert int(asked) == 60
    assert int(equal) >= 57, done.stdout
    if kind == "F32":
        assert float(apart) < CLOSEST, done.stdout
