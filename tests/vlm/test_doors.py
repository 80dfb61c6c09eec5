"""What is true of every door to a model: our engine's, and those of servers with the same model.

`remote` asks a server written from OpenAI's documents alone, `served` asks ours, as `qvl serve` runs it.

A further door, or a further server, is one more case of the fixtures.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from qvl.errors import (
    DeadlineError,
    ImageDecodeError,
    InvalidParamError,
    PromptTooLongError,
)
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
    choices,
)
from qvl.vlm.chat_model import ChatModel
from qvl.vlm.local import LocalModel
from qvl.vlm.remote import RemoteModel
from served import running
from stand_in_openai import MODEL, model_server
from tiny import save_tiny, token_id

DOORS = ("local", "remote", "served")
SHORT = Sampling(max_new_tokens=12, temperature=0)
THINKING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
DIGIT = ResponseFormat(
    "json_schema",
    '{"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},'
    ' "required": ["n"], "additionalProperties": false}',
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder, "qwen3_vl")
    return LocalModel(str(folder), dtype="fp32")


@pytest.fixture(scope="module")
def tiny_thinking(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = tmp_path_factory.mktemp("thinking")
    save_tiny(folder, "qwen3_vl")
    (folder / "chat_template.jinja").write_text(THINKING)
    return LocalModel(str(folder), dtype="fp32")


@pytest.fixture(scope="module", params=DOORS)
def model(request: pytest.FixtureRequest, tiny: LocalModel) -> Iterator[ChatModel]:
    yield from behind(request.param, tiny)


@pytest.fixture(scope="module", params=DOORS)
def thinking(request: pytest.FixtureRequest, tiny_thinking: LocalModel) -> Iterator[ChatModel]:
    yield from behind(request.param, tiny_thinking)


def behind(door: str, model: LocalModel) -> Iterator[ChatModel]:
    if door == "local":
        yield model
        return
    server = model_server(model) if door == "remote" else our_server(model)
    with server as url:
        remote = RemoteModel(f"openai:{MODEL}@{url}")
        yield remote
        remote.close()


@contextmanager
def our_server(model: LocalModel) -> Iterator[str]:
    with running(model, names=[MODEL]) as server:
        yield f"{server.url}/v1"


def picture(seed: int, size: tuple[int, int] = (64, 96)) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "PNG")
    return Image(file.getvalue(), f"picture {seed}")


def request(seed: int, text: str = "hello", sampling: Sampling = SHORT) -> Request:
    return Request(messages=(Message.user(picture(seed), text),), sampling=sampling, id=str(seed))


def sampled(seed: int) -> Request:
    return request(seed, sampling=Sampling(max_new_tokens=12, temperature=1.0, seed=seed))


def texts(results: list[Completion]) -> list[tuple[object, ...]]:
    """What is the same again behind one door; only our own tells ids of tokens."""
    return [(r.id, r.text, r.finish_reason, r.token_ids) for r in results]


def words(results: list[Completion]) -> list[tuple[str, str]]:
    """What is the same behind every door."""
    return [(r.text, r.finish_reason) for r in results]


def test_every_door_says_what_the_model_says(model: ChatModel, tiny: LocalModel) -> None:
    asked = [replace(sampled(3), sampling=replace(sampled(3).sampling, logprobs=2))]
    (said,), (meant,) = model.generate(asked), tiny.generate(asked)
    assert (said.text, said.finish_reason) == (meant.text, meant.finish_reason)
    # who shares the beginning of a prompt with another is computed in another batch
    assert [(one.token, *(token for token, _ in one.best)) for one in said.logprobs] == [
        (one.token, *(token for token, _ in one.best)) for one in meant.logprobs
    ]
    assert [one.logprob for one in said.logprobs] == pytest.approx(
        [one.logprob for one in meant.logprobs], abs=1e-4
    )
    assert said.confidence == pytest.approx(meant.confidence)
    assert replace(said.usage, cached_tokens=0) == replace(meant.usage, cached_tokens=0)
    assert said.provenance.seed == meant.provenance.seed == 3
    assert said.provenance.generation == meant.provenance.generation
    assert model.info.max_positions == tiny.info.max_positions
    (seen,), (shown,) = said.provenance.images, meant.provenance.images
    assert (seen.name, seen.sha256, seen.width_px) == (shown.name, shown.sha256, shown.width_px)


def test_in_company_as_alone(model: ChatModel) -> None:
    requests = [maker(seed) for seed in range(6) for maker in (request, sampled)]
    alone = [model.generate([r])[0] for r in requests]
    assert texts(model.generate(requests)) == texts(alone)


def test_a_stream_joins_to_the_whole_text(model: ChatModel) -> None:
    for ask in (request(1), sampled(2)):
        *deltas, last = model.stream(ask)
        assert last.completion is not None
        assert "".join(d.text for d in (*deltas, last)) == last.completion.text
        assert all(d.completion is None for d in deltas)
        assert texts([last.completion]) == texts(model.generate([ask]))


def test_the_same_seed_gives_the_same_words_and_another_does_not(model: ChatModel) -> None:
    first, again = (model.generate([sampled(7)])[0] for _ in range(2))
    other = model.generate([replace(sampled(7), sampling=replace(SHORT, temperature=1, seed=8))])
    assert first.text == again.text != other[0].text


def test_a_seed_that_was_drawn_is_reported_and_repeats(model: ChatModel) -> None:
    free = request(3, sampling=Sampling(max_new_tokens=12, temperature=1.5))
    told = model.generate([free])[0]
    seed = told.provenance.seed
    assert seed is not None
    again = replace(free, sampling=replace(free.sampling, seed=seed))
    assert model.generate([again])[0].text == told.text


def test_a_failing_picture_harms_no_other_and_order_is_kept(model: ChatModel) -> None:
    broken = replace(request(9), messages=(Message.user(Image(b"text", "bad.jpg"), "hello"),))
    results = list(model.results([request(0), broken, request(1)]))
    assert isinstance(results[1], ImageDecodeError)
    assert "bad.jpg" in results[1].message
    good = [r for r in results if isinstance(r, Completion)]
    assert texts(good) == texts(model.generate([request(0), request(1)]))
    with pytest.raises(ImageDecodeError):
        model.generate([request(0), broken])


def test_a_prompt_beyond_the_context_says_both_numbers(model: ChatModel) -> None:
    long = request(1, "hello " * model.info.max_positions)
    with pytest.raises(PromptTooLongError, match=str(model.info.max_positions)):
        model.generate([long])


def test_a_conversation_goes_on(model: ChatModel, tiny: LocalModel) -> None:
    clock = Tool("clock", "What time it is", {"type": "object", "properties": {}})
    messages = (
        Message("system", (Text("Be brief."),)),
        Message.user(picture(1), "and", picture(2), "now?"),
        Message("assistant", (Text("Let me see."),), "", (ToolCall("clock", {"at": "т"}),)),
        Message("tool", (Text("12:00"),)),
        Message.user("So?"),
    )
    asked = [Request(messages=messages, sampling=SHORT, tools=(clock,))]
    assert words(model.generate(asked)) == words(tiny.generate(asked))
    assert (
        model.generate(asked)[0].usage.prompt_tokens == tiny.generate(asked)[0].usage.prompt_tokens
    )


def test_an_answer_has_the_form_that_was_asked_for(model: ChatModel) -> None:
    longer = Sampling(max_new_tokens=64, temperature=1.0, seed=1)
    asked = [request(seed, sampling=longer) for seed in range(4)]
    for completion in model.generate(replace(r, response_format=DIGIT) for r in asked):
        assert 0 <= json.loads(completion.text)["n"] <= 9
        assert completion.finish_reason == "stop"
    answers = ("да", "нет", "не знаю")
    choice = ResponseFormat("choice", json.dumps(answers))
    for completion in model.generate(replace(r, response_format=choice) for r in asked):
        assert completion.text in answers
    digits = ResponseFormat("regex", "[0-9]{3}")
    (completion,) = model.generate([replace(asked[0], response_format=digits)])
    assert completion.text.isdecimal()
    assert len(completion.text) == 3
    with pytest.raises(InvalidParamError, match="regex"):
        model.generate([replace(request(1), response_format=ResponseFormat("regex", "["))])


def test_tokens_that_end_within_a_form_are_told(model: ChatModel) -> None:
    cut = Sampling(max_new_tokens=2, temperature=0)
    (completion,) = model.generate([replace(request(1, sampling=cut), response_format=DIGIT)])
    assert completion.finish_reason == "length"
    assert '{"n":'.startswith(completion.text.replace(" ", ""))


CLOCK = Tool("clock", "What time it is", {"type": "object", "properties": {}})
CALLS = (
    'It is<tool_call>\n{"name": "clock", "arguments": {"at": [1, null, "т"]}}\n</tool_call>\n'
    "<tool_call>\nno JSON</tool_call> soon"
)


def saying(text: str, **choices: Any) -> Request:
    """One that has no choice but to say this."""
    form = ResponseFormat("choice", json.dumps([text]))
    asked = Request(messages=(Message.user("hello"),), sampling=Sampling(max_new_tokens=300))
    return replace(asked, response_format=form, **choices)


def test_tool_calls_come_typed_and_a_stream_shows_the_same_text(model: ChatModel) -> None:
    for ask in (saying(CALLS, tools=(CLOCK,)), saying(CALLS)):
        deltas = list(model.stream(ask))
        (whole,) = model.generate([ask])
        assert "".join(d.text for d in deltas) == whole.text
        assert deltas[-1].completion is not None
        assert deltas[-1].completion.tool_calls == whole.tool_calls
        if ask.tools:
            assert whole.text == "It is\n<tool_call>\nno JSON</tool_call> soon"
            assert whole.tool_calls == (ToolCall("clock", {"at": [1, None, "т"]}),)
            (note,) = whole.notes
            assert "no JSON" in note
        else:
            assert (whole.text, whole.tool_calls, whole.notes) == (CALLS, (), ())


GRADE = Tool(
    "grade",
    "",
    {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    },
)
EMPTY = replace(CLOCK, parameters={"type": "object", "additionalProperties": False})


@pytest.mark.parametrize("choice", ["required", "grade"])
def test_a_call_that_is_demanded_comes(model: ChatModel, choice: str) -> None:
    longer = Sampling(max_new_tokens=200, temperature=1.0, seed=1)
    asked = request(1, sampling=longer)
    (told,) = model.generate([replace(asked, tools=(EMPTY, GRADE), tool_choice=choice)])
    assert told.text == ""
    assert told.tool_calls
    for call in told.tool_calls:
        if choice == "grade" or call.name == "grade":
            assert call.name == "grade"
            assert 0 <= call.arguments["n"] <= 9
        else:
            assert call == ToolCall("clock", {})


def test_a_tool_choice_that_means_nothing_is_refused(model: ChatModel) -> None:
    with pytest.raises(InvalidParamError, match="'clok'") as caught:
        model.generate([replace(request(1), tools=(CLOCK,), tool_choice="clok")])
    assert "'clock'" in (caught.value.hint or "")
    with pytest.raises(InvalidParamError, match="no tool is offered"):
        model.generate([replace(request(1), tool_choice="required")])
    both = replace(request(1), tools=(CLOCK,), tool_choice="clock", response_format=DIGIT)
    with pytest.raises(InvalidParamError, match="form of its own"):
        model.generate([both])


def test_a_tool_that_is_forbidden_is_as_one_that_is_not_offered(model: ChatModel) -> None:
    forbidden = replace(sampled(1), tools=(CLOCK,), tool_choice="none")
    assert texts(model.generate([forbidden])) == texts(model.generate([sampled(1)]))
    (told,) = model.generate([saying(CALLS, tools=(CLOCK,), tool_choice="none")])
    assert (told.text, told.tool_calls) == (CALLS, ())


def reasoned(
    bias: float = 4.0, thinking_tokens: int | None = None, **choices: Any
) -> list[Request]:
    """Three that end their reasoning sooner or later by themselves, as `bias` has it."""
    sampling = Sampling(
        max_new_tokens=100,
        thinking_tokens=thinking_tokens,
        temperature=2.0,
        top_p=1.0,
        top_k=1000,
        seed=1,
        logit_bias=((token_id("qwen3_vl", "</think>"), bias),),
    )
    return [replace(request(seed, sampling=sampling), **choices) for seed in range(3)]


def test_reasoning_is_apart(thinking: ChatModel, tiny_thinking: LocalModel) -> None:
    for ask in (*reasoned(), *reasoned(bias=-100.0, thinking_tokens=9, response_format=DIGIT)):
        deltas = list(thinking.stream(ask))
        (whole,), (meant,) = thinking.generate([ask]), tiny_thinking.generate([ask])
        assert (whole.text, whole.reasoning) == (meant.text, meant.reasoning)
        assert whole.usage.reasoning_tokens == meant.usage.reasoning_tokens > 0
        assert "".join(d.text for d in deltas) == whole.text
        assert "".join(d.reasoning for d in deltas) == whole.reasoning


def test_tokens_that_end_within_the_reasoning_are_told(thinking: ChatModel) -> None:
    for completion in thinking.generate(reasoned(bias=-100.0, thinking_tokens=100)):
        assert (completion.finish_reason, completion.text) == ("reasoning", "")
        assert completion.reasoning


def test_a_thinking_budget_out_of_range_is_refused(model: ChatModel, thinking: ChatModel) -> None:
    with pytest.raises(InvalidParamError, match="does not reason"):
        model.generate([request(1, sampling=replace(SHORT, thinking_tokens=5))])
    for budget in (0, -1, 50_000):
        with pytest.raises(InvalidParamError, match="outside 1 to 40960"):
            thinking.generate([request(1, sampling=replace(SHORT, thinking_tokens=budget))])


def test_choices_are_requests_of_their_own(model: ChatModel) -> None:
    four = model.generate(choices(sampled(3), 4))
    assert texts(four[:1]) == texts(model.generate([sampled(3)]))
    assert len({c.text for c in four}) == 4
    for one, choice in zip(choices(sampled(3), 4), four, strict=True):
        assert choice.provenance.seed == one.sampling.seed


REACHING = [
    {"logit_bias": ((65, 100.0),)},
    {"allowed_token_ids": (65, 66)},
    {"allowed_token_ids": (66,), "stop_token_ids": (66,)},
    {"allowed_token_ids": (65, 66, 67), "frequency_penalty": 2.0},
    {"max_new_tokens": 7},
    {"stop": ("a", "e")},
    {"top_k": 2},
]


@pytest.mark.parametrize("fields", REACHING, ids=[", ".join(f) for f in REACHING])
def test_what_is_asked_of_the_sampling_reaches_it(
    model: ChatModel, tiny: LocalModel, fields: dict[str, Any]
) -> None:
    sampling = Sampling(max_new_tokens=40, temperature=1.0, seed=5)
    asked = [request(1, sampling=replace(sampling, **fields))]
    assert words(model.generate(asked)) == words(tiny.generate(asked))


def test_logarithms_of_probabilities_are_told_when_asked(model: ChatModel) -> None:
    asked = replace(request(1), sampling=replace(SHORT, logprobs=3))
    told = model.generate([asked])[0]
    assert [len(token.best) for token in told.logprobs] == [3] * told.usage.completion_tokens
    assert all(said.token == said.best[0][0] for said in told.logprobs)
    assert b"".join(said.token for said in told.logprobs).decode(errors="replace") == told.text
    assert model.generate([request(1)])[0].logprobs == ()


def test_a_request_with_no_time_left_is_given_up_alone(model: ChatModel) -> None:
    late, other = model.results([replace(request(1), deadline_s=0.0), request(2)])
    assert isinstance(late, DeadlineError)
    assert isinstance(other, Completion)
    assert texts([other]) == texts(model.generate([request(2)]))


def test_a_token_id_that_the_model_lacks_is_refused(model: ChatModel) -> None:
    for sampling in (
        replace(SHORT, allowed_token_ids=(5, 99999)),
        replace(SHORT, stop_token_ids=(99999,)),
        replace(SHORT, logit_bias=((99999, 1.0),)),
    ):
        with pytest.raises(InvalidParamError, match="99999"):
            model.generate([request(1, sampling=sampling)])


def test_leaving_early_frees_what_was_left(model: ChatModel, tiny: LocalModel) -> None:
    longer = Sampling(max_new_tokens=2000, temperature=1.0, seed=1, stop_loops=False)
    results = model.results(request(seed, sampling=longer) for seed in range(8))
    stream = model.stream(request(1, sampling=longer))
    next(stream)
    stream.close()
    assert isinstance(next(model.results([request(1)])), Completion)
    results.close()
    for _ in range(400):
        if not tiny._answers:
            break
        threading.Event().wait(0.025)
    assert not tiny._answers
    assert tiny._engine.idle


def test_an_interrupt_in_the_input_leaves_a_usable_model(model: ChatModel) -> None:
    def interrupted() -> Iterator[Request]:
        yield request(0)
        raise KeyboardInterrupt

    before = model.generate([request(1)])
    with pytest.raises(KeyboardInterrupt):
        model.generate(interrupted())
    assert texts(model.generate([request(1)])) == texts(before)


def test_requests_may_be_made_while_results_are_read(model: ChatModel) -> None:
    asked = [request(seed) for seed in range(3)]
    expected = texts(model.generate(asked))
    seen = []
    for result in model.results(asked):
        assert isinstance(result, Completion)
        seen.append(result)
        assert texts(model.generate([request(5)])) == texts(model.generate([request(5)]))
    assert texts(seen) == expected


def test_threads_share_the_model(model: ChatModel) -> None:
    asked = [request(seed) for seed in range(6)]
    expected = texts(model.generate(asked))
    found: dict[int, Completion] = {}

    def work(number: int) -> None:
        found[number] = model.generate([asked[number]])[0]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts([found[n] for n in range(len(asked))]) == expected


def test_a_completion_tells_how_it_came_to_be(model: ChatModel) -> None:
    told = model.generate([request(4)])[0]
    info = told.provenance.images[0]
    assert (info.width_px, info.height_px) == (96, 64)
    assert 0 < told.usage.image_tokens < told.usage.prompt_tokens
    assert 0 < told.usage.completion_tokens <= 12
    assert 0 < told.confidence <= 1
    assert 0 < told.timings.first_token_s <= told.timings.total_s
    assert told.finish_reason in ("stop", "length")
    assert told.provenance.model == model.info.name


def test_values_out_of_range_are_refused_before_any_work(model: ChatModel) -> None:
    for bad in (Sampling(temperature=5), Sampling(max_new_tokens=0), Sampling(stop=("",))):
        with pytest.raises(InvalidParamError):
            model.generate([request(1, sampling=bad)])
    for messages in ((), (Message("nobody", ()),), (Message.user("\ud800"),)):  # type: ignore[arg-type]
        with pytest.raises(InvalidParamError):
            model.generate([Request(messages=messages)])
