"""A server on a loopback port for the tests, and a model whose words and pace a test decides."""

from __future__ import annotations

import base64
import http.client
import io
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openai
from fastapi import FastAPI
from PIL import Image as Pillow

from qvl.errors import QvlError
from qvl.serve.app import create_app
from qvl.serve.process import Server, bound_socket
from qvl.types import (
    Completion,
    Delta,
    FinishReason,
    Provenance,
    Request,
    Timings,
    ToolCall,
    Usage,
)
from qvl.vlm.chat_model import ChatModel, ModelInfo
from telling_nothing import Watched, noted_log

KEY = "a-key-of-the-tests"


@dataclass(frozen=True, slots=True)
class Running:
    app: FastAPI
    port: int
    server: Server
    thread: threading.Thread
    watched: Watched | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running(model: ChatModel, *, may_fail: bool = False, **options: Any) -> Iterator[Running]:
    """A served model; drained at the end.

    Raises when an answer or the log told what it should not, and for an answer of 500 or more where
    none `may_fail`.
    """
    app = create_app(model, **options)
    sock = bound_socket("127.0.0.1", 0)
    server = Server(app)
    server.config.app = watched = Watched(app)
    thread = threading.Thread(target=server.run, args=([sock],))
    with noted_log() as log:
        thread.start()
        try:
            while not server.started:
                thread.join(0.01)
                assert thread.is_alive()
            yield Running(app, sock.getsockname()[1], server, thread, watched)
        finally:
            getattr(model, "gate", threading.Event()).set()  # a test that failed leaves it closed
            server.stop()
            thread.join(60)
            assert not thread.is_alive()
    watched.check(log, may_fail=may_fail)


def client_of(server: Running, key: str = "none") -> Any:
    """OpenAI's own, untyped: what it returns and takes has more forms than a test can name."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def png(seed: int, size: tuple[int, int] = (64, 96)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def data_url(encoded: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(encoded).decode()}"


INFO = ModelInfo("stand-in", None, "none", 0, 0, "fp32", "cpu", 4096, at_once=8)


@dataclass(eq=False)
class StandIn:
    """Says `words` to everything, one a step; with a gate closed it stops before each word."""

    words: tuple[str, ...] = ("one ", "two ", "three")
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    finish_reason: FinishReason = "stop"
    error: Exception | None = None  # after the first word
    gate: threading.Event = field(default_factory=threading.Event)
    asked: list[Request] = field(default_factory=list)
    working: int = 0
    info: ModelInfo = INFO

    def __post_init__(self) -> None:
        self.gate.set()
        self._lock = threading.Lock()

    def results(self, requests: Iterable[Request]) -> Generator[Completion | QvlError, None, None]:
        raise NotImplementedError

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        raise NotImplementedError

    def stream(self, request: Request) -> Generator[Delta, None, None]:
        with self._lock:
            self.asked.append(request)
            self.working += 1
        try:
            yield from self._deltas(request)
        finally:
            with self._lock:
                self.working -= 1

    def _deltas(self, request: Request) -> Iterator[Delta]:
        yield Delta("")
        if self.reasoning:
            yield Delta("", reasoning=self.reasoning)
        for number, word in enumerate(self.words):
            while not self.gate.wait(0.005):
                yield Delta("")  # a step without a word
            yield Delta(word)
            if self.error is not None and number == 0:
                raise self.error
        yield Delta("", completion_of(request, self))

    def close(self) -> None:
        pass


def completion_of(request: Request, said: StandIn) -> Completion:
    return Completion(
        id=request.id,
        text="".join(said.words),
        reasoning=said.reasoning,
        tool_calls=said.tool_calls,
        finish_reason=said.finish_reason,
        token_ids=tuple(range(len(said.words))),
        confidence=0.5,
        usage=Usage(
            prompt_tokens=7,
            completion_tokens=len(said.words),
            image_tokens=2,
            cached_tokens=1,
            reasoning_tokens=3 if said.reasoning else 0,
        ),
        timings=Timings(first_token_s=0.1, total_s=0.2),
        provenance=Provenance(
            model="stand-in",
            revision=None,
            generation="none",
            dtype="fp32",
            device="cpu",
            seed=request.sampling.seed,
            sampling=request.sampling,
            images=(),
            version="0",
        ),
    )


def ask(
    port: int,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: str | bytes | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers in small letters and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        told = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, told, answer.read()
    finally:
        connection.close()


def until(is_so: Callable[[], bool], within_s: float = 10.0) -> None:
    end_s = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.005)
