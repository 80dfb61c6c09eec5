"""A short list of fields, "name, price float, lines[name, sum float]", as a JSON schema.

A field is a name of one word and what it holds: nothing for text, else one of KINDS; `name float[]`
holds a list, `name[]` one of texts, `name[a, b int]` one of objects with these fields. A `?` after it
is read and changes nothing: every field is null where its value is absent. Commas, semicolons and
line ends separate.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from qvl.errors import InvalidParamError, nearest
from qvl.tasks import checks

# What a small model's answer must end at, too: a line of an address, a page of a receipt, an amount
# to the ten-thousandth.
MAX_LENGTH, MAX_NUMBER_LENGTH, MAX_ITEMS, MAX_AMOUNT = 120, 50, 30, 10**9
NUMBER = {"type": "string", "minLength": 1, "maxLength": MAX_NUMBER_LENGTH}
KINDS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(checks.KINDS, NUMBER),
    "text": {"type": "string", "minLength": 1, "maxLength": MAX_LENGTH},
    "int": {"type": "integer", "minimum": -MAX_AMOUNT, "maximum": MAX_AMOUNT},
    "float": {
        "type": "number", "minimum": -MAX_AMOUNT, "maximum": MAX_AMOUNT, "multipleOf": 0.0001,
    },
    "bool": {"type": "boolean"},
    "date": {"type": "string", "format": "date"},
}  # fmt: skip

Fields = dict[
    str, Any
]  # name -> a kind, or a list of a kind or of Fields: ["text"], [{"sum": "int"}]
_TOKENS = re.compile(r"[^\s,;\[\]?]+|[,;\n\[\]?]")
_ENDS = (",", ";", "\n", "]")


def parse_fields(text: str) -> Fields:
    """Raises InvalidParamError naming what cannot be read."""
    tokens = deque(_TOKENS.findall(text))
    found = _fields(tokens)
    if tokens:
        raise InvalidParamError("the list of fields has a ] too many")
    if not found:
        raise InvalidParamError(
            "the list of fields is empty", hint="write it as 'name, price float'"
        )
    return found


def schema_of(fields: Fields) -> dict[str, Any]:
    """An object of these fields and no other, all there, each null where it is absent."""
    return {
        "type": "object",
        "properties": {name: _nullable(_schema(kind)) for name, kind in fields.items()},
        "required": list(fields),
        "additionalProperties": False,
    }


def rules_of(fields: Fields) -> Iterator[checks.Rule]:
    """The checks that the kinds themselves ask for, in lists of objects too."""
    for name, kind in fields.items():
        inner = kind[0] if isinstance(kind, list) else {}
        if isinstance(inner, dict):
            for rule in rules_of(inner):
                yield checks.Rule(rule.rule, f"{name}.{rule.field}")
        if isinstance(kind, str) and kind in checks.KINDS:
            yield checks.Rule(kind, name)


def _fields(tokens: deque[str]) -> Fields:
    found: Fields = {}
    while tokens and tokens[0] != "]":
        name = tokens.popleft()
        if name in _ENDS:
            continue
        if not re.fullmatch(r"[\w-]+", name):
            raise InvalidParamError(
                f"{name!r} is no name of a field",
                hint="a name is one word of letters and digits, as in 'name, price float'; "
                "a file is read if there is one of that name",
            )
        if name in found:
            raise InvalidParamError(f"the field {name!r} is listed twice")
        found[name] = _kind(name, tokens)
        if tokens and tokens[0] == "?":
            tokens.popleft()
        if tokens and tokens[0] not in _ENDS:
            raise InvalidParamError(
                f"after the field {name!r} stands {tokens[0]!r}", hint="put a comma between fields"
            )
    return found


def _kind(name: str, tokens: deque[str]) -> Any:
    kind = "text"
    if tokens and tokens[0] not in (*_ENDS, "?", "["):
        kind = tokens.popleft()
        if kind not in KINDS:
            near = nearest(kind, KINDS) or f"there are {', '.join(KINDS)}"
            raise InvalidParamError(f"the field {name!r} cannot hold {kind!r}", hint=near)
    if not tokens or tokens[0] != "[":
        return kind
    tokens.popleft()
    inner = _fields(tokens)
    if not tokens:
        raise InvalidParamError(f"the list {name!r} has no ]")
    tokens.popleft()
    return [inner or kind]


def _schema(kind: Any) -> Mapping[str, Any]:
    match kind:
        case str():
            return KINDS[kind]
        case [dict() as fields]:
            return {"type": "array", "items": schema_of(fields), "maxItems": MAX_ITEMS}
        case _:
            return {"type": "array", "items": KINDS[kind[0]], "maxItems": MAX_ITEMS}


def _nullable(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}
