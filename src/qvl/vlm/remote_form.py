"""The form of a remote answer: how a server is asked for it, and whether the answer has it.

A server may know forms or not, so each answer is checked here (JSON schemas by jsonschema). A choice or
a regular expression goes to vLLM and to our own server as such; any other server is asked for a JSON
object with one key, which has that form, and the answer is taken out of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from qvl.errors import InvalidParamError, RemoteError
from qvl.types import ResponseFormat

PLAIN_KINDS = ("vllm", "qvl")  # they know `structured_outputs`
KEY = "answer"


@dataclass(frozen=True, slots=True)
class RemoteForm:
    """`fields` ask for it in the body of a request; `is_wrapped`: under the key KEY."""

    kind: str
    fields: dict[str, Any]
    fits: Callable[[str], bool]
    is_wrapped: bool = False

    def read(self, said: str) -> str:
        """The answer alone. Raises RemoteError for one that does not have the form."""
        answer = _unwrapped(said) if self.is_wrapped else said
        if answer is None or not self.fits(answer):
            raise RemoteError(
                f"the answer does not have the form of the {self.kind} that was asked for",
                hint="ask again, or ask a server that keeps to it (vLLM, SGLang, llama.cpp do)",
            )
        return answer


def remote_form(form: ResponseFormat, server_kind: str) -> RemoteForm:
    """Raises InvalidParamError for a form that is wrong, or that is not for servers."""
    try:
        match form.kind:
            case "json_schema":
                schema = json.loads(form.value)
                return RemoteForm(form.kind, _schema_field(schema), _schema_check(schema))
            case "choice":
                choices = json.loads(form.value)
                if not isinstance(choices, list) or not {type(c) for c in choices} == {str}:
                    raise ValueError("it is not a list of strings")
                field: dict[str, Any] = {"choice": choices}
                rule: dict[str, Any] = {"enum": choices}
                fits: Callable[[str], bool] = choices.__contains__
            case "regex":
                pattern = re.compile(form.value)
                field = {"regex": form.value}
                rule = {"pattern": f"^(?:{form.value})$"}
                fits = lambda answer: pattern.fullmatch(answer) is not None  # noqa: E731
            case "lark":
                raise InvalidParamError(
                    "a grammar in Lark's language is not for remote models",
                    hint="give a json_schema, a choice or a regex",
                )
    except (ValueError, RecursionError, re.error) as err:
        raise InvalidParamError(f"the {form.kind} cannot be read: {err!s:.200}") from err
    if server_kind in PLAIN_KINDS:
        return RemoteForm(form.kind, {"structured_outputs": field}, fits)
    wrapping = {
        "type": "object",
        "properties": {KEY: {"type": "string", **rule}},
        "required": [KEY],
        "additionalProperties": False,
    }
    return RemoteForm(form.kind, _schema_field(wrapping), fits, is_wrapped=True)


def arguments_fit(parameters: dict[str, Any], arguments: object) -> bool:
    """Whether the arguments of a call fit the schema of its tool. Raises InvalidParamError for that."""
    return _schema_check(parameters)(json.dumps(arguments))


def _schema_field(schema: object) -> dict[str, Any]:
    inner = {"name": KEY, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": inner}}


def _schema_check(schema: Any) -> Callable[[str], bool]:
    from jsonschema import Draft202012Validator as Validator
    from jsonschema.exceptions import SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        Validator.check_schema(schema)
    except SchemaError as err:
        raise InvalidParamError(f"the json_schema cannot be used: {err.message:.200}") from err
    # an empty registry: no reference is fetched from anywhere
    # and numbers are decimal: in floats 0.09 is no multiple of 0.01
    exact = json.loads(json.dumps(schema), parse_float=Decimal)
    validator = Validator(exact, registry=Registry(), format_checker=Validator.FORMAT_CHECKER)

    def fits(answer: str) -> bool:
        try:
            said = json.loads(answer, parse_constant=_refuse, parse_float=Decimal)
            return validator.is_valid(said)
        except Unresolvable as err:
            raise InvalidParamError("the json_schema has a $ref that leads nowhere") from err
        except (ValueError, RecursionError, ArithmeticError):
            return False

    return fits


def _unwrapped(said: str) -> str | None:
    try:
        match json.loads(said):
            case {"answer": str(answer)}:
                return answer
    except (ValueError, RecursionError):
        pass
    return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
