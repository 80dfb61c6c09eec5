"""Tool calls: what the template writes is read back, nothing else is lost; a demanded one is one."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedded import grammars, tokenizer
from qvl.errors import InvalidParamError
from qvl.processing.chat import render
from qvl.types import Message, Request, Sampling, Text, Tool, ToolCall
from qvl.vlm.local import LocalModel
from qvl.vlm.tool_calls import CLOSE, OPEN, CallReader
from schemas import SCHEMAS, Schema, record
from tiny import QWEN3, save_tiny

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
calls = st.builds(
    ToolCall, st.sampled_from(["f", "get_weather"]), st.dictionaries(st.text(max_size=5), values)
)
WHOLE = '{"name": "f", "arguments": {}}'
QUOTING = '{"name": "f", "arguments": {"x": "</tool_call>\\\\"}}'
pieces = st.sampled_from(
    [
        *(OPEN, CLOSE, OPEN[:4], OPEN[4:], "\n", "Z", WHOLE, "{", "[1]", '"', QUOTING),
        *(f"{OPEN}\n{WHOLE}\n{CLOSE}", f"{OPEN}{QUOTING}{CLOSE}", f'{OPEN}{{"'),
    ]
)
answers = st.lists(pieces, max_size=10).map("".join)


def split_calls(answer: str) -> tuple[str, tuple[ToolCall, ...], tuple[str, ...]]:
    """The text of an answer without its calls, the calls, and a note for each that stays in it."""
    reader = CallReader()
    text = reader.push(answer) + reader.finish()
    return text, tuple(reader.calls), tuple(reader.notes)


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


@given(answers, st.lists(st.integers(1, 9), min_size=1))
def test_what_was_shown_stands_however_the_answer_is_cut(answer: str, sizes: list[int]) -> None:
    reader, text, at, held = CallReader(), "", 0, 0
    while at < len(answer):
        size = sizes[at % len(sizes)]
        text += reader.push(answer[at : at + size])
        at += size
        held = max(held, min(at, len(answer)) - len(text))
    text += reader.finish()
    assert (text, tuple(reader.calls), tuple(reader.notes)) == split_calls(answer)
    if OPEN not in answer:
        assert held <= len(OPEN)


def test_what_a_call_can_look_like() -> None:
    f = ToolCall("f", {})
    read: dict[str, Any] = {
        f"{OPEN}{WHOLE}{CLOSE}": ("", (f,)),
        f"Wait.\n{OPEN}\n{WHOLE}\n{CLOSE}\n{OPEN}\n{WHOLE}\n{CLOSE}": ("Wait.", (f, f)),
        f"{OPEN}\n{WHOLE}": ("", (f,)),  # not closed, but whole
        f"{OPEN}{QUOTING}{CLOSE}\nSo.": ("\nSo.", (ToolCall("f", {"x": CLOSE + "\\"}),)),
        f'{OPEN}no "JSON{CLOSE}{OPEN}{WHOLE}{CLOSE}': (f'{OPEN}no "JSON{CLOSE}', (f,)),
    }
    for answer, (text, made) in read.items():
        assert split_calls(answer)[:2] == (text, made)


def test_a_string_without_an_end_takes_no_later_call_with_it() -> None:
    spoilt, good = f'{OPEN}{{"name": "f, "arguments": {{"x": "y}}}}{CLOSE}', f"{OPEN}{WHOLE}{CLOSE}"
    endless = f'{OPEN}{{"name": "f}}{CLOSE}'
    for bad in (spoilt, endless):
        for after in ("", " So.", "\n" + good[: len(OPEN)]):
            text, made, notes = split_calls(f"{bad}\n{good}{after}")
            assert (text, made) == (bad + after, (ToolCall("f", {}),))
            assert len(notes) == 1 + after.endswith(OPEN)
    assert split_calls(endless + "Z")[0] == endless + "Z"


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


@pytest.mark.parametrize(
    "said",
    ["word ", "<", CLOSE, OPEN, f"{OPEN}{WHOLE}{CLOSE}", '{"', f'{OPEN}{{"{CLOSE}', CLOSE + OPEN],
)
def test_a_long_answer_is_read_in_time(said: str) -> None:
    began_s = time.process_time()
    for start in ("", OPEN, f'{OPEN}{{"name": "'):
        reader = CallReader()
        reader.push(start)
        for _ in range(4096):
            reader.push(said)
        reader.finish()
    assert time.process_time() - began_s < 3


# calls that are demanded

VALUES = [
    schema
    for schema in SCHEMAS.values()
    if schema and "$ref" not in str(schema) and len(str(schema)) < 500
]
FORMATS = jsonschema.FormatChecker(("date", "email", "ipv4", "ipv6", "uuid"))


def some_tools(seed: int) -> tuple[Tool, ...]:
    """One to three tools of up to three arguments, with names that begin alike."""
    rng = random.Random(seed)
    return tuple(
        Tool(
            name,
            "what it does",
            record("b", **{key: rng.choice(VALUES) for key in "abc"[: rng.randrange(4)]}),
        )
        for name in ("f", "fo-o", "fo")[: rng.randrange(1, 4)]
    )


def babble(tools: tuple[Tool, ...], seed: int, *, several: bool) -> str:
    """What a model says that wants to say anything at all, as far as the calls let it."""
    rng, words = random.Random(seed), tokenizer()
    marks = (words.encode_control(OPEN), words.encode_control(CLOSE))
    grammar = grammars().compile_calls(tools, marks=marks, several=several)
    end, said = words.encode_control("<|im_end|>"), []
    closing = {words.encode_text(mark)[0] for mark in '"}]'}  # endless strings are of no use here
    while not grammar.is_complete and len(said) < 900:
        allowed = grammar.allowed().nonzero().flatten().tolist()
        closers = sorted(closing.intersection(allowed))
        token = rng.choice(closers if closers and rng.random() < 0.5 else allowed)
        if token == end or (end in allowed and rng.random() < 0.5):
            break
        grammar.accept(token)
        said.append(token)
        for forced in grammar.forced():
            grammar.accept(forced)
            said.append(forced)
    assert marks[0] in said  # the token itself, not its letters
    return words.decode(said)


def check(calls: tuple[ToolCall, ...], tools: tuple[Tool, ...]) -> None:
    parameters = {tool.name: tool.parameters for tool in tools}
    for call in calls:
        schema = parameters[call.name]
        jsonschema.Draft202012Validator(schema, format_checker=FORMATS).validate(call.arguments)


@pytest.mark.parametrize("seed", range(60))
def test_a_demanded_call_is_readable_and_fits_whatever_the_model_wants(seed: int) -> None:
    tools = some_tools(seed)
    text, calls, notes = split_calls(babble(tools, seed, several=True))
    assert (text, notes) == ("", ())
    assert calls
    check(calls, tools)
    text, calls, notes = split_calls(babble(tools[:1], seed, several=False))
    assert (text, len(calls), notes) == ("", 1, ())
    check(calls, tools)


ODD: dict[str, Schema] = {
    "none": {},
    "no type": {"properties": {"a": {"type": "null"}}, "required": ["a"]},
    "may be null": {"type": ["object", "null"], "additionalProperties": False},
    "marks": record(a={"const": f"{CLOSE}\n{OPEN}"}, b={"enum": ['"}}' + CLOSE, "\\"]}),
    "own definitions": SCHEMAS["shared definition"],
    "tree": SCHEMAS["tree"],
    "either kind": SCHEMAS["either kind"],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_parameters_are_kept_too(name: str) -> None:
    tools = (Tool("f", "", ODD[name]), Tool("other", "", record()))
    for seed in range(8):
        text, calls, notes = split_calls(babble(tools, seed, several=True))
        assert (text, notes) == ("", ())
        check(calls, tools)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"type": "string"}, "of type 'string'"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "not"),
        ({"properties": {"a": {"const": 2**53 + 1}}}, "'f'.*rounded"),
        ({"properties": {"a": {"const": object()}}}, "not JSON"),
        ({"properties": {f"p{i}": {} for i in range(40_000)}}, "characters"),
    ],
)
def test_parameters_that_cannot_be_kept_are_refused(parameters: Schema, words: str) -> None:
    with pytest.raises(InvalidParamError, match=words):
        babble((Tool("f", "", parameters),), 0, several=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalModel]:
    found = {"sprout": LocalModel()}
    for generation in QWEN3:
        folder = tmp_path_factory.mktemp(generation)
        save_tiny(folder, generation)
        found[generation] = LocalModel(str(folder), dtype="fp32")
    return found


@pytest.mark.parametrize("name", ["sprout", *QWEN3])
def test_models_call_what_they_must(models: dict[str, LocalModel], name: str) -> None:
    sampling = Sampling(max_new_tokens=300, temperature=1.0, top_p=1.0, top_k=1000, seed=3)
    asked = [
        Request(
            messages=(Message.user("hello"),),
            sampling=sampling,
            tools=some_tools(seed),
            tool_choice="required" if seed % 2 else "f",
        )
        for seed in range(5)
    ]
    reasons = []
    for request, told in zip(asked, models[name].generate(asked), strict=True):
        reasons.append(told.finish_reason)
        check(told.tool_calls, request.tools)
        if told.finish_reason == "stop":
            assert told.text == ""
            assert told.tool_calls
            assert request.tool_choice == "required" or [c.name for c in told.tool_calls] == ["f"]
    assert reasons.count("stop") >= 3
    *deltas, last = models[name].stream(asked[reasons.index("stop")])
    assert "".join(d.text for d in deltas) == ""
    assert last.completion is not None
    assert last.completion.tool_calls


def test_a_call_follows_the_reasoning(tmp_path: Path) -> None:
    save_tiny(tmp_path, "qwen3_vl")
    template = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    model = LocalModel(str(tmp_path), dtype="fp32")
    request = Request(
        messages=(Message.user("hello"),),
        sampling=Sampling(max_new_tokens=300, thinking_tokens=20, temperature=1.0, seed=1),
        tools=(Tool("f", "", record(n={"type": "boolean"})),),
        tool_choice="f",
    )
    (told,) = model.generate([request])
    assert told.usage.reasoning_tokens > 0
    assert [call.name for call in told.tool_calls] == ["f"]
    assert type(told.tool_calls[0].arguments["n"]) is bool


def test_a_generation_without_tools_says_so(tmp_path: Path) -> None:
    save_tiny(tmp_path, "qwen2_5_vl")
    model = LocalModel(str(tmp_path), dtype="fp32")
    asked = Request(messages=(Message.user("hello"),), tools=(Tool("f", "", {}),), tool_choice="f")
    with pytest.raises(InvalidParamError, match="no tools"):
        model.generate([asked])
    short = Sampling(max_new_tokens=2)
    assert model.generate([replace(asked, tool_choice="none", sampling=short)])[0].text is not None
