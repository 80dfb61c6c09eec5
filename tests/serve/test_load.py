"""Too many, too slow, gone, and the end: what the server does with its time."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psutil
import pytest

from embedded import tokenizer
from qvl.serve.auth import read_keys
from qvl.serve.limits import Limits
from qvl.vlm.local import LocalModel
from served import KEY, Running, StandIn, ask, data_url, png, running, until

LOAD_S = 600
JSON = {"Content-Type": "application/json"}
TEXT: list[Any] = [{"role": "user", "content": "How many?"}]


def post(
    server: Running, fields: dict[str, Any], headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], dict[str, Any]]:
    given = {"Content-Type": "application/json", **(headers or {})}
    status, told, body = ask(server.port, "POST", "/v1/chat/completions", given, json.dumps(fields))
    return status, told, json.loads(body)


def test_who_finds_the_queue_full_is_told_at_once() -> None:
    model, limits = StandIn(), Limits(running=2, queued=3)
    model.gate.clear()
    with running(model, limits=limits) as server:
        with ThreadPoolExecutor(5) as pool:
            taken = [pool.submit(post, server, {"messages": TEXT}) for _ in range(5)]
            admission = server.app.state.serving.admission
            until(lambda: (admission.running, admission.waiting) == (2, 3))
            for _ in range(20):
                began_s = time.monotonic()
                status, headers, body = post(server, {"messages": TEXT})
                took_s = time.monotonic() - began_s
                assert status == 429
                assert 1 <= int(headers["retry-after"]) <= 60
                assert body["error"]["code"] == "overloaded"
                assert "x-should-retry" not in headers
                assert took_s < 0.1
            model.gate.set()
            assert [future.result()[0] for future in taken] == [200] * 5
        until(lambda: (admission.running, admission.waiting) == (0, 0))


def test_the_tokens_of_those_who_wait_are_bounded_too() -> None:
    model, limits = StandIn(), Limits(running=1, queued_contexts=1)
    model.gate.clear()
    long = {"messages": TEXT, "max_tokens": 3000}
    with running(model, limits=limits) as server, ThreadPoolExecutor(2) as pool:
        admission = server.app.state.serving.admission
        taken = [pool.submit(post, server, long) for _ in range(2)]
        until(lambda: (admission.running, admission.waiting) == (1, 1))
        assert post(server, long)[0] == 429
        model.gate.set()
        assert [future.result()[0] for future in taken] == [200, 200]


def test_of_those_who_wait_a_lower_priority_goes_first() -> None:
    model, limits = StandIn(), Limits(running=1)
    model.gate.clear()
    with running(model, limits=limits) as server, ThreadPoolExecutor(4) as pool:
        admission = server.app.state.serving.admission
        taken = []
        for place, priority in enumerate((0, 5, -5, 0)):
            taken.append(pool.submit(post, server, {"messages": TEXT, "priority": priority}))
            until(lambda place=place: admission.running + admission.waiting == place + 1)
        model.gate.set()
        assert [future.result()[0] for future in taken] == [200] * 4
    assert [request.priority for request in model.asked] == [0, -5, 0, 5]


def test_a_key_runs_only_so_many_at_once() -> None:
    model, keys = StandIn(), read_keys([f"tests:{KEY}", "other:key-of-other"])
    model.gate.clear()
    mine, theirs = ({"Authorization": f"Bearer {key}"} for key in (KEY, "key-of-other"))
    limits = Limits(key_running=2)
    with running(model, keys=keys, limits=limits) as server, ThreadPoolExecutor(3) as pool:
        taken = [pool.submit(post, server, {"messages": TEXT}, mine) for _ in range(2)]
        until(lambda: model.working == 2)
        status, headers, body = post(server, {"messages": TEXT}, mine)
        assert (status, body["error"]["code"]) == (429, "too_many_running")
        assert 1 <= int(headers["retry-after"]) <= 60
        taken.append(pool.submit(post, server, {"messages": TEXT}, theirs))
        until(lambda: model.working == 3)
        model.gate.set()
        assert [future.result()[0] for future in taken] == [200] * 3


def test_a_request_that_takes_too_long_is_given_up() -> None:
    model = StandIn()
    model.gate.clear()
    with running(model, may_fail=True, limits=Limits(request_s=0.2)) as server:
        status, headers, body = post(server, {"messages": TEXT})
        assert (status, body["error"]["code"]) == (504, "deadline_exceeded")
        assert "x-should-retry" not in headers
        until(lambda: server.app.state.serving.admission.running == 0)
        assert model.working == 0


def test_who_waits_when_the_grace_is_over_is_told() -> None:
    model = StandIn()
    model.gate.clear()
    with (
        running(model, may_fail=True, limits=Limits(running=1, drain_s=0.1)) as server,
        ThreadPoolExecutor(3) as pool,
    ):
        admission = server.app.state.serving.admission
        taken = [pool.submit(post, server, {"messages": TEXT}) for _ in range(3)]
        until(lambda: (admission.running, admission.waiting) == (1, 2))
        server.server.stop()
        for future in taken:
            status, headers, body = future.result()
            assert (status, body["error"]["code"]) == (503, "draining")
            assert headers["retry-after"] == "5"
        model.gate.set()


def opened(server: Running, fields: dict[str, Any]) -> socket.socket:
    """A connection on which a request has been sent."""
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    body = json.dumps(fields).encode()
    sock.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    return sock


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_not_computed_for(stream: bool) -> None:
    model = StandIn()
    model.gate.clear()
    with running(model) as server:
        sock = opened(server, {"messages": TEXT, "stream": stream, "n": 2})
        until(lambda: model.working == 2)
        sock.close()
        until(lambda: server.app.state.serving.admission.running == 0, within_s=2)
        assert model.working == 0


def test_a_client_that_leaves_the_queue_was_never_there() -> None:
    model = StandIn()
    model.gate.clear()
    with running(model, limits=Limits(running=1)) as server, ThreadPoolExecutor(1) as pool:
        admission = server.app.state.serving.admission
        first = pool.submit(post, server, {"messages": TEXT})
        until(lambda: admission.running == 1)
        sock = opened(server, {"messages": TEXT})
        until(lambda: admission.waiting == 1)
        sock.close()
        until(lambda: admission.waiting == 0)
        model.gate.set()
        assert first.result()[0] == 200
    assert len(model.asked) == 1


def test_a_stream_without_words_is_kept_alive() -> None:
    model = StandIn()
    model.gate.clear()
    with (
        running(model, limits=Limits(ping_s=0.05)) as server,
        opened(server, {"messages": TEXT, "stream": True}) as sock,
    ):
        received = b""
        while received.count(b": ping\n\n") < 3:
            received += sock.recv(4096)
        model.gate.set()
        while b"[DONE]" not in received:
            received += sock.recv(4096)
    assert b'"role": "assistant"' in received


def test_a_client_that_does_not_read_is_given_up() -> None:
    """S052: what waits for it is bounded by one answer, and its time by that of a request."""
    model, limits = StandIn(words=("x" * 100_000,) * 300), Limits(request_s=0.5, ping_s=0.2)
    with running(model, limits=limits) as server, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.port))
        body = json.dumps({"messages": TEXT, "stream": True}).encode()
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        assert sock.recv(1) == b"H"
        until(lambda: not server.server.server_state.tasks and model.working == 0, within_s=5)
        assert server.app.state.serving.admission.running == 0
        assert post(server, {"messages": TEXT})[0] == 200


@pytest.mark.parametrize("jump_s", [-3600, 3600])
def test_a_clock_that_is_set_ends_nothing(jump_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """S069: time limits are of a clock that only goes on, and no id is given twice."""
    model, real = StandIn(), time.time
    model.gate.clear()
    limits = Limits(request_s=20, body_s=20, header_s=20)
    with running(model, limits=limits) as server, ThreadPoolExecutor(2) as pool:
        taken = [pool.submit(post, server, {"messages": TEXT}) for _ in range(2)]
        until(lambda: model.working == 2)
        monkeypatch.setattr(time, "time", lambda: real() + jump_s)
        time.sleep(0.1)
        model.gate.set()
        answers = [future.result() for future in taken] + [post(server, {"messages": TEXT})]
    assert [status for status, _, _ in answers] == [200] * 3
    assert len({body["id"] for _, _, body in answers}) == 3
    assert len({headers["x-request-id"] for _, headers, _ in answers}) == 3


def test_a_client_that_leaves_with_all_of_a_stream_has_not_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "qvl.serve.front")
    with running(StandIn()) as server:
        for _ in range(20):
            fields = {"messages": TEXT, "stream": True}
            ask(server.port, "POST", "/v1/chat/completions", JSON, json.dumps(fields))
    statuses = [r.getMessage().split()[2] for r in caplog.records if "/v1/chat" in r.getMessage()]
    assert statuses == ["200"] * 20


@pytest.fixture(scope="module")
def model() -> Iterator[LocalModel]:
    made = LocalModel()
    yield made
    made.close()


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_those_that_leave_leave_nothing_behind(model: LocalModel, count: int) -> None:
    own = psutil.Process()
    with running(model) as server:  # from now on the model has all its threads
        streams_together(server, 2)
    rng, threads, files = random.Random(1), threading.active_count(), own.num_fds()
    size = 0
    with running(model, limits=Limits(running=8)) as server:
        fields = {"messages": TEXT, "max_tokens": 400, "temperature": 1.0}
        expected = post(server, fields | {"seed": 3, "max_tokens": 16})[2]["choices"][0]["message"]
        for number in range(count):
            if number <= count // 10:
                size = own.memory_info().rss
            sock = opened(server, fields | {"stream": rng.random() < 0.7, "seed": number})
            if rng.random() < 0.6:
                time.sleep(rng.random() * 0.03)
            sock.close()
            while server.app.state.serving.admission.waiting > 40:
                time.sleep(0.01)
        admission = server.app.state.serving.admission
        until(lambda: (admission.running, admission.waiting) == (0, 0), within_s=30)
        until(lambda: model._engine.idle)
        assert not model._answers
        assert model._engine._pool.free == model._engine._pool.total
        told = post(server, fields | {"seed": 3, "max_tokens": 16})[2]["choices"][0]["message"]
        assert told == expected
        assert sum(t.name.startswith("qvl-answer") for t in threading.enumerate()) <= 8
    until(lambda: threading.active_count() <= threads)
    until(lambda: own.num_fds() <= files)
    grown = own.memory_info().rss / size - 1
    print(  # noqa: T201
        f"{count} left: no block of the cache, thread ({threads}) or file ({files}) is held;"
        f" memory {grown:+.1%} since the first tenth"
    )


@pytest.mark.slow
def test_a_thousand_who_find_the_queue_full_are_told_at_once() -> None:
    """By 8 clients at once, while 64 requests are computed and 64 wait; these are all answered."""
    model, limits = StandIn(), Limits()
    model.gate.clear()
    told: list[float] = []

    def refused(_: int) -> None:
        began_s = time.monotonic()
        status, headers, _body = post(server, {"messages": TEXT})
        told.append(time.monotonic() - began_s)
        assert status == 429
        assert 1 <= int(headers["retry-after"]) <= 60

    with running(model, limits=limits) as server, ThreadPoolExecutor(128) as pool:
        taken = [pool.submit(post, server, {"messages": TEXT}) for _ in range(128)]
        admission = server.app.state.serving.admission
        until(lambda: (admission.running, admission.waiting) == (64, 64))
        with ThreadPoolExecutor(8) as others:
            list(others.map(refused, range(1000)))
        model.gate.set()
        assert [future.result()[0] for future in taken] == [200] * 128
    told.sort()
    print(  # noqa: T201
        f"{len(told)} refusals, each with Retry-After, after {told[500] * 1000:.1f} ms (p50),"
        f" {told[990] * 1000:.1f} ms (p99), {told[-1] * 1000:.1f} ms at most; 128 of 128 answered"
    )
    assert told[-1] < 0.1


async def one_stream(server: Running, fields: dict[str, Any]) -> tuple[float, str]:
    """Seconds until the first word, and all words."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body = json.dumps({**fields, "stream": True}).encode()
    began_s, first_s, words = time.monotonic(), 0.0, ""
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    status = (await reader.readline()).split()[1]
    assert status == b"200", status
    async for line in reader:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            assert "error" not in event, event
            piece = event["choices"][0]["delta"].get("content", "")
            if piece and not words:
                first_s = time.monotonic() - began_s
            words += piece
    writer.close()
    await writer.wait_closed()
    return first_s, words


