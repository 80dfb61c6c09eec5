"""A local stand-in of a server with OpenAI's chat API, over real sockets: it says what a test tells it to.

`model_server` puts a model of ours behind it, written from OpenAI's documented shapes.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qvl.errors import QvlError
from qvl.types import (
    Completion,
    Image,
    Message,
    Part,
    Request,
    ResponseFormat,
    Sampling,
    Text,
    Tool,
    ToolCall,
)
from qvl.vlm.chat_model import ChatModel

MODEL = "tiny-qwen3-vl"


@dataclass
class Asked:
    path: str
    headers: dict[str, str]
    body: Any


Reply = Callable[["Handler", Any], None]


class Handler(BaseHTTPRequestHandler):
    @property
    def stand_in(self) -> Server:
        assert isinstance(self.server, Server)
        return self.server

    def do_GET(self) -> None:
        self.stand_in.asked.append(Asked(self.path, dict(self.headers), None))
        if self.stand_in.cards is None:
            self.refuse(404, "no such page")
            return
        self.send(200, json.dumps({"object": "list", "data": self.stand_in.cards}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.stand_in.lock:
            self.stand_in.asked.append(Asked(self.path, dict(self.headers), body))
            reply = self.stand_in.replies.pop(0) if self.stand_in.replies else self.stand_in.reply
        try:
            reply(self, body)
        except (BrokenPipeError, ConnectionResetError):
            self.stand_in.gone.set()

    def log_message(self, format: str, *args: object) -> None: ...

    def send(self, status: int, text: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(text.encode())

    def refuse(
        self, status: int, message: str, code: str | int | None = None, **headers: str
    ) -> None:
        error = {"message": message, "type": "error", "param": None, "code": code}
        self.send(status, json.dumps({"error": error}), Content_Type="application/json", **headers)

    def begin(self, kind: str = "text/event-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()

    def event(self, value: object) -> None:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        self.wfile.write(f"data: {text}\n\n".encode())
        self.wfile.flush()


@dataclass
class _State:
    reply: Reply
    cards: list[dict[str, Any]] | None
    replies: list[Reply] = field(default_factory=list)  # the next ones, before `reply`
    asked: list[Asked] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)  # a client left amid an answer
    lock: threading.Lock = field(default_factory=threading.Lock)


class Server(ThreadingHTTPServer, _State):
    daemon_threads = True

    def __init__(self, reply: Reply, cards: list[dict[str, Any]] | None) -> None:
        _State.__init__(self, reply, cards)
        ThreadingHTTPServer.__init__(self, ("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def chats(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.body is not None]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no fault."""


def card(model: str = MODEL, owner: str = "", **more: Any) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": 1, "owned_by": owner, **more}


@contextmanager
def serving(reply: Reply, cards: Iterable[dict[str, Any]] | None = ()) -> Iterator[Server]:
    """A server that answers each chat by `reply`; `cards` None: it lists no models."""
    server = Server(reply, None if cards is None else list(cards) or [card()])
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def chunk(reason: str | None = None, logprobs: Any = None, **delta: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]}


def usage(prompt: int = 7, completion: int = 3, **details: Any) -> dict[str, Any]:
    counted = {"prompt_tokens": prompt, "completion_tokens": completion, **details}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": counted}


def saying(*events: str | dict[str, Any], done: bool = True) -> Reply:
    """A text is a piece of content; a dict is a chunk; at the end an end, unless there is one."""

    def reply(handler: Handler, body: Any) -> None:
        handler.begin()
        handler.event(chunk(role="assistant", content=""))
        ended = False
        for event in events:
            value = chunk(content=event) if isinstance(event, str) else event
            ended |= any(c["finish_reason"] for c in value.get("choices", ()))
            handler.event(value)
        if done:
            if not ended:
                handler.event(chunk("stop"))
            handler.event(usage())
            handler.event("[DONE]")

    return reply


