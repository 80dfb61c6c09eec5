"""/v1/tasks in the server: its queue, its errors, and clients that leave."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any

import httpx2

from qvl.errors import AnswerFormError, DeadlineError
from qvl.serve.limits import Limits
from served import StandIn, data_url, png, running

BODY = {"images": [data_url(png(1))], "language": "en"}


def posted(url: str, task: str, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(f"{url}/v1/tasks/{task}", json=body, timeout=30)


def test_a_task_is_answered_under_the_served_name() -> None:
    with running(StandIn(), names=("mine",)) as server:
        answer = posted(server.url, "describe", BODY)
    assert answer.status_code == 200
    row = answer.json()
    assert (row["id"], row["text"], row["meta"]["model"]) == ("images[0]", "one two three", "mine")
    assert answer.headers["x-request-id"]


def test_errors_of_a_task_are_those_of_the_server() -> None:
    model = StandIn(error=DeadlineError("too late"))
    with running(model, may_fail=True) as server:
        late = posted(server.url, "describe", BODY)
        unknown = posted(server.url, "discribe", BODY)
        wrong = posted(server.url, "describe", {**BODY, "style": "plane"})
        model.error = AnswerFormError("cut")
        cut = posted(server.url, "describe", BODY)
    assert (late.status_code, unknown.status_code, wrong.status_code, cut.status_code) == (
        504,
        404,
        400,
        422,
    )
    assert late.json()["error"]["code"] == "deadline_exceeded"
    assert wrong.json()["error"]["hint"] == "did you mean 'plain', 'marketplace'?"


def test_a_task_waits_its_turn_and_is_refused_when_the_queue_is_full() -> None:
    model = StandIn()
    model.gate.clear()
    with running(model, limits=Limits(running=1, queued=1)) as server:
        first, second = left_open(server.port), left_open(server.port)
        until(lambda: server.app.state.serving.admission.waiting == 1)
        answer = posted(server.url, "describe", BODY)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        model.gate.set()
        for connection in (first, second):
            assert json.loads(connection.getresponse().read())["text"] == "one two three"
            connection.close()


def test_what_a_client_that_leaves_has_asked_for_is_given_up() -> None:
    model = StandIn()
    model.gate.clear()
    with running(model) as server:
        connection = left_open(server.port)
        until(lambda: model.working == 1)
        connection.close()
        until(lambda: model.working == 0)
        assert server.app.state.serving.admission.running == 0


def left_open(port: int) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    head = {"content-type": "application/json"}
    connection.request("POST", "/v1/tasks/describe", json.dumps(BODY), head)
    return connection


def until(true: Any) -> None:
    until_s = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until_s
        time.sleep(0.01)
