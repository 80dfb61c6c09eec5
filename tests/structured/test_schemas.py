"""JSON schemas through the engine, under a model that says anything: what ends is valid, and what
cannot be kept exactly, or costs too much, is refused by name.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache

import jsonschema
import pytest
import torch

from embedded import grammars, tokenizer
from qvl.engine.engine import Engine
from qvl.engine.request import EngineRequest, Finished, SamplingParams, Token
from qvl.errors import InvalidParamError
from qvl.models.qwen_vl import QwenVL
from qvl.structured.grammar import Grammar
from qvl.types import ResponseFormat
from schemas import SCHEMAS, Schema, text_of
from tiny import tiny_config

LIMITS = (400, 400, 9)  # tokens of a schema's answers; the last ones are mostly cut
FORMATS = jsonschema.FormatChecker(("date", "email", "ipv4", "ipv6", "uuid"))


@FORMATS.checks("date-time", raises=ValueError)
def is_date_time(text: object) -> bool:
    if isinstance(text, str):  # the 60th second is RFC 3339's, and not Python's
        datetime.fromisoformat(re.sub(r"(T\d\d:\d\d):60", r"\1:59", text.upper()))
    return True


@FORMATS.checks("time", raises=ValueError)
def is_time(text: object) -> bool:
    return not isinstance(text, str) or is_date_time(f"2000-01-01T{text}")


@dataclass(frozen=True, slots=True)
class Answer:
    ids: list[int]
    text: str
    reason: str | None


def form_of(schema: object) -> ResponseFormat:
    return ResponseFormat("json_schema", json.dumps(schema))


def rather_short() -> tuple[tuple[int, float], ...]:
    """A bias for what closes strings, lists and objects, lest a random model goes on for ever."""
    texts = {i: tokenizer().token_bytes(i) for i in range(tokenizer().vocab_size)}
    return tuple((i, 6.0) for i, t in texts.items() if 0 < len(t) <= 2 and set(t) & set(b'"]}'))


@pytest.fixture(scope="module")
def answers() -> dict[str, list[Answer]]:
    """Of each schema, one for each limit, all through one engine."""
    words = tokenizer()
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    ids = {f"{n.removesuffix('_pad')}_token_id": words.encode_control(f"<|{n}|>") for n in names}
    config = tiny_config("qwen3_vl", vocab_size=words.vocab_size, num_hidden_layers=2, **ids)
    torch.manual_seed(1)
    model = QwenVL(config).eval().requires_grad_(False)
    engine = Engine(
        model,
        token_bytes=words.token_bytes,
        vocab_size=words.vocab_size,
        cache_tokens=1 << 15,
    )
    bias = rather_short()
    end = words.encode_control("<|im_end|>")
    for name, schema in SCHEMAS.items():
        for seed, limit in enumerate(LIMITS):
            params = SamplingParams(
                max_new_tokens=limit,
                seed=seed,
                temperature=1.0,
                logit_bias=bias,
                stop_ids=frozenset([end]),
            )
            request = EngineRequest(
                id=f"{seed} {name}",
                ids=[1, 2, 3],
                positions=torch.arange(3).expand(3, -1),
                next_position=3,
                params=params,
                grammar=grammars().compile(ResponseFormat("json_schema", text_of(schema))),
            )
            engine.add(request)
    said: dict[str, list[int]] = {}
    ended: dict[str, Finished] = {}
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, Token):
                said.setdefault(event.request_id, []).append(event.token_id)
            else:
                ended[event.request_id] = event
    found: dict[str, list[Answer]] = {name: [] for name in SCHEMAS}
    for key, event in sorted(ended.items()):
        assert event.error is None, f"{key}: {event.error}"
        ids_said = [i for i in said[key] if i != end]
        found[key[2:]].append(Answer(ids_said, words.decode(ids_said), event.reason))
    return found


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_ends_is_valid_and_what_is_cut_is_a_start(
    name: str, answers: dict[str, list[Answer]]
) -> None:
    schema = json.loads(text_of(SCHEMAS[name]), parse_float=Decimal)
    valid = jsonschema.Draft202012Validator(schema, format_checker=FORMATS)
    assert len(answers[name]) == len(LIMITS)
    for answer in answers[name]:
        if answer.reason == "stop":
            valid.validate(json.loads(answer.text, parse_float=Decimal))
        else:
            assert answer.reason == "length"
            grammar = grammars().compile(ResponseFormat("json_schema", text_of(SCHEMAS[name])))
            for token_id in answer.ids:
                grammar.accept(token_id)
            assert grammar.allowed().any()


def test_nearly_all_end_by_themselves_and_differ(answers: dict[str, list[Answer]]) -> None:
    assert len(SCHEMAS) == 50
    reasons = [[answer.reason for answer in several] for several in answers.values()]
    assert sum(two.count("stop") for *two, _ in reasons) >= 0.95 * 100
    assert sum(last == "length" for *_, last in reasons) > 20
    varied = [name for name, several in answers.items() if len({a.text for a in several[:2]}) > 1]
    assert len(varied) > 35


UNKEPT: list[tuple[object, str]] = [
    ({"not": {"type": "string"}}, "not"),
    ({"properties": {"a": {"if": {}, "then": {}}}}, "if"),
    ({"type": "array", "contains": {"type": "integer"}}, "contains"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "unevaluatedItems": False}, "unevaluatedItems"),
    ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "object", "dependentSchemas": {"a": {}}}, "dependentSchemas"),
    ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
    ({"type": "string", "format": "json-pointer"}, "json-pointer"),
    ({"type": "string", "pattern": "(?=a)b"}, "pattern.*look-ahead"),
    ({"type": "string", "pattern": r"^(a|b)\1$"}, "pattern.*backreferences"),
    ({"type": "string", "pattern": "^[[:alpha:]]$"}, "pattern"),
    ({"type": "string", "pattern": "^[a-z--[x]]$"}, "pattern"),
    ({"patternProperties": {"^a": {"type": "integer"}, "^[ab]": {}}}, "patternProperty"),
    ({"type": "object", "minProperties": 2}, "minProperties"),
    ({"properties": {"a": {}, "b": {}}, "maxProperties": 1}, "maxProperties"),
    ({"$dynamicRef": "#x"}, "dynamicRef"),
    ({"$ref": "https://example.com/schema.json"}, "example.com"),
    ({"$ref": "#"}, "no text fits"),
    ({"const": 2**53 + 1}, "9007199254740993"),
    ({"maximum": 10**400}, "number 1000"),
    ({"const": "bell \x07"}, "control character"),
    ({"x-guidance": {"lenient": True}, "not": {}}, "not"),
    ({"x-guidance": {"coerce_one_of": True}, "oneOf": [{}, {}]}, "oneOf"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
    (False, "false"),
]


@pytest.mark.parametrize(("schema", "named"), UNKEPT, ids=[named for _, named in UNKEPT])
def test_what_cannot_be_kept_exactly_is_refused_by_name(schema: object, named: str) -> None:
    with pytest.raises(InvalidParamError, match=named):
        grammars().compile(form_of(schema))


def accepts(schema: object, text: str) -> bool:
    grammar = grammars().compile(form_of(schema))
    try:
        say(grammar, text)
    except InvalidParamError:
        return False
    end = tokenizer().encode_control("<|im_end|>")
    return grammar.is_complete or bool(grammar.allowed()[end])


def say(grammar: Grammar, text: str) -> None:
    for byte in text.encode():
        grammar.accept(letter(byte))


@cache
def letter(byte: int) -> int:
    ids = range(tokenizer().vocab_size)
    return next(i for i in ids if tokenizer().token_bytes(i) == bytes([byte]))


OPEN = {"properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "string"}}


@pytest.mark.parametrize(
    ("schema", "text", "is_valid"),
    [
        (OPEN | {"type": "object"}, '{"a":null,"b":"x"}', True),
        (OPEN | {"type": "object"}, '{"a":"x"}', False),
        (OPEN | {"type": "object"}, '{"\\u0061":"x"}', False),  # the same key
        ({"type": "string", "format": "date"}, '"2024-02-29"', True),
        ({"type": "string", "format": "date"}, '"2000-02-29"', True),
        ({"type": "string", "format": "date"}, '"2023-02-29"', False),
        ({"type": "string", "format": "date"}, '"1900-02-29"', False),
        ({"type": "string", "format": "date"}, '"0000-12-31"', False),
        ({"type": "string", "format": "date"}, '"2023-04-31"', False),
        ({"type": "string", "format": "date-time"}, '"2023-02-29T10:00:00Z"', False),
        ({"type": "string", "format": "date-time"}, '"2024-02-29T10:00:00Z"', True),
        ({"type": "string", "format": "date-time"}, '"2024-02-29T10:00:00.123456789Z"', True),
        ({"type": "string", "format": "date-time"}, '"2024-02-29T10:00:00.1234567890Z"', False),
        ({"type": "string", "format": "time"}, '"10:00:00.5+03:00"', True),
        ({"type": "string", "format": "time"}, '"10:00:00.0000000000Z"', False),
        ({"type": ["string", "null"], "format": "time"}, "null", True),
        ({"type": ["string", "null"], "format": "date"}, "null", True),
        (
            {"properties": {"format": {"const": "date"}}, "type": "object"},
            '{"format":"date"}',
            True,
        ),
        ({"enum": [{"format": "date"}]}, '{"format":"date"}', True),
        ({"type": "string", "pattern": r"^[\[\]&-]+$"}, '"[&-]"', True),
        ({"type": "object", "minProperties": 2, "required": ["a"]}, '{"a":1,"b":1}', True),
        ({"type": "object", "minProperties": 2, "required": ["a"]}, '{"a":1,"a":1}', False),
        (True, "[1, {}]", True),
    ],
)
def test_what_a_schema_means_is_kept(schema: object, text: str, is_valid: bool) -> None:
    assert accepts(schema, text) is is_valid


def test_every_date_of_the_calendar_and_no_other_fits() -> None:
    from qvl.structured.schema import REAL_DATE

    for year in (1, 4, 99, 100, 400, 1896, 1900, 1999, 2000, 2023, 2024, 2100, 9996, 9999):
        for month, day in ((1, 31), (2, 28), (2, 29), (10, 10), (12, 1)):
            text = f"{year:04}-{month:02}-{day:02}"
            try:
                datetime.fromisoformat(text)
            except ValueError:
                assert not re.search(REAL_DATE, text)
            else:
                assert re.search(REAL_DATE, text)


def chain(levels: int) -> Schema:
    """Each definition holds the next one twice in each of two ways."""
    defs: dict[str, Schema] = {f"d{levels}": {"type": "integer"}}
    for i in range(levels):
        after = {"$ref": f"#/$defs/d{i + 1}"}
        defs[f"d{i}"] = {"allOf": [{"anyOf": [after, {"type": "array", "items": after}]}] * 2}
    return {"$defs": defs, "$ref": "#/$defs/d0"}


def either(ways: int, times: int) -> Schema:
    """ways ** times objects."""
    one = [{"anyOf": [{"properties": {f"{w}{t}": {}}} for w in range(ways)]} for t in range(times)]
    return {"type": "object", "allOf": one}


HOSTILE: dict[str, tuple[ResponseFormat, bool]] = {  # and whether it must be refused
    "enum of 100,000": (form_of({"enum": [f"value {i}" for i in range(100_000)]}), True),
    "choice of 100,000": (
        ResponseFormat("choice", json.dumps([str(i) for i in range(10**5)])),
        True,
    ),
    "10,000 optional": (
        form_of({"properties": {f"p{i}": {} for i in range(10_000)}, "type": "object"}),
        True,
    ),
    "1,000 optional": (
        form_of({"properties": {f"p{i}": {} for i in range(1000)}, "type": "object"}),
        True,
    ),
    "products": (form_of(either(4, 6)), True),
    "references": (form_of(chain(40)), True),
    "large divisor": (form_of({"type": "integer", "multipleOf": 999_983}), True),
    "two divisors": (
        form_of({"type": "integer", "allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}),
        True,
    ),
    "divisor in Lark": (
        ResponseFormat("lark", 'start: %json {"type":"integer","multipleOf":999983}'),
        True,
    ),
    "counted": (form_of({"type": "string", "pattern": "^((a{1,9999}b?){1,9999}c){99999}$"}), False),
    "many counted": (form_of({"pattern": "(.*a.{1,999}b){99}" * 50, "type": "string"}), False),
    "deep": (ResponseFormat("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000), True),
    "long": (ResponseFormat("regex", "a|" * 600_000), True),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_form_costs_little(name: str) -> None:
    """Of this process's time, so that a busy machine does not fail it; the next mask as well."""
    form, is_refused = HOSTILE[name]
    grammars()
    before = time.process_time()
    if is_refused:
        with pytest.raises(InvalidParamError, match=form.kind) as caught:
            grammars().compile(form)
        assert len(caught.value.message) < 300
    else:
        assert grammars().compile(form).allowed().any()
    assert time.process_time() - before < 2


def test_a_form_that_proves_too_complex_later_is_an_error_too() -> None:
    many = {"type": "object", "properties": {f"p{i}": {} for i in range(1000)}}
    form = form_of({"properties": {"a": {"type": "integer"}, "b": many}, "type": "object"})
    assert accepts(json.loads(form.value), '{"a":1}')
    grammar = grammars().compile(form)
    with pytest.raises(InvalidParamError, match="too complex"):
        say(grammar, '{"b":{"')
