"""What the store costs: little of the time of an item, and memory that does not grow with answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from null_run import told_by


def test_a_thousand_items_cost_little_each(tmp_path: Path) -> None:
    assert told_by("work", tmp_path / "run", "1000")["work_ms_an_item"] <= 2


@pytest.mark.slow
def test_100_000_items_cost_2_ms_each_at_most_and_memory_is_flat(tmp_path: Path) -> None:
    found = told_by("work", tmp_path / "run", "100000")
    assert found["work_ms_an_item"] <= 2
    assert found["mib"] <= 300
    assert found["mib"] - found["half_mib"] <= 5


@pytest.mark.slow
def test_10_000_000_items_are_planned_within_1_gb(tmp_path: Path) -> None:
    assert told_by("plan", tmp_path / "run", str(10**7))["plan_mib"] <= 10**9 / 2**20
