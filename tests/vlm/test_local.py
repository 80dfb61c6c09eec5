"""The door to our engine: order, company, streams, threads, interruptions, sampling defaults."""

from __future__ import annotations

import io
import itertools
import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file

import clips
from qvl.engine.blocks import BLOCK_TOKENS
from qvl.engine.engine import Engine
from qvl.errors import (
    EngineError,
    InvalidParamError,
    OutOfMemoryError,
    PromptTooLongError,
    QvlError,
    UnknownModelError,
    VideoDecodeError,
)
from qvl.loading.generation import GenerationDefaults
from qvl.processing.prompt import build_prompt
from qvl.types import (
    Completion,
    Image,
    Message,
    Request,
    ResponseFormat,
    Sampling,
    Video,
    choices,
)
from qvl.vlm import local
from qvl.vlm.local import LocalModel, resolved, shown_bytes
from tiny import GENERATIONS, save_tiny, token_id

SHORT = Sampling(max_new_tokens=12, temperature=0)
GREEDY_BY_TOP_K = GenerationDefaults(
    stop_ids=(2,), do_sample=True, temperature=0.01, top_p=0.001, top_k=1, repetition_penalty=1.0
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder, "qwen3_vl")
    return LocalModel(str(folder), dtype="fp32")


def picture(seed: int, size: tuple[int, int] = (64, 96)) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "PNG")
    return Image(file.getvalue(), f"picture {seed}")


def request(seed: int, words: str = "hello", sampling: Sampling = SHORT) -> Request:
    return Request(messages=(Message.user(picture(seed), words),), sampling=sampling, id=str(seed))


def sampled(seed: int) -> Request:
    return request(seed, sampling=Sampling(max_new_tokens=12, temperature=1.0, seed=seed))


def texts(results: list[Completion]) -> list[tuple[str, tuple[int, ...]]]:
    return [(r.id, r.token_ids) for r in results]


