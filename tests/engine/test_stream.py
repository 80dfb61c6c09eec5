"""Pieces of text as they come, against an oracle that has the whole text."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from qvl.engine.stream import Detokenizer

# the second alphabet makes stop strings, whole and begun, likely
TEXTS = st.one_of(st.text("aа世界🙂🏽é\n ", max_size=24), st.text("aб🙂", max_size=24))
STOPS = st.lists(st.text("aб🙂", min_size=1, max_size=4), max_size=4)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(bounds)]


def stream(tokens: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    detokenizer = Detokenizer(tokens.__getitem__, stop)
    pieces = [detokenizer.push(i) for i in range(len(tokens))]
    return [*pieces, detokenizer.finish()], detokenizer.is_stopped


def cut_whole(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """The text read letter by letter, until it ends with a stop string."""
    for end in range(len(text) + 1):
        ended = [s for s in stop if text[:end].endswith(s)]
        if ended:
            return text[: end - max(map(len, ended))], True
    return text, False


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS, STOPS, st.lists(st.integers(0, 200), max_size=12))
@example("xabcd", ["abcd", "bc"], [])
@example("xaab", ["aab"], [1, 2, 3])
def test_joined_pieces_are_the_text_up_to_the_first_stop_string(text, stop, cuts):
    pieces, is_stopped = stream(split(text.encode(), cuts), tuple(stop))
    assert ("".join(pieces), is_stopped) == cut_whole(text, tuple(stop))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=16), st.lists(st.integers(0, 16), max_size=8))
def test_bytes_that_are_no_text_read_as_in_one_piece(data, cuts):
    pieces, _ = stream(split(data, cuts))
    assert "".join(pieces) == data.decode("utf-8", errors="replace")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(TEXTS)
def test_no_piece_holds_part_of_a_character(text):
    pieces, _ = stream([bytes([b]) for b in text.encode()])
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(TEXTS, STOPS)
def test_a_letter_is_held_back_only_while_it_may_begin_a_stop_string(text, stop):
    detokenizer = Detokenizer(lambda i: text[i].encode(), tuple(stop))
    emitted = ""
    for i in range(len(text)):
        emitted += detokenizer.push(i)
        if detokenizer.is_stopped:
            return
        held = text[len(emitted) : i + 1]
        assert held == "" or any(s.startswith(held) for s in stop)


def test_a_stop_string_over_three_tokens_is_never_emitted():
    pieces, is_stopped = stream([b"one <", b"/en", b"d> two"], ("</end>",))
    assert pieces == ["one ", "", "", ""]
    assert is_stopped


def test_what_only_looked_like_a_stop_string_comes_out():
    assert stream([b"a <", b"/e", b"x"], ("</end>",))[0] == ["a ", "", "</ex", ""]
    assert stream([b"a <", b"/e"], ("</end>",))[0] == ["a ", "", "</e"]


def test_an_unfinished_character_is_replaced_at_the_end_only():
    assert stream(["é".encode()[:1], b""])[0] == ["", "", "\ufffd"]


def test_after_a_stop_string_nothing_is_emitted():
    assert stream([b"ab", b"cd", b"ef"], ("bc",))[0] == ["a", "", "", ""]
