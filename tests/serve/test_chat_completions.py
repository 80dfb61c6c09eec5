"""/v1/chat/completions through OpenAI's own client: what is served is what the model says."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

import documents
from qvl.processing import source
from qvl.serve.chat import usage_object
from qvl.types import (
    Image,
    Message,
    Request,
    ResponseFormat,
    Sampling,
    Tool,
    ToolCall,
    Usage,
    choices,
)
from qvl.vlm.local import LocalModel
from served import Running, StandIn, client_of, data_url, png, running
from tiny import save_tiny, token_id

THINKING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
URL_SAFE = f"data:image/png;base64,{base64.urlsafe_b64encode(png(1)).decode()}"
TEXT: list[Any] = [{"role": "user", "content": "How many?"}]


@pytest.fixture(scope="module")
def model() -> Iterator[LocalModel]:
    made = LocalModel()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(model: LocalModel) -> Iterator[Running]:
    with running(model) as here:
        yield here


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with client_of(server) as made:
        yield made


def shown(*pictures: bytes, words: str = "What is this?") -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": data_url(p)}} for p in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": words}]}]


def asked(*pictures: bytes, words: str = "What is this?", **sampling: Any) -> Request:
    message = Message.user(*map(Image, pictures), words)
    chosen = replace(Sampling(max_new_tokens=1024), **sampling)
    return Request(messages=(message,), sampling=chosen)


def say(client: Any, **fields: Any) -> Any:
    return client.chat.completions.create(model="sprout", **fields)


def parts_of_stream(client: Any, **fields: Any) -> list[Any]:
    return list(client.chat.completions.create(model="sprout", stream=True, **fields))


def test_a_text_is_answered_as_the_model_answers_it(client: Any, model: LocalModel) -> None:
    told = say(client, messages=TEXT, max_tokens=16)
    (alone,) = model.generate([asked(words="How many?", max_new_tokens=16)])
    assert told.choices[0].message.content == alone.text
    assert told.choices[0].message.role == "assistant"
    assert (told.model, told.object) == ("sprout", "chat.completion")
    assert told.usage.prompt_tokens == alone.usage.prompt_tokens
    assert told.usage.completion_tokens == len(alone.token_ids)
    assert told.usage.total_tokens == told.usage.prompt_tokens + told.usage.completion_tokens


@pytest.mark.parametrize("seed", [1, 2])
def test_a_picture_and_a_seed_give_the_models_own_words(
    client: Any, model: LocalModel, seed: int
) -> None:
    told = say(client, messages=shown(png(seed)), temperature=1.0, seed=seed, max_tokens=24)
    (alone,) = model.generate([asked(png(seed), temperature=1.0, seed=seed, max_new_tokens=24)])
    assert told.choices[0].message.content == alone.text
    assert told.choices[0].meta["seed"] == seed
    (picture,) = told.choices[0].meta["images"]
    assert picture["tokens"] == told.usage.prompt_tokens_details.image_tokens
    assert picture["name"] == "messages[0].content[0]"


def test_several_pictures_keep_their_order(client: Any, model: LocalModel) -> None:
    first, second = png(1), png(2, (96, 64))
    told = say(client, messages=shown(first, second), max_tokens=16, temperature=0)
    (alone,) = model.generate([asked(first, second, max_new_tokens=16, temperature=0)])
    assert told.choices[0].message.content == alone.text
    sizes = [picture["width_px"] for picture in told.choices[0].meta["images"]]
    assert sizes == [96, 64]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": data_url(png(1))},
        {"type": "image_url", "image_url": {"url": data_url(png(1)), "detail": "auto"}},
        {"type": "input_image", "image_url": data_url(png(1))},
        {"type": "image_url", "image_url": {"url": data_url(png(1), "image")}},
        {"type": "image_url", "image_url": {"url": data_url(png(1), "image/jpg;name=x.jpg")}},
        {"type": "image_url", "image_url": {"url": data_url(png(1)).rstrip("=")}},
        {"type": "image_url", "image_url": {"url": URL_SAFE}},
        {"type": "file", "file": {"file_data": data_url(png(1)), "filename": "cup.png"}},
    ],
    ids=["bare", "object", "input_image", "no subtype", "wrong type", "unpadded", "url", "file"],
)
def test_a_picture_may_be_sent_in_each_of_these_forms(client: Any, part: dict[str, Any]) -> None:
    words = {"type": "text", "text": "What is this?"}
    usual = say(client, messages=shown(png(1)), max_tokens=8)
    told = say(client, messages=[{"role": "user", "content": [part, words]}], max_tokens=8)
    assert told.choices[0].message.content == usual.choices[0].message.content
    assert told.usage.prompt_tokens == usual.usage.prompt_tokens


PDF = documents.document(documents.RED_LEFT, b"0 0 1 rg 0 0 100 100 re f")
PDF_URL = data_url(PDF, "application/pdf")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"file_data": PDF_URL}},
        {"type": "image_url", "image_url": {"url": PDF_URL}},
        {"type": "input_image", "image_url": "https://pictures.example/paper.PDF?a=1"},
        {"type": "file", "file": {"file_data": "https://pictures.example/paper.pdf"}},
    ],
    ids=["file", "image_url", "address", "file at an address"],
)
def test_a_documents_pages_are_shown_one_after_the_other(
    client: Any, model: LocalModel, part: dict[str, Any], at_every_address: bytes
) -> None:
    pdf = at_every_address
    words = {"type": "text", "text": "What is this?"}
    told = say(client, messages=[{"role": "user", "content": [part, words]}], max_tokens=8)
    pages = [Image(pdf, page=number) for number in (1, 2)]
    message = Message.user(*pages, "What is this?")
    (alone,) = model.generate([Request(messages=(message,), sampling=Sampling(max_new_tokens=8))])
    assert told.choices[0].message.content == alone.text
    assert told.usage.prompt_tokens == alone.usage.prompt_tokens
    names = [picture["name"] for picture in told.choices[0].meta["images"]]
    assert names == [f"messages[0].content[0], page {number}" for number in (1, 2)]
    assert not hasattr(told, "warnings")


@pytest.fixture
def at_every_address(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A document, where pictures are fetched from."""
    monkeypatch.setattr(source, "fetch", lambda _url, into, **_: into.write(PDF))
    return PDF


