"""Tool calls out of answers: what the template writes is read back, nothing else is lost."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from qvl.processing.chat import render
from qvl.types import Message, Text, ToolCall
from qvl.vlm.tool_calls import CLOSE, OPEN, certain_text, split_calls

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
calls = st.builds(
    ToolCall, st.sampled_from(["f", "get_weather"]), st.dictionaries(st.text(max_size=5), values)
)
WHOLE = '{"name": "f", "arguments": {}}'
pieces = st.sampled_from(
    [OPEN, CLOSE, OPEN[:4], OPEN[4:], "\n", "Z", WHOLE, f"{OPEN}\n{WHOLE}\n{CLOSE}", "{", "[1]"]
)
answers = st.lists(pieces, max_size=10).map("".join)


@given(st.text(alphabet="ab\n{}ж", max_size=8), st.lists(calls, max_size=3).map(tuple))
def test_what_the_template_says_is_read_back(words: str, made: tuple[ToolCall, ...]) -> None:
    said = render(
        [Message("assistant", (Text(words),), "", made)],
        generation="qwen3_vl",
        add_generation_prompt=False,
    )
    answer = "".join(s.text for s in said[1:-1])  # type: ignore[union-attr]
    assert split_calls(answer) == (words, made, ())


@given(answers)
def test_any_answer_is_read_and_what_is_no_call_stays(answer: str) -> None:
    text, made, notes = split_calls(answer)
    assert len(made) + len(notes) <= answer.count(OPEN)
    assert text.count("Z") == answer.count("Z")
    assert made or text == answer


@given(answers)
def test_a_beginning_that_was_shown_stands(answer: str) -> None:
    text = split_calls(answer)[0]
    shown = ""
    for end in range(len(answer) + 1):
        now = certain_text(answer[:end])
        assert now.startswith(shown)
        shown = now
    assert text.startswith(shown)
    if OPEN not in answer:
        assert len(text) - len(shown) < len(OPEN) + 1


def test_what_a_call_can_look_like() -> None:
    f = ToolCall("f", {})
    read: dict[str, Any] = {
        f"{OPEN}{WHOLE}{CLOSE}": ("", (f,)),
        f"Wait.\n{OPEN}\n{WHOLE}\n{CLOSE}\n{OPEN}\n{WHOLE}\n{CLOSE}": ("Wait.", (f, f)),
        f"{OPEN}\n{WHOLE}": ("", (f,)),  # not closed, but whole
    }
    for answer, (text, made) in read.items():
        assert split_calls(answer) == (text, made, ())


def test_a_call_that_cannot_be_read_stays_with_a_note() -> None:
    for block in (
        "",
        "no JSON",
        "[]",
        '{"name": "f"}',
        '{"name": 1, "arguments": {}}',
        '{"name": "f", "arguments": "x"}',
        '{"name": "f", "arguments": {"x": NaN}}',
        '{"name": "f", "arguments": {"x": ' + "1" * 5000 + "}}",
        "[" * 100_000,
    ):
        for end in (CLOSE, ""):
            answer = f"so\n{OPEN}\n{block}\n{end}"
            text, made, (note,) = split_calls(answer)
            assert (text, made) == (answer, ())
            assert len(note) < 200
