"""Cells: no text is a formula in a spreadsheet, and each comes back as it was."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from made_up import PAYLOADS
from qvl.cells import as_text, csv_row, from_text, is_formula


def test_there_are_forty_payloads() -> None:
    assert len(set(PAYLOADS)) == len(PAYLOADS) == 40


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_payload_stands_behind_an_apostrophe(payload: str) -> None:
    (row,) = csv.reader(io.StringIO(csv_row([payload, "a"]), newline=""))
    assert row == ["'" + payload, "a"]
    assert from_text(row[0]) == payload


@given(st.text(st.sampled_from("'=+-@＝ \t\r\nab1")) | st.text())
def test_every_text_comes_back(text: str) -> None:
    assert from_text(as_text(text)) == text
    assert not is_formula(as_text(text))


def test_an_ordinary_text_stays_as_it_is() -> None:
    for text in ("Белая кружка", "1-2", "a=b", "'quoted'", "", "白色", "–5"):
        assert as_text(text) == text