def test_a_page_may_be_named_behind_its_document(client: Any) -> None:
    for number in (1, 2):
        part = {"type": "image_url", "image_url": {"url": f"{PDF_URL}#page={number}"}}
        told = say(client, messages=[{"role": "user", "content": [part]}], max_tokens=1)
        (picture,) = told.choices[0].meta["images"]
        assert picture["sha256"].endswith(f"#{number}")
    for url in (f"{PDF_URL}#page=3", f"{data_url(png(1))}#page=1"):
        part = {"type": "image_url", "image_url": {"url": url}}
        with pytest.raises(openai.BadRequestError, match="no page"):
            say(client, messages=[{"role": "user", "content": [part]}], max_tokens=1)


def test_where_only_the_first_page_is_seen_the_answer_says_so(
    client: Any, at_every_address: bytes
) -> None:
    """Of an address that does not look like a document's: what it is shows when it is read."""
    part = {"type": "image_url", "image_url": {"url": "https://pictures.example/paper"}}
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
    expected = ["messages[0].content[0]: 2 pages: the first one is used"]
    assert say(client, **asked).warnings == expected
    chunks = parts_of_stream(client, **asked, n=2)
    assert [c.warnings for c in chunks if hasattr(c, "warnings")] == [expected]
    item = {"role": "user", "content": [{"type": "input_image", "image_url": "https://a.example/"}]}
    told = client.responses.create(model="sprout", input=[item], max_output_tokens=16)
    assert told.warnings == ["input[0].content[0]: 2 pages: the first one is used"]


def test_a_stream_joins_to_the_whole(client: Any) -> None:
    for fields in (
        {"messages": shown(png(1)), "temperature": 0},
        {"messages": shown(png(2)), "temperature": 1.0, "seed": 3},
    ):
        whole = say(client, **fields, max_tokens=24)
        chunks = parts_of_stream(client, **fields, max_tokens=24)
        first, *between, last = chunks
        assert first.choices[0].delta.role == "assistant"
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        assert text == whole.choices[0].message.content
        assert [c.choices[0].finish_reason for c in between] == [None] * len(between)
        assert last.choices[0].finish_reason == whole.choices[0].finish_reason
        assert len({c.id for c in chunks}) == 1


