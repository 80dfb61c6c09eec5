"""JSON schemas before llguidance reads them: what it would keep less strictly than they say is refused.

Main path: parse_schema -> a schema that llguidance keeps exactly, or InvalidParamError. llguidance
itself refuses each keyword that it does not know (`not`, `contains`, `uniqueItems`, ...); this is
about what it takes and then bends, found by trying (llguidance 1.9):

- `x-guidance` at the top switches that refusal off: it is left out;
- a whole number that no float64 holds is rounded;
- a control character that has no short escape cannot be said (`grammar.ESCAPES`);
- `minProperties` counts a key each time it is said, a reader of JSON once;
- `date` and `date-time` have a 29 February every year and a year 0000: a pattern says the rest;
  another bounds the fraction of a second in `time` and `date-time`, which has no end by itself;
- sets within sets (`[[:alpha:]]`, `[a&&b]`, `[a--b]`) are Rust's syntax, not that of JSON schema;
- `multipleOf` of a large number takes minutes;
- a `$ref` to a name of other letters than ASCII is no URI: it is percent-encoded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from qvl.errors import InvalidParamError

MULTIPLES = 200_000  # states for all of a schema's multipleOf; about a second and 60 MB
# keywords whose value is data, and those whose value maps names to schemas; others hold schemas
_DATA = ("const", "enum", "default", "example", "examples")
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_LEAP = "(?:0[48]|[2468][048]|[13579][26])"  # after the year 0
REAL_DATE = (
    "^(?:(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})-(?:0[13-9]|1[0-2]|02-(?:[01]|2[0-8]))"
    f"|(?:[0-9]{{2}}{_LEAP}|{_LEAP}00)-02-29)"
)
# a small model says zeros after the point for ever, and nobody means more than nanoseconds
SHORT_FRACTION = "^[^.]*([.][0-9]{1,9}([^0-9].*)?)?$"
_CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f]")
_SETS = re.compile(r"\\.|\[\^?(\](?:\\.|[^\\\]])*|(?:\\.|[^\\\]])*)\]", re.DOTALL)


def parse_schema(text: str) -> dict[str, Any]:
    """The schema, with the same meaning, in the words that llguidance keeps exactly.

    Raises ValueError for JSON that is none, InvalidParamError, which names the keyword, for what
    could not be kept.
    """
    schema = json.loads(text, parse_constant=_no_number)
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise ValueError(f"a schema is an object, this is {text:.40}")
    schema.pop("x-guidance", None)
    for value in _scalars(schema):
        _check_scalar(value)
    divisors = []
    for node in _nodes(schema):
        _check_properties(node)
        if isinstance(node.get("multipleOf"), int | float):
            divisors.append(int(Decimal(str(node["multipleOf"])).as_integer_ratio()[0]))
        for pattern in (node.get("pattern"), *_keys(node.get("patternProperties"))):
            _check_pattern(pattern)
        if isinstance(node.get("$ref"), str):
            node["$ref"] = quote(node["$ref"], safe="#%/:?&=~$!'()*+,;@[]")
        kind, also = node.get("format"), node.get("allOf", [])
        if isinstance(also, list):  # else llguidance says what is wrong
            said = [REAL_DATE] * (kind in ("date", "date-time"))
            said += [SHORT_FRACTION] * (kind in ("time", "date-time"))
            if said:
                node["allOf"] = [*also, *({"pattern": pattern} for pattern in said)]
    if math.lcm(*divisors) * len(divisors) > MULTIPLES:
        raise InvalidParamError(
            "the json_schema cannot be used: its values of multipleOf are too large together",
            hint=f"their least common multiple, times their number, may be {MULTIPLES}",
        )
    return schema


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number in JSON")


def _nodes(schema: object) -> Iterator[dict[str, Any]]:
    """The schema and all schemas in it."""
    if isinstance(schema, list):
        for part in schema:
            yield from _nodes(part)
    if isinstance(schema, dict):
        inner = [
            list(value.values()) if key in _BY_NAME and isinstance(value, dict) else value
            for key, value in schema.items()
            if key not in _DATA
        ]
        yield schema
        yield from _nodes(inner)


def _scalars(value: object) -> Iterator[object]:
    """All numbers and strings, the names of properties among them."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for part in value:
            yield from _scalars(part)
    else:
        yield value


def _check_scalar(value: object) -> None:
    if isinstance(value, str) and _CONTROL.search(value):
        raise InvalidParamError(
            f"the json_schema cannot be used: {value[:40]!r} has a control character",
            hint="answers hold none but \\b, \\t, \\n, \\f and \\r",
        )
    if (isinstance(value, float) and not math.isfinite(value)) or is_rounded(value):
        raise InvalidParamError(
            f"the json_schema cannot be used: its number {value!s:.40} would be rounded",
            hint="give numbers that a float64 holds exactly, or write this one as a string",
        )


def is_rounded(value: object) -> bool:
    """Of a whole number: no float64 is equal to it."""
    try:
        return isinstance(value, int) and int(float(value)) != value
    except OverflowError:
        return True


def _check_properties(node: dict[str, Any]) -> None:
    least, required = node.get("minProperties"), node.get("required")
    if isinstance(least, int):
        named = len(set(map(str, required))) if isinstance(required, list) else 0
        if least > named + 1:
            raise InvalidParamError(
                f"the json_schema cannot be used: minProperties is {least}, and {named} of them are"
                " named by required: the others could be one key again and again",
                hint="name all but one of the keys in required",
            )


def _keys(value: object) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def _check_pattern(pattern: object) -> None:
    if not isinstance(pattern, str):
        return
    for found in _SETS.finditer(pattern):
        if found[1] is None:  # an escape
            continue
        plain = re.sub(r"\\.", "", found[1], flags=re.DOTALL)
        if plain.startswith("]") or any(mark in plain for mark in ("[", "&&", "--", "~~")):
            raise InvalidParamError(
                f"the json_schema cannot be used: its pattern has the set {found[0]:.40}, which"
                " regular expressions of JSON schema read otherwise than ours",
                hint=r"escape [, ], & and - in a set, and write [A-Za-z] rather than [[:alpha:]]",
            )
