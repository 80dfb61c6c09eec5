"""Loops are seen soon, and what merely repeats is left alone."""

from __future__ import annotations

import random

import pytest

from qvl.engine.loops import LoopDetector


def found_after(tokens: list[int]) -> int | None:
    """How many tokens were pushed when the loop was seen."""
    detector = LoopDetector()
    return next((n for n, token in enumerate(tokens, 1) if detector.push(token)), None)


@pytest.mark.parametrize("period", range(1, 65))
def test_a_loop_of_any_period_is_seen_in_its_fourth_round(period: int) -> None:
    rng = random.Random(period)
    before = [rng.randrange(5000) for _ in range(37)]
    pattern = [5000 + n for n in range(period)]
    seen = found_after(before + pattern * 200)
    assert seen == len(before) + max(4 * period, 64)


def test_a_table_whose_rows_begin_alike_is_no_loop() -> None:
    rows = [[1, 2, 3, 1, 2, 3, 1, 2, 100 + n, 4] for n in range(200)]
    assert found_after([token for row in rows for token in row]) is None


def test_a_row_of_dashes_is_no_loop() -> None:
    assert found_after([7] * 60 + list(range(100, 200)) + [7] * 60) is None


def test_a_loop_that_breaks_off_is_counted_anew() -> None:
    assert found_after([1, 2, 3] * 20 + [9] + [1, 2, 3] * 20) is None
