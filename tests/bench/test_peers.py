"""The peers behind an address, on stand-ins for their servers; transformers is in test_bench.py."""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qvl.bench import peers
from qvl.bench.peer_llama_cpp import gguf_files, llama_server
from qvl.bench.peer_openai import run_openai
from qvl.bench.work import asked, picture
from qvl.errors import EngineError, QvlError, UsageError

Reply = Callable[[BaseHTTPRequestHandler, dict], None]
GAP_S = 0.1


class StandIn(ThreadingHTTPServer):
    """Answers /v1/models, and the chat by `reply`; keeps what it was asked."""

    def __init__(self, reply: Reply) -> None:
        self.reply, self.asked = reply, []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        send(self, 200, json.dumps({"data": [{"id": "stand-in"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert isinstance(self.server, StandIn)
        self.server.asked.append((self.path, body))
        self.server.reply(self, body)

    def log_message(self, format: str, *args: object) -> None: ...


def send(handler: BaseHTTPRequestHandler, status: int, body: str) -> None:
    handler.send_response(status)
    handler.end_headers()
    handler.wfile.write(body.encode())


def stream(*events: object) -> Reply:
    """A number is a pause in seconds, a text is a piece of the answer or a whole line, a dict is JSON."""

    def reply(handler: BaseHTTPRequestHandler, body: dict) -> None:
        handler.send_response(200)
        handler.end_headers()
        for event in events:
            if isinstance(event, float):
                time.sleep(event)
                continue
            line = event if isinstance(event, str) else f"data: {json.dumps(event)}"
            handler.wfile.write(f"{line}\n\n".encode())

    return reply


def delta(**said: object) -> dict:
    return {"choices": [{"index": 0, "delta": said}]}


def usage(new_tokens: int, prompt_tokens: int = 290) -> dict:
    return {
        "choices": [],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": new_tokens},
    }


DONE = "data: [DONE]"
ROLE = delta(role="assistant", content=None)
A, B = delta(content="a"), delta(content="b")


@pytest.fixture
def serve() -> Iterator[Callable[[Reply], StandIn]]:
    running = []

    def start(reply: Reply) -> StandIn:
        server = StandIn(reply)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


def test_times_begin_with_text_and_tokens_are_those_of_the_usage(serve) -> None:
    server = serve(stream(ROLE, GAP_S, A, GAP_S, B, usage(5), DONE))
    found = run_openai(f"{server.url}/v1/")([asked(5, ())])
    assert found.requests == 1
    assert found.prompt_tokens == 290
    assert found.first_token_s >= GAP_S  # the role came sooner, and is no token
    assert found.total_s >= 2 * GAP_S
    assert found.tokens_s == pytest.approx(4 / (found.total_s - found.first_token_s))


def test_pieces_are_counted_where_there_is_no_usage(serve) -> None:
    server = serve(stream(A, GAP_S, delta(reasoning_content="b"), ": a comment", DONE))
    found = run_openai(server.url)([asked(2, ())])
    assert found.tokens_s == pytest.approx(1 / (found.total_s - found.first_token_s))
    assert found.prompt_tokens == 0


def test_the_request_is_ours_at_a_fixed_length_without_a_cache(serve) -> None:
    server = serve(stream(A, GAP_S, B, usage(7), DONE))
    image = picture()
    request = asked(7, (3,), about=image, text="What?")
    run_openai(server.url)([request])
    ((path, body),) = server.asked
    shown, text = body.pop("messages")[0].pop("content")
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "stand-in",
        "max_tokens": 7,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert text == {"type": "text", "text": "What?"}
    kind, data = shown["image_url"]["url"].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == image.source


def test_requests_of_a_workload_are_sent_at_once(serve) -> None:
    all_here = threading.Barrier(3, timeout=5)

    def reply(handler: BaseHTTPRequestHandler, body: dict) -> None:
        all_here.wait()
        stream(A, GAP_S, B, usage(2), DONE)(handler, body)

    found = run_openai(serve(reply).url)([asked(2, ()) for _ in range(3)])
    assert found.requests == 3


def status(code: int, body: str) -> Reply:
    return lambda handler, _: send(handler, code, body)


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        (status(400, '{"error": {"message": "no pictures"}}'), UsageError, "400: no pictures"),
        (status(404, "not here"), UsageError, "404: not here"),
        (status(500, '{"error": "out of memory"}'), EngineError, "500: out of memory"),
        (stream(A, {"error": {"message": "gone"}}), EngineError, "gone"),
        (stream(A, 'error: {"message": "gone"}'), EngineError, "gone"),
        (stream(A, "data: {"), EngineError, "broke off"),
        (stream(A, GAP_S, B), EngineError, r"without \[DONE\]"),
        (stream(A, usage(2), DONE), EngineError, "1 pieces"),
        (stream(ROLE, DONE), EngineError, "0 pieces"),
        (stream(A, GAP_S, B, usage(1), DONE), UsageError, "1 tokens where 2"),
    ],
)
def test_what_the_server_does_wrong_is_said(
    serve, reply: Reply, kind: type[QvlError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        run_openai(serve(reply).url)([asked(2, ())])


def test_an_address_where_nothing_listens_is_said_at_once(serve) -> None:
    with pytest.raises(UsageError, match=r"no server answers at http://127\.0\.0\.1:9/v1"):
        run_openai("http://127.0.0.1:9")


@pytest.mark.parametrize("name", ["openai", "openai:", "openai:127.0.0.1:8000", "llama"])
def test_a_peer_without_a_known_name_or_address_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"is not known|has no address"):
        peers.check_name(name)


@pytest.mark.parametrize(
    ("dtype", "file"),
    [
        ("fp32", "model-F16.gguf"),
        ("bf16", "model-F16.gguf"),
        ("int8", "model-Q8_0.gguf"),
        ("int4", "model-Q4_0.gguf"),
    ],
)
def test_the_file_with_as_many_bits_is_taken(tmp_path: Path, dtype: str, file: str) -> None:
    with pytest.raises(UsageError, match=f"no {file} and no mmproj-F16.gguf") as caught:
        gguf_files(tmp_path, dtype)
    assert f"benchmarks.gguf {tmp_path} F16" in str(caught.value.hint)
    for kind in ("F16", "Q8_0", "Q4_0"):
        (tmp_path / f"model-{kind}.gguf").touch()
    (tmp_path / "mmproj-F16.gguf").touch()
    assert gguf_files(tmp_path, dtype) == (tmp_path / file, tmp_path / "mmproj-F16.gguf")


def test_fp32_files_are_preferred_for_fp32(tmp_path: Path) -> None:
    for file in ("model-F32.gguf", "model-F16.gguf", "mmproj-F16.gguf"):
        (tmp_path / file).touch()
    assert gguf_files(tmp_path, "fp32")[0].name == "model-F32.gguf"


# In place of llama-server: ready at its second /health; says its pid and its arguments as the model's
# name; dies at a chat.
PROGRAM = f"""#!{sys.executable}
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    seen = 0
    def do_GET(self):
        Handler.seen += 1
        self.send_response(503 if Handler.seen == 1 else 200)
        self.end_headers()
        self.wfile.write(json.dumps({{"data": [{{"id": "it"}}]}}).encode())
    def do_POST(self):
        print("no room for the picture", file=sys.stderr, flush=True)
        os._exit(3)
if "model-Q4_0.gguf" in sys.argv[2]:
    sys.exit("cannot read " + sys.argv[2])
with open(os.path.dirname(sys.argv[2]) + "/started", "w") as file:
    json.dump([os.getpid(), sys.argv[1:]], file)
port = int(sys.argv[sys.argv.index("--port") + 1])
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty GGUF files, and a stand-in on PATH."""
    for name in ("model-Q8_0.gguf", "model-Q4_0.gguf", "mmproj-F16.gguf"):
        (tmp_path / name).touch()
    program = tmp_path / "bin" / "llama-server"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return tmp_path


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_server_gets_our_threads_and_ends_with_the_block(folder: Path) -> None:
    import torch

    with llama_server(folder, dtype="int8", device="cpu", at_once=4, new_tokens=32):
        pid, arguments = json.loads((folder / "started").read_text())
        assert is_alive(pid)
    assert not is_alive(pid)
    given = dict(zip(arguments[::2], arguments[1::2], strict=False))
    threads = str(torch.get_num_threads())
    assert given["--threads"] == given["--threads-batch"] == threads
    assert given["--parallel"] == "4"
    assert given["--ctx-size"] == str(4 * (1024 + 32))
    assert given["--host"] == "127.0.0.1"


def test_the_server_ends_with_an_interrupt_too(folder: Path) -> None:
    def interrupted() -> None:
        with llama_server(folder, dtype="int8", device="cpu", at_once=1, new_tokens=2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    pid, _ = json.loads((folder / "started").read_text())
    assert not is_alive(pid)


def test_a_server_that_dies_is_told_with_its_last_words(folder: Path) -> None:
    with (
        pytest.raises(EngineError, match="ended by itself with status 3") as caught,
        llama_server(folder, dtype="int8", device="cpu", at_once=1, new_tokens=2) as runner,
    ):
        runner([asked(2, ())])
    assert str(caught.value.hint).endswith("no room for the picture")
    with (
        pytest.raises(EngineError, match="ended by itself with status 1") as caught,
        llama_server(folder, dtype="int4", device="cpu", at_once=1, new_tokens=2),
    ):
        pass
    assert "cannot read" in str(caught.value.hint)


def test_a_missing_program_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(UsageError, match="llama-server is not on PATH"),
        llama_server(tmp_path, dtype="int8", device="cpu", at_once=1, new_tokens=2),
    ):
        pass
