"""What a person changed, word by word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvl.batch.differences import Piece, word_difference

TEXTS = st.text(st.sampled_from("аб ,.白杯\n")) | st.text()


@given(TEXTS, TEXTS)
def test_the_pieces_are_both_texts(before: str, after: str) -> None:
    found = word_difference(before, after)
    assert "".join(p.text for p in found.pieces if p.kind != "added") == before
    assert "".join(p.text for p in found.pieces if p.kind != "removed") == after
    assert 0 <= found.kept <= 1


@given(TEXTS)
def test_equal_texts_are_kept_whole(text: str) -> None:
    found = word_difference(text, text)
    assert (found.kept, found.changed) == (1, 0)
    assert {piece.kind for piece in found.pieces} <= {"kept"}


@pytest.mark.parametrize(
    ("before", "after", "changed", "kept"),
    [
        ("белая кружка на столе", "синяя кружка на столе", 1, 0.75),
        ("белая кружка", "белая большая кружка", 1, 2 / 3),
        ("белая кружка", "", 2, 0),
        ("", "белая кружка", 2, 0),
        ("白色杯子", "红色杯子", 1, 0.75),
        ("a  b", "a b", 0, 1),
    ],
)
def test_words_are_counted(before: str, after: str, changed: int, kept: float) -> None:
    found = word_difference(before, after)
    assert (found.changed, found.kept) == (changed, pytest.approx(kept))


def test_pieces_are_in_order() -> None:
    assert word_difference("белая кружка", "синяя кружка").pieces == (
        Piece("removed", "белая"),
        Piece("added", "синяя"),
        Piece("kept", " кружка"),
    )


def test_long_texts_do_not_take_minutes() -> None:
    before = "кружка белая " * 20_000
    assert word_difference(before, before + "конец").changed == 1
