"""Short lists of fields: what they mean as JSON schemas, and what cannot be read."""

from __future__ import annotations

import json

import jsonschema
import pytest

from qvl.errors import InvalidParamError
from qvl.tasks.checks import Rule
from qvl.tasks.field_list import KINDS, parse_fields, rules_of, schema_of
from qvl.types import ResponseFormat
from qvl.vlm.remote_form import remote_form


def test_fields_kinds_and_lists() -> None:
    text = (
        "name, price float; date date?\nphones[], sums float[] , lines[товар, n int, code ean13],"
    )
    assert parse_fields(text) == {
        "name": "text",
        "price": "float",
        "date": "date",
        "phones": ["text"],
        "sums": ["float"],
        "lines": [{"товар": "text", "n": "int", "code": "ean13"}],
    }


def test_every_field_is_there_or_null_and_no_other() -> None:
    fields = parse_fields("name, on date, n int, sums float[], lines[a, b bool]")
    valid = jsonschema.Draft202012Validator(
        schema_of(fields), format_checker=jsonschema.FormatChecker()
    )
    absent = dict.fromkeys(fields)
    assert valid.is_valid(absent)
    whole = {
        "name": "a",
        "on": "2024-01-31",
        "n": 3,
        "sums": [1, 2.5],
        "lines": [{"a": None, "b": True}],
    }
    assert valid.is_valid(whole)
    for name, wrong in [
        ("name", ""),
        ("name", "x" * 200),
        ("on", "31.01.2024"),
        ("n", 1.5),
        ("sums", [None]),
        ("sums", [1] * 31),
        ("lines", [{"a": "b"}]),
        ("other", 1),
    ]:
        assert not valid.is_valid({**whole, name: wrong}), name
    assert not valid.is_valid({k: v for k, v in whole.items() if k != "n"})


def test_every_price_fits_what_a_remote_answer_is_held_against() -> None:
    """0.09 / 0.0001 is not 900 in floats."""
    schema = json.dumps(schema_of(parse_fields("price float")))
    fits = remote_form(ResponseFormat("json_schema", schema), "vllm").fits
    assert all(fits(f'{{"price": {cents / 100}}}') for cents in range(-1000, 1000))
    assert fits('{"price": 12.50}')
    assert not fits('{"price": 0.00001}')
    assert not fits('{"price": 1e9999999999}')


def test_kinds_that_can_be_checked_are() -> None:
    fields = parse_fields("a inn, b, c date, lines[d, e ean13, f date]")
    assert list(rules_of(fields)) == [
        Rule("inn", "a"),
        Rule("date", "c"),
        Rule("ean13", "lines.e"),
        Rule("date", "lines.f"),
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "empty"),
        (" , ;\n", "empty"),
        ("price flaot", "'flaot'.*"),
        ("price float usd", "'usd'"),
        ("a, a int", "twice"),
        ("lines[a, b", "no \\]"),
        ("a]", "too many"),
        ("schema.json", "schema.json"),
        ("a?b", "'b'"),
        ("lines[a][b]", "after"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, named: str) -> None:
    with pytest.raises(InvalidParamError, match=named):
        parse_fields(text)


def test_a_kind_that_is_nearly_right_is_told() -> None:
    with pytest.raises(InvalidParamError) as refused:
        parse_fields("price flaot")
    assert "'float'" in (refused.value.hint or "")
    assert {"inn", "ean13", "iban", "luhn", "date", "text"} <= set(KINDS)
