"""What is to be extracted: a JSON schema, a list of fields or a profile, and what a prompt says of it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import pydantic

from qvl.errors import InvalidParamError
from qvl.tasks.checks import Rule
from qvl.tasks.field_list import parse_fields, rules_of, schema_of

PROFILES = ("receipt", "invoice", "passport", "business-card", "label")
FOLDER = Path(str(files("qvl.tasks"))) / "profiles"
LEVELS, MOST_NAMED = 2, 60  # the fields that a prompt names: so deep, so many beside each other
Given = str | Mapping[str, Any] | type[pydantic.BaseModel]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A JSON schema as it was given, or of the fields that were, and what to check."""

    text: str
    rules: tuple[Rule, ...] = ()

    @property
    def schema(self) -> dict[str, Any]:
        return json.loads(self.text)

    @property
    def named(self) -> str:
        """The fields as a prompt names them: "shop (as printed), lines [name, sum]"."""
        return _properties(self.schema, self.schema, LEVELS) or self.text


def wanted(given: Given) -> Wanted:
    """Of a schema as a mapping or as JSON, a list of fields, or a pydantic model.

    Raises InvalidParamError for what is none of them, or not of an object.
    """
    if isinstance(given, str) and not given.lstrip().startswith("{"):
        fields = parse_fields(given)
        return Wanted(json.dumps(schema_of(fields)), tuple(rules_of(fields)))
    if isinstance(given, str):
        return Wanted(_checked(given))
    if isinstance(given, Mapping):
        return Wanted(_checked(json.dumps(dict(given), ensure_ascii=False)))
    schema = given.model_json_schema()
    for model in (schema, *schema.get("$defs", {}).values()):
        if "properties" in model:  # it would drop any other field
            model.setdefault("additionalProperties", False)
    return Wanted(_checked(json.dumps(schema, ensure_ascii=False)))


@cache
def of_profile(name: str) -> Wanted:
    """Of one of PROFILES."""
    profile = tomllib.loads((FOLDER / f"{name}.toml").read_text("utf-8"))
    fields = parse_fields(profile["fields"])
    relations = [
        Rule(check["rule"], check["field"], tuple(check["of"]), tuple(check.get("less", ())))
        for check in profile.get("check", ())
    ]
    return Wanted(json.dumps(schema_of(fields)), (*rules_of(fields), *relations))


@lru_cache(
    32
)  # a check takes milliseconds, and each picture of a folder comes with the same schema
def _checked(text: str) -> str:
    """The JSON schema of an object, as it is given. Raises InvalidParamError if it is none."""
    from jsonschema import Draft202012Validator, SchemaError

    try:
        schema = json.loads(text)
        Draft202012Validator.check_schema(schema)
        root = _resolved(schema, schema)
    except (ValueError, RecursionError) as err:
        raise InvalidParamError("the schema is not JSON", hint=f"{err!s:.100}") from err
    except SchemaError as err:
        raise InvalidParamError(f"the schema is no JSON schema: {err.message:.200}") from err
    if not isinstance(root, dict) or root.get("type") != "object":
        raise InvalidParamError(
            "the schema is not of an object", hint='it begins {"type": "object", "properties": ...'
        )
    return text


def _properties(node: Any, schema: Mapping[str, Any], levels: int) -> str:
    node = _object(node, schema)
    if levels == 0 or node is None:
        return ""
    said = []
    for name, value in islice(node["properties"].items(), MOST_NAMED):
        note = value.get("description") if isinstance(value, dict) else None
        inner = _properties(value, schema, levels - 1)
        said.append(name + (f" ({note})" if note else "") + (f" [{inner}]" if inner else ""))
    return ", ".join(said)


def _object(node: Any, schema: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The object that the node is, or may be, or is a list of."""
    waiting = [node]
    for _ in range(8):  # of one that leads in circles no more is looked at
        node = _resolved(waiting.pop(0), schema) if waiting else None
        if isinstance(node, dict) and "properties" in node:
            return node
        if isinstance(node, dict):
            waiting += [node.get("items"), *node.get("anyOf", ())]
    return None


def _resolved(node: Any, schema: Mapping[str, Any]) -> Any:
    """The node that a reference into the schema's own definitions stands for; others stay."""
    for _ in range(8):  # a chain of references longer than that leads nowhere
        if not isinstance(node, dict) or not isinstance(node.get("$ref"), str):
            return node
        kind, _, name = node["$ref"].removeprefix("#/").partition("/")
        if not node["$ref"].startswith("#/") or kind not in ("$defs", "definitions"):
            return node
        node = schema.get(kind, {}).get(name)
    return node
