"""Answers of a given form: valid whatever the model wants to say, and free where nothing is asked."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
import torch

from embedded import grammars, tokenizer
from qvl.errors import InvalidParamError
from qvl.structured.grammar import Grammars
from qvl.types import ResponseFormat

ZIP = {"type": "integer", "minimum": 0, "maximum": 99999}
ADDRESS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "zip": ZIP},
    "required": ["city"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "boolean"},
    {"enum": ["кошка", "собака", "猫", 7, None]},
    {"type": "integer", "minimum": -3, "maximum": 120},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    ADDRESS,
    {
        "type": "object",
        "properties": {"a": ADDRESS, "b": {"type": "array", "items": ADDRESS, "maxItems": 2}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 3}]},
    {
        "$defs": {"date": {"type": "string", "format": "date"}},
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/date"}, "до": {"$ref": "#/$defs/date"}},
        "required": ["from", "до"],
        "additionalProperties": False,
    },
]


def babble(form: ResponseFormat, seed: int) -> str:
    """What a model says that wants to say anything at all, as far as the form lets it."""
    rng = random.Random(seed)
    grammar = grammars().compile(form)
    end = tokenizer().encode_control("<|im_end|>")
    said: list[int] = []
    while not grammar.is_complete and len(said) < 400:
        allowed = grammar.allowed().nonzero().flatten().tolist()
        # as a model does, rather close a string than fill it up
        token = end if end in allowed else min(rng.sample(allowed, min(4, len(allowed))))
        if token == end:
            break
        grammar.accept(token)
        said.append(token)
        for forced in grammar.forced():
            grammar.accept(forced)
            said.append(forced)
    return tokenizer().decode(said)


def fits(schema: dict[str, Any], value: Any) -> bool:
    """Of JSON schema, what SCHEMAS uses."""
    if "anyOf" in schema:
        return any(fits(s, value) for s in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema.get("type")
    if kind == "object":
        known = schema["properties"]
        return (
            isinstance(value, dict)
            and set(schema["required"]) <= set(value) <= set(known)
            and all(fits(known[name], part) for name, part in value.items())
        )
    if kind == "array":
        least, most = schema.get("minItems", 0), schema["maxItems"]
        return least <= len(value) <= most and all(fits(schema["items"], part) for part in value)
    if kind == "string":
        pattern = schema.get("pattern", "")
        return len(value) <= schema.get("maxLength", 99) and bool(re.search(pattern, value))
    if kind == "integer":
        low, high = schema.get("minimum", -(10**99)), schema.get("maximum", 10**99)
        return type(value) is int and low <= value <= high
    return {"boolean": bool, "null": type(None)}[kind] is type(value) if kind else True


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_whatever_is_said_fits_the_schema(schema: dict[str, Any]) -> None:
    for seed in range(5):
        value = json.loads(babble(ResponseFormat("json_schema", json.dumps(schema)), seed))
        if "$defs" in schema:
            assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", v) for v in value.values())
        else:
            assert fits(schema, value), value


def test_choices_and_expressions() -> None:
    for seed in range(5):
        said = babble(ResponseFormat("choice", json.dumps(["да", "нет", "不知道"])), seed)
        assert said in {"да", "нет", "不知道"}
        assert re.fullmatch(
            "[0-9]{2,4}-[а-я]", babble(ResponseFormat("regex", "[0-9]{2,4}-[а-я]"), seed)
        )


def test_a_form_is_compiled_once_for_each_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each picture of a folder comes with the same schema; another tenant must not tell by the time."""
    compiled: list[object] = []
    tried = Grammars._tried
    monkeypatch.setattr(
        Grammars, "_tried", lambda self, made: compiled.append(made) or tried(self, made)
    )
    form = ResponseFormat("regex", "compiled (once|twice)")
    for tenant in ("a", "a", "b", "a"):
        grammars().compile(form, tenant=tenant)
    assert len(compiled) == 2


def test_answers_of_one_form_go_on_apart_from_each_other() -> None:
    form = ResponseFormat("json_schema", json.dumps(SCHEMAS[0]))
    first, second = grammars().compile(form), grammars().compile(form)
    begin = second.allowed()
    for _ in range(5):
        first.accept(int(first.allowed().nonzero()[0]))
    assert not torch.equal(first.allowed(), begin)
    assert torch.equal(second.allowed(), begin)
    assert torch.equal(grammars().compile(form).allowed(), begin)


def test_what_has_no_choice_is_forced() -> None:
    grammar = grammars().compile(ResponseFormat("choice", json.dumps(["a fixed answer"])))
    assert tokenizer().decode(grammar.forced()) == "a fixed answer"


@pytest.mark.parametrize(
    "form",
    [
        ResponseFormat("json_schema", "{"),
        ResponseFormat("json_schema", '{"type": 3}'),
        ResponseFormat("json_schema", "[" * 100_000),
        ResponseFormat("json_schema", '{"$ref": "#/nowhere"}'),
        ResponseFormat("regex", "["),
        ResponseFormat("lark", "start: missing"),
    ],
    ids=range(6),
)
def test_a_form_that_cannot_be_used_is_said_plainly(form: ResponseFormat) -> None:
    with pytest.raises(InvalidParamError, match=form.kind):
        grammars().compile(form)
