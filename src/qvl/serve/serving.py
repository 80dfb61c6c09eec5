"""What all routes share: the model and its names, who may ask now, how an answer leaves the house."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from fastapi import Request, Response

from qvl import types
from qvl.serve import spans
from qvl.serve.admission import Admission
from qvl.serve.answers import Answers, EventStream, Piece, unless_left
from qvl.serve.chat import Shape
from qvl.serve.errors import Json, Refusal, error_object, logged, shown, to_json
from qvl.serve.fields import Body, header_of
from qvl.serve.limits import Limits
from qvl.serve.metrics import Metrics
from qvl.serve.requested import Asking, refused_field, shape_of
from qvl.serve.watchdog import Watchdog
from qvl.types import Completion
from qvl.vlm.chat_model import ChatModel, characters_of, check_length

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """Whose request it is, until when it may take, what of it is ignored, and for which adapter."""

    http: Request
    key: str
    until_s: float
    ignored: list[str]
    adapter: str = ""

    @property
    def id(self) -> str:
        return self.http.state.request_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """`names` are those that clients may call the model by, the first is its own; by the name of one
    of the `adapters` they call the model with that. `readers` are the threads that take bodies apart, with the documents in them.
    """

    model: ChatModel
    names: tuple[str, ...]
    adapters: tuple[str, ...]
    any_model: bool
    is_strict: bool
    limits: Limits
    admission: Admission
    metrics: Metrics
    answers: Answers
    watchdog: Watchdog
    readers: Executor
    created: int = field(default_factory=lambda: int(time.time()))

    def asked(self, http: Request, body: Body) -> Asked:
        """Raises Refusal for a model that is not here, and for a field that must not be."""
        adapter = self.adapter_of(body.model)
        until_s = asyncio.get_running_loop().time() + self.limits.request_s
        return Asked(http, http.state.key, until_s, body.ignored(), adapter)

    def adapter_of(self, name: str | None) -> str:
        """The adapter that a model's name means, "" for none. Raises Refusal for an unknown name."""
        self.check_model(name)
        return name if name is not None and name in self.adapters else ""

    def check_model(self, name: str | None) -> None:
        known = (*self.names, *self.adapters)
        if name is None or name in known or self.any_model:
            return
        raise Refusal(
            404,
            "model_not_found",
            f"there is no model {shown(name)} here",
            hint=f"/v1/models lists: {', '.join(known)}",
            param="model",
        )

    async def read(self, asked: Asked, reading: Callable[[], T]) -> T:
        """What a thread reads of a body; given up when its client leaves or its time is over."""
        found = asyncio.get_running_loop().run_in_executor(self.readers, reading)
        async with asyncio.timeout_at(asked.until_s):
            return await unless_left(asked.http.receive, found)

    def own(self, request: types.Request, asked: Asked) -> types.Request:
        """The request as its key's; raises PromptTooLongError before so long a text is read."""
        check_length(characters_of(request), self.model.info.max_positions)
        return replace(request, tenant=asked.key, id=asked.id, adapter=asked.adapter)

    def shape(self, body: Asking, asked: Asked) -> Shape:
        """Raises Refusal for ignored fields where nothing may be ignored."""
        names = asked.ignored
        if names and self.is_strict:
            raise refused_field(names[0])
        return shape_of(body, self.model.info, self.names[0], names)

    async def whole(
        self,
        requests: Sequence[types.Request],
        asked: Asked,
        show: Callable[[list[Completion]], dict[str, Any]],
    ) -> Response:
        """One object when all answers are there."""
        answers = self.answers.whole(requests, asked.key, asked.until_s)
        found = await unless_left(asked.http.receive, answers)
        return Json(show(found), headers=header_of(asked.ignored))

    async def stream(
        self,
        requests: Sequence[types.Request],
        asked: Asked,
        show: Callable[[AsyncIterator[Piece]], AsyncIterator[str]],
    ) -> Response:
        """Events as answers come; what is wrong with the request is raised before the first."""
        pieces = self.answers.deltas(requests, asked.key, asked.until_s)
        first = await unless_left(asked.http.receive, anext(pieces))
        return EventStream(
            _events(show(_resumed(first, pieces)), pieces, asked.id),
            ping_s=self.limits.ping_s,
            until_s=asked.until_s + self.limits.ping_s,
            headers=header_of(asked.ignored),
        )


async def _resumed(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for piece in rest:
        yield piece


async def _events(
    shown: AsyncIterator[str], pieces: AsyncGenerator[Piece, None], request_id: str
) -> AsyncGenerator[str, None]:
    """The events, then an error if it comes to that."""
    async with aclosing(pieces):
        try:
            async for event in shown:
                yield event
        except Exception as error:  # noqa: BLE001 - the answer has begun: only its end can tell
            failure = logged(error, request_id)
            spans.failed(failure.code)
            yield f"data: {to_json(error_object(failure, request_id))}\n\n"
