"""Fifty JSON schemas from small to nasty, and a generator of others, for the tests and for `python -m benchmarks.mask_time`."""

from __future__ import annotations

import json
import random
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "maxLength": 20}
DATE: Schema = {"type": "string", "format": "date"}
MONEY: Schema = {"type": "number", "minimum": 0, "maximum": 99999, "multipleOf": 0.01}
CURRENCY: Schema = {"enum": ["EUR", "USD", "RUB", "CNY", "KZT"]}
BOX: Schema = {
    "type": "array",
    "prefixItems": [{"type": "integer", "minimum": 0, "maximum": 1000}] * 4,
    "items": False,
    "minItems": 4,
}


def record(*optional: str, **fields: Schema) -> Schema:
    """An object of these fields and no other; all but the optional ones must be there."""
    return {
        "type": "object",
        "properties": fields,
        "required": [name for name in fields if name not in optional],
        "additionalProperties": False,
    }


def some(items: Schema, low: int, high: int) -> Schema:
    return {"type": "array", "items": items, "minItems": low, "maxItems": high}


def nested(levels: int) -> Schema:
    inner: Schema = {"type": "boolean"}
    for level in range(levels):
        inner = record(**{f"level {level}": inner}) if level % 2 else some(inner, 1, 1)
    return inner


def tree() -> Schema:
    node = record("children", name=TEXT, children=some({"$ref": "#/$defs/node"}, 0, 2))
    return {"$defs": {"node": node}, "$ref": "#/$defs/node"}


SCHEMAS: dict[str, Schema] = {
    # small
    "anything": {},
    "true or false": {"type": "boolean"},
    "nothing": {"type": "null"},
    "empty object": record(),
    "empty list": {"type": "array", "maxItems": 0},
    "one value": {"const": {"a": [1, 2.5, None], "б": 'quote " backslash \\ line\n'}},
    "words of four scripts": {"enum": ["кошка", "собака", "猫", "🐈", "chat", 7, None]},
    "one of 500": {"enum": [f"товар {i} — 商品 {i * 7919 % 1000}" for i in range(500)]},
    # numbers
    "age": {"type": "integer", "minimum": 0, "maximum": 120},
    "below zero": {"type": "integer", "exclusiveMinimum": -1000, "exclusiveMaximum": -17},
    "share": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    "money": MONEY,
    "dozens": {"type": "integer", "multipleOf": 12, "minimum": 100, "maximum": 500},
    "whole numbers in a float's form": {"type": "number", "multipleOf": 0.5, "maximum": 10},
    "largest exact": {"type": "integer", "minimum": 2**53 - 5, "maximum": 2**53},
    # strings
    "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}(-[а-яё]+)?$", "maxLength": 12},
    "pattern anywhere": {"type": "string", "pattern": "[0-9]{2}", "maxLength": 9},
    "three characters": {"type": "string", "minLength": 3, "maxLength": 3},
    "two patterns": {"allOf": [TEXT | {"pattern": "^a"}, {"pattern": "z$"}]},
    "date": DATE,
    "late date": DATE | {"pattern": "^(19|20)[0-9]{2}-02-2"},
    "date and time": {"type": "string", "format": "date-time"},
    "time": {"type": "string", "format": "time"},
    "email": {"type": "string", "format": "email", "maxLength": 30},
    "uuid": {"type": "string", "format": "uuid"},
    "addresses": record(a={"type": "string", "format": "ipv4"}, b={"format": "ipv6"} | TEXT),
    # lists
    "two to four": some({"type": "boolean"}, 2, 4),
    "table": some(some({"type": "integer", "minimum": -9, "maximum": 9}, 3, 3), 2, 3),
    "pair and more": {
        "type": "array",
        "prefixItems": [TEXT, {"type": "integer"}],
        "items": {"type": "null"},
        "minItems": 2,
        "maxItems": 4,
    },
    "boxes": some(record(bbox_2d=BOX, label=TEXT), 0, 3),
    # objects
    "odd names": record(
        **{'"': {"type": "null"}, "\\": {"type": "null"}, "🙂 \n": {"type": "boolean"}, "": TEXT}
    ),
    "all optional": record(*"abcdefgh", **{name: {"type": "integer"} for name in "abcdefgh"}),
    "any keys": {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 3},
    "one key more": {
        "type": "object",
        "required": ["id"],
        "properties": {"id": {"type": "integer"}},
        "additionalProperties": {"type": "null"},
        "minProperties": 2,
        "maxProperties": 3,
    },
    "keys by pattern": {
        "type": "object",
        "properties": {"id": {"type": "integer", "minimum": 1}},
        "patternProperties": {"^x-": TEXT, "^[0-9]+$": {"type": "boolean"}},
        "required": ["id"],
        "additionalProperties": False,
    },
    "nullable": record(
        a={"type": ["string", "null"], "maxLength": 4}, b={"type": ["integer", "null"]}
    ),
    "forty fields": record(**{f"field {i}": {"enum": [i, None]} for i in range(40)}),
    "deep": nested(20),
    # one of several
    "number or word": {
        "anyOf": [{"type": "integer"}, {"enum": ["many", "none"]}, some(TEXT, 1, 1)]
    },
    "either kind": {
        "oneOf": [
            record(kind={"const": "circle"}, radius={"type": "number", "exclusiveMinimum": 0}),
            record(kind={"const": "box"}, box=BOX),
        ]
    },
    "both halves": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"a": {"minimum": 5}, "b": TEXT}, "required": ["b"]},
        ],
        "additionalProperties": False,
        "properties": {"a": {}, "b": {}},
    },
    # references
    "shared definition": {
        "$defs": {"точка": record(x={"type": "integer"}, y={"type": "integer"})},
        **record(**{"from": {"$ref": "#/$defs/точка"}, "to": {"$ref": "#/$defs/точка"}}),
    },
    "narrowed reference": {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n", "minimum": 7},
    "tree": tree(),
    "list of lists": {"anyOf": [{"type": "null"}, some({"$ref": "#"}, 0, 2)]},
    # documents
    "receipt": record(
        "discount",
        shop=TEXT,
        date=DATE,
        time={"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"},
        items=some(record(name=TEXT, count={"type": "integer", "minimum": 1}, price=MONEY), 1, 4),
        discount=MONEY,
        total=MONEY,
        currency=CURRENCY,
    ),
    "invoice": record(
        "buyer",
        number={"type": "string", "pattern": "^[A-Z0-9/-]{1,16}$"},
        issued=DATE,
        due={"anyOf": [DATE, {"type": "null"}]},
        seller=record(name=TEXT, vat={"type": "string", "pattern": "^[A-Z]{2}[0-9]{8,12}$"}),
        buyer=record(name=TEXT, email={"type": "string", "format": "email", "maxLength": 30}),
        lines=some(record(text=TEXT, net=MONEY, vat_percent={"enum": [0, 7, 10, 19, 20]}), 1, 3),
        currency=CURRENCY,
    ),
    "passport": record(
        "отчество",
        фамилия={"type": "string", "pattern": "^[А-ЯЁ]{2,20}$"},
        имя={"type": "string", "pattern": "^[А-ЯЁ]{2,20}$"},
        отчество={"type": ["string", "null"], "maxLength": 20},
        пол={"enum": ["М", "Ж"]},
        рождение=DATE,
        серия={"type": "string", "pattern": "^[0-9]{2} [0-9]{2}$"},
        mrz=some({"type": "string", "pattern": "^[A-Z0-9<]{44}$"}, 2, 2),
    ),
    "menu": record(
        菜单=some(record(菜名=TEXT, 价格={"type": "integer", "minimum": 1, "maximum": 999}), 1, 3)
    ),
    "form with boxes": record(
        fields=some(
            record(
                "value", label=TEXT, value={"type": ["string", "null"], "maxLength": 9}, box=BOX
            ),
            1,
            3,
        ),
        signed={"type": "boolean"},
        confidence={"type": "number", "minimum": 0, "maximum": 1},
    ),
}


