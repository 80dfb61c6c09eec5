"""Every failure as OpenAI's error object, with the request's id and what a client should do.

Main path: an exception -> failure_of -> Failure -> respond, or, amid a stream, error_object.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qvl.errors import QvlError

log = logging.getLogger(__name__)
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
CODES = {
    400: "invalid_request",
    404: "not_found",
    405: "method_not_allowed",
}
LATER = (408, 409, 429, 503)  # the same request may succeed after a while
SHOWN = 64  # characters of what a client sent
CONSIDERED = 50  # of the errors of one body
PARAM = 200  # of where in its body something is wrong


@dataclass(frozen=True, slots=True)
class Failure:
    status: int
    code: str
    message: str
    hint: str | None = None
    param: str | None = None
    retry_after_s: int | None = None
    is_retryable: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """What the server itself does not take, before a model sees it."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        hint: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.failure = Failure(
            status, code, message, hint, param, retry_after_s, status in LATER, headers or {}
        )


def failure_of(error: BaseException) -> Failure:
    """What is told of an exception: of one that is nobody's doing but ours, nothing."""
    match error:
        case Refusal():
            return error.failure
        case QvlError():
            retry_s = 1 if error.http_status in LATER else None
            return Failure(
                error.http_status,
                error.code,
                error.message,
                error.hint,
                retry_after_s=retry_s,
                is_retryable=error.retryable,
            )
        case TimeoutError():
            message = "the request was not finished in the time that the server gives it"
            return Failure(504, "deadline_exceeded", message, "ask for less", is_retryable=True)
        case RequestValidationError():
            return _invalid(error)
        case HTTPException():
            code = CODES.get(error.status_code, "http_error")
            message = {404: "there is no such route", 405: "the route has no such method"}
            return Failure(
                error.status_code,
                code,
                message.get(error.status_code, "the body cannot be read as JSON"),
                headers=error.headers or {},
            )
        case _:
            message = "the request failed by a fault of the server"
            hint = "report it with the request's id"
            return Failure(500, "internal_error", message, hint, is_retryable=True)


def logged(error: Exception, request_id: str) -> Failure:
    """As `failure_of`. A fault is logged by its kind alone: its text may quote."""
    failure = failure_of(error)
    if failure.status == 500:
        kind = type(error.__cause__ or error).__name__
        log.error("request %s: a fault, %s", request_id, kind)
        log.debug("request %s", request_id, exc_info=error)
    return failure


def error_object(failure: Failure, request_id: str) -> dict[str, Any]:
    default = "server_error" if failure.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": failure.message,
            "type": TYPES.get(failure.status, default),
            "param": failure.param,
            "code": failure.code,
            "hint": failure.hint,
            "request_id": request_id,
        }
    }


def to_json(value: object) -> str:
    """On one line, letters as they are; half a surrogate pair, which UTF-8 cannot hold, escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace").decode()


class Json(JSONResponse):
    def render(self, content: object) -> bytes:
        return to_json(content).encode()


def respond(failure: Failure, request_id: str) -> Json:
    headers = dict(failure.headers)
    if failure.retry_after_s is not None:
        headers["retry-after"] = str(failure.retry_after_s)
    if not failure.is_retryable:
        headers["x-should-retry"] = "false"  # OpenAI's clients obey it
    return Json(error_object(failure, request_id), failure.status, headers)


async def handle(request: Request, error: Exception) -> Json:
    """The handler of what routes raise."""
    request_id = request.state.request_id
    return respond(logged(error, request_id), request_id)


def shown(value: str) -> str:
    """What a client sent, short and in quotes."""
    return repr(value if len(value) <= SHOWN else value[:SHOWN] + "...")


def _invalid(error: RequestValidationError) -> Failure:
    """The one among the errors that reaches deepest: the others are of forms that were not meant."""
    named = [
        (param_of(e["loc"][1:], error.body, is_missing=e["type"] == "missing"), e)
        for e in error.errors()[:CONSIDERED]
    ]
    param, first = max(named, key=lambda pair: len(re.findall(r"[.\[]", pair[0])))
    if first["type"] == "json_invalid":
        return Failure(400, "invalid_json", "the body is not JSON")
    if first["loc"][0] != "body":
        param = str(first["loc"][-1])
    param = param[:PARAM]
    if not param:
        return Failure(400, "invalid_request", f"the body is wrong: {_reason(first)}")
    unknown = first["type"] == "extra_forbidden"
    code = "unsupported_parameter" if unknown else "invalid_request"
    reason = "is not known here" if unknown else f"is wrong: {_reason(first)}"
    return Failure(400, code, f"{param} {reason}", param=param)


def _reason(error: Mapping[str, Any]) -> str:
    text = str(error["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:200]


def param_of(place: Sequence[int | str], body: Any, *, is_missing: bool) -> str:
    """`messages[0].content` of a validator's place, without the names of types that it tried."""
    path, _ = _path(place, body)
    if is_missing and place:
        path = f"{path}.{place[-1]}"
    return path.removeprefix(".")


def _path(place: Sequence[int | str], value: Any) -> tuple[str, int]:
    """The path and how many steps it has; a step may be a key, or a type that is called like one."""
    if not place:
        return "", 0
    step, rest = place[0], place[1:]
    if isinstance(step, int):
        if isinstance(value, list) and step < len(value):
            path, steps = _path(rest, value[step])
            return f"[{step}]{path}", steps + 1
        return _path(rest, value)
    skipped = _path(rest, value)
    if isinstance(value, dict) and step in value:
        path, steps = _path(rest, value[step])
        if steps + 1 > skipped[1]:
            return f".{step}{path}", steps + 1
    return skipped
