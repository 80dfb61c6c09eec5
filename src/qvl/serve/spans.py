"""One OpenTelemetry span for each request, where whoever starts the server has set up an SDK.

It tells of the route, the model, tokens, times and how it ended, never of contents or keys. The names
are those of OpenTelemetry's conventions for HTTP and generative AI where there are any.
Main path: Front -> request_span; Answers -> answered, for each answer that is whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from qvl.types import Completion

try:
    from opentelemetry import propagate, trace

    HAS_API = True
except ModuleNotFoundError:
    HAS_API = False


@dataclass(slots=True)
class RequestSpan:
    """Of OpenTelemetry, and what is summed up in it: over all answers, and all requests of a task."""

    span: Any
    prompt_tokens: int = 0
    new_tokens: int = 0
    reasons: list[str] = field(default_factory=list)

    def ended(self, scope: Scope, status: int) -> None:
        """`status` 0: none was sent."""
        route = getattr(scope.get("route"), "path", None)
        if route is not None:
            self.span.update_name(f"{scope['method']} {route}")
            self.span.set_attribute("http.route", route)
        if status:
            self.span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self.failed(str(status))

    def failed(self, kind: str) -> None:
        self.span.set_attribute("error.type", kind)
        self.span.set_status(trace.StatusCode.ERROR)


_current: ContextVar[RequestSpan | None] = ContextVar("request_span", default=None)


@contextmanager
def request_span(scope: Scope, request_id: str) -> Iterator[RequestSpan | None]:
    """The span of a request, under the caller's own if its headers name one; None without an SDK."""
    if not HAS_API or scope["type"] != "http":
        yield None
        return
    with trace.get_tracer("qvl").start_as_current_span(
        str(scope["method"]),
        context=propagate.extract(dict(Headers(scope=scope))),
        kind=trace.SpanKind.SERVER,
        attributes={"http.request.method": scope["method"], "qvl.request_id": request_id},
        record_exception=False,  # its text may quote
        set_status_on_exception=False,
    ) as span:
        mine = RequestSpan(span) if span.is_recording() else None
        token = _current.set(mine)
        try:
            yield mine
        finally:
            _current.reset(token)


def answered(completion: Completion, model: str, waited_s: float) -> None:
    """One answer of the request that is being served, for which it waited so long."""
    if (mine := _current.get()) is None:
        return
    usage, timings = completion.usage, completion.timings
    if not mine.reasons:
        mine.span.set_attribute("gen_ai.request.model", model)
        mine.span.set_attribute("qvl.queue_s", waited_s)
        mine.span.set_attribute("qvl.first_token_s", timings.first_token_s)
    mine.prompt_tokens += usage.prompt_tokens
    mine.new_tokens += usage.completion_tokens
    mine.reasons.append(completion.finish_reason)
    mine.span.set_attribute("gen_ai.usage.input_tokens", mine.prompt_tokens)
    mine.span.set_attribute("gen_ai.usage.output_tokens", mine.new_tokens)
    mine.span.set_attribute("gen_ai.response.finish_reasons", mine.reasons)


def failed(kind: str) -> None:
    """The request that is being served, after its status was sent."""
    if (mine := _current.get()) is not None:
        mine.failed(kind)
