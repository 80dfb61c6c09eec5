"""The form of a remote answer: how a server is asked for it, and whether the answer has it.

A server may know forms or not, so each answer is checked (`form_check`). A choice or a regular
expression goes to vLLM and to our own server as such; any other server is asked for a JSON object with
one key, which has that form, and the answer is taken out of it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qvl.errors import EngineError, InvalidParamError, RemoteError
from qvl.types import ResponseFormat
from qvl.vlm import form_check

PLAIN_KINDS = ("vllm", "qvl")  # they know `structured_outputs`
KEY = "answer"
CHECK_S = 10.0  # hundreds of times what an answer takes that was not made to take long
# a check by a schema without these keywords takes as long as the schema and the answer are
_SLOW = re.compile(r'"(pattern|patternProperties|uniqueItems|unevaluated\w+|\$\w*[Rr]ef)"')


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
                re.compile(form.value)
                field = {"regex": form.value}
                rule = {"pattern": f"^(?:{form.value})$"}
                fits = lambda answer: bool(_fits_in_time("regex", form.value, answer))  # noqa: E731
            case "lark":
                raise InvalidParamError(
                    "a grammar in Lark's language is not for remote models",
                    hint="give a json_schema, a choice or a regex",
                )
    except (ValueError, RecursionError, OverflowError, re.error) as err:
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
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as err:
        raise InvalidParamError(f"the json_schema cannot be used: {err.message:.200}") from err
    except (OverflowError, RecursionError) as err:  # of a pattern in it
        raise InvalidParamError(f"the json_schema cannot be used: {err!s:.200}") from err
    check = _fits_in_time if _SLOW.search(json.dumps(schema)) else form_check.fits

    def fits(answer: str) -> bool:
        found = check("json_schema", schema, answer)
        if found is None:
            raise InvalidParamError("the json_schema has a $ref that leads nowhere")
        return found

    return fits


def _fits_in_time(kind: str, form: Any, answer: str) -> bool | None:
    """As `form_check.fits`, in a process of its own: nothing ends a pattern's search in this one.

    Raises InvalidParamError for a form by which this answer cannot be checked in CHECK_S.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", form_check.__file__],
            input=json.dumps([kind, form, answer]),
            env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            check=True,
            text=True,
            timeout=CHECK_S,
            process_group=0,
        )
    except subprocess.TimeoutExpired as err:
        raise InvalidParamError(
            f"the answer could not be checked by the {kind} within {CHECK_S:g} s",
            hint="repetitions within repetitions, as in (a+)+, may take for ever: ask for less",
        ) from err
    except (OSError, subprocess.CalledProcessError) as err:
        raise EngineError(f"the check of an answer by the {kind} failed") from err
    return json.loads(done.stdout)


def _unwrapped(said: str) -> str | None:
    try:
        match json.loads(said):
            case {"answer": str(answer)}:
                return answer
    except (ValueError, RecursionError):
        pass
    return None
