"""Requests to OpenAI's API that come as lines of a file: what a run asks where the items are such lines.

Main path: Requested.row -> asked (the url's own body, as its route reads it) -> a row that holds the
route's answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

import qvl
from qvl import types
from qvl.batch.asked import seed_of
from qvl.errors import EngineError, InvalidParamError, QvlError, RemoteError
from qvl.runs.record import Item
from qvl.serve.chat import ChatBody, Shape, new_id
from qvl.serve.completions import CompletionBody
from qvl.serve.errors import PARAM, Failure, Refusal, error_object, failure_of, shown
from qvl.serve.front import check_shape
from qvl.serve.limits import Limits
from qvl.serve.responses import ResponseBody
from qvl.tasks.task import Result, as_row
from qvl.types import Text
from qvl.vlm.chat_model import ChatModel, ModelInfo, characters_of, check_length

Asking = ChatBody | CompletionBody | ResponseBody
BODIES: Mapping[str, type[Asking]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/responses": ResponseBody,
}
WARNINGS = 20  # of one request
MAX_BYTES = Limits().body_bytes


class RequestError(QvlError):
    """What the route would have answered with a status of 400 and more."""

    code, exit_code, http_status = "request", 2, 400

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message, hint=failure.hint)
        self.failure = failure

    def __reduce__(self) -> tuple[object, ...]:
        return RequestError, (self.failure,)

    def as_json(self) -> dict[str, Any]:
        """With the status and what else OpenAI's error object has."""
        told = error_object(self.failure, "")["error"]
        del told["request_id"]
        return {**told, "status": self.failure.status}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A line's body and the requests that it is; `ignored` has no effect here."""

    body: Asking
    requests: Sequence[types.Request]
    ignored: Sequence[str]


def any_name(_name: str | None) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requested:
    """The requests of items, each with the seed that it has, or else with its item's own of `seed`.

    `name` is what answers call the model where the request does not; `adapter_of` says which adapter a
    model's name means and refuses unknown names (else every name means the model itself). `tenant` and
    `priority` are as of `types.Request`.
    """

    seed: int
    name: str = ""
    adapter_of: Callable[[str | None], str] = any_name
    tenant: str = ""
    priority: int | None = None
    is_strict: bool = False

    def of(self, item: Item) -> Asked:
        """Raises RequestError, InvalidParamError for an item that is no request."""
        match item.options.get("request"):
            case {"url": str(url), "body": dict(body)}:
                pass
            case _:
                raise InvalidParamError(
                    f"{item.id!r:.80} is no request to OpenAI's API",
                    hint='a line has a "custom_id", the "method" "POST", a "url" and a "body"',
                )
        try:
            return self._asked(url, body, item.id)
        except (Refusal, RequestValidationError, QvlError) as err:
            if is_passing(err):
                raise
            raise RequestError(failure_of(err)) from err

    def _asked(self, url: str, body: Mapping[str, Any], item_id: str) -> Asked:
        kind = BODIES.get(url)
        if kind is None:
            raise Refusal(
                404,
                "invalid_url",
                f"requests of a batch go to {', '.join(BODIES)}, not to {shown(url)}",
                param="url",
            )
        data = json.dumps(body).encode()
        if len(data) > MAX_BYTES:
            raise Refusal(413, "request_too_large", f"the body is over {MAX_BYTES} bytes")
        check_shape(data)
        read = parsed(kind, body)
        if read.stream:
            raise Refusal(400, "invalid_request", "a batch has no streams", param="stream")
        if read.seed is None:
            read = read.model_copy(update={"seed": seed_of(self.seed, item_id)})
        adapter, ignored = self.adapter_of(read.model), read.ignored()
        requests = read.requests(ignored)
        if ignored and self.is_strict:
            raise refused_field(ignored[0])
        own = [
            replace(
                request,
                id=item_id,
                tenant=self.tenant,
                adapter=adapter,
                priority=request.priority if self.priority is None else self.priority,
            )
            for request in requests
        ]
        return Asked(body=read, requests=own, ignored=ignored)

    def row(self, model: ChatModel, item: Item) -> dict[str, Any]:
        """The answer as every door shows it, and under "response" the whole body that the route would
        have sent. Raises RequestError, and what passes: faults of the model and of fetching.
        """
        asked = self.of(item)
        try:
            for request in asked.requests:
                check_length(characters_of(request), model.info.max_positions)
            found = model.generate(asked.requests)
        except QvlError as err:
            if is_passing(err):
                raise
            raise RequestError(failure_of(err)) from err
        shape = shape_of(asked.body, model.info, self.name or model.info.name, asked.ignored)
        result = Result(text=found[0].text, language="", completions=tuple(found))
        row = as_row(item.id, result)
        unused = ("language", "boxes", "points", "flags")
        row = {key: value for key, value in row.items() if key not in unused or value}
        return {**row, "response": asked.body.whole(found, shape)}

    def words(self, item: Item) -> str:
        """What the last message of a request says. Raises as `of`."""
        parts = self.of(item).requests[0].messages[-1].content
        return "\n".join(part.text for part in parts if isinstance(part, Text))


def is_passing(err: Exception) -> bool:
    """Whether the same request may do better the next time: that is the runner's to decide."""
    return isinstance(err, EngineError | RemoteError) or (
        isinstance(err, QvlError) and err.retryable
    )


def parsed(kind: type[Asking], body: Mapping[str, Any]) -> Asking:
    """As FastAPI reads a route's body. Raises RequestValidationError."""
    try:
        return kind.model_validate(body)
    except ValidationError as err:
        told = [{**one, "loc": ("body", *one["loc"])} for one in err.errors()]
        raise RequestValidationError(told, body=body) from err


def refused_field(name: str) -> Refusal:
    return Refusal(
        400,
        "unsupported_parameter",
        f"{shown(name)} has no effect here, and the server was told to refuse that",
        param=name[:PARAM],
    )


def shape_of(body: Asking, info: ModelInfo, name: str, ignored: Sequence[str]) -> Shape:
    """How the answers to a body are shown; `name` is the model's where the body says none."""
    fields = body.shape()
    return Shape(
        model=body.model or name,
        fingerprint=f"qvl-{qvl.__version__}-{info.dtype}-{info.device}",
        id=new_id(fields.pop("prefix")),
        warnings=tuple(f"{shown(name)} has no effect here" for name in ignored[:WARNINGS]),
        **fields,
    )