def mixed(number: int) -> dict[str, Any]:
    size = ((64, 96), (96, 64), (160, 160), (224, 96))[number % 4]
    content = [
        {"type": "image_url", "image_url": {"url": data_url(png(number % 7, size))}},
        {"type": "text", "text": "Describe the picture."},
    ]
    return {
        "messages": [{"role": "user", "content": content}],
        "temperature": 1.5,
        "seed": number,
        "max_tokens": 48,
    }


def streams_together(server: Running, count: int) -> list[tuple[float, str]]:
    async def all_of_them() -> list[tuple[float, str]]:
        return await asyncio.gather(*(one_stream(server, mixed(n)) for n in range(count)))

    return asyncio.run(all_of_them())


def test_streams_together_are_what_each_is_alone(model: LocalModel) -> None:
    with running(model) as server:
        together = [words for _, words in streams_together(server, 8)]
        alone = [asyncio.run(one_stream(server, mixed(n)))[1] for n in range(8)]
    assert together == alone
    assert len(set(together)) > 4


@pytest.mark.slow
def test_64_streams_for_ten_minutes(model: LocalModel) -> None:
    """As many as run at once; each is what it is alone, and memory stays."""
    process, firsts, counted, sizes = psutil.Process(), [], 0, []
    with running(model) as server:
        # pytest, and our own look at the log, would keep the line of every request
        logging.getLogger("qvl").setLevel(logging.WARNING)
        alone = [asyncio.run(one_stream(server, mixed(n)))[1] for n in range(64)]
        streams_together(server, 64)
        until_s = time.monotonic() + LOAD_S
        while time.monotonic() < until_s:
            sizes.append(process.memory_info().rss)
            for number, (first_s, words) in enumerate(streams_together(server, 64)):
                assert words == alone[number]
                firsts.append(first_s)
                counted += 1
    firsts.sort()
    half, most = firsts[len(firsts) // 2], firsts[int(len(firsts) * 0.99)]
    growth = sizes[-1] / sizes[len(sizes) // 2] - 1
    print(  # noqa: T201
        f"{counted} streams, 64 at once, none lost or mixed up: first word after"
        f" {half:.2f} s (p50), {most:.2f} s (p99); memory {growth:+.1%} in the second half"
    )
    assert growth < 0.03


COMMAND = [sys.executable, "-m", "qvl", "serve", "--port", "0"]


@pytest.fixture(scope="module")
def process() -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    """Starts `qvl serve`: the process and its port."""
    begun: list[subprocess.Popen[str]] = []

    def start(*flags: str) -> tuple[subprocess.Popen[str], int]:
        made = subprocess.Popen([*COMMAND, *flags], stderr=subprocess.PIPE, text=True)
        begun.append(made)
        assert made.stderr is not None
        for line in made.stderr:
            if "serving" in line:
                return made, int(line.rsplit(":", 1)[1].split("/")[0])
        raise AssertionError("it did not start")

    yield start
    for made in begun:
        made.kill()
        made.wait()
        assert made.stderr is not None
        made.stderr.close()


def test_a_signal_lets_what_was_taken_end(process: Any) -> None:
    """Streams that run are whole, later ones are told 503 or find nobody, and it ends with 0."""
    server, port = process()
    here = Running(None, port, None, None)  # type: ignore[arg-type]
    server.send_signal(signal.SIGHUP)  # a closed terminal, a rotated log
    server.send_signal(signal.SIGUSR1)
    server.send_signal(signal.SIGPIPE)
    ends = map(tokenizer().encode_control, ("<|endoftext|>", "<|im_end|>"))
    never = {str(number): -100 for number in ends}
    fields = {"messages": TEXT, "max_tokens": 200, "temperature": 2.0, "logit_bias": never}
    fields |= {"stream": True}
    kept = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    kept.request("GET", "/readyz")
    assert kept.getresponse().read() == b'{"status": "ok"}'
    socks = [opened(here, fields) for _ in range(6)]
    heads = [sock.recv(64) for sock in socks]
    assert all(b" 200 " in head for head in heads)
    server.send_signal(signal.SIGTERM)
    refused = 0
    while server.poll() is None:
        try:
            status, headers, body = post(here, {"messages": TEXT, "max_tokens": 1})
        except OSError:
            break
        if status == 503:
            assert body["error"]["code"] == "draining"
            assert headers["connection"] == "close"
            assert 1 <= int(headers["retry-after"]) <= 60
            refused += 1
        time.sleep(0.05)
    kept.close()
    for sock in socks:
        received = b""
        while piece := sock.recv(65536):
            received += piece
        assert b"data: [DONE]" in received
        sock.close()
    assert refused
    assert server.wait(30) == 0


def test_who_is_answered_by_a_process_that_is_killed_is_told_and_another_takes_its_place(
    process: Any,
) -> None:
    """S049: engine and server are one process, so nobody hangs when it dies; a supervisor starts anew."""
    server, port = process()
    ends = map(tokenizer().encode_control, ("<|endoftext|>", "<|im_end|>"))
    never = {str(number): -100 for number in ends}
    fields = {"messages": TEXT, "max_tokens": 2000, "temperature": 2.0, "logit_bias": never}
    with opened(Running(None, port, None, None), fields | {"stream": True}) as sock:  # type: ignore[arg-type]
        assert b" 200 " in sock.recv(64)
        server.kill()
        with suppress(ConnectionError):
            while sock.recv(65536):
                pass
    began_s = time.monotonic()
    _, again = process("--port", str(port))
    print(f"answers again after {time.monotonic() - began_s:.1f} s")  # noqa: T201
    assert again == port
    here = Running(None, port, None, None)  # type: ignore[arg-type]
    assert post(here, {"messages": TEXT, "max_tokens": 2})[0] == 200


RESTARTS = 10
PICTURE = {"images": [data_url(png(1))]}


def ask_on(port: int, ending: threading.Event, seed: int) -> Counter[str]:
    """One request after the other, until nobody hears them: how many were answered whole, were
    refused, and met a server that had ended.
    """
    rng, told = random.Random(seed), Counter[str]()
    while not told["unheard"]:
        tokens = rng.randrange(1, 60)
        path, fields = rng.choice(
            [
                ("chat/completions", {"messages": TEXT, "max_tokens": tokens}),
                ("chat/completions", {"messages": TEXT, "stream": True, "n": 2}),
                ("tasks/describe", PICTURE | {"sampling": {"max_new_tokens": tokens}}),
                ("tasks/describe", PICTURE | {"language": "zh"}),
            ]
        )
        was_ending = ending.is_set()
        try:
            status, _, body = ask(port, "POST", f"/v1/{path}", JSON, json.dumps(fields))
        except OSError:
            assert was_ending
            told["unheard"] += 1
            continue
        assert status == 200 or (status == 503 and ending.is_set()), (status, body)
        if fields.get("stream") and status == 200:
            assert body.endswith(b"data: [DONE]\n\n")
        told["whole" if status == 200 else "refused"] += 1
    return told


@pytest.mark.slow
def test_no_restart_under_load_cuts_an_answer(process: Any) -> None:
    """SIGTERM at any time, amid streams, whole answers and tasks: each is whole or was told 503."""
    rng, told = random.Random(5), Counter[str]()
    for _ in range(RESTARTS):
        server, port = process()
        ending = threading.Event()
        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(ask_on, port, ending, rng.randrange(2**32)) for _ in range(8)]
            time.sleep(0.5 + rng.random() * 2)
            ending.set()
            server.send_signal(signal.SIGTERM)
            for future in clients:
                told += future.result()
        assert server.wait(30) == 0
    print(  # noqa: T201
        f"{RESTARTS} restarts: {told['whole']} answers, all whole; {told['refused']} refused with"
        f" 503, {told['unheard']} connections to a server that had ended"
    )
    assert told["whole"] > RESTARTS
