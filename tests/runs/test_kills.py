"""A run that is killed at any moment has lost nothing that counted, and does nothing twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import null_run
from null_run import SEED


def killed(folder: Path, kills: int, how: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, null_run.__file__, "kill", str(folder), str(kills), str(SEED), how],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    print(f"QVL_SEED={SEED}: {done.stdout} {done.stderr}")  # noqa: T201
    assert done.returncode == 0
    return json.loads(done.stdout)


@pytest.mark.parametrize("how", ["plain", "begin"])
def test_kills_at_random_moments_lose_and_double_nothing(tmp_path: Path, how: str) -> None:
    found = killed(tmp_path, 60, how)
    assert found["kills"] >= 60
    assert (found["lost"], found["doubled"], found["different"]) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plain", "begin"])
def test_a_thousand_kills_lose_and_double_nothing(tmp_path: Path, how: str) -> None:
    found = killed(tmp_path, 1000, how)
    assert found["kills"] >= 1000
    assert (found["lost"], found["doubled"], found["different"]) == (0, 0, 0)
