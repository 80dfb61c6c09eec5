"""A span for each request, as OpenTelemetry's own SDK exports it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qvl.errors import EngineError
from served import StandIn, ask, data_url, png, running, until

sdk = pytest.importorskip("opentelemetry.sdk.trace")
export = pytest.importorskip("opentelemetry.sdk.trace.export")
in_memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
from opentelemetry import trace  # noqa: E402 - only after the skips

JSON = {"Content-Type": "application/json"}
SECRET = "of the picture"
ASKED = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 8, "model": "mine"}
EXPORTER = in_memory.InMemorySpanExporter()


@pytest.fixture(scope="module", autouse=True)
def provider() -> None:
    """One for the process, which cannot be set back."""
    made = sdk.TracerProvider()
    made.add_span_processor(export.SimpleSpanProcessor(EXPORTER))
    trace.set_tracer_provider(made)


@pytest.fixture(autouse=True)
def emptied() -> None:
    EXPORTER.clear()


def only_span() -> Any:
    until(lambda: bool(EXPORTER.get_finished_spans()))
    (span,) = EXPORTER.get_finished_spans()
    return span


@pytest.mark.parametrize("stream", [False, True])
def test_a_span_tells_of_tokens_and_times_and_of_no_contents(stream: bool) -> None:
    trace_id, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    head = {**JSON, "traceparent": f"00-{trace_id}-{caller}-01", "x-request-id": "mine-1"}
    body = json.dumps(ASKED | {"n": 2, "stream": stream})
    with running(StandIn(words=("secret ", "words")), names=["mine"]) as server:
        assert ask(server.port, "POST", "/v1/chat/completions", head, body)[0] == 200
        span = only_span()
    assert span.name == "POST /v1/chat/completions"
    assert f"{span.context.trace_id:032x}" == trace_id
    assert f"{span.parent.span_id:016x}" == caller
    told = dict(span.attributes)
    assert 0 <= told.pop("qvl.queue_s") < 5
    assert told == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "qvl.request_id": "mine-1",
        "qvl.first_token_s": 0.1,
        "gen_ai.request.model": "mine",
        "gen_ai.usage.input_tokens": 14,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.response.finish_reasons": ("stop", "stop"),
    }
    assert not span.events
    assert SECRET not in span.to_json()
    assert "secret" not in span.to_json()


def test_a_task_is_one_span_however_often_it_asks() -> None:
    body = {"images": [data_url(png(1))], "language": "ru"}  # answered in English, so asked twice
    with running(StandIn()) as server:
        ask(server.port, "POST", "/v1/tasks/describe", JSON, json.dumps(body))
        span = only_span()
    assert span.name == "POST /v1/tasks/describe"
    assert span.attributes["gen_ai.usage.output_tokens"] == 6


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_is_told_by_its_kind(stream: bool) -> None:
    model = StandIn(error=EngineError(what := "the step for the cup failed"))
    body = {**ASKED, "model": None, "stream": stream}
    with running(model, may_fail=True) as server:
        ask(server.port, "POST", "/v1/chat/completions", JSON, json.dumps(body))
        span = only_span()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.attributes["error.type"] == ("engine" if stream else "500")
    assert SECRET not in span.to_json()
    assert what not in span.to_json()


def test_what_is_refused_before_a_route_has_a_span_too() -> None:
    with running(StandIn()) as server:
        ask(server.port, "POST", "/v1/nowhere", JSON, "{}")
        span = only_span()
    assert span.name == "POST"
    assert span.attributes["http.response.status_code"] == 404
    assert "http.route" not in span.attributes
