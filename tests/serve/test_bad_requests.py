"""What clients get wrong: each is answered with OpenAI's error object, and nothing of it does harm.

The ids are those of the table of bad inputs.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

import documents
from qvl.serve import content
from qvl.serve.auth import read_keys
from qvl.serve.chat import ChatBody
from qvl.serve.errors import param_of
from qvl.serve.fields import Body
from qvl.serve.limits import JSON_KEYS, JSON_VALUES, Limits
from qvl.serve.responses import ResponseBody
from qvl.serve.tokens import DetokenizeBody
from qvl.vlm.local import LocalModel
from served import KEY, Running, StandIn, ask, data_url, png, running, until

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
TEXT: list[Any] = [{"role": "user", "content": "hello"}]
# what no answer may hold: addresses of objects, paths of the server, tracebacks, long base64
LEAKS = re.compile(rb"0x[0-9a-f]{6,}|/home/|/tmp/|/root/|/usr/|File \"|Bearer |[A-Za-z0-9+/]{200}")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    model = LocalModel()
    with running(model, limits=Limits(body_bytes=2 * 2**20)) as here:
        yield here
    model.close()


def chat(**fields: Any) -> bytes:
    return json.dumps({"messages": TEXT, "max_tokens": 4, **fields}).encode()


def said(*parts: Any) -> bytes:
    return chat(messages=[{"role": "user", "content": list(parts)}])


def picture(url: str) -> bytes:
    return said({"type": "image_url", "image_url": {"url": url}})


def tool(**changes: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "clock", "parameters": {}, **changes}}


def nested(depth: int) -> bytes:
    return b'{"messages": ' + b"[" * depth + b"]" * depth + b"}"


def many_keys(count: int) -> bytes:
    return json.dumps(dict.fromkeys(map(str, range(count)))).encode()


# id, body, status, code, param (None: any)
BODIES: list[tuple[str, bytes, int, str, str | None]] = [
    ("S009 no JSON", b"hello", 400, "invalid_json", None),
    ("S009 truncated", chat()[:-5], 400, "invalid_json", None),
    ("S009 garbage behind", chat() + b"x", 400, "invalid_json", None),
    ("S009 empty", b"", 400, "invalid_request", None),
    ("S009 no object", b"[]", 400, "invalid_request", None),
    ("S009 no UTF-8", b'{"messages": "\xff"}', 400, "invalid_request", None),
    ("S009 UTF-16", chat().decode().encode("utf-16"), 400, "invalid_json", None),
    ("S011 deep", nested(100_000), 400, "invalid_json", None),
    ("S011 65", nested(65), 400, "invalid_json", None),
    ("S011 wide", b"[" + b"1," * (JSON_VALUES + 1) + b"1]", 400, "invalid_json", None),
    ("S011 keys", many_keys(JSON_KEYS + 1), 400, "invalid_json", None),
    ("S011 quotes", b'{"a":' + b'""' * (JSON_VALUES + 1) + b"}", 400, "invalid_json", None),
    ("A digits", b'{"n": ' + b"9" * 5000 + b"}", 400, "invalid_request", None),
    ("S012 2 MiB", b" " * (2 * 2**20 + 1), 413, "request_too_large", None),
    ("S018 none", chat(messages=[]), 400, "invalid_request", "messages"),
    ("S018 missing", b"{}", 400, "invalid_request", "messages"),
    ("S018 string", chat(messages="hello"), 400, "invalid_request", "messages"),
    ("S018 many", chat(messages=TEXT * 10_000), 400, "invalid_request", "messages"),
    (
        "S019 role",
        chat(messages=[{"role": "root", "content": ""}]),
        400,
        "invalid_request",
        "messages[0]",
    ),
    (
        "S019 number",
        chat(messages=[{"role": "user", "content": 5}]),
        400,
        "invalid_request",
        "messages[0].content",
    ),
    (
        "S019 null",
        chat(messages=[{"role": "user", "content": None}]),
        400,
        "invalid_request",
        "messages[0].content",
    ),
    ("S019 empty", said({}), 400, "invalid_request", "messages[0].content[0]"),
    ("S019 type", said({"type": "image"}), 400, "invalid_request", "messages[0].content[0]"),
    (
        "S019 audio",
        said({"type": "input_audio", "input_audio": {}}),
        400,
        "invalid_request",
        "messages[0].content[0]",
    ),
    (
        "S019 second",
        said({"type": "text", "text": "a"}, {"type": "text"}),
        400,
        "invalid_request",
        "messages[0].content[1].text",
    ),
    (
        "S020 nested",
        said({"type": "text", "text": "a", "cache": 1}),
        400,
        "unsupported_parameter",
        "messages[0].content[0].cache",
    ),
    (
        "S020 pixels",
        said({"type": "image_url", "image_url": "data:,", "max_pixels": 9}),
        400,
        "unsupported_parameter",
        "messages[0].content[0].max_pixels",
    ),
    ("S021 template", chat(chat_template="{{ 1 }}"), 400, "unsupported_parameter", "chat_template"),
    (
        "S021 kwargs",
        chat(chat_template_kwargs={"tokenize": True}),
        400,
        "unsupported_parameter",
        "chat_template_kwargs",
    ),
    (
        "S021 processor",
        chat(mm_processor_kwargs={"code_revision": "x"}),
        400,
        "unsupported_parameter",
        "mm_processor_kwargs",
    ),
    (
        "S021 media",
        chat(media_io_kwargs={"video": {"max_frames": 9}}),
        400,
        "unsupported_parameter",
        "media_io_kwargs",
    ),
    ("S022 unknown", chat(model="gpt-9"), 404, "model_not_found", "model"),
    ("S022 path", chat(model="../x"), 404, "model_not_found", "model"),
    ("S022 long", chat(model="<b>" * 4000), 404, "model_not_found", "model"),
    ("S022 surrogate", chat(model="\ud800"), 404, "model_not_found", "model"),
    ("S023 n", chat(n=10**9), 400, "invalid_request", "n"),
    ("S023 n 0", chat(n=0), 400, "invalid_request", "n"),
    (
        "S023 logprobs",
        chat(logprobs=True, top_logprobs=10**6),
        400,
        "invalid_request",
        "top_logprobs",
    ),
    ("S023 tokens", chat(max_tokens=10**12), 400, "invalid_param", None),
    ("S023 tokens 0", chat(max_tokens=0), 400, "invalid_param", None),
    ("S023 tokens -1", chat(max_completion_tokens=-1), 400, "invalid_param", None),
    ("S039 base64", picture("data:image/png;base64,###"), 400, "image_decode", None),
    ("S039 no comma", picture("data:image/png;base64"), 400, "image_decode", None),
    ("S039 no base64", picture("data:image/png,abc"), 400, "image_decode", None),
    ("S039 empty", picture("data:image/png;base64,"), 400, "image_decode", None),
    ("S039 html", picture(data_url(b"<html></html>", "text/html")), 400, "image_decode", None),
    (
        "S039 letters",
        picture("data:image/png;charset=utf-7;base64,\u0430"),
        400,
        "image_decode",
        None,
    ),
    ("S039 file", picture("file:///etc/passwd"), 400, "image_decode", None),
    ("S039 truncated", picture(data_url(png(1)[:200])), 400, "image_decode", None),
    (
        "S041 33",
        said(*[{"type": "image_url", "image_url": "https://a.example/x.png"}] * 33),
        400,
        "too_many_images",
        "messages",
    ),
    (
        "S041 500 of one",
        said(*[{"type": "image_url", "image_url": "https://a.example/x.png"}] * 500),
        400,
        "too_many_images",
        "messages",
    ),
    (
        "S041 33 pages",
        said({"type": "file", "file": {"file_data": data_url(documents.document(*[b""] * 33))}}),
        400,
        "too_many_images",
        "messages",
    ),
    *(
        (f"S024 {host}", picture(f"http://{host}/x.png"), 400, "fetch_blocked", None)
        for host in (
            "127.0.0.1",
            "169.254.169.254",
            "[::1]",
            "0",
            "127.1",
            "2130706433",
            "0x7f.1",
            "0177.0.0.1",
            "localhost",
        )
    ),
    ("S029", picture("http://127.0.0.1:6666\\@1.1.1.1/"), 400, "fetch_blocked", None),
    ("S031", picture("https://1.1.1.1:22/x.png"), 400, "fetch_blocked", None),
    ("S032", picture("https://user:SECRET@1.1.1.1/x.png"), 400, "fetch_blocked", None),
    (
        "S042 frames",
        said(
            {
                "type": "video_url",
                "video_url": {"url": "data:video/jpeg;base64," + ",".join(["AA"] * 10_000)},
            }
        ),
        400,
        "image_decode",
        None,
    ),
    (
        "S043 frames",
        said({"type": "video_url", "video_url": {"url": "data:,", "max_frames": 9}}),
        400,
        "unsupported_parameter",
        "messages[0].content[0].video_url.max_frames",
    ),
    (
        "S044 context",
        chat(messages=[{"role": "user", "content": "h " * 5000}]),
        400,
        "context_length_exceeded",
        None,
    ),
    (
        "S044 letters",
        chat(messages=[{"role": "user", "content": "h" * 40_000}]),
        400,
        "context_length_exceeded",
        None,
    ),
    (
        "S066 absent tool",
        chat(tools=[tool()], tool_choice={"type": "function", "function": {"name": "x"}}),
        400,
        "invalid_request",
        "tool_choice",
    ),
    ("S066 no tools", chat(tool_choice="required"), 400, "invalid_request", None),
    (
        "S066 no id",
        chat(messages=[*TEXT, {"role": "tool", "content": ""}]),
        400,
        "invalid_request",
        "messages[1].tool_call_id",
    ),
    (
        "S066 arguments",
        chat(
            messages=[
                *TEXT,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"name": "x", "arguments": "["}}],
                },
            ]
        ),
        400,
        "invalid_request",
        "messages[1].tool_calls[0]",
    ),
    ("S066 name", chat(tools=[tool(name="a b")]), 400, "invalid_request", "tools[0].function.name"),
    (
        "S066 many",
        chat(tools=[tool(name=f"t{i}") for i in range(65)]),
        400,
        "invalid_request",
        "tools",
    ),
    ("A same names", chat(tools=[tool(), tool()]), 400, "invalid_param", None),
    ("A temperature", chat(temperature=5), 400, "invalid_param", None),
    ("A NaN", b'{"messages": [], "temperature": NaN}', 400, "invalid_request", None),
    ("A infinity", chat()[:-1] + b', "top_p": Infinity}', 400, "invalid_request", "top_p"),
    ("A string", chat(temperature="1"), 400, "invalid_request", "temperature"),
    ("A bool", chat(n=True), 400, "invalid_request", "n"),
    ("A seed", chat(seed=-1), 400, "invalid_param", None),
    ("A stop empty", chat(stop=""), 400, "invalid_request", "stop"),
    ("A stops", chat(stop=["a"] * 9), 400, "invalid_request", "stop"),
    (
        "A biases",
        chat(logit_bias={str(i): 1 for i in range(301)}),
        400,
        "invalid_request",
        "logit_bias",
    ),
    ("A bias name", chat(logit_bias={"x": 1}), 400, "invalid_param", None),
    ("A bias id", chat(logit_bias={"99999999": 1}), 400, "invalid_param", None),
    (
        "A surrogate",
        chat(messages=[{"role": "user", "content": "\ud800"}]),
        400,
        "invalid_param",
        None,
    ),
    (
        "A surrogate name",
        chat(messages=[{"role": "user", "content": "", "\ud800": 1}]),
        400,
        "invalid_request",
        None,
    ),
    (
        "A form",
        chat(response_format={"type": "json_schema"}),
        400,
        "invalid_request",
        "response_format.json_schema",
    ),
    (
        "A schema",
        chat(
            response_format={
                "type": "json_schema",
                "json_schema": {"schema": {"type": "object", "uniqueItems": True, "contains": {}}},
            }
        ),
        400,
        "invalid_param",
        None,
    ),
    (
        "A schema size",
        chat(
            response_format={
                "type": "json_schema",
                "json_schema": {"schema": {"enum": ["a" * 70_000]}},
            }
        ),
        400,
        "invalid_param",
        None,
    ),
    ("A thinking", chat(thinking_token_budget=5), 400, "invalid_param", None),
    *(
        (f"A structured {name}", chat(structured_outputs=form, **more), 400, code, param)
        for name, form, more, code, param in (
            ("none", {}, {}, "invalid_request", "structured_outputs"),
            ("null", {"choice": None}, {}, "invalid_request", "structured_outputs"),
            ("two", {"choice": ["a"], "regex": "a"}, {}, "invalid_request", "structured_outputs"),
            (
                "beside a response_format",
                {"choice": ["a"]},
                {"response_format": {"type": "json_object"}},
                "invalid_request",
                "structured_outputs",
            ),
            (
                "grammar",
                {"grammar": "x"},
                {},
                "unsupported_parameter",
                "structured_outputs.grammar",
            ),
            ("no choice", {"choice": []}, {}, "invalid_request", "structured_outputs.choice"),
            ("long choice", {"choice": ["a" * 70_000]}, {}, "invalid_param", None),
            ("surrogate", {"choice": ["\ud800"]}, {}, "invalid_param", None),
            ("regex", {"regex": "["}, {}, "invalid_param", None),
            ("long regex", {"regex": "a" * 70_000}, {}, "invalid_param", None),
            ("json", {"json": {"contains": {}}}, {}, "invalid_param", None),
        )
    ),
]


@pytest.mark.parametrize(
    ("body", "status", "code", "param"), [b[1:] for b in BODIES], ids=[b[0] for b in BODIES]
)
def test_a_bad_body_is_answered(
    server: Running, body: bytes, status: int, code: str, param: str | None
) -> None:
    for sent in (body, body[:-1] + b', "stream": true}' if body.endswith(b"4}") else body):
        found, headers, answer = ask(server.port, "POST", CHAT, JSON, sent)
        assert found == status, answer[:500]
        error = json.loads(answer)["error"]
        assert error.keys() == {"message", "type", "param", "code", "hint", "request_id"}
        assert error["code"] == code
        assert param is None or error["param"] == param
        assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
        assert error["request_id"] == headers["x-request-id"]
        assert headers["x-should-retry"] == "false"
        assert not LEAKS.search(answer)
        assert b"SECRET" not in answer
        assert len(answer) < 2000


def test_what_was_refused_left_the_server_well(server: Running) -> None:
    status, _, answer = ask(server.port, "POST", CHAT, JSON, chat())
    assert status == 200
    assert json.loads(answer)["choices"][0]["message"]["content"]
    until(lambda: server.app.state.serving.admission.running == 0)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),  # S008
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),  # S017
        ({}, 415),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),  # S016
        ({"Content-Type": "application/json", **{f"X-{i}": "x" for i in range(110)}}, 431),
        ({"Content-Type": "application/json", "X-Long": "x" * 30_000}, 200),
        ({"Content-Type": "application/json", "X-Long": "x" * 33_000}, 431),
    ],
)
def test_headers_decide_before_the_body(
    server: Running, headers: dict[str, str], status: int
) -> None:
    body = gzip.compress(chat()) if "Content-Encoding" in headers else chat()
    found, told, _ = ask(server.port, "POST", CHAT, headers, body)
    assert found == status or (status == 431 and found == 400)
    if status != 200 and found != 400:
        assert told["connection"] == "close"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("PUT", CHAT, 405),
        ("DELETE", CHAT, 405),
        ("OPTIONS", CHAT, 405),
        ("TRACE", CHAT, 405),
        ("POST", "/v1/models", 405),
        ("GET", "/nowhere", 404),
        ("GET", "/v1/chat/completions/", 404),
        ("GET", "/docs", 404),
        ("GET", "/v1/models/nothing", 404),
    ],
)
def test_a_route_or_method_that_is_not_there(
    server: Running, method: str, path: str, status: int
) -> None:
    """S058."""
    found, headers, answer = ask(
        server.port,
        method,
        path,
        JSON if method in ("POST", "PUT") else {},
        b"{}" if method in ("POST", "PUT") else None,
    )
    assert found == status
    assert json.loads(answer)["error"]["code"] in (
        "not_found",
        "method_not_allowed",
        "model_not_found",
    )
    assert status != 405 or headers["allow"]


@pytest.mark.parametrize(
    "asked", ["my-id.7_x", "a" * 65, "x y", "${jndi:ldap://x}", "\u00e9", "a" * 10_000]
)
def test_an_id_is_echoed_only_if_it_can_do_no_harm(server: Running, asked: str) -> None:
    """S062."""
    _, headers, _ = ask(
        server.port, "GET", "/livez", {"X-Request-Id": asked.encode("latin-1").decode("latin-1")}
    )
    if asked == "my-id.7_x":
        assert headers["x-request-id"] == asked
    else:
        assert re.fullmatch("req-[0-9a-f]{24}", headers["x-request-id"])


def raw(server: Running, sent: bytes, within_s: float = 5) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=within_s) as sock:
        sock.sendall(sent)
        received = b""
        while piece := sock.recv(65536):
            received += piece
    return received


HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
)


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        b"Content-Length: 2\r\n folded\r\n\r\n{}",
        b"Content-Length: -1\r\n\r\n{}",
        b"Transfer-Encoding: gzip\r\n\r\n{}",
    ],
)
def test_an_ambiguous_length_is_refused_and_the_connection_closed(
    server: Running, lines: bytes
) -> None:
    """S059."""
    answer = raw(server, HEAD + lines + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert re.match(rb"HTTP/1.1 (400|501) ", answer)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer.lower()


def test_a_length_over_the_limit_is_refused_before_the_body(server: Running) -> None:
    """S012: nothing of the body is sent."""
    answer = raw(server, HEAD + b"Content-Length: %d\r\n\r\n" % 2**30)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_chunks_without_an_end_are_refused_at_the_limit(server: Running) -> None:
    """S013."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
        sock.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(40):
            try:
                sock.sendall(chunk)
            except OSError:
                break
        assert sock.recv(100).startswith(b"HTTP/1.1 413 ")