def test_usage_comes_last_and_only_when_asked_for(client: Any) -> None:
    plain = parts_of_stream(client, messages=TEXT, max_tokens=8)
    assert all(c.choices and c.usage is None for c in plain)
    *chunks, last = parts_of_stream(
        client, messages=TEXT, max_tokens=8, stream_options={"include_usage": True}
    )
    assert last.choices == []
    whole = say(client, messages=TEXT, max_tokens=8).usage
    assert last.usage.completion_tokens == whole.completion_tokens
    assert last.usage.prompt_tokens == whole.prompt_tokens
    assert all(c.usage is None for c in chunks)


def test_choices_are_those_of_the_model(client: Any, model: LocalModel) -> None:
    fields: dict[str, Any] = {"temperature": 1.5, "seed": 5}
    told = say(client, messages=shown(png(1)), n=3, max_tokens=16, **fields)
    alone = model.generate(choices(asked(png(1), max_new_tokens=16, **fields), 3))
    assert [c.message.content for c in told.choices] == [c.text for c in alone]
    assert [c.index for c in told.choices] == [0, 1, 2]
    chunks = parts_of_stream(client, messages=shown(png(1)), n=3, max_tokens=16, **fields)
    for index, completion in enumerate(alone):
        mine = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in mine) == completion.text
        assert mine[-1].finish_reason


def test_logprobs_are_those_of_the_tokens(client: Any, model: LocalModel) -> None:
    fields: dict[str, Any] = {"messages": TEXT, "max_tokens": 8, "logprobs": True}
    told = say(client, **fields, top_logprobs=2).choices[0]
    (alone,) = model.generate([asked(words="How many?", max_new_tokens=8, logprobs=2)])
    content = told.logprobs.content
    assert [bytes(token.bytes) for token in content] == [t.token for t in alone.logprobs]
    assert [t.logprob for t in content] == pytest.approx([t.logprob for t in alone.logprobs])
    assert all(len(token.top_logprobs) == 2 for token in content)
    bare = say(client, **fields).choices[0].logprobs.content
    assert [(t.token, t.top_logprobs) for t in bare] == [(t.token, []) for t in content]
    streamed = [
        token
        for chunk in parts_of_stream(client, **fields)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert [t.token for t in streamed] == [t.token for t in content]


def test_an_answer_has_the_form_that_was_asked_for(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form = {
        "type": "json_schema",
        "json_schema": {"name": "count", "schema": schema, "strict": True},
    }
    told = say(client, messages=shown(png(1)), response_format=form, max_tokens=64)
    assert 0 <= json.loads(told.choices[0].message.content)["n"] <= 9
    plain = say(
        client, messages=TEXT, response_format={"type": "json_object"}, max_tokens=200, seed=1
    )
    if plain.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(plain.choices[0].message.content), dict)


def test_a_choice_or_a_pattern_is_asked_for_as_of_vllm(client: Any) -> None:
    def formed(**form: Any) -> str:
        body = {"structured_outputs": form}
        told = say(client, messages=shown(png(1)), max_tokens=64, seed=1, extra_body=body)
        assert told.choices[0].finish_reason == "stop"
        return told.choices[0].message.content

    assert formed(choice=["да", "нет"], regex=None) in ("да", "нет")
    assert re.fullmatch("[0-9]{3}", formed(regex="[0-9]{3}"))
    schema = {"type": "object", "properties": {"n": {"enum": [5]}}, "required": ["n"]}
    closed = {**schema, "additionalProperties": False}
    assert json.loads(formed(json=closed)) == {"n": 5}
    prompted = client.completions.create(
        model="sprout",
        prompt="How many?",
        max_tokens=64,
        extra_body={"structured_outputs": {"choice": ["one", "two"]}},
    )
    assert prompted.choices[0].text in ("one", "two")


def test_stops_are_kept(client: Any) -> None:
    whole = say(client, messages=shown(png(1)), max_tokens=32).choices[0].message.content
    stop = whole[3:6]
    cut = say(client, messages=shown(png(1)), max_tokens=32, stop=stop).choices[0]
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_the_newer_name_of_the_limit_wins(client: Any) -> None:
    told = say(client, messages=shown(png(1)), max_tokens=64, max_completion_tokens=1)
    assert told.usage.completion_tokens == 1
    assert told.choices[0].finish_reason == "length"


def test_without_a_limit_it_is_1024(client: Any) -> None:
    told = say(client, messages=TEXT)
    assert told.choices[0].meta["sampling"]["max_new_tokens"] == 1024


def test_the_clients_own_shape_may_be_sent_back(client: Any) -> None:
    told = say(client, messages=TEXT, max_tokens=8)
    history = [*TEXT, told.choices[0].message.model_dump(), {"role": "user", "content": "And now?"}]
    assert say(client, messages=history, max_tokens=8).choices[0].message.content is not None


# the client's own, about what it has parsed itself
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
def test_what_the_client_has_parsed_may_be_sent_back(client: Any) -> None:
    class Count(BaseModel):
        n: Literal[1, 2, 3]

    told = client.chat.completions.parse(
        model="sprout", messages=TEXT, response_format=Count, max_tokens=64
    )
    message = told.choices[0].message
    assert isinstance(message.parsed, Count)
    history = [*TEXT, message, {"role": "user", "content": "And now?"}]
    assert say(client, messages=history, max_tokens=8).choices[0].message.content is not None


def test_developers_and_systems_words_are_one(client: Any, model: LocalModel) -> None:
    told = say(
        client,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "Be kind."},
            *TEXT,
        ],
        max_tokens=8,
    )
    system = Message("system", Message.user("Be brief.\n\nBe kind.").content)
    request = asked(words="How many?", max_new_tokens=8)
    (alone,) = model.generate(
        [Request(messages=(system, *request.messages), sampling=request.sampling)]
    )
    assert told.choices[0].message.content == alone.text
    assert told.usage.prompt_tokens == alone.usage.prompt_tokens