def test_memory_that_runs_out_at_one_picture_harms_no_other(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = texts(model.generate([request(0), request(1)]))
    large = request(9)

    def short_of_memory(messages: tuple[Message, ...], **rules: Any) -> Any:
        if messages == large.messages:
            raise MemoryError
        return build_prompt(messages, **rules)

    monkeypatch.setattr(local, "build_prompt", short_of_memory)
    first, failed, second = model.results([request(0), large, request(1)])
    assert isinstance(failed, OutOfMemoryError)
    assert "'9'" in failed.message
    assert texts([r for r in (first, second) if isinstance(r, Completion)]) == expected


def test_a_second_question_about_a_picture_costs_less_and_says_the_same(tmp_path: Path) -> None:
    save_tiny(tmp_path, "qwen3_vl")
    model = LocalModel(str(tmp_path), dtype="fp32")
    shown = picture(1, (192, 192))
    first, second = (
        Request(messages=(Message.user(shown, words),), sampling=SHORT) for words in ("a", "b")
    )
    cold = model.generate([second])[0]
    model.generate([first])
    warm, stranger = model.generate([second, replace(second, tenant="another")])
    assert warm.token_ids == stranger.token_ids == cold.token_ids
    assert warm.usage.cached_tokens >= warm.usage.image_tokens > 16
    assert cold.usage.cached_tokens == stranger.usage.cached_tokens == 0


FRAMES = tuple(picture(seed) for seed in range(8))
FILM = Video(source=FRAMES, name="film", fps=4.0)


def about_a_film(words: str, film: Video = FILM) -> Request:
    return Request(messages=(Message.user(picture(9), film, words),), sampling=SHORT)


def test_a_video_is_told_of_and_asked_about_again_costs_less(tmp_path: Path) -> None:
    for generation in GENERATIONS:
        save_tiny(tmp_path / generation, generation)
        model = LocalModel(str(tmp_path / generation), dtype="fp32")
        cold, other = model.generate([about_a_film("a"), about_a_film("b")])
        (video,), (image,) = cold.provenance.videos, cold.provenance.images
        assert (video.name, video.width_px, video.height_px) == ("film", 96, 64)
        assert video.frame_times_s == tuple(i / 4 for i in range(8))
        assert cold.usage.image_tokens == video.tokens + image.tokens
        assert video.tokens % 4 == 0
        warm = model.generate([about_a_film("b")])[0]
        assert warm.token_ids == other.token_ids
        assert warm.usage.cached_tokens >= cold.usage.image_tokens
        model.close()


def test_a_video_that_cannot_be_used_harms_no_other_request(model: LocalModel) -> None:
    bad = about_a_film("a", Video(source=b"no video", name="bad.mp4"))
    long = about_a_film("a", replace(FILM, source=FRAMES * 90))
    alone = model.generate([request(1)])[0]
    told = list(model.results([bad, request(1), long, about_a_film("a")]))
    assert isinstance(told[0], VideoDecodeError)
    assert isinstance(told[2], PromptTooLongError)
    assert isinstance(told[1], Completion)
    assert told[1].token_ids == alone.token_ids
    assert isinstance(told[3], Completion)


def test_a_video_file_is_seen_as_its_frames_are(model: LocalModel, tmp_path: Path) -> None:
    """Another frame anywhere among those looked at may change the words; the same file may not."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(clips.steady(50, 25))
    asked = about_a_film("a", Video.of(path))
    first, again = model.generate([asked, asked])
    assert first.token_ids == again.token_ids
    assert first.provenance.videos[0].frame_times_s == pytest.approx([0.0, 0.64, 1.32, 1.96])


DIGIT = ResponseFormat(
    "json_schema",
    '{"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},'
    ' "required": ["n"], "additionalProperties": false}',
)


THINKING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = tmp_path_factory.mktemp("thinking")
    save_tiny(folder, "qwen3_vl")
    (folder / "chat_template.jinja").write_text(THINKING)
    return LocalModel(str(folder), dtype="fp32")


def reasoned(
    words: str = "hello", bias: float = 4.0, thinking_tokens: int | None = None, **choices: Any
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
        stop_loops=False,
    )
    return [replace(request(seed, words, sampling), **choices) for seed in range(3)]


def raw(model: LocalModel, completion: Completion) -> str:
    shown = shown_bytes(model._loaded.tokenizer)
    return b"".join(map(shown, completion.token_ids)).decode(errors="replace")


def test_reasoning_and_text_are_the_raw_text(thinking: LocalModel) -> None:
    completions = thinking.generate(reasoned())
    for completion in completions:
        assert raw(thinking, completion) == f"{completion.reasoning}</think>\n\n{completion.text}"
        before = completion.token_ids.index(token_id("qwen3_vl", "</think>"))
        assert completion.usage.reasoning_tokens == before + 3  # the mark and two line breaks
    assert any(len(c.reasoning) > 3 for c in completions)
    assert all(c.text for c in completions)


def test_a_model_that_reasons_first_does_so_freely(thinking: LocalModel) -> None:
    for completion in thinking.generate(reasoned(response_format=DIGIT)):
        assert completion.finish_reason == "stop"
        assert 0 <= json.loads(completion.text)["n"] <= 9


@pytest.mark.parametrize(("asked", "limit"), [(None, 75), (1, 1), (20, 20)])
def test_a_budget_that_is_reached_leaves_an_answer(
    thinking: LocalModel, asked: int | None, limit: int
) -> None:
    endless = reasoned(bias=-100.0, response_format=DIGIT, thinking_tokens=asked)
    for completion in thinking.generate(endless):
        assert completion.usage.reasoning_tokens == limit + 3
        assert completion.finish_reason == "stop"
        assert 0 <= json.loads(completion.text)["n"] <= 9
        assert raw(thinking, completion) == f"{completion.reasoning}</think>\n\n{completion.text}"


def test_unless_asked_otherwise_a_thinking_edition_has_all_the_room(
    model: LocalModel, thinking: LocalModel
) -> None:
    ending = tuple((token_id("qwen3_vl", end), 100.0) for end in ("</think>", "<|im_end|>"))
    asked = request(1, sampling=Sampling(logit_bias=ending))
    (told,) = model.generate([asked])
    assert told.provenance.sampling.max_new_tokens == 512
    (told,) = thinking.generate([asked])
    assert told.provenance.sampling.max_new_tokens == 2048 - told.usage.prompt_tokens
    assert asked.tokens_allowed(reasoning_room=200_000) == 40_960
    (told,) = thinking.generate([replace(asked, new_tokens=30)])  # what a task asks for
    assert told.provenance.sampling.max_new_tokens == 2048 - told.usage.prompt_tokens
    (told,) = model.generate([replace(asked, new_tokens=30)])
    assert told.provenance.sampling.max_new_tokens == 30
    room = 3 * BLOCK_TOKENS
    thinking._engine, whole = (
        Engine(
            thinking._loaded.model,
            token_bytes=thinking._token_bytes,
            vocab_size=thinking._loaded.tokenizer.vocab_size,
            cache_tokens=room,
        ),
        thinking._engine,
    )
    try:
        (told,) = thinking.generate([asked])
    finally:
        thinking._engine = whole
    assert told.provenance.sampling.max_new_tokens == room - told.usage.prompt_tokens


def test_a_stream_shows_reasoning_apart(thinking: LocalModel) -> None:
    stopped = reasoned(bias=-100.0, thinking_tokens=9)
    for ask in (*reasoned(), *stopped, replace(stopped[0], response_format=DIGIT)):
        deltas = list(thinking.stream(ask))
        (whole,) = thinking.generate([ask])
        assert "".join(d.text for d in deltas) == whole.text
        assert "".join(d.reasoning for d in deltas) == whole.reasoning
        assert len([d for d in deltas if d.reasoning]) > 2 or len(whole.reasoning) < 3


def test_what_is_typed_opens_no_reasoning(model: LocalModel) -> None:
    for completion in model.generate(reasoned("<think>", response_format=DIGIT)):
        assert 0 <= json.loads(completion.text)["n"] <= 9
        assert completion.reasoning == ""


def test_the_marks_of_what_was_found_stay_in_the_text(model: LocalModel) -> None:
    """They are special tokens, which an answer otherwise does not show."""
    start, end = (token_id("qwen3_vl", f"<|box_{side}|>") for side in ("start", "end"))
    limits = Sampling(max_new_tokens=6, allowed_token_ids=(start, end), temperature=1.0, seed=2)
    (completion,) = model.generate([request(1, sampling=limits)])
    names = {start: "<|box_start|>", end: "<|box_end|>"}
    assert completion.text == "".join(names[i] for i in completion.token_ids)
    assert set(completion.token_ids) == {start, end}


def test_the_seeds_of_choices_are_fixed() -> None:
    """As `printf 3/1 | sha256sum` has it: the first 16 digits, without their last bit."""
    assert [r.sampling.seed for r in choices(sampled(3), 3)] == [
        3,
        92655289252268599,
        3932738740628772775,
    ]
    drawn, again = (choices(replace(request(1), sampling=Sampling()), 2) for _ in range(2))
    assert drawn[0].sampling.seed is not None
    assert drawn != again
    with pytest.raises(InvalidParamError, match="n is 0"):
        choices(sampled(3), 0)


def test_choices_compute_their_prompt_once(model: LocalModel) -> None:
    question = replace(sampled(3), tenant="one that asks nothing else")
    first, *others = model.generate(choices(question, 4))
    assert first.usage.cached_tokens == 0
    for other in others:
        assert other.usage.image_tokens > 0
        left = other.usage.prompt_tokens - other.usage.cached_tokens
        assert 0 < left <= BLOCK_TOKENS


REACHING: list[tuple[dict[str, object], Callable[[tuple[int, ...]], bool]]] = [
    ({"logit_bias": ((65, 100.0),)}, lambda ids: set(ids) == {65}),
    ({"allowed_token_ids": (65, 66)}, lambda ids: set(ids) <= {65, 66}),
    ({"allowed_token_ids": (66,), "stop_token_ids": (66,)}, lambda ids: ids == (66,)),
    ({"allowed_token_ids": (65, 66, 67), "frequency_penalty": 2.0}, lambda ids: len(set(ids)) == 3),
    ({"max_new_tokens": 7}, lambda ids: len(ids) == 7),
]


@pytest.mark.parametrize(("fields", "is_so"), REACHING, ids=[", ".join(f) for f, _ in REACHING])
def test_what_is_asked_of_the_sampling_reaches_it(
    model: LocalModel, fields: dict[str, Any], is_so: Callable[[tuple[int, ...]], bool]
) -> None:
    sampling = Sampling(max_new_tokens=40, temperature=1.0, seed=5, stop_loops=False)
    asked = request(1, sampling=replace(sampling, **fields))
    assert is_so(model.generate([asked])[0].token_ids)


def test_a_lower_priority_goes_first(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model._engine, "_max_running", 1)
    asked = [replace(sampled(seed), priority=2 - seed) for seed in range(3)]
    last, middle, first = (c.timings.total_s for c in model.generate(asked))
    assert first < middle < last


def test_logarithms_of_probabilities_are_told_when_asked(model: LocalModel) -> None:
    asked = replace(request(1), sampling=replace(SHORT, logprobs=3))
    told = model.generate([asked])[0]
    assert [len(token.best) for token in told.logprobs] == [3] * len(told.token_ids)
    assert all(said.token == said.best[0][0] for said in told.logprobs)
    assert all(said.logprob == pytest.approx(said.best[0][1]) for said in told.logprobs)
    assert b"".join(said.token for said in told.logprobs).decode(errors="replace") == told.text
    assert model.generate([request(1)])[0].logprobs == ()


def test_leaving_early_frees_what_was_left(model: LocalModel) -> None:
    results = model.results(request(seed) for seed in range(8))
    next(results)
    results.close()
    stream = model.stream(request(1))
    next(stream)
    stream.close()
    assert not model._answers
    assert model._engine.idle


def test_many_that_leave_early_free_all_and_change_no_word(model: LocalModel) -> None:
    """Streams and lists of results closed at random moments, beside somebody who stays."""
    stayed = [sampled(seed) for seed in range(4)]
    expected = texts(model.generate(stayed))
    threads = threading.active_count()
    rng, seen = random.Random(1), []
    for staying in model.results(stayed):
        assert isinstance(staying, Completion)
        seen.append(staying)
        for number in range(10):
            if rng.random() < 0.7:
                leaving = model.stream(sampled(number))
                read = rng.randrange(1, 6)
            else:
                leaving = model.results(request(n) for n in range(rng.randrange(2, 12)))
                read = rng.randrange(2)
            for _ in itertools.islice(leaving, read):
                pass
            leaving.close()
    assert texts(seen) == expected
    assert not model._answers
    assert model._engine.idle
    assert model._engine._pool.free == model._engine._pool.total
    features = model._engine._features
    assert features.used_bytes <= features.budget_bytes
    until_s = time.monotonic() + 10  # who reads a picture finishes that one
    while threading.active_count() > threads and time.monotonic() < until_s:
        time.sleep(0.01)
    assert threading.active_count() <= threads


def test_values_out_of_range_are_refused_before_any_work(model: LocalModel) -> None:
    for bad in (
        Sampling(temperature=5),
        Sampling(temperature=float("nan")),
        Sampling(max_new_tokens=0),
        Sampling(max_new_tokens=40_961),
        Sampling(top_p=0.0),
        Sampling(top_k=0),
        Sampling(seed=-1),
        Sampling(stop=("",)),
    ):
        with pytest.raises(InvalidParamError):
            model.generate([request(1, sampling=bad)])


def test_a_checkpoints_own_defaults_may_lie_outside_the_ranges() -> None:
    """Qwen2-VL publishes temperature 0.01 and top_p 0.001."""
    sampling = resolved(Sampling(), GREEDY_BY_TOP_K)
    assert (sampling.temperature, sampling.top_k) == (0.01, 1)


def test_an_asked_temperature_is_not_undone_by_a_default_top_k_of_one() -> None:
    sampling = resolved(Sampling(temperature=1.0, seed=1), GREEDY_BY_TOP_K)
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (1.0, None, 1.0)
    assert resolved(Sampling(temperature=1.0, top_k=5), GREEDY_BY_TOP_K).top_k == 5


def test_greedy_by_default_where_the_checkpoint_does_not_sample() -> None:
    defaults = replace(GREEDY_BY_TOP_K, do_sample=False)
    sampling = resolved(Sampling(), defaults)
    assert (sampling.temperature, sampling.seed) == (0.0, None)


@pytest.mark.parametrize(
    "name", ["hf:Qwen/Qwen2-VL-2B-Instruct", "openai:m@http://127.0.0.1:1/v1", "no-such-folder"]
)
def test_a_name_that_leads_nowhere_is_one_plain_error(name: str) -> None:
    with pytest.raises(QvlError) as caught:
        LocalModel(name, offline=True)
    assert isinstance(caught.value, UnknownModelError)
    assert caught.value.hint


def test_weights_that_are_no_numbers_are_an_error_of_each_answer(tmp_path: Path) -> None:
    """L021: and not text without sense or end."""
    save_tiny(tmp_path, "qwen2_vl")
    file = tmp_path / "model.safetensors"
    weights = {name: torch.full_like(values, math.nan) for name, values in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    model = LocalModel(str(tmp_path), dtype="fp32")
    for _ in range(2):
        with pytest.raises(EngineError, match="finite"):
            model.generate([request(1)])
    model.close()


def test_a_closed_model_holds_no_weights(tmp_path: Path) -> None:
    save_tiny(tmp_path, "qwen2_vl")
    model = LocalModel(str(tmp_path), dtype="fp32")
    model.generate([request(1)])
    model.close()
    assert not hasattr(model, "_loaded")


def test_pictures_are_held_as_far_as_there_is_room(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [request(seed) for seed in range(6)]
    alone = texts(model.generate(requests))
    held_bytes = model._prepare(requests[0]).held_bytes
    assert held_bytes == 4 * 3 * 2 * 64 * 96
    film = Video(source=(picture(1), picture(2)), name="film")
    shown = replace(requests[0], messages=(Message.user(film, "hello"),))
    assert model._prepare(shown).held_bytes == 3 * 2 * 64 * 96

    def ahead(room_bytes: int) -> int:
        """By how many requests reading is ahead of the answers, at most."""
        taken = 0

        def counted() -> Iterator[Request]:
            nonlocal taken
            for one in requests:
                taken += 1
                yield one

        monkeypatch.setattr(local, "HELD_BYTES", room_bytes)
        monkeypatch.setattr(local, "UNREAD_BYTES", held_bytes)
        most, results = 0, []
        for result in model.results(counted()):
            most = max(most, taken - len(results))
            results.append(result)
        assert texts(results) == alone
        return most

    assert ahead(0) == 1  # one alone is always read
    assert ahead(2 * held_bytes) == 2
    assert ahead(100 * held_bytes) == 6
