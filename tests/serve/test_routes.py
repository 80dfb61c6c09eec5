"""The other routes: completions, responses, models, tokens, state, and what is said about them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest

import qvl
from qvl.serve.admission import draining
from qvl.serve.auth import read_keys
from qvl.serve.limits import Limits
from qvl.types import Image, Message, Request, Sampling, Tool, ToolCall, choices
from qvl.vlm.local import LocalModel
from served import KEY, Running, StandIn, ask, client_of, data_url, png, running

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def model() -> Iterator[LocalModel]:
    made = LocalModel()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(model: LocalModel) -> Iterator[Running]:
    with running(model, names=["sprout", "org/small"]) as here:
        yield here


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with client_of(server) as made:
        yield made


def asked(*parts: Image | str, **sampling: Any) -> Request:
    chosen = replace(Sampling(max_new_tokens=1024), **sampling)
    return Request(messages=(Message.user(*parts),), sampling=chosen)


def get(server: Running, path: str) -> Any:
    status, _, body = ask(server.port, "GET", path)
    assert status == 200
    return json.loads(body)


def post(server: Running, path: str, **fields: Any) -> Any:
    status, _, body = ask(server.port, "POST", path, JSON, json.dumps(fields))
    assert status == 200, body
    return json.loads(body)


def test_a_completion_is_the_answer_to_its_prompt(client: Any, model: LocalModel) -> None:
    sampling: dict[str, Any] = {"temperature": 1.0, "seed": 4}
    told = client.completions.create(
        model="sprout", prompt=["hello", "What is red?"], n=2, max_tokens=12, logprobs=2, **sampling
    )
    alone = [
        completion
        for words in ("hello", "What is red?")
        for completion in model.generate(
            choices(asked(words, max_new_tokens=12, logprobs=2, **sampling), 2)
        )
    ]
    assert [c.text for c in told.choices] == [c.text for c in alone]
    prompts = alone[0].usage.prompt_tokens + alone[2].usage.prompt_tokens
    assert told.usage.prompt_tokens == prompts
    assert told.usage.completion_tokens == sum(c.usage.completion_tokens for c in alone)
    first = told.choices[0].logprobs
    assert first is not None
    assert first.token_logprobs == pytest.approx([t.logprob for t in alone[0].logprobs])
    assert "".join(first.tokens or []) == alone[0].text
    assert first.text_offset == [
        len("".join(first.tokens[:place])) for place in range(len(first.tokens))
    ]
    streamed = list(
        client.completions.create(
            model="sprout",
            prompt=["hello", "What is red?"],
            n=2,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
            **sampling,
        )
    )
    assert streamed[-1].usage.prompt_tokens == prompts
    chunks = list(
        client.completions.create(
            model="sprout", prompt="hello", max_tokens=12, stream=True, **sampling
        )
    )
    assert "".join(c.choices[0].text for c in chunks) == alone[0].text
    assert chunks[-1].choices[0].finish_reason == told.choices[0].finish_reason


def test_a_response_is_the_models_answer(client: Any, model: LocalModel) -> None:
    content = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": data_url(png(1)), "detail": "auto"},
    ]
    fields: dict[str, Any] = {"temperature": 1.0, "max_output_tokens": 12}
    told = client.responses.create(
        model="sprout",
        instructions="Be brief.",
        input=[{"role": "user", "content": content}],
        extra_body={"seed": 6},
        **fields,
    )
    system = Message("system", Message.user("Be brief.").content)
    request = asked("What is this?", Image(png(1)), max_new_tokens=12, temperature=1.0, seed=6)
    (alone,) = model.generate([replace(request, messages=(system, *request.messages))])
    assert told.output_text == alone.text
    assert told.usage is not None
    assert told.usage.input_tokens == alone.usage.prompt_tokens
    assert told.usage.output_tokens == len(alone.token_ids)
    assert told.store is False
    events = list(
        client.responses.create(
            model="sprout",
            instructions="Be brief.",
            input=[{"role": "user", "content": content}],
            extra_body={"seed": 6},
            stream=True,
            **fields,
        )
    )
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == alone.text
    kinds = [e.type for e in events if e.type != "response.output_text.delta"]
    ended = "completed" if alone.finish_reason == "stop" else "incomplete"
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{ended}",
    ]
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert events[-1].response.output_text == alone.text
    assert told.status == ended


def test_a_response_of_a_bare_text(client: Any, model: LocalModel) -> None:
    told = client.responses.create(model="sprout", input="hello", max_output_tokens=8)
    (alone,) = model.generate([asked("hello", max_new_tokens=8)])
    assert told.output_text == alone.text


def test_the_form_of_a_response(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form: Any = {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    told = client.responses.create(model="sprout", input="hello", text=form, max_output_tokens=64)
    assert 0 <= json.loads(told.output_text)["n"] <= 9


def test_reasoning_and_calls_of_a_response_go_both_ways() -> None:
    call = ToolCall("weather", {"city": "Минск"})
    model = StandIn(words=(), tool_calls=(call,), reasoning="Where? Ask.")
    tool: Any = {"type": "function", "name": "weather", "parameters": {}, "strict": False}
    with (
        running(model, names=["m"]) as server,
        client_of(server) as client,
    ):
        first = client.responses.create(model="m", input="Is it warm?", tools=[tool])
        reasoning, called = first.output
        assert (reasoning.type, called.type) == ("reasoning", "function_call")
        assert json.loads(called.arguments) == call.arguments
        history: list[Any] = [
            {"role": "user", "content": "Is it warm?"},
            *(item.model_dump(exclude_none=True) for item in first.output),
            {"type": "function_call_output", "call_id": called.call_id, "output": "cold"},
        ]
        client.responses.create(
            model="m",
            input=history,
            tools=[tool],
            tool_choice={"type": "function", "name": "weather"},
        )
        with client.responses.stream(model="m", input=history, tools=[tool]) as stream:
            events = list(stream)
        assert events[-1].type == "response.completed"
        kinds = [e.type for e in events]
        assert "response.reasoning_text.done" in kinds
        assert kinds.index("response.function_call_arguments.delta") < kinds.index(
            "response.function_call_arguments.done"
        )
    request = model.asked[1]
    user, assistant, result = request.messages
    assert assistant == Message("assistant", (), "Where? Ask.", (call,))
    assert (user.role, result.role) == ("user", "tool")
    assert request.tools == (Tool("weather", "", {"type": "object", "properties": {}}),)
    assert request.tool_choice == "weather"


def test_the_models_that_are_served(client: Any, server: Running) -> None:
    listed = client.models.list().data
    assert [m.id for m in listed] == ["sprout", "org/small"]
    one = client.models.retrieve("org/small")
    assert (one.object, one.root, one.max_model_len) == ("model", "sprout", 4096)
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"
    told = post(server, "/v1/completions", prompt="hello", model="org/small", max_tokens=1)
    assert told["model"] == "org/small"
    assert post(server, "/v1/completions", prompt="hello", max_tokens=1)["model"] == "sprout"


def test_any_model_may_be_named_where_that_is_allowed() -> None:
    with running(StandIn(), any_model=True) as server:
        assert post(server, "/v1/completions", prompt="x", model="gpt-9")["model"] == "gpt-9"


def test_tokens_are_counted_as_a_request_costs_them(server: Running) -> None:
    picture = {"type": "image_url", "image_url": {"url": data_url(png(1, (160, 224)))}}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": "What is this?"}]}]
    told = post(server, "/tokenize", messages=messages)
    answer = post(server, "/v1/chat/completions", messages=messages, max_tokens=1)
    assert told["count"] == len(told["tokens"]) == answer["usage"]["prompt_tokens"]
    assert told["count"] > answer["usage"]["prompt_tokens_details"]["image_tokens"] > 30
    assert told["max_model_len"] == 4096


@pytest.mark.parametrize("text", ["hello", "Привет, 世界 🙂", "<|im_end|>", ""])
def test_tokens_give_their_text_back(server: Running, text: str) -> None:
    tokens = post(server, "/tokenize", prompt=text)["tokens"]
    assert post(server, "/detokenize", tokens=tokens)["prompt"] == text


def test_a_tokenizer_that_is_elsewhere_is_not_asked() -> None:
    with running(StandIn()) as server:
        for path, fields in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})):
            status, _, body = ask(server.port, "POST", path, JSON, json.dumps(fields))
            assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_param")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/tokenize", {"prompt": "x" * 40_000}),
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a" * 10 * 2**20}),
        ("/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}),
        ("/detokenize", {"tokens": [99_999]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": "x"}),
        ("/v1/completions", {"prompt": []}),
        ("/v1/completions", {"prompt": [1, 2]}),
        ("/v1/completions", {"prompt": ["a"] * 5, "n": 2}),
        ("/v1/responses", {"input": []}),
        ("/v1/responses", {"input": [{"type": "computer_call"}]}),
        ("/v1/responses", {"input": "x", "previous_response_id": "resp-1"}),
        ("/v1/responses", {"input": "x", "background": True}),
        ("/v1/responses", {"input": "x", "tools": [{"type": "web_search"}]}),
        ("/v1/responses", {"input": "x", "tool_choice": "required"}),
    ],
)
def test_what_these_routes_do_not_take(server: Running, path: str, fields: dict[str, Any]) -> None:
    for more in ({}, {"stream": True}):
        status, _, body = ask(server.port, "POST", path, JSON, json.dumps(fields | more))
        assert status == 400
        assert json.loads(body)["error"]["message"]


def test_the_state_of_the_server(server: Running) -> None:
    assert get(server, "/livez") == get(server, "/readyz") == {"status": "ok"}
    assert get(server, "/version") == {"version": qvl.__version__}
    limits = get(server, "/v1/limits")
    assert limits["body_bytes"] == Limits().body_bytes
    assert (limits["images"], limits["n"], limits["max_tokens"]) == (32, 8, 40_960)
    assert limits["prompt_characters"] == 8 * 4096


def test_a_server_that_drains_says_so() -> None:
    with running(StandIn(), may_fail=True) as server:
        server.app.state.serving.admission.closed = draining
        for method, path, body in (
            ("GET", "/readyz", None),
            ("POST", "/v1/chat/completions", "{}"),
        ):
            status, headers, answer = ask(server.port, method, path, JSON, body)
            assert (status, json.loads(answer)["error"]["code"]) == (503, "draining")
            assert 1 <= int(headers["retry-after"]) <= 60
        assert ask(server.port, "GET", "/livez")[0] == 200


def metric(page: bytes, name: str) -> float:
    lines = [line for line in page.decode().splitlines() if line.startswith(name)]
    assert len(lines) == 1, lines
    return float(lines[0].rsplit(" ", 1)[1])


def test_the_board_fills(model: LocalModel) -> None:
    """The names are vLLM's; what is counted is what was answered."""
    keys = read_keys([f"secret-name:{KEY}"])
    headers = {**JSON, "Authorization": f"Bearer {KEY}"}
    with running(model, keys=keys, names=["sprout"]) as server:
        body = json.dumps({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 6})
        told = [
            json.loads(ask(server.port, "POST", "/v1/chat/completions", headers, body)[2])["usage"]
            for _ in range(2)
        ]
        _, _, page = ask(server.port, "GET", "/metrics", headers)
    own = 'model_name="sprout"'
    tokens = sum(usage["completion_tokens"] for usage in told)
    assert metric(page, f"vllm:generation_tokens_total{{{own}}}") == tokens
    prompts = sum(usage["prompt_tokens"] for usage in told)
    assert metric(page, f"vllm:prompt_tokens_total{{{own}}}") == prompts
    assert metric(page, f"vllm:prefix_cache_queries_total{{{own}}}") == prompts
    assert metric(page, f"vllm:num_requests_running{{{own}}}") == 0
    assert metric(page, f"vllm:num_requests_waiting{{{own}}}") == 0
    assert metric(page, f"vllm:kv_cache_usage_perc{{{own}}}") == 0
    assert metric(page, f"vllm:num_preemptions_total{{{own}}}") == 0
    for name in (
        "time_to_first_token_seconds",
        "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
    ):
        assert metric(page, f"vllm:{name}_count{{{own}}}") == 2, name
    reasons = [line for line in page.decode().splitlines() if "request_success_total{" in line]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in reasons) == 2
    assert b"vllm:inter_token_latency_seconds_bucket" in page
    assert b"secret-name" not in page


def test_the_document_names_every_status_and_nothing_is_fetched_to_show_it(
    server: Running,
) -> None:
    document = get(server, "/openapi.json")
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert "HTTPValidationError" not in str(operation["responses"])
            assert "401" in operation["responses"], path
    assert document["info"]["version"] == qvl.__version__