def test_who_is_too_slow_to_ask_is_let_go() -> None:
    """S014: neither a head without an end nor a body without one holds a connection."""
    limits = Limits(header_s=0.3, body_s=0.3, keep_alive_s=1)
    with running(StandIn(), limits=limits) as server:
        began_s = time.monotonic()
        assert raw(server, b"") == b""
        assert raw(server, b"GET /livez HTTP/1.1\r\nX-Slow: ") == b""
        assert raw(server, HEAD + b"Content-Length: 9\r\n\r\n{").startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began_s < 3
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
            sock.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            while b'"ok"}' not in received:
                received += sock.recv(4096)
            for byte in b"GET /livez HTTP/1.1":  # one at a time, and never to the end
                time.sleep(0.05)
                try:
                    sock.sendall(bytes([byte]))
                except OSError:
                    break
            assert sock.recv(4096) == b""


def test_many_who_are_slow_do_not_hold_up_the_others() -> None:
    """S014."""
    with running(StandIn()) as server:
        slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
        for sock in slow:
            sock.sendall(b"POST /v1/chat")
        took_s = []
        for _ in range(20):
            began_s = time.monotonic()
            assert ask(server.port, "POST", CHAT, JSON, chat())[0] == 200
            took_s.append(time.monotonic() - began_s)
        for sock in slow:
            sock.close()
        assert sorted(took_s)[10] < 0.5


