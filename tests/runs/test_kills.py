"""A run that is killed at any moment has lost nothing that counted, and does nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from null_run import SEED, told_by

HOW = pytest.mark.parametrize("how", ["plain", "begin"])


def check(folder: Path, kills: int, how: str) -> None:
    found = told_by("kill", folder, str(kills), str(SEED), how)
    assert found["kills"] >= kills
    assert (found["lost"], found["doubled"], found["different"]) == (0, 0, 0)


@HOW
def test_kills_at_random_moments_lose_and_double_nothing(tmp_path: Path, how: str) -> None:
    check(tmp_path, 50, how)


@pytest.mark.slow
@HOW
def test_a_thousand_kills_lose_and_double_nothing(tmp_path: Path, how: str) -> None:
    check(tmp_path, 1000, how)
