"""An engine that hangs: who waits for it is told, and all is as before once it goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from qvl.serve.limits import Limits
from qvl.vlm.local import LocalModel
from served import Running, StandIn, ask, running, until

JSON = {"Content-Type": "application/json"}
FIELDS = {"messages": [{"role": "user", "content": "How many?"}], "max_tokens": 8}


def post(server: Running, **more: Any) -> tuple[int, dict[str, str], bytes]:
    return ask(server.port, "POST", "/v1/chat/completions", JSON, json.dumps(FIELDS | more))


@pytest.fixture(scope="module")
def model() -> Iterator[LocalModel]:
    made = LocalModel()
    yield made
    made.close()


def test_a_step_without_an_end_is_told_to_all_who_wait_for_it(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, goes = model._engine.step, threading.Event()
    goes.set()

    def held() -> Any:
        goes.wait()
        return step()

    monkeypatch.setattr(model._engine, "step", held)
    with running(model, may_fail=True, limits=Limits(step_s=0.5, running=2)) as server:
        expected = json.loads(post(server)[2])["choices"][0]["message"]
        goes.clear()
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(post, server) for _ in range(4)]
            for future in asked:  # two were in the engine, two in the queue
                status, headers, body = future.result()
                assert (status, json.loads(body)["error"]["code"]) == (503, "engine_stalled")
                assert 1 <= int(headers["retry-after"]) <= 60
                assert "x-should-retry" not in headers
        assert post(server)[0] == ask(server.port, "GET", "/readyz")[0] == 503
        assert ask(server.port, "GET", "/livez")[0] == 200
        goes.set()
        until(lambda: ask(server.port, "GET", "/readyz")[0] == 200)
        assert json.loads(post(server)[2])["choices"][0]["message"] == expected
        until(lambda: server.app.state.serving.admission.running == 0)
    assert model._engine.idle


def test_a_stream_that_has_begun_ends_with_the_error(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, goes, steps = model._engine.step, threading.Event(), 0

    def held() -> Any:
        nonlocal steps
        steps += 1
        if steps > 1:
            goes.wait()
        return step()

    monkeypatch.setattr(model._engine, "step", held)
    with running(model, limits=Limits(step_s=0.3)) as server:
        status, _, body = post(server, stream=True, temperature=1.0, seed=1)
        assert status == 200
        assert b'"code": "engine_stalled"' in body
        assert b"[DONE]" not in body
        goes.set()


def test_who_reads_slowly_is_no_engine_that_hangs() -> None:
    """A model without steps to be seen, as a remote one, keeps time limits of its own."""
    model = StandIn()
    model.gate.clear()
    with running(model, limits=Limits(step_s=0.05)) as server, ThreadPoolExecutor(1) as pool:
        taken = pool.submit(post, server)
        until(lambda: model.working == 1)
        time.sleep(0.3)
        assert ask(server.port, "GET", "/readyz")[0] == 200
        model.gate.set()
        assert taken.result()[0] == 200


def test_a_processor_may_take_longer_for_a_step() -> None:
    assert Limits.of("cpu").step_s == 240
    assert Limits.of("cuda").step_s == Limits.of("cuda:1").step_s == 60


STUCK = """
import threading
from qvl.serve import process
from qvl.serve.app import create_app
from qvl.serve.limits import Limits
from qvl.vlm.local import LocalModel

model = LocalModel()
model._engine.step = threading.Event().wait
sock = process.bound_socket("127.0.0.1", 0)
process.run(create_app(model, limits=Limits(step_s=float({step_s}))), sock)
model.close()
"""


@pytest.mark.parametrize(("step_s", "signals"), [("0.3", 1), ("100", 2)])
def test_a_signal_ends_a_process_whose_engine_hangs(step_s: str, signals: int) -> None:
    """One where the watchdog has seen it; else the second, which waits for nothing."""
    command = [sys.executable, "-c", STUCK.replace("{step_s}", step_s)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "serving" in line)
        port = int(line.rsplit(":", 1)[1].split("/")[0])
        here = Running(None, port, None, None)  # type: ignore[arg-type]
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(lambda: ignore_end(here))
            if signals == 1:
                assert asked.result() == 503
            else:
                until(
                    lambda: b'running{model_name="sprout"} 1.0' in ask(port, "GET", "/metrics")[2]
                )
            for _ in range(signals):
                server.send_signal(signal.SIGTERM)
                time.sleep(0.3)
            assert server.wait(10) == 128 + signal.SIGTERM
    finally:
        server.kill()
        server.wait()
        assert server.stderr is not None
        server.stderr.close()


def ignore_end(server: Running) -> int:
    try:
        return post(server)[0]
    except OSError:
        return 0