def test_a_strict_server_refuses_what_has_no_effect() -> None:
    with running(StandIn(), is_strict=True) as server:
        status, _, answer = ask(server.port, "POST", CHAT, JSON, chat(store=True))
        assert (status, json.loads(answer)["error"]["param"]) == (400, "store")
        assert ask(server.port, "POST", CHAT, JSON, chat(user="x"))[0] == 200


def test_logs_hold_no_contents(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    """P24: not a word of a prompt, also of one that fails."""
    caplog.set_level("INFO", logger="qvl")  # commands that ran in this process may have set it
    for body in (
        chat(messages=[{"role": "user", "content": "SECRETWORD"}]),
        picture("data:SECRETWORD"),
    ):
        ask(server.port, "POST", CHAT, JSON, body)

    until(lambda: len(lines(caplog)) == 2)
    assert "SECRETWORD" not in caplog.text
    assert re.fullmatch(r"req-\w+ /v1/chat/completions 200 [0-9.]+ s", lines(caplog)[0])


def test_not_even_the_most_talkative_log_holds_a_prompt_a_picture_or_a_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """F012."""
    caplog.set_level("DEBUG")
    keys, shown = read_keys([f"tests:{KEY}"]), data_url(png(1))
    part = {"type": "image_url", "image_url": shown}
    with running(StandIn(), keys=keys) as server:
        for body in (
            said({"type": "text", "text": "SECRETWORD"}, part),
            said({"type": "text", "text": "SECRETWORD"}, part, {"type": "other"}),
            chat(model="other", user="SECRETWORD"),
            b'{"SECRETWORD',
        ):
            ask(server.port, "POST", CHAT, {**JSON, "Authorization": f"Bearer {KEY}"}, body)
            ask(server.port, "POST", CHAT, {**JSON, "Authorization": f"Bearer {KEY}x"}, body)
        until(lambda: len(lines(caplog)) >= 8)
    assert "SECRETWORD" not in caplog.text
    assert KEY not in caplog.text
    assert shown[-60:] not in caplog.text


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("qvl.serve")]


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_is_told_without_its_words(caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    model = StandIn(error=ValueError("a secret of /home/somebody at 0x7f0000000000"))
    with running(model, may_fail=True) as server:
        status, headers, answer = ask(server.port, "POST", CHAT, JSON, chat(stream=stream))
    assert status == (200 if stream else 500)
    assert b'"type": "server_error"' in answer
    assert b"somebody" not in answer
    assert f"request {headers['x-request-id']}: a fault, ValueError" in caplog.text
    assert "somebody" not in caplog.text


def test_the_place_of_an_error_is_named_as_the_client_wrote_it() -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}
    place = ["messages", 0, "user", "content", "list[union]", 0, "text", "text"]
    assert param_of(place, body, is_missing=False) == "messages[0].content[0].text"
    assert param_of(["model", "x"], {}, is_missing=True) == "x"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (ChatBody, {"messages": [{"role": "user", "content": [{}] * 1000}] * 200}),
        (ChatBody, {"messages": [{"role": "assistant", "tool_calls": [{}] * 100_000}]}),
        (ResponseBody, {"input": [{"role": "user", "content": [{}] * 1000}] * 200}),
        (ResponseBody, {"input": [{"type": "reasoning", "summary": [{}] * 100_000}]}),
        (DetokenizeBody, {"tokens": ["x"] * 200_000}),
    ],
    ids=["parts", "calls", "parts of items", "reasoning", "tokens"],
)
def test_a_body_that_is_wrong_in_very_many_places_is_read_only_so_far(
    kind: type[Body], body: dict[str, Any]
) -> None:
    """Telling each would keep everybody waiting, for seconds."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert caught.value.error_count() < 50


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [tool(description="x" * 40_000)]},
        {"tools": [tool(parameters={"type": "object", "title": "x" * 40_000})]},
        {"messages": [*TEXT, {"role": "assistant", "content": "", "reasoning": "x" * 40_000}]},
    ],
    ids=["description", "schema", "reasoning"],
)
def test_what_is_not_said_counts_as_text_too(server: Running, more: dict[str, Any]) -> None:
    status, _, body = ask(server.port, "POST", CHAT, JSON, chat(**more))
    assert (status, json.loads(body)["error"]["code"]) == (400, "context_length_exceeded")


def test_a_document_that_takes_too_long_to_open_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = threading.Event()
    monkeypatch.setattr(content, "with_pages", lambda _: opened.wait(30) and [])
    with running(StandIn(), may_fail=True, limits=Limits(request_s=0.3)) as here:
        file = {"type": "file", "file": {"file_data": data_url(documents.document(b""))}}
        status, _, body = ask(here.port, "POST", CHAT, JSON, said(file))
        assert (status, json.loads(body)["error"]["code"]) == (504, "deadline_exceeded")
        opened.set()
