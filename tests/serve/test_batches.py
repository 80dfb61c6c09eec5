"""/v1/files and /v1/batches, as OpenAI's own client uses them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from qvl.batch.asked import seed_of
from qvl.errors import EngineError
from qvl.serve.auth import read_keys
from qvl.serve.limits import FILE_BYTES, Limits
from qvl.types import BACKGROUND, Request
from qvl.vlm.local import LocalModel
from served import INFO, KEY, Running, StandIn, ask, client_of, data_url, png, running, until

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
JSON = {"Content-Type": "application/json"}
SEED = 5
REMOTE = replace(INFO, name="openai:stand-in@http://127.0.0.1:1")  # whose files nobody hashes


def saying(words: str = "Hello", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": words}], "max_tokens": 12, **fields}


def line(name: str, body: Any, url: str = CHAT) -> str:
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body})


def uploaded(client: Any, *lines: str) -> str:
    data = "\n".join(lines).encode()
    return client.files.create(file=("requests.jsonl", data), purpose="batch").id


def begun(client: Any, *lines: str, endpoint: str = CHAT, window: str = "24h", **more: Any) -> Any:
    return client.batches.create(
        input_file_id=uploaded(client, *lines),
        endpoint=endpoint,
        completion_window=window,
        **more,
    )


def ended(client: Any, batch_id: str, within_s: float = 60) -> Any:
    end_s = time.monotonic() + within_s
    while True:
        batch = client.batches.retrieve(batch_id)
        if batch.status in ("failed", "completed", "expired", "cancelled"):
            return batch
        assert time.monotonic() < end_s, batch
        time.sleep(0.02)


def answers(client: Any, file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    rows = [json.loads(row) for row in client.files.content(file_id).text.splitlines()]
    assert len({row["custom_id"] for row in rows}) == len(rows)
    return {row["custom_id"]: row for row in rows}


@pytest.fixture(scope="module")
def model() -> Iterator[LocalModel]:
    made = LocalModel()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(model, kept=tmp_path_factory.mktemp("kept")) as here:
        yield here


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with client_of(server) as made:
        yield made


def lasting(value: Any) -> Any:
    """Without what is another each time."""
    changing = ("id", "created", "created_at", "completed_at", "timings", "cached_tokens")
    if isinstance(value, dict):
        return {k: lasting(v) for k, v in value.items() if k not in (*changing, "request_id")}
    return [lasting(one) for one in value] if isinstance(value, list) else value


def test_answers_are_those_of_the_route_one_by_one(client: Any, server: Running) -> None:
    picture = {"type": "image_url", "image_url": {"url": data_url(png(1))}}
    bodies: dict[str, dict[str, Any]] = {
        **{f"hot{n}": saying(temperature=1.5) for n in range(6)},
        "seed": saying(temperature=1.5, seed=9, n=2),
        "seen": {**saying(), "messages": [{"role": "user", "content": [picture]}]},
        "bad": {"messages": []},
        "far": saying(model="nobody's"),
    }
    batch = begun(client, *(line(*one) for one in bodies.items()), extra_body={"seed": SEED},
                  metadata={"of": "tests"})  # fmt: skip
    assert (batch.object, batch.endpoint, batch.metadata) == ("batch", CHAT, {"of": "tests"})
    assert batch.status in ("validating", "in_progress")
    batch = ended(client, batch.id)
    assert batch.status == "completed"
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (10, 8, 2)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    good, bad = answers(client, batch.output_file_id), answers(client, batch.error_file_id)
    assert [*good, *bad] == [*bodies]
    for name, body in bodies.items():
        sent = json.dumps({"seed": seed_of(SEED, name), **body})
        status, _, data = ask(server.port, "POST", CHAT, JSON, sent)
        told = {**good, **bad}[name]
        assert told["error"] is None
        assert told["response"]["status_code"] == status
        assert lasting(told["response"]["body"]) == lasting(json.loads(data))
    words = {told["response"]["body"]["choices"][0]["message"]["content"] for told in good.values()}
    assert len(words) > 4
    assert bad["far"]["response"]["body"]["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("endpoint", "body"), [(TEXT, {"prompt": "Hello"}), (RESPONSES, {"input": "Hello"})]
)
def test_the_other_routes(client: Any, endpoint: str, body: dict[str, Any]) -> None:
    batch = ended(client, begun(client, line("a", body, endpoint), endpoint=endpoint).id)
    (told,) = answers(client, batch.output_file_id).values()
    assert told["response"]["body"]["object"] in ("text_completion", "response")
    assert batch.error_file_id is None


@pytest.mark.parametrize(
    ("lines", "errors"),
    [
        ([], [("empty_file", None)]),
        (["", " "], [("empty_file", None)]),
        ([line("a", saying()), '{"custom_id": "b", '], [("invalid_json_line", 2)]),
        (["[1]", "null", line("a", saying())], [("invalid_json_line", 1), ("invalid_json_line", 2)]),
        (['{"custom_id": "a", "body": {}}'], [("invalid_json_line", 1)]),
        (['{"custom_id": "a", "method": "GET", "url": "/v1/chat/completions", "body": {}}'],
         [("invalid_json_line", 1)]),
        ([line("a", saying()), "", line("a", saying())], [("duplicate_custom_id", 3)]),
        ([line("a", saying(), "/v1/embeddings")], [("invalid_url", 1)]),
        ([line("a", saying(), TEXT)], [("invalid_url", 1)]),
        (["x"] * 500, [("invalid_json_line", n) for n in range(1, 101)]),
        (["[" * 100_000], [("invalid_json_line", 1)]),
        ([line(str(n), {}) for n in range(50_001)], [("invalid_file", None)]),
    ],
)  # fmt: skip
def test_a_file_with_wrong_lines_fails_and_each_is_named(
    client: Any, lines: list[str], errors: list[tuple[str, int | None]]
) -> None:
    batch = ended(client, begun(client, *lines).id)
    assert batch.status == "failed"
    assert [(one.code, one.line) for one in batch.errors.data] == errors
    assert batch.output_file_id is batch.error_file_id is None


def test_files_are_listed_read_and_deleted(client: Any) -> None:
    ids = [uploaded(client, line(str(n), saying())) for n in range(3)]
    kept = client.files.retrieve(ids[0])
    assert (kept.filename, kept.purpose, kept.status) == ("requests.jsonl", "batch", "processed")
    assert client.files.content(ids[0]).text == line("0", saying())
    assert kept.bytes == len(line("0", saying()))
    listed = [one.id for one in client.files.list(limit=2, order="asc", purpose="batch")]
    assert set(ids) <= set(listed)  # page after page
    assert client.files.delete(ids[0]).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(ids[0])


def test_batches_are_listed_page_after_page(client: Any) -> None:
    ids = [ended(client, begun(client, line("a", saying())).id).id for _ in range(3)]
    assert set(ids) <= {one.id for one in client.batches.list(limit=2)}


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..", "a/b", "file-../x", "%2e%2e%2fbatch", "file-" + "0" * 24]
)
def test_no_name_chooses_a_path(client: Any, server: Running, name: str) -> None:
    data = line("a", saying()).encode()
    kept = client.files.create(file=(name, data), purpose="batch")
    assert re.fullmatch("file-[0-9a-f]{24}", kept.id)
    assert client.files.content(kept.id).content == data
    for path in (f"/v1/files/{name}", f"/v1/files/{name}/content", f"/v1/batches/{name}"):
        assert ask(server.port, "GET", path)[0] == 404


def form(*parts: tuple[str, str, bytes]) -> tuple[dict[str, str], bytes]:
    body = b"".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, more, data in parts
    )
    return {"Content-Type": "multipart/form-data; boundary=x"}, body + b"--x--\r\n"


FILE = ("file", '; filename="a"', b"{}")


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (*form(("purpose", "", b"batch")), 400),
        (*form(FILE), 400),
        (*form(FILE, ("purpose", "", b"fine-tune")), 400),
        (*form(FILE, FILE, ("purpose", "", b"batch")), 400),
        (*form(("file", "", b"{}"), ("purpose", "", b"batch")), 400),
        ({"Content-Type": "multipart/form-data"}, b"--x", 400),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"\0\xff--y", 400),
        ({"Content-Type": "application/json"}, b"{}", 415),
        ({**form()[0], "Content-Length": str(FILE_BYTES * 2)}, b"", 413),
    ],
)
def test_an_upload_that_is_none(
    server: Running, headers: dict[str, str], body: bytes, status: int
) -> None:
    assert ask(server.port, "POST", "/v1/files", headers, body)[0] == status


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint": "/v1/embeddings"},
        {"completion_window": "24"},
        {"completion_window": "0h"},
        {"completion_window": "9999h"},
        {"metadata": {"a": "b" * 513}},
        {"metadata": {str(n): "" for n in range(17)}},
        {"seed": -1},
        {"x": 1},
        {"input_file_id": 3},
    ],
)
def test_a_batch_that_is_none(client: Any, server: Running, change: dict[str, Any]) -> None:
    made = {
        "input_file_id": uploaded(client, line("a", saying())),
        "endpoint": CHAT,
        "completion_window": "24h",
    }
    status, _, body = ask(server.port, "POST", "/v1/batches", JSON, json.dumps({**made, **change}))
    assert status == 400
    assert next(iter(change)) in json.loads(body)["error"]["param"]


def test_a_batch_of_no_file_and_of_an_output(client: Any) -> None:
    with pytest.raises(openai.NotFoundError):
        client.batches.create(input_file_id="file-x", endpoint=CHAT, completion_window="24h")
    batch = ended(client, begun(client, line("a", saying())).id)
    with pytest.raises(openai.BadRequestError):
        client.batches.create(
            input_file_id=batch.output_file_id, endpoint=CHAT, completion_window="24h"
        )
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def slow() -> StandIn:
    model = StandIn(info=REMOTE)
    model.gate.clear()
    return model


def test_a_cancelled_batch_keeps_what_was_answered(tmp_path: Path) -> None:
    model = StandIn(info=REMOTE)
    limits = replace(Limits(), batch_running=2)
    with running(model, kept=tmp_path, limits=limits) as server, client_of(server) as client:
        said = 0

        def count(request: Request) -> None:
            nonlocal said
            said += 1
            if said > 4:
                model.gate.clear()

        heard(model, count)
        batch = begun(client, *(line(str(n), saying()) for n in range(20)))
        until(lambda: said == 6)
        status, _, data = ask(server.port, "POST", f"/v1/batches/{batch.id}/cancel")
        assert (status, json.loads(data)["status"]) == (200, "cancelling")
        assert client.batches.retrieve(batch.id).status == "cancelling"
        model.gate.set()
        batch = ended(client, batch.id)
        assert batch.status == "cancelled"
        assert batch.cancelling_at <= batch.cancelled_at
        good, bad = answers(client, batch.output_file_id), answers(client, batch.error_file_id)
        assert (len(good), len(bad)) == (6, 14)
        assert {row["error"]["code"] for row in bad.values()} == {"batch_cancelled"}
        assert batch.request_counts.completed == 6
    assert not list(tmp_path.glob("batch_*/run"))


def heard(model: StandIn, tell: Callable[[Request], None]) -> None:
    """`tell` of each request that the model is asked."""

    class Asked(list[Request]):
        def append(self, request: Request) -> None:
            super().append(request)
            tell(request)

    model.asked = Asked()


def test_a_batch_ends_with_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = slow()
    limits = replace(Limits(), batch_running=1)
    with running(model, kept=tmp_path, limits=limits) as server, client_of(server) as client:
        batch = begun(client, *(line(str(n), saying()) for n in range(4)), window="1h")
        until(lambda: bool(model.asked))
        real = time.time
        monkeypatch.setattr("qvl.serve.batches.time.time", lambda: real() + 3601)
        model.gate.set()
        batch = ended(client, batch.id)
        assert batch.status == "expired"
        assert len(answers(client, batch.output_file_id)) == 1
        codes = {row["error"]["code"] for row in answers(client, batch.error_file_id).values()}
        assert codes == {"batch_expired"}


def test_each_key_has_its_own_alone(tmp_path: Path) -> None:
    other = "another-key"
    keys = read_keys([f"anna:{KEY}", f"ben:{other}"])
    with running(StandIn(info=REMOTE), kept=tmp_path, keys=keys) as server:
        for method, path in (("GET", "/v1/files"), ("GET", "/v1/batches"), ("POST", "/v1/files"),
                             ("DELETE", "/v1/files/x"), ("POST", "/v1/batches/x/cancel")):  # fmt: skip
            assert ask(server.port, method, path)[0] == 401
        with client_of(server, KEY) as anna, client_of(server, other) as ben:
            batch = ended(anna, begun(anna, line("a", saying())).id)
            assert len([*anna.files.list()]) == 2
            assert [*ben.files.list()] == [*ben.batches.list()] == []
            for call, name in (
                (ben.files.retrieve, batch.input_file_id),
                (ben.files.content, batch.output_file_id),
                (ben.files.delete, batch.input_file_id),
                (ben.batches.retrieve, batch.id),
                (ben.batches.cancel, batch.id),
            ):
                with pytest.raises(openai.NotFoundError):
                    call(name)
            with pytest.raises(openai.NotFoundError):
                ben.batches.create(
                    input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"
                )


def test_what_a_key_may_keep_has_an_end(tmp_path: Path) -> None:
    limits = replace(Limits(), key_files=2, key_file_bytes=1000, key_batches=1)
    model = slow()
    with running(model, kept=tmp_path, limits=limits) as server, client_of(server) as client:
        with pytest.raises(openai.BadRequestError, match="bytes"):
            uploaded(client, "x" * 1001)
        uploaded(client)
        batch = begun(client, line("a", saying()))
        with pytest.raises(openai.BadRequestError, match="2 files"):
            uploaded(client)
        until(lambda: bool(model.asked))
        with pytest.raises(openai.RateLimitError):
            client.batches.create(
                input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"
            )
        model.gate.set()
        assert ended(client, batch.id).status == "completed"


def test_live_requests_go_before_a_batch(tmp_path: Path) -> None:
    model = slow()
    limits = replace(Limits(), batch_running=4)
    with running(model, kept=tmp_path, limits=limits) as server, client_of(server) as client:
        batch = begun(client, *(line(str(n), saying("batch")) for n in range(40)))
        until(lambda: len(model.asked) == 4)
        live = threading.Thread(
            target=ask,
            args=(server.port, "POST", CHAT, JSON, json.dumps(saying("live"))),
        )
        live.start()
        until(lambda: len(model.asked) == 5)
        assert [one.priority for one in model.asked] == [BACKGROUND] * 4 + [0]
        model.gate.set()
        live.join()
        assert ended(client, batch.id).request_counts.completed == 40


def test_beside_live_requests_a_batch_goes_on_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvl.serve.batches.QUIET_S", 0.0)
    model = slow()
    limits = replace(Limits(), batch_running=4)
    with running(model, kept=tmp_path, limits=limits) as server, client_of(server) as client:
        admission = server.app.state.serving.admission
        admission.running += 1
        batch = begun(client, *(line(str(n), saying()) for n in range(40)))
        until(lambda: len(model.asked) == 1)
        time.sleep(0.5)
        assert len(model.asked) == 1
        admission.running -= 1
        until(lambda: len(model.asked) == 4)
        model.gate.set()
        assert ended(client, batch.id).request_counts.completed == 40


def test_a_model_that_fails_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvl.serve.batches.AGAIN_S", 0.05)
    monkeypatch.setattr("qvl.batch.carry_out.BREAKER", 3)
    monkeypatch.setattr("qvl.batch.carry_out.PAUSES_S", (0.0, 0.0, 0.0))
    model = StandIn(info=REMOTE, error=EngineError("no"))
    with running(model, kept=tmp_path) as server, client_of(server) as client:
        batch = begun(client, *(line(str(n), saying()) for n in range(12)))
        until(lambda: len(model.asked) > 30)
        assert client.batches.retrieve(batch.id).status == "in_progress"
        model.error = None
        assert ended(client, batch.id).status == "completed"


def test_one_server_at_a_time_has_the_folder(tmp_path: Path) -> None:
    with running(StandIn(info=REMOTE), kept=tmp_path) as first, client_of(first) as client:
        uploaded(client)
        with running(StandIn(info=REMOTE), kept=tmp_path, may_fail=True) as second:
            status, _, body = ask(second.port, "GET", "/v1/files")
            assert (status, json.loads(body)["error"]["code"]) == (503, "kept_elsewhere")
            assert ask(second.port, "GET", "/readyz")[0] == 200
    with running(StandIn(info=REMOTE)) as server:
        assert ask(server.port, "GET", "/v1/files")[0] == 404


def test_a_batch_waits_for_the_model_that_it_was_begun_with(tmp_path: Path) -> None:
    model, other = slow(), StandIn(info=replace(REMOTE, name=f"{REMOTE.name}2"))
    limits = replace(Limits(), batch_running=1)
    with running(model, kept=tmp_path, limits=limits) as server, client_of(server) as client:
        batch = begun(client, *(line(str(n), saying()) for n in range(300)))
        until(lambda: bool(model.asked))
    with running(other, kept=tmp_path) as server, client_of(server) as client:
        time.sleep(0.2)
        assert client.batches.retrieve(batch.id).status == "in_progress"
        assert other.asked == []
        mine = ended(client, begun(client, line("a", saying())).id)
        assert mine.status == "completed"
    with running(StandIn(info=REMOTE), kept=tmp_path) as server, client_of(server) as client:
        assert ended(client, batch.id).request_counts.completed == 300


class Process:
    """`qvl serve` of a folder of runs, on a free port."""

    def __init__(self, folder: Path) -> None:
        words = [sys.executable, "-m", "qvl", "serve", "--port", "0"]
        env = {**os.environ, "QVL_RUNS": str(folder / "runs")}
        self.process = subprocess.Popen(words, cwd=folder, env=env, stderr=subprocess.PIPE)
        assert self.process.stderr is not None
        for told in self.process.stderr:
            if found := re.search(rb"http://127.0.0.1:(\d+)", told):
                self.port = int(found[1])
                break
        self.rest = threading.Thread(target=self.process.stderr.read)
        self.rest.start()
        self.client: Any = openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGKILL)

    def end(self, kind: int) -> int:
        self.process.send_signal(kind)
        code = self.process.wait(30)
        self.client.close()
        self.rest.join()
        if self.process.stderr is not None:
            self.process.stderr.close()
        return code


def test_a_killed_server_goes_on_with_its_batches(tmp_path: Path) -> None:
    count = 120
    lines = [line(f"r{n}", saying(f"Hello {n}", temperature=1.5)) for n in range(count)]

    def done(process: Process) -> int:
        return process.client.batches.retrieve(batch.id).request_counts.completed

    with Process(tmp_path) as first:
        whole = ended(first.client, begun(first.client, *lines, extra_body={"seed": SEED}).id)
        meant = answers(first.client, whole.output_file_id)
        batch = begun(first.client, *lines, extra_body={"seed": SEED})
        until(lambda: done(first) >= 5, 60)
        first.end(signal.SIGKILL)
    with Process(tmp_path) as second:
        before = done(second)
        until(lambda: done(second) > min(before + 3, count - 1), 60)
        assert second.end(signal.SIGTERM) == 0
    with Process(tmp_path) as third:
        assert 5 <= before <= done(third)
        told = ended(third.client, batch.id)
        assert told.request_counts.completed == count
        found = answers(third.client, told.output_file_id)
    assert [*found] == [*meant]
    for name, row in meant.items():
        texts = [one[name]["response"]["body"]["choices"][0]["message"] for one in (meant, found)]
        assert texts[0] == texts[1]
        assert row["error"] is None
