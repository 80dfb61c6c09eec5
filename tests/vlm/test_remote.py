"""The door to remote servers: what is sent, what is made of answers, refusals, lies and failures."""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

import clips
from qvl.errors import (
    DeadlineError,
    EngineError,
    InvalidParamError,
    OfflineError,
    PromptTooLongError,
    QvlError,
    RemoteError,
    RemoteKeyError,
    RemoteRefusedError,
    UnknownModelError,
    UsageError,
)
from qvl.tasks.classify import Classify
from qvl.tasks.task import run_task
from qvl.types import (
    Completion,
    Image,
    Message,
    Request,
    ResponseFormat,
    Sampling,
    Text,
    Tool,
    ToolCall,
    Video,
)
from qvl.vlm import remote_form, servers
from qvl.vlm.chat_model import ChatModel
from qvl.vlm.open_model import open_model
from qvl.vlm.openai_answer import Thoughts
from qvl.vlm.remote import RemoteModel
from qvl.vlm.remote_name import guessed_generation, parse_remote_name
from stand_in_openai import (
    MODEL,
    Handler,
    Reply,
    Server,
    card,
    chunk,
    saying,
    serving,
    usage,
)

KEY = "sk-secret-0123456789"
HELLO = Request(messages=(Message.user("hello"),), sampling=Sampling(temperature=0), id="1")
Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as running:
        yield lambda *args, **more: running.enter_context(serving(*args, **more))


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses before a server is asked again, which take no time here."""
    seen: list[float] = []
    monkeypatch.setattr(servers.Servers, "_sleep", lambda _, pause_s, __: seen.append(pause_s))
    for name in ("QVL_REMOTE_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return seen


def remote(*at: Server, model: str = MODEL) -> RemoteModel:
    return RemoteModel(f"openai:{model}@{','.join(server.url for server in at)}")


def answer(server: Server, request: Request = HELLO, model: str = MODEL) -> Completion:
    (completion,) = remote(server, model=model).generate([request])
    return completion


def failure(server: Server, request: Request = HELLO, model: str = MODEL) -> QvlError:
    (result,) = remote(server, model=model).results([request])
    assert isinstance(result, QvlError)
    return result


def sent(server: Server) -> dict[str, Any]:
    return server.chats[-1].body


# what is sent


def test_a_request_is_said_in_openais_words(serve: Serve) -> None:
    server = serve(saying("Hi."))
    told = answer(server, replace(HELLO, sampling=Sampling(max_new_tokens=9, seed=5, stop=("x",))))
    assert server.chats[0].path == "/v1/chat/completions"
    assert sent(server) == {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 9,
        "seed": 5,
        "stop": ["x"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert (told.id, told.text, told.finish_reason) == ("1", "Hi.", "stop")
    assert told.provenance.seed == 5
    assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (7, 3)


def test_an_adapter_is_not_asked_for_beside_the_model(serve: Serve) -> None:
    server = serve(saying("Hi."))
    error = failure(server, replace(HELLO, adapter="shelf"))
    assert isinstance(error, InvalidParamError)
    assert "no adapter 'shelf' here" in error.message
    assert not server.chats


def test_tools_calls_and_results_are_said_with_ids(serve: Serve) -> None:
    server = serve(saying(call("{}", 0, "clock")))
    tool = Tool("clock", "Tells the time", {"type": "object", "properties": {}})
    made = (ToolCall("clock", {"at": "т"}), ToolCall("clock", {}))
    messages = (
        Message("system", (Text("Be "), Text("brief."))),
        Message.user("Now?"),
        Message("assistant", (), "", made),
        Message("tool", (Text("12:00"),)),
        Message("tool", (Text("0:00"),)),
    )
    answer(server, replace(HELLO, messages=messages, tools=(tool,), tool_choice="clock"), "m")
    body = sent(server)
    function = {"name": "clock", "description": "Tells the time", "parameters": tool.parameters}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "clock"}}
    system, _, assistant, *results = body["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    first, second = assistant["tool_calls"]
    assert first["function"] == {"name": "clock", "arguments": '{"at": "т"}'}
    assert [r["tool_call_id"] for r in results] == [first["id"], second["id"]]
    assert first["id"] != second["id"]
    with pytest.raises(InvalidParamError, match="unanswered"):
        answer(server, replace(HELLO, messages=(*messages, Message("tool", (Text("?"),)))))


PIXELS = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)


def file_of(kind: str, pixels: np.ndarray = PIXELS, **options: Any) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def shown(server: Server, file: bytes) -> tuple[str, bytes]:
    """(MIME type, bytes) of the picture as it was sent."""
    answer(server, replace(HELLO, messages=(Message.user(Image(file), "What?"),)))
    picture, text = sent(server)["messages"][0]["content"]
    assert text == {"type": "text", "text": "What?"}
    head, data = picture["image_url"]["url"].split(",")
    return head.removeprefix("data:").removesuffix(";base64"), base64.b64decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "GIF"])
def test_a_picture_goes_as_its_own_bytes(serve: Serve, kind: str) -> None:
    file = file_of(kind)
    assert shown(serve(saying("Hi.")), file) == (f"image/{kind.lower()}", file)


@pytest.mark.parametrize("kind", ["BMP", "TIFF"])
def test_a_picture_of_another_format_goes_as_png(serve: Serve, kind: str) -> None:
    mime, file = shown(serve(saying("Hi.")), file_of(kind))
    assert mime == "image/png"
    assert (np.asarray(Pillow.open(io.BytesIO(file))) == PIXELS).all()


def test_a_picture_goes_upright_and_on_white(serve: Serve) -> None:
    server = serve(saying("Hi."))
    exif = Pillow.Exif()
    exif[274] = 6
    flat = np.zeros((40, 60, 3), np.uint8)
    flat[:, :30] = 200
    mime, file = shown(server, file_of("JPEG", flat, exif=exif, quality=95))
    turned = np.asarray(Pillow.open(io.BytesIO(file))).astype(int)
    assert (mime, turned.shape) == ("image/jpeg", (60, 40, 3))
    assert abs(turned - np.rot90(flat, -1)).max() < 8
    info = answer(
        server, replace(HELLO, messages=(Message.user(Image(file_of("PNG", exif=exif))),))
    ).provenance.images[0]
    assert (info.width_px, info.height_px) == (40, 60)
    clear = np.zeros((40, 60, 4), np.uint8)
    mime, file = shown(server, file_of("PNG", clear))
    assert (np.asarray(Pillow.open(io.BytesIO(file))) == 255).all()


def test_sizes_are_told_as_the_generation_resizes(serve: Serve) -> None:
    server = serve(saying("Hi."))
    asked = replace(HELLO, messages=(Message.user(Image(file_of("PNG"), "cup")),))
    for model, size, tokens in (
        ("Qwen/Qwen2.5-VL-7B-Instruct", (84, 56), 6),
        ("gemini-3-flash", (60, 40), 0),
    ):
        (info,) = answer(server, asked, model).provenance.images
        assert (info.name, info.width_px, info.height_px) == ("cup", 60, 40)
        assert (info.resized_width_px, info.resized_height_px, info.tokens) == (*size, tokens)


def test_the_detail_of_a_picture_is_passed_on(serve: Serve) -> None:
    wide = file_of("PNG", np.zeros((800, 1200, 3), np.uint8))
    seen = Message.user(Image(wide), Image(wide, detail="low"), Image(wide, detail="high"))
    for owner, heeds in (("qvl", True), ("vllm", False), ("", True)):
        server = serve(saying("Hi."), [card(owner=owner)])
        told = answer(server, replace(HELLO, messages=(seen,)), "Qwen3-VL")
        parts = [part["image_url"] for part in sent(server)["messages"][0]["content"]]
        assert [part.get("detail") for part in parts] == [None, "low", "high"]
        assert ("the server may not heed detail" in told.notes) is not heeds
        sizes = [(i.resized_width_px, i.resized_height_px) for i in told.provenance.images]
        small = (608, 416) if owner == "qvl" else (1216, 800)
        assert sizes == [(1216, 800), small, (1216, 800)]


def test_a_video_goes_as_pictures_after_their_times(serve: Serve) -> None:
    server = serve(saying("Hi."))
    film = Video(source=clips.steady(50, 25), name="film.mp4")
    told = answer(server, replace(HELLO, messages=(Message.user(film, "What?"),)))
    (video,) = told.provenance.videos
    assert video.frame_times_s == pytest.approx([0.0, 0.64, 1.32, 1.96])
    *parts, question = sent(server)["messages"][0]["content"]
    assert [part["text"] for part in parts[::2]] == [
        f"<{t:.1f} seconds>" for t in video.frame_times_s
    ]
    assert all(p["image_url"]["url"].startswith("data:image/jpeg;") for p in parts[1::2])
    assert question["text"] == "What?"
    long = replace(film, source=clips.steady(500, 25), fps=25.0)
    (video,) = answer(server, replace(HELLO, messages=(Message.user(long),))).provenance.videos
    assert len(video.frame_times_s) == 32
    assert video.notes[-1] == "32 frames are looked at instead of 500"


def test_what_a_server_may_not_know_is_noted(serve: Serve) -> None:
    asked = replace(
        HELLO,
        sampling=Sampling(thinking_tokens=7, top_k=5, repetition_penalty=1.1, temperature=0),
        tenant="shop",
    )
    vllm, llama, other = (
        serve(saying("Hi."), [card(owner=o)]) for o in ("vllm", "llamacpp", "someone")
    )
    assert answer(vllm, asked).notes == (
        "the server tells no probabilities: the confidence is not known",
    )
    assert sent(vllm)["cache_salt"] == "shop"
    assert sent(vllm)["thinking_token_budget"] == 7
    assert sent(vllm)["top_logprobs"] == 1
    noted = answer(llama, asked).notes[0]
    assert noted == "the server may not heed cache_salt, thinking_token_budget"
    assert (sent(llama)["repeat_penalty"], sent(llama)["top_k"]) == (1.1, 5)
    assert "repetition_penalty" not in sent(llama)
    assert "top_k" in answer(other, asked).notes[0]
    assert "logprobs" not in sent(other)


# what is made of answers


def raw(*pieces: bytes) -> Reply:
    """The body in these pieces, each sent alone."""

    def reply(handler: Handler, body: Any) -> None:
        handler.begin()
        for piece in pieces:
            handler.wfile.write(piece)
            handler.wfile.flush()

    return reply


def test_characters_come_whole_however_the_bytes_are_cut(serve: Serve) -> None:
    events = [chunk(content="кошка "), chunk(content="猫\u2028🐈"), chunk("stop"), usage()]
    lines = [f"data: {json.dumps(event, ensure_ascii=False)}\r\n\r\n" for event in events]
    text = ": a comment\n\n" + "".join(lines) + "event: message\ndata: [DONE]\n\n"
    server = serve(raw(*(bytes([byte]) for byte in text.encode())))
    deltas = list(remote(server).stream(HELLO))
    assert [d.text for d in deltas] == ["кошка ", "猫\u2028🐈", ""]
    assert deltas[-1].completion is not None
    assert deltas[-1].completion.text == "кошка 猫\u2028🐈"


def test_a_server_that_counts_nothing_is_said_so(serve: Serve) -> None:
    server = serve(saying("Hi.", chunk("stop"), done=False))
    server.reply = raw(
        *(f"data: {json.dumps(e)}\n\n".encode() for e in (chunk("stop", content="Hi."),)),
        b"data: [DONE]\n\n",
    )
    told = answer(server)
    assert told.text == "Hi."
    assert "the server does not count tokens" in told.notes
    assert told.usage.completion_tokens == 0


def test_probabilities_are_read(serve: Serve) -> None:
    spelt = {"token": "ко", "logprob": -0.5, "bytes": list("ко".encode())}
    half = {"token": "\ufffd", "logprob": -1.0, "bytes": [0xD1], "top_logprobs": [spelt]}
    plain = {"token": "a", "logprob": 0.0, "bytes": None, "top_logprobs": []}
    server = serve(saying(chunk(None, {"content": [half, plain]}, content="?a")))
    told = answer(server, replace(HELLO, sampling=Sampling(temperature=0, logprobs=2)))
    first, second = told.logprobs
    assert (first.token, first.best) == (b"\xd1", (("ко".encode(), -0.5),))
    assert (second.token, second.logprob, second.best) == (b"a", 0.0, ())
    assert told.confidence == pytest.approx((np.exp(-1) + 1) / 2)
    assert answer(server).logprobs == ()


def test_probabilities_are_those_of_the_answer(serve: Serve) -> None:
    def said(text: str, **delta: str) -> dict[str, Any]:
        token = {"token": text, "logprob": -1.0, "bytes": None}
        return chunk(None, {"content": [token]}, **(delta or {"content": text}))

    asked = replace(HELLO, sampling=Sampling(temperature=0, logprobs=1))
    for events in (
        ("<think>", "so", "</think>", "A"),
        ("so", "</think>", "A"),
        (said("so", reasoning="so"), "A"),
    ):
        chunks = [said(event) if isinstance(event, str) else event for event in events]
        told = answer(serve(saying(*chunks)), asked, "x-thinking")
        assert [token.token for token in told.logprobs] == [b"A"]
        assert told.reasoning == "so"


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_in_a_field_of_its_own(serve: Serve, name: str) -> None:
    server = serve(saying(chunk(**{name: "Let me "}), chunk(**{name: "see."}), "A cup."))
    deltas = list(remote(server, model="qwen3-vl-thinking").stream(HELLO))
    assert [d.reasoning for d in deltas if d.reasoning] == ["Let me ", "see."]
    assert [d.text for d in deltas if d.text] == ["A cup."]


@pytest.mark.parametrize(
    ("pieces", "model", "reasoning", "text"),
    [
        (["<th", "ink>\nso", " be</thi", "nk>\n\n", "\nA cup."], "m", "so be", "A cup."),
        (["so be", "\n</think>\n", "\nA cup."], "x-Thinking", "so be\n", "A cup."),
        (["A cup", " indeed"], "x-Thinking", "", "A cup indeed"),
        (["A </think> cup"], "m", "", "A </think> cup"),
        ([" <thin"], "m", "", " <thin"),
        (["<think>\n", "</think>\n\n", "A cup."], "m", "", "A cup."),
    ],
)
def test_reasoning_that_is_left_in_the_content(
    serve: Serve, pieces: list[str], model: str, reasoning: str, text: str
) -> None:
    server = serve(saying(*pieces))
    deltas = list(remote(server, model=model).stream(HELLO))
    told = deltas[-1].completion
    assert told is not None
    assert (told.reasoning, told.text) == (reasoning, text)
    assert "".join(d.reasoning for d in deltas) == reasoning
    assert "".join(d.text for d in deltas) == text
    letters = Thoughts(may_be_open="Thinking" in model)
    parts = [letters.push(letter) for letter in "".join(pieces)] + [letters.finish("stop")]
    assert ("".join(r for r, _ in parts), "".join(t for _, t in parts)) == (reasoning, text)


def test_tokens_that_end_within_the_reasoning_leave_no_answer(serve: Serve) -> None:
    for model, pieces in (("m", ["<think>so"]), ("x-thinking", ["so"])):
        told = answer(serve(saying(*pieces, chunk("length"))), model=model)
        assert (told.finish_reason, told.text, told.reasoning) == ("reasoning", "", "so")


F = Tool("f", "", {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]})
TOOLS = replace(HELLO, tools=(F,))


def call(
    arguments: str, index: int | None = 0, name: str | None = "f", **more: Any
) -> dict[str, Any]:
    piece = {"index": index, "function": {"name": name, "arguments": arguments}, **more}
    return chunk(tool_calls=[piece])


def test_calls_are_put_together_from_their_pieces(serve: Serve) -> None:
    pieces = (
        "So:",
        call("", 0, id="a"),
        call('{"x"', 0, None),
        call(": 1}", 0, None),
        call('{"x": 2}', 1, id="b"),
        chunk("tool_calls"),
    )
    told = answer(serve(saying(*pieces)), TOOLS)
    assert told.tool_calls == (ToolCall("f", {"x": 1}), ToolCall("f", {"x": 2}))
    assert (told.text, told.finish_reason) == ("So:", "stop")
    at_once = (call('{"x": 1}', 0, id="a"), call("", 0, id="b"))  # as Gemini has it
    assert answer(serve(saying(*at_once)), TOOLS).tool_calls[1] == ToolCall("f", {})


def test_a_call_that_is_left_in_the_content_is_read_too(serve: Serve) -> None:
    said = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    assert answer(serve(saying("So:\n", said)), TOOLS).tool_calls == (ToolCall("f", {"x": 1}),)
    assert answer(serve(saying("So:\n", said))).text == "So:\n" + said


def test_a_call_that_cannot_be_read_stays_in_the_text(serve: Serve) -> None:
    told = answer(serve(saying("So:", call('{"x": ', id="a"), chunk("length"))), TOOLS)
    assert told.tool_calls == ()
    assert told.text.startswith("So:<tool_call>\n")
    assert "cannot be read" in told.notes[-1]


@pytest.mark.parametrize("choice", ["required", "f"])
def test_a_call_that_is_demanded_comes_or_fails(serve: Serve, choice: str) -> None:
    asked = replace(TOOLS, tool_choice=choice)
    fits = answer(serve(saying(call('{"x": 1}'))), asked)
    assert fits.tool_calls == (ToolCall("f", {"x": 1}),)
    for wrong in (("no",), (call('{"x": "1"}'),), (call("{}"),), (call("{}", 0, "g"),)):
        assert isinstance(failure(serve(saying(*wrong)), asked), RemoteError)
    assert "none was offered" in failure(serve(saying(call("{}")))).message


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def formed(kind: Any, value: object, **sampling: Any) -> Request:
    text = value if isinstance(value, str) else json.dumps(value)
    chosen = Sampling(temperature=0, **sampling)
    return replace(HELLO, response_format=ResponseFormat(kind, text), sampling=chosen)


def test_an_answer_fits_its_schema_or_is_an_error(serve: Serve) -> None:
    asked = formed("json_schema", SCHEMA)
    server = serve(saying('{"n":', " 3}"))
    assert answer(server, asked).text == '{"n": 3}'
    assert sent(server)["response_format"]["json_schema"]["schema"] == SCHEMA
    for said in ('{"n": "3"}', '{"n": 3', "Sure! 3", "[]", '{"n": NaN}', "[" * 100_000):
        wrong = failure(serve(saying(said)), asked)
        assert "json_schema" in wrong.message
        assert isinstance(wrong, RemoteError)
    cut = answer(serve(saying('{"n":', chunk("length"))), asked)
    assert (cut.text, cut.finish_reason) == ('{"n":', "length")
    stopped = answer(serve(saying('{"n":')), formed("json_schema", SCHEMA, stop=("3",)))
    assert stopped.text == '{"n":'


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad", "rule"),
    [
        ("choice", ["да", "нет"], "нет", "может", {"enum": ["да", "нет"]}),
        ("regex", "[a-c]{2}", "ab", "abc", {"pattern": "^(?:[a-c]{2})$"}),
    ],
)
def test_a_choice_or_a_pattern_is_wrapped_where_it_is_not_known(
    serve: Serve, kind: str, value: Any, good: str, bad: str, rule: dict[str, Any]
) -> None:
    asked = formed(kind, value)
    server = serve(saying('{"answer": ', json.dumps(good), "}"))
    *deltas, last = remote(server).stream(asked)
    assert deltas == []
    assert (last.text, last.completion and last.completion.text) == (good, good)
    inner = sent(server)["response_format"]["json_schema"]["schema"]["properties"]["answer"]
    assert inner == {"type": "string", **rule}
    for said in (json.dumps({"answer": bad}), good, '{"answer": 1}', "{"):
        assert isinstance(failure(serve(saying(said)), asked), RemoteError)
    assert isinstance(failure(serve(saying('{"answer":', chunk("length"))), asked), RemoteError)
    vllm = serve(saying(good), [card(owner="vllm")])
    assert answer(vllm, asked).text == good
    assert sent(vllm)["structured_outputs"] == {kind: value}
    assert isinstance(failure(serve(saying(bad), [card(owner="vllm")]), asked), RemoteError)


def test_the_tokens_around_a_wrapped_answer_are_not_told_as_its_own(serve: Serve) -> None:
    told = [
        {"token": t, "logprob": -1.0, "bytes": None} for t in ('{"', "answer", '": "', "no", '"}')
    ]
    server = serve(
        saying(chunk(None, {"content": told}, content='{"answer": "no"}')), [card(owner="sglang")]
    )
    said = answer(server, formed("choice", ["yes", "no"], logprobs=5))
    assert (said.text, said.logprobs) == ("no", ())
    assert said.confidence == pytest.approx(np.exp(-1))
    seen = [Image(file_of("PNG"), "a.png")]
    found = run_task(remote(server), Classify(labels=("yes", "no")), seen)
    assert isinstance(found, InvalidParamError)
    assert "tells no probabilities" in found.message


def test_a_probability_above_one_is_one(serve: Serve) -> None:
    over = {"token": "a", "logprob": 1e300, "top_logprobs": [{"token": "a", "logprob": 1e300}]}
    server = serve(saying(chunk(None, {"content": [over]}, content="a")))
    told = answer(server, replace(HELLO, sampling=Sampling(temperature=0, logprobs=1)))
    assert told.confidence == 1
    assert (told.logprobs[0].logprob, told.logprobs[0].best) == (0.0, ((b"a", 0.0),))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("json_schema", "{"),
        ("json_schema", '{"type": 3}'),
        ("json_schema", '{"$ref": "#/nowhere"}'),
        ("choice", "[1]"),
        ("json_schema", '{"maximum": NaN}'),
        ("json_schema", '{"maximum": 1e999}'),
        ("json_schema", '{"pattern": "a{99999999999999999999}"}'),
        ("regex", "["),
        ("regex", "a{99999999999999999999}"),
        ("lark", 'start: "a"'),
    ],
)
def test_a_form_that_cannot_be_used_is_refused(serve: Serve, kind: Any, value: str) -> None:
    assert isinstance(failure(serve(saying("{}")), formed(kind, value)), InvalidParamError)


TWICE = {f"{i + 1}": {"allOf": [{"$ref": f"#/$defs/{i}"}] * 2} for i in range(40)}
BOMB = {"$defs": {"0": True, **TWICE}, "$ref": "#/$defs/40"}
ENDLESS = "^((a+)+b|a*)$"


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("regex", ENDLESS, "a" * 50 + "c"),
        ("json_schema", {"pattern": ENDLESS}, json.dumps("a" * 50 + "c")),
        ("json_schema", {"patternProperties": {ENDLESS: {}}}, json.dumps({"a" * 50 + "c": 1})),
        ("json_schema", BOMB, "1"),
    ],
)
def test_a_form_that_would_be_checked_for_ever_is_refused(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, kind: str, value: Any, said: str
) -> None:
    server = serve(saying(said), [card(owner="vllm")])
    monkeypatch.setattr(remote_form, "CHECK_S", 0.5)
    began_s = time.monotonic()
    wrong = failure(server, formed(kind, value))
    assert isinstance(wrong, InvalidParamError)
    assert "could not be checked" in wrong.message
    assert time.monotonic() - began_s < 5


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad"),
    [
        ("regex", ENDLESS, "aaab", "aaac"),
        ("json_schema", {"pattern": "^[а-я]+$"}, '"кот"', '"cat"'),
        ("json_schema", {"$defs": {"n": {"minimum": 3}}, "$ref": "#/$defs/n"}, "3", "2"),
    ],
)
def test_what_may_take_long_is_checked_all_the_same(
    serve: Serve, kind: str, value: Any, good: str, bad: str
) -> None:
    cards = [card(owner="vllm")]
    assert answer(serve(saying(good), cards), formed(kind, value)).text == good
    assert isinstance(failure(serve(saying(bad), cards), formed(kind, value)), RemoteError)


def test_a_number_that_no_reader_of_json_holds_fits_no_form(serve: Serve) -> None:
    for schema in ({}, {"type": "object"}, {"properties": {"n": {"type": "number"}}}):
        for number in ("1e999", "-1e999", "NaN", "Infinity"):
            wrong = failure(serve(saying(f'{{"n": {number}}}')), formed("json_schema", schema))
            assert isinstance(wrong, RemoteError)
    said = '<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>'
    told = answer(serve(saying(said)), TOOLS)
    assert told.tool_calls == ()
    assert "cannot be read" in told.notes[-1]


def test_no_part_of_a_schema_is_fetched(serve: Serve) -> None:
    server = serve(saying("{}"))
    asked = formed("json_schema", {"$ref": f"{server.url}/schema"})
    assert isinstance(failure(server, asked), InvalidParamError)
    assert [asked.path for asked in server.asked] == ["/v1/models", "/v1/chat/completions"]


# refusals


def refusing(status: int, message: str = "no", code: Any = None, **headers: str) -> Reply:
    return lambda handler, body: handler.refuse(status, message, code, **headers)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_asked_three_times(serve: Serve, status: int, waits: list[float]) -> None:
    server = serve(refusing(status))
    error = failure(server)
    assert (error.code, error.exit_code, error.retryable) == ("remote", 8, True)
    assert f"status {status}" in error.message
    assert len(server.chats) == 3
    assert [0 <= wait <= most for wait, most in zip(waits, (1, 2), strict=True)] == [True, True]
    server.replies = [refusing(status), refusing(status)]
    server.reply = saying("Hi.")
    assert answer(server).text == "Hi."


def test_pauses_are_drawn_from_growing_ranges(serve: Serve, waits: list[float]) -> None:
    model = remote(serve(refusing(500)))
    for _ in range(60):
        list(model.results([HELLO]))
    assert 0.8 < max(waits[::2]) <= 1
    assert 1.6 < max(waits[1::2]) <= 2


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry_After": "7"}, 7),
        ({"Retry_After": "0"}, 0),
        ({"Retry_After": "7", "Retry_After_Ms": "250"}, 0.25),
    ],
)
def test_a_server_says_when_to_ask_again(
    serve: Serve, waits: list[float], headers: dict[str, str], expected: float
) -> None:
    server = serve(saying("Hi."))
    server.replies = [refusing(429, **headers)]
    assert answer(server).text == "Hi."
    assert waits == [pytest.approx(expected)]


def test_a_server_says_at_what_time_to_ask_again(serve: Serve, waits: list[float]) -> None:
    server = serve(saying("Hi."))
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    server.replies = [refusing(429, Retry_After=then)]
    assert answer(server).text == "Hi."
    assert 30 < waits[0] <= 40


@pytest.mark.parametrize("wait", ["61", "1e9", "inf"])
def test_a_pause_that_is_too_long_is_an_error_at_once(
    serve: Serve, waits: list[float], wait: str
) -> None:
    server = serve(refusing(429, Retry_After=wait))
    error = failure(server)
    assert "left alone" in (error.hint or "")
    assert (len(server.chats), waits) == (1, [])


def test_another_server_is_asked_instead_of_a_long_pause(serve: Serve, waits: list[float]) -> None:
    tired, good = serve(refusing(429, Retry_After="3600")), serve(saying("Hi."))
    model = remote(tired, good)
    assert [told.text for told in model.generate([HELLO] * 4)] == ["Hi."] * 4
    assert len(tired.chats) <= 4
    assert set(waits) <= {0.0}
    good.reply = refusing(429, Retry_After="3600")
    (error,) = model.results([HELLO])
    assert isinstance(error, RemoteError)
    assert "left alone for 3600 s" in (error.hint or "")
    assert set(waits) <= {0.0}


@pytest.mark.parametrize("value", ["soon", "nan", "-5"])
def test_a_pause_that_is_none_is_not_believed(serve: Serve, waits: list[float], value: str) -> None:
    server = serve(refusing(429, Retry_After=value))
    assert isinstance(failure(server), RemoteError)
    assert len(server.chats) == 3
    assert all(0 <= wait <= 4 for wait in waits)


def test_what_a_busy_server_says_is_told(serve: Serve) -> None:
    assert "out of quota" in failure(serve(refusing(429, "out of\nquota"))).message
    page = failure(serve(lambda handler, body: handler.send(503, "<html>")))
    assert page.message.endswith("status 503 (Service Unavailable)")


def test_a_server_says_whether_to_ask_again(serve: Serve) -> None:
    never = serve(refusing(500, x_should_retry="false"))
    failure(never)
    assert len(never.chats) == 1
    always = serve(refusing(400, x_should_retry="true"))
    failure(always)
    assert len(always.chats) == 3


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, None, RemoteRefusedError),
        (400, "invalid_param", InvalidParamError),
        (400, "context_length_exceeded", PromptTooLongError),
        (413, None, RemoteRefusedError),
        (422, 422, RemoteRefusedError),
        (404, None, RemoteRefusedError),
    ],
)
def test_a_refusal_is_final_and_says_why(
    serve: Serve, status: int, code: Any, kind: type[QvlError]
) -> None:
    server = serve(refusing(status, "max_tokens is\nwrong", code))
    error = failure(server)
    assert type(error) is kind
    assert "max_tokens is wrong" in error.message
    assert len(server.chats) == 1
    assert not error.retryable


def test_a_context_that_is_too_small_is_told_by_any_server(serve: Serve) -> None:
    for words in (
        "This model's maximum context length is 4096 tokens",
        "the request exceeds the available context size",
    ):
        assert isinstance(failure(serve(refusing(400, words))), PromptTooLongError)


def test_a_model_that_is_gone_is_answered_with_those_there_are(serve: Serve) -> None:
    cards = [card(name) for name in ("Qwen/Qwen3-VL-8B-Instruct", "bge-m3", "Qwen/Qwen3-VL-4B")]
    server = serve(refusing(404, "does not exist"), cards)
    error = failure(server, model="Qwen/Qwen2-VL-8B-Instruct")
    assert isinstance(error, UnknownModelError)
    assert (error.hint or "").startswith("did you mean 'Qwen/Qwen3-VL-8B-Instruct'")
    assert "bge-m3" in (error.hint or "")
    page = serve(lambda handler, body: handler.send(404, "<html>"))
    assert "/v1" in (failure(page).hint or "")


def test_googles_way_to_refuse_is_read(serve: Serve) -> None:
    words = [{"error": {"code": 400, "message": "too many pictures", "status": "INVALID"}}]
    server = serve(lambda handler, body: handler.send(400, json.dumps(words)))
    assert "too many pictures" in failure(server).message


def test_an_address_that_moved_is_not_followed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QVL_REMOTE_KEY", KEY)
    other = serve(saying("Hi."))
    server = serve(lambda handler, body: handler.send(307, "", Location=other.url))
    assert "another address" in failure(server).message
    assert other.asked == []


# the key


def test_the_key_is_sent_and_never_shown(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("QVL_REMOTE_KEY", KEY + "\n")
    late = saying("A", {"error": {"message": f"bad {KEY}"}})
    shown = []
    for reply in (
        refusing(400, f"key {KEY} is wrong"),
        refusing(401, KEY),
        late,
        refusing(500, KEY),
    ):
        server = serve(reply)
        model = remote(server)
        (error,) = model.results([HELLO])
        assert isinstance(error, QvlError)
        shown += [repr(error), str(error), error.hint, error.as_json(), repr(model), vars(model)]
        shown += [
            repr(model.info),
            repr(model._servers._client),
            repr(model._servers._client.headers),
        ]
        assert server.chats[0].headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(shown)
    assert KEY not in caplog.text
    assert "(key)" in str(shown)


def test_a_key_that_is_refused_is_said_plainly(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = failure(serve(refusing(401)))
    assert isinstance(error, RemoteKeyError)
    assert "wants a key" in error.message
    assert "QVL_REMOTE_KEY" in (error.hint or "")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = serve(refusing(403))
    assert "does not take the key" in failure(server).message
    assert len(server.chats) == 1
    for wrong in ("sk key", "ключ"):
        monkeypatch.setenv("QVL_REMOTE_KEY", wrong)
        with pytest.raises(UsageError) as caught:
            remote(server)
        assert wrong not in str(caught.value)


# servers that lie


def page(handler: Handler, body: Any) -> None:
    handler.send(200, "<html>welcome</html>", Content_Type="text/html")


def whole(handler: Handler, body: Any) -> None:
    handler.send(200, json.dumps({"choices": []}), Content_Type="application/json")


def shut(handler: Handler, body: Any) -> None:
    handler.close_connection = True


def half(handler: Handler, body: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.event(chunk(content="A"))


def packed(handler: Handler, body: Any) -> None:
    file = gzip.compress(b"data: " + b"x" * 10_000_000)
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.send_header("Content-Encoding", "gzip")
    handler.end_headers()
    handler.wfile.write(file)


LATE = {"error": {"message": "CUDA error", "code": 500}}
# name -> how it answers, how often it is asked, and what the message says
LIES: dict[str, tuple[Reply, int, str]] = {
    "page": (page, 1, "stream of events"),
    "whole": (whole, 1, "stream of events"),
    "closed": (shut, 3, "broke off"),
    "empty": (raw(b""), 3, "broke off"),
    "cut": (half, 1, "broke off"),
    "without an end": (saying("A", done=False), 1, "broke off"),
    "without a reason": (raw(b"data: [DONE]\n\n"), 1, "without a reason"),
    "no JSON": (raw(b"data: {nope\n\n"), 1, "not JSON"),
    "another schema": (raw(b'data: {"hello": 1}\n\n'), 1, "no piece"),
    "a list": (raw(b"data: []\n\n"), 1, "no piece"),
    "deep": (raw(b"data: " + b"[" * 100_000 + b"\n\n"), 1, "not JSON"),
    "numbers for text": (saying(chunk(content=3)), 1, "no piece"),
    "wrong bytes": (
        saying(
            chunk(None, {"content": [{"token": "a", "logprob": 0, "bytes": [999]}]}, content="a")
        ),
        1,
        "no piece",
    ),
    "packed": (packed, 1, "packed as 'gzip'"),
    "too large a count": (saying("A", usage(10**400)), 1, "no piece"),
    "negative count": (saying("A", usage(-1)), 1, "no piece"),
    "a late error": (saying("A", LATE), 1, "CUDA error"),
    "an unknown end": (saying("A", chunk("abort")), 1, "'abort'"),
    "a filter": (saying("A", chunk("content_filter")), 1, "filter"),
    "10 MB line": (raw(b"data: " + b"x" * 10_000_000 + b"\n\n"), 1, "too large"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_server_that_lies_is_an_error_and_no_answer(serve: Serve, name: str) -> None:
    reply, asked, words = LIES[name]
    server = serve(reply)
    began_s = time.monotonic()
    error = failure(server)
    assert isinstance(error, RemoteError)
    assert words in error.message
    assert len(server.chats) == asked
    assert time.monotonic() - began_s < 5
    assert "hello" not in error.message


def test_an_answer_without_end_is_cut(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(handler: Handler, body: Any) -> None:
        handler.begin()
        while True:
            handler.event(chunk(content="x" * 10_000))

    monkeypatch.setattr(servers, "MAX_ANSWER_BYTES", 1 << 20)
    server = serve(endless)
    assert "more than 1 MiB" in failure(server).message
    assert server.gone.wait(5)


def test_a_deadline_ends_what_only_drips(serve: Serve) -> None:
    def dripping(handler: Handler, body: Any) -> None:
        handler.begin()
        while True:
            handler.wfile.write(b": still here\n\n")
            time.sleep(0.01)

    def silent(handler: Handler, body: Any) -> None:
        handler.begin()
        handler.stand_in.gone.wait(5)

    for reply in (dripping, silent):
        server = serve(reply)
        began_s = time.monotonic()
        assert isinstance(failure(server, replace(HELLO, deadline_s=0.2)), DeadlineError)
        assert time.monotonic() - began_s < 2
        server.gone.set()


def test_a_deadline_is_not_passed_by_asking_again(serve: Serve, waits: list[float]) -> None:
    server = serve(refusing(429, Retry_After="30"))
    assert isinstance(failure(server, replace(HELLO, deadline_s=5)), RemoteError)
    assert (len(server.chats), waits) == (1, [])


def test_who_leaves_a_stream_ends_it_at_the_server(serve: Serve) -> None:
    def talking(handler: Handler, body: Any) -> None:
        handler.begin()
        while True:
            handler.event(chunk(content="word "))
            time.sleep(0.005)

    server = serve(talking)
    stream = remote(server).stream(HELLO)
    assert next(stream).text == "word "
    stream.close()
    assert server.gone.wait(5)
    server.gone.clear()
    greeted = saying("Hi.")
    server.reply = lambda handler, body: (talking if "Talk." in str(body) else greeted)(
        handler, body
    )
    results = remote(server).results([HELLO, replace(HELLO, messages=(Message.user("Talk."),))])
    assert isinstance(next(results), Completion)
    results.close()
    assert server.gone.wait(5)


def test_closing_frees_who_waits_for_a_silent_server(serve: Serve) -> None:
    asked, over = threading.Event(), threading.Event()

    def silent(handler: Handler, body: Any) -> None:
        asked.set()
        over.wait(10)

    model = remote(serve(silent))
    found: list[Completion | QvlError] = []
    waiting = threading.Thread(target=lambda: found.extend(model.results([HELLO] * 20)))
    waiting.start()
    assert asked.wait(5)
    model.close()
    waiting.join(5)
    over.set()
    assert not waiting.is_alive()
    assert all(isinstance(result, RemoteError | EngineError) for result in found)
    assert any("was closed" in result.message for result in found if isinstance(result, QvlError))


def test_closing_ends_the_pause_before_a_server_is_asked_again(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # here the pause takes its time
    server = serve(refusing(429, Retry_After="30"))
    model = remote(server)
    found: list[BaseException] = []

    def read() -> None:
        try:
            list(model.stream(HELLO))
        except RemoteError as err:
            found.append(err)

    waiting = threading.Thread(target=read)
    waiting.start()
    while not server.chats:
        time.sleep(0.01)
    model.close()
    waiting.join(5)
    assert not waiting.is_alive()
    assert "closed" in str(found)


def test_nothing_is_asked_again_once_words_have_come(serve: Serve) -> None:
    server = serve(half)
    stream = remote(server).stream(HELLO)
    assert next(stream).text == "A"
    with pytest.raises(RemoteError, match="broke off"):
        next(stream)
    assert len(server.chats) == 1


# several servers


def test_requests_go_to_the_least_busy_and_no_server_has_more_than_eight(serve: Serve) -> None:
    lock, running, peak = threading.Lock(), [0, 0], [0, 0]

    def counting(number: int) -> Reply:
        def reply(handler: Handler, body: Any) -> None:
            with lock:
                running[number] += 1
                peak[number] = max(peak[number], running[number])
            time.sleep(0.2)
            with lock:
                running[number] -= 1
            saying(body["messages"][0]["content"])(handler, body)

        return reply

    both = [serve(counting(number)) for number in (0, 1)]
    asked = [replace(HELLO, messages=(Message.user(f"{i}"),), id=str(i)) for i in range(48)]
    told = remote(*both).generate(asked)
    assert [(t.id, t.text) for t in told] == [(str(i), str(i)) for i in range(48)]
    assert max(peak) == 8
    assert min(len(server.chats) for server in both) >= 16
    peak[:] = 0, 0
    remote(*both).generate(asked[:8])
    assert peak == [4, 4]


def test_a_server_that_fails_is_left_alone_and_taken_back(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    bad, good = serve(refusing(503)), serve(saying("Hi."))
    model = remote(bad, good)
    for _ in range(10):
        assert model.generate([HELLO])[0].text == "Hi."
    assert (len(bad.chats), len(good.chats), waits) == (1, 10, [0.0])
    bad.reply = saying("Ho.")
    monkeypatch.setattr(servers, "REST_S", 0.0)
    for server in model._servers._servers:
        server.rests_until_s = 0.0
    assert model.generate([HELLO])[0].text == "Ho."


def test_a_silent_server_is_left_alone(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    hung, good = serve(lambda handler, body: over.wait(5)), serve(saying("Hi."))
    monkeypatch.setattr(servers, "SILENT_S", (0.2, 0.2, 0.2))
    model = remote(hung, good)
    told = [told.text for _ in range(4) for told in model.generate([HELLO])]
    over.set()
    assert told == ["Hi."] * 4
    assert len(hung.chats) == 1


def test_a_server_that_fails_again_rests_longer_and_is_tried_by_one_request(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "REST_S", 0.2)
    bad, good = serve(refusing(500)), serve(saying("Hi."))
    model = remote(bad, good)
    ends_s = time.monotonic() + 2.0
    while time.monotonic() < ends_s:
        assert {told.text for told in model.generate([HELLO] * 4)} == {"Hi."}
    # at first two of the four, then one after 0.2, 0.6 and 1.4 s
    assert len(bad.chats) <= 2 + 3
    assert model._servers._servers[0].failures in (3, 4)
    bad.reply = saying("Hi.")
    model._servers._servers[0].rests_until_s = 0.0
    model.generate([HELLO] * 2)
    assert model._servers._servers[0].failures == 0


def test_servers_that_are_all_slow_get_the_time_they_need(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(handler: Handler, body: Any) -> None:
        time.sleep(0.4)
        saying("Hi.")(handler, body)

    monkeypatch.setattr(servers, "SILENT_S", (0.1, 5.0, 5.0))
    model = remote(serve(slow), serve(slow))
    assert [told.text for told in model.generate([HELLO] * 4)] == ["Hi."] * 4


def test_a_server_that_is_gone_costs_one_try(serve: Serve) -> None:
    gone, good = serve(saying("Ho.")), serve(saying("Hi."))
    model = remote(gone, good)
    gone.shutdown()
    gone.server_close()
    assert [t.text for t in model.generate([HELLO] * 4)] == ["Hi."] * 4


def test_one_failure_harms_no_other_and_order_is_kept(serve: Serve) -> None:
    def reply(handler: Handler, body: Any) -> None:
        words = body["messages"][0]["content"]
        (refusing(400) if words == "bad" else saying(words))(handler, body)

    asked = [replace(HELLO, messages=(Message.user(words),)) for words in ("a", "bad", "c")]
    first, second, third = remote(serve(reply)).results(asked)
    assert isinstance(second, RemoteRefusedError)
    assert [t.text for t in (first, third) if isinstance(t, Completion)] == ["a", "c"]


# names


@pytest.mark.parametrize(
    ("name", "model", "urls"),
    [
        ("openai:m@http://h:8000/v1", "m", ("http://h:8000/v1",)),
        ("openai:org/m@https://h", "org/m", ("https://h/v1",)),
        ("openai:@cf/m@https://h/v1beta/openai/", "@cf/m", ("https://h/v1beta/openai",)),
        (
            "openai:m@http://a/v1/chat/completions,http://b/,http://b",
            "m",
            ("http://a/v1", "http://b/v1"),
        ),
    ],
)
def test_a_name_says_the_model_and_its_servers(
    name: str, model: str, urls: tuple[str, ...]
) -> None:
    parsed = parse_remote_name(name)
    assert (parsed.model, parsed.urls) == (model, urls)


@pytest.mark.parametrize(
    "name",
    [
        "openai:m",
        "openai:http://h/v1",
        "openai:m@ftp://h",
        "openai:m@http://",
        "openai:m@http://u:pass@h/v1",
        "openai:m@http://h/v1?key=pass",
        "openai:m@http://h:99999999/v1",
        "openai:m@http://a,pass",
    ],
)
def test_a_name_of_another_form_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        RemoteModel(name)
    assert "pass" not in caught.value.message + (caught.value.hint or "")


def test_the_generation_is_guessed_by_the_name(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    for model, generation in (
        ("Qwen/Qwen2-VL-7B-Instruct", "qwen2_vl"),
        ("qwen2.5-vl-72b", "qwen2_5_vl"),
        ("qwen2_5-vl-7b", "qwen2_5_vl"),
        ("Qwen3-VL-30B-A3B-Instruct", "qwen3_vl"),
        ("gemini-3-flash", None),
    ):
        assert guessed_generation(model) == generation
    model = remote(serve(saying("Hi."), [card("g", max_model_len=77)]), model="g")
    assert model.info.generation == "qwen3_vl"
    assert model.info.max_positions == 77
    assert "not a name of a Qwen-VL" in caplog.text


def test_a_server_that_is_not_there_is_said_at_once(serve: Serve) -> None:
    server = serve(saying("Hi."))
    server.shutdown()
    server.server_close()
    with pytest.raises(RemoteError, match="no server answers"):
        remote(server)
    no_list = serve(saying("Hi."), None)
    assert answer(no_list).text == "Hi."


def test_a_model_is_opened_by_its_name(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve(saying("Hi."))
    name = f"openai:{MODEL}@{server.url}"
    model: ChatModel = open_model(name, dtype="int8")
    assert "dtype does nothing" in caplog.text
    assert (model.info.name, model.info.device) == (name, "remote")
    with pytest.raises(OfflineError):
        open_model(name, offline=True)
    with pytest.raises(UnknownModelError, match="does not have yet"):
        open_model("hf:Qwen/Qwen2-VL-2B-Instruct")
    with pytest.raises(UnknownModelError):
        open_model("no-such-folder", offline=True)
    assert open_model("sprout").info.name == "sprout"
    assert len(server.asked) == 1


def test_a_remote_model_needs_no_torch() -> None:
    code = "import sys, qvl.vlm.remote; print([m for m in ('torch', 'llguidance') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
