"""/v1/tasks in the server: its queue, its errors, and clients that leave."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2

import documents
from qvl.errors import AnswerFormError, DeadlineError
from qvl.serve.limits import Limits
from qvl.vlm.local import LocalModel
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


def test_what_was_begun_before_the_end_is_answered_whole() -> None:
    """A task asks the model again while the server drains, and while the queue is full of others."""
    model = StandIn()  # says it in English, so it is asked twice
    model.gate.clear()
    with (
        running(model, may_fail=True, limits=Limits(running=1, queued=1)) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        admission = server.app.state.serving.admission
        first = pool.submit(posted, server.url, "describe", {**BODY, "language": "ru"})
        until(lambda: admission.running == 1)
        second = pool.submit(posted, server.url, "describe", BODY)
        until(lambda: admission.waiting == 1)
        server.server.stop()
        until(lambda: admission.closed is not None)
        assert posted(server.url, "describe", BODY).status_code == 503
        model.gate.set()
        assert [f.result().status_code for f in (first, second)] == [200, 200]
    assert len(model.asked) == 3


def test_of_very_many_tasks_at_once_those_beyond_the_queue_are_refused() -> None:
    model = StandIn()
    model.gate.clear()
    with (
        running(model, limits=Limits(running=2, queued=2)) as server,
        ThreadPoolExecutor(20) as pool,
    ):
        asked = [pool.submit(posted, server.url, "describe", BODY) for _ in range(20)]
        until(lambda: sum(future.done() for future in asked) == 16)
        model.gate.set()
        statuses = Counter(future.result().status_code for future in asked)
    assert statuses == {200: 4, 429: 16}


def test_half_a_pair_of_surrogates_in_a_result_is_told() -> None:
    with running(StandIn(words=("\ud83d",))) as server:
        answer = posted(server.url, "ocr", BODY)
    assert answer.status_code == 200
    assert json.loads(answer.content)["text"] == "\ud83d"


def test_a_document_is_all_of_its_pages_or_says_that_it_is_not() -> None:
    pdf = documents.document(documents.RED_LEFT, b"0 0 1 rg 0 0 100 100 re f")
    url, model = data_url(pdf, "application/pdf"), LocalModel()
    short = {"sampling": {"max_new_tokens": 4}}
    with running(model) as server:
        both = posted(server.url, "ask", {"images": [url], "question": "What?", **short})
        first = posted(server.url, "ocr", {"images": [url], **short})
        second = posted(server.url, "ocr", {"images": [f"{url}#page=2"], **short})
    model.close()
    seen = [[i["sha256"][-2:] for i in a.json()["meta"]["images"]] for a in (both, first, second)]
    assert seen == [["#1", "#2"], ["#1"], ["#2"]]
    assert first.json()["warnings"] == ["images[0]: 2 pages: the first one is used"]
    assert not {"warnings"} & (both.json().keys() | second.json().keys())


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
