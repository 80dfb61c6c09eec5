"""Short lists of fields: what they mean as JSON schemas, and what cannot be read."""

from __future__ import annotations

import jsonschema
import pytest

from qvl.errors import InvalidParamError
from qvl.tasks.checks import Rule
from qvl.tasks.field_list import KINDS, parse_fields, rules_of, schema_of


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