def test_fields_without_effect_are_named(client: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="sprout",
        messages=TEXT,
        max_tokens=2,
        user="somebody",
        store=False,
        extra_body={"ignore_eos": True},
    )
    assert raw.headers["x-qvl-ignored"] == "store, ignore_eos"
    body = json.loads(raw.text)
    assert body["warnings"] == ["'store' has no effect here", "'ignore_eos' has no effect here"]
    plain = client.chat.completions.with_raw_response.create(
        model="sprout", messages=TEXT, max_tokens=2, user="somebody"
    )
    assert "x-qvl-ignored" not in plain.headers
    assert "warnings" not in json.loads(plain.text)
    unused = say(client, messages=TEXT, max_tokens=2, stream_options={"include_usage": True})
    assert unused.warnings == ["'stream_options' has no effect here"]


def test_the_detail_of_a_picture_reaches_the_model() -> None:
    model, url = StandIn(), data_url(png(1))
    parts = [
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "input_image", "image_url": url, "detail": "high"},
        {"type": "image_url", "image_url": url},
    ]
    with running(model, names=["sprout"]) as server, client_of(server) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="sprout", messages=[{"role": "user", "content": parts}]
        )
    assert "x-qvl-ignored" not in raw.headers
    seen = model.asked[0].messages[0].content
    assert [part.detail for part in seen if isinstance(part, Image)] == ["low", "high", "auto"]


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("thinking")
    save_tiny(folder, "qwen3_vl")
    (folder / "chat_template.jinja").write_text(THINKING)
    model = LocalModel(str(folder), dtype="fp32")
    with running(model, names=["sprout"]) as server, client_of(server) as client:
        yield client
    model.close()


def test_reasoning_is_told_apart_under_both_names(thinking: Any) -> None:
    fields: dict[str, Any] = {
        "messages": TEXT,
        "max_tokens": 60,
        "temperature": 2.0,
        "seed": 1,
        "top_p": 1.0,
        "logit_bias": {str(token_id("qwen3_vl", "</think>")): -100},
        "extra_body": {"thinking_token_budget": 9},
    }
    told = say(thinking, **fields)
    message = told.choices[0].message
    assert message.reasoning
    assert message.reasoning == message.reasoning_content
    assert told.usage.completion_tokens_details.reasoning_tokens == 9 + 3
    chunks = parts_of_stream(thinking, **fields)
    deltas = [c.choices[0].delta for c in chunks]
    assert "".join(getattr(d, "reasoning", "") or "" for d in deltas) == message.reasoning
    assert "".join(getattr(d, "reasoning_content", "") or "" for d in deltas) == message.reasoning
    assert "".join(d.content or "" for d in deltas) == message.content


def test_reasoning_without_an_end_is_told(thinking: Any) -> None:
    told = say(
        thinking,
        messages=TEXT,
        max_tokens=20,
        seed=1,
        temperature=2.0,
        logit_bias={str(token_id("qwen3_vl", "</think>")): -100},
        extra_body={"thinking_token_budget": 20},
    )
    choice = told.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("", "length")
    assert "before the model had reasoned" in choice.meta["notes"][0]


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALLS = (ToolCall("weather", {"city": "Минск"}), ToolCall("weather", {"city": "北京"}))


