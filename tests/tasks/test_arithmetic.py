"""Equations in steps: wrong ones are seen, and what is no plain arithmetic is left alone."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvl.tasks.arithmetic import is_wrong, value


@pytest.mark.parametrize(
    "step",
    [
        "3 + 4 = 7",
        "12 × 4 = 48 cups",
        "Total: 3+4=7=2+5",
        "x = 3 + 4 = 7",
        "2x + 3 = 11",
        "10 / 3 = 3.33",
        "10/3 ≈ 3.3",
        "9/4=2.25",
        "1. 3 + 4 = 7",
        "Step 1: 3+4=7",
        "12 : 4 = 3",
        "2^3 = 8",
        "$\\frac{1}{2} + \\frac{1}{4} = \\frac{3}{4}$",
        "sin 30 = 0.5",
        "sin 30 + 1 = 1.5",
        "√16 + 1 = 5",
        "1 000 + 500 = 1 500",
        "1,000 + 500 = 1,500",
        "1,5 + 1,5 = 3",
        "5 apples + 3 = 8",
        "5! + 1 = 121",
        "20% of 50 = 10",
        "(3 + 4) * 2 = 14",
        "всего 3 + 4 = 7",
        "总共3 + 4 = 7个",
        "3 + 4 = 7.",
        "3 - 5 = -2",
        "x - 2 = 5",
        "2 + 2 = 2x",
        "2 + 2 = 4x",
        "-2 + 5 = 3",
        "f(3) = 9 + 1",
        "7 = 3 + 4",
        "2 × 3 = 6 + x",
        "6 \\times 7 = 42",
        "10:30 + 0:45 = 11:15",
        "x - 2 + 1 = 5",
        "x^2 = 9 + 1",
        "\\(2^{10} = 1024\\)",
        "50 * 20% = 10",
        "3 + 4 = 7, 7 * 2 = 14",
        "5 кг * 3 = 15 кг",
        "S = a * b = 3 * 4 = 12 см²",
        "2 * 3.14 * 5 = 31.4",
    ],
)
def test_a_right_step_and_one_with_unknowns_is_left_alone(step: str) -> None:
    assert not is_wrong(step)


@pytest.mark.parametrize(
    "step",
    [
        "3 + 4 = 8",
        "12 × 4 = 46 cups",
        "Total: 3+4=7=2+6",
        "x = 3 + 4 = 8",
        "10/3 = 3.4",
        "2^3 = 9",
        "\\frac{1}{2} + \\frac{1}{4} = \\frac{2}{4}",
        "1 000 + 500 = 1 600",
        "1,5 + 1,5 = 4",
        "(3 + 4) * 2 = 15",
        "всего 3 + 4 = 8",
        "总共3 + 4 = 8个",
        "3 - 5 = 2",
        "7 = 3 + 5",
        "6 \\times 7 = 43.",
        "3 + 4 = 7, 7 * 2 = 15",
        "2^{10} = 1023",
        "12 : 4 = 4",
        "1. 3 + 4 = 8",
    ],
)
def test_a_wrong_step_is_seen(step: str) -> None:
    assert is_wrong(step)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1/3 + 1/6", Fraction(1, 2)),
        ("0.1 + 0.2", Fraction(3, 10)),
        ("-(2 - 5)^2 * 2", -18),
        ("2^-2", Fraction(1, 4)),
        ("1/0", None),
        ("2^0.5", None),
        ("9^9^9", None),
        ("10^61", None),
        ("9" * 300, None),
        ("(" * 150 + "1" + ")" * 150, None),
        ("1 if 1 else 2", None),
        ("abs(1)", None),
        ("[1][0]", None),
        ("().__class__", None),
        ("True + 1", None),
        ("2 +", None),
        ("", None),
    ],
)
def test_only_plain_arithmetic_has_a_value(expression: str, expected: Fraction | None) -> None:
    assert value(expression) == expected


whole = st.integers(-999, 999)


@given(whole, whole, st.sampled_from("+-*"), st.integers(-3, 3))
def test_a_sum_is_wrong_exactly_if_it_is(a: int, b: int, sign: str, off: int) -> None:
    right = {"+": a + b, "-": a - b, "*": a * b}[sign]
    assert is_wrong(f"Всего: {a} {sign} ({b}) = {right + off} шт.") == (off != 0)


@given(st.text(alphabet="0123456789+-*/^(),. =≈x\\{}$%:\n", max_size=300))
def test_any_step_is_read_without_a_fault(step: str) -> None:
    assert is_wrong(step) in (True, False)