@contextmanager
def model_server(model: ChatModel) -> Iterator[str]:
    """The address of a server with this model, and the model's name there."""

    def reply(handler: Handler, body: Any) -> None:
        try:
            deltas = model.stream(as_request(body))
            first = next(deltas)
        except QvlError as err:
            error = {"message": err.message, "type": "error", "param": None, "code": err.code}
            handler.send(err.http_status, json.dumps({"error": error}), x_should_retry="false")
            return
        handler.begin()
        try:
            handler.event(chunk(role="assistant", content=""))
            while first.completion is None:
                said = {"content": first.text, "reasoning": first.reasoning}
                handler.event(chunk(**{k: v for k, v in said.items() if v}))
                first = next(deltas)
            for event in last_events(first.text, first.completion):
                handler.event(event)
            handler.event("[DONE]")
        except QvlError as err:
            handler.event({"error": {"message": err.message, "code": err.code}})
        finally:
            deltas.close()

    with serving(reply, [card(owner="qvl", max_model_len=model.info.max_positions)]) as server:
        yield server.url


def last_events(text: str, told: Completion) -> Iterator[dict[str, Any]]:
    if text:
        yield chunk(content=text)
    for index, call in enumerate(told.tool_calls):
        head = {"index": index, "id": f"call_{index}", "type": "function"}
        yield chunk(tool_calls=[{**head, "function": {"name": call.name, "arguments": ""}}])
        arguments = {"arguments": json.dumps(call.arguments)}
        yield chunk(tool_calls=[{"index": index, "function": arguments}])
    tokens = [
        {
            **spelt(said.token, said.logprob),
            "top_logprobs": [spelt(*top) for top in said.best],
        }
        for said in told.logprobs
    ]
    reason = "tool_calls" if told.tool_calls else told.finish_reason
    yield chunk("length" if reason == "reasoning" else reason, {"content": tokens})
    counted = told.usage
    yield usage(
        counted.prompt_tokens,
        counted.completion_tokens,
        prompt_tokens_details={
            "cached_tokens": counted.cached_tokens,
            "image_tokens": counted.image_tokens,
        },
        completion_tokens_details={"reasoning_tokens": counted.reasoning_tokens},
    )


def spelt(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}


def as_request(body: dict[str, Any]) -> Request:
    optional = (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "seed",
    )
    sampling = Sampling(
        max_new_tokens=body["max_tokens"],
        thinking_tokens=body.get("thinking_token_budget"),
        logprobs=body.get("top_logprobs", 0),
        stop=tuple(body.get("stop", ())),
        stop_token_ids=tuple(body.get("stop_token_ids", ())),
        allowed_token_ids=tuple(body.get("allowed_token_ids", ())),
        logit_bias=tuple((int(i), b) for i, b in body.get("logit_bias", {}).items()),
        **{name: body[name] for name in optional if name in body},
    )
    tools = tuple(Tool(**tool["function"]) for tool in body.get("tools", ()))
    choice = body.get("tool_choice", "auto")
    return Request(
        messages=tuple(as_message(message) for message in body["messages"]),
        sampling=sampling,
        tools=tools,
        tool_choice=choice if isinstance(choice, str) else choice["function"]["name"],
        response_format=as_form(body),
    )


def as_message(message: dict[str, Any]) -> Message:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    calls = tuple(
        ToolCall(call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls", ())
    )
    reasoning = message.get("reasoning_content", "")
    return Message(message["role"], tuple(as_part(part) for part in parts), reasoning, calls)


def as_part(part: dict[str, Any]) -> Part:
    if part["type"] == "text":
        return Text(part["text"])
    return Image(base64.b64decode(part["image_url"]["url"].split(",")[1]))


def as_form(body: dict[str, Any]) -> ResponseFormat | None:
    if form := body.get("response_format"):
        return ResponseFormat("json_schema", json.dumps(form["json_schema"]["schema"]))
    match body.get("structured_outputs"):
        case {"choice": choices}:
            return ResponseFormat("choice", json.dumps(choices))
        case {"regex": pattern}:
            return ResponseFormat("regex", pattern)
    return None