def generated(rng: random.Random, depth: int = 2) -> Schema:
    """An object of one to four random fields, lists and objects in it down to `depth`."""
    names = rng.sample(("shop", "цена", "日期", "n", "line-2", "кто", "code", "a b", "total"), 4)
    fields = {name: _value(rng, depth) for name in names[: rng.randint(1, depth + 2)]}
    return record(*(name for name in fields if rng.random() < 0.2), **fields)


def _value(rng: random.Random, depth: int) -> Schema:
    kinds = [
        TEXT,
        DATE,
        MONEY,
        CURRENCY,
        {"type": "boolean"},
        {"type": "integer", "minimum": rng.randint(-99, 0), "maximum": rng.randint(1, 999)},
        {"type": ["string", "null"], "minLength": 1, "maxLength": rng.randint(1, 12)},
        {"type": ["number", "null"], "minimum": -1, "maximum": 1, "multipleOf": 0.001},
        {"type": "string", "pattern": "^[A-ZА-Я]{2}-[0-9]{1,4}$"},
        {"enum": [None, rng.randint(0, 9), "да", True]},
        {"anyOf": [{"type": "null"}, {"type": "string", "format": "time"}]},
    ]
    if depth and rng.random() < 0.15:
        low = rng.randint(0, 1)
        inner = [
            generated(rng, depth - 1),
            some(_value(rng, depth - 1), low, low + rng.randint(1, 2)),
        ]
        return rng.choice(inner)
    return rng.choice(kinds)


def text_of(schema: Schema) -> str:
    return json.dumps(schema, ensure_ascii=False)