def test_tools_and_calls_go_both_ways() -> None:
    model = StandIn(words=("I ask.",), tool_calls=CALLS)
    history = [
        {"role": "user", "content": "Where is it warm?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call-1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Минск"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call-1", "content": "cold"},
    ]
    with running(model, names=["sprout"]) as server, client_of(server) as client:
        told = say(client, messages=history, tools=[WEATHER], tool_choice="auto").choices[0]
        assert told.finish_reason == "tool_calls"
        assert told.message.content == "I ask."
        calls = [
            (c.function.name, json.loads(c.function.arguments)) for c in told.message.tool_calls
        ]
        assert calls == [(c.name, c.arguments) for c in CALLS]
        (request,) = model.asked
        assert request.tools == (
            Tool("weather", "The weather of a city", WEATHER["function"]["parameters"]),
        )
        assert [m.role for m in request.messages] == ["user", "assistant", "tool"]
        assert request.messages[1].tool_calls == CALLS[:1]
        assert request.messages[1].content == ()

        with client.chat.completions.stream(model="sprout", messages=history, tools=[WEATHER]) as s:
            final = s.get_final_completion().choices[0]
        assert final.finish_reason == "tool_calls"
        streamed = [
            (c.function.name, json.loads(c.function.arguments)) for c in final.message.tool_calls
        ]
        assert streamed == calls

        one = say(client, messages=history, tools=[WEATHER], parallel_tool_calls=False).choices[0]
        assert len(one.message.tool_calls) == 1
        assert "1 more tool calls" in one.meta["notes"][0]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "function": {"name": "weather"}}, "weather"),
    ],
)
def test_the_choice_of_tools_reaches_the_model(choice: Any, expected: str) -> None:
    model = StandIn()
    with running(model, names=["sprout"]) as server, client_of(server) as client:
        say(client, messages=TEXT, tools=[WEATHER], tool_choice=choice)
    assert model.asked[0].tool_choice == expected


def test_an_error_amid_a_stream_is_raised_by_the_client() -> None:
    model = StandIn(error=RuntimeError("a fault with /home/somebody in it"))
    with running(model, names=["sprout"]) as server, client_of(server) as client:
        stream = client.chat.completions.create(model="sprout", messages=TEXT, stream=True)
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    assert "somebody" not in str(caught.value.body)
    assert caught.value.code == "engine"


def test_a_key_has_a_cache_of_its_own(model: LocalModel) -> None:
    """The tenant is the key's name: another key cannot tell by the time what was asked."""
    from qvl.serve.auth import read_keys

    keys = read_keys(["anna:key-of-anna", "ben:key-of-ben"])
    words = [{"role": "user", "content": "a long question " * 20}]
    cached = []
    with running(model, keys=keys) as server:
        for key in ("key-of-anna", "key-of-anna", "key-of-ben"):
            with client_of(server, key) as client:
                told = say(client, messages=words, max_tokens=2)
            cached.append(told.usage.prompt_tokens_details.cached_tokens)
    assert cached[0] == cached[2] == 0
    assert cached[1] > 16


def test_forms_and_samplings_reach_the_model() -> None:
    model = StandIn()
    with running(model, names=["sprout"]) as server, client_of(server) as client:
        say(
            client,
            messages=TEXT,
            top_p=0.5,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            seed=7,
            stop=["a", "b"],
            logit_bias={"5": 1},
            response_format={"type": "json_object"},
            extra_body={
                "top_k": 4,
                "min_p": 0.1,
                "repetition_penalty": 1.1,
                "stop_token_ids": [3],
                "priority": -2,
            },
        )
    (request,) = model.asked
    assert request.sampling == Sampling(
        max_new_tokens=1024,
        top_p=0.5,
        top_k=4,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=7,
        stop=("a", "b"),
        stop_token_ids=(3,),
        logit_bias=((5, 1.0),),
    )
    assert request.priority == -2
    assert request.response_format == ResponseFormat("json_schema", '{"type": "object"}')


def test_what_the_choices_cost_adds_up_where_all_of_it_is_known() -> None:
    one = Usage(prompt_tokens=1, completion_tokens=1, image_tokens=0, cost=0.25)
    assert usage_object([one, one])["cost"] == 0.5
    assert "cost" not in usage_object([one, replace(one, cost=None)])
