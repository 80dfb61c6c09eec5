"""The same words alone and in any company: batches, shuffled, in chunks, preempted, from a warm cache.

Everything that changes how a request is computed is turned on at once, in every precision; the few
requests here are a thousand in `make test-slow`.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from qvl.engine.engine import Engine
from qvl.engine.request import RequestState
from qvl.types import Completion, DType, Image, Message, Request, Sampling
from qvl.vlm import local
from qvl.vlm.local import LocalModel

SIZES = tuple((96 + 16 * i, 224 - 12 * i) for i in range(10))
QUESTIONS = (
    "What is in the picture?",
    "Сколько предметов на картинке? Ответь одним числом.",
    "图中有什么？请简单描述。",
    "Find all objects. Answer in JSON with a box and a label for each of them.",
)
SYSTEM = "You are a careful cataloguer of small pictures. Say what is there, and nothing else. " * 2


def picture(size: tuple[int, int], seed: int) -> Image:
    """A few blots of colour: no two alike, and small."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 16, size[0] // 16, 3))
    file = io.BytesIO()
    PILImage.fromarray(pixels.astype(np.uint8)).resize(size).save(file, "PNG")
    return Image(file.getvalue(), f"blots {seed}")


def mixed(count: int, seed: int, end_ids: Sequence[int]) -> list[Request]:
    """Half of them may end their answer when they like, the others go on to their last token."""
    rng = random.Random(seed)
    requests = []
    for number in range(count):
        parts: list[Image | str] = [rng.choice(QUESTIONS)]
        if rng.random() < 0.8:  # some pictures are asked about again
            parts.insert(0, picture(rng.choice(SIZES), rng.randrange(max(2, count // 2))))
        messages = (Message.user(*parts),)
        if rng.random() < 0.4:
            messages = (Message("system", Message.user(SYSTEM).content), *messages)
        temperature = rng.choice((0.0, 0.7, 1.2))
        sampling = Sampling(
            max_new_tokens=rng.randint(3, 16),
            temperature=temperature,
            top_p=rng.choice((None, 0.9)),
            repetition_penalty=rng.choice((None, 1.1)),
            seed=number,
            logit_bias=rng.choice(((), tuple((end, -100.0) for end in end_ids))),
        )
        requests.append(
            Request(messages=messages, sampling=sampling, priority=rng.randrange(3), id=str(number))
        )
    return requests


def engine_of(model: LocalModel, **options: Any) -> Engine:
    loaded = model._loaded
    return Engine(
        loaded.model,
        token_bytes=loaded.tokenizer.token_bytes,
        vocab_size=loaded.tokenizer.vocab_size,
        **options,
    )


def tokens(completions: Sequence[Completion]) -> dict[str, tuple[int, ...]]:
    return {completion.id: completion.token_ids for completion in completions}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("count", [16, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_request_has_the_same_words_in_any_company(
    count: int,
    dtype: DType,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    model = LocalModel(dtype=dtype)
    requests = mixed(count, count, model.end_ids)
    alone: dict[str, tuple[int, ...]] = {}
    for request in requests:  # an engine of its own: nothing cached, nothing guessed, no neighbour
        model._engine = engine_of(model, draft_tokens=0)
        alone |= tokens(model.generate([request]))
    assert len(set(alone.values())) > count // 2
    hits = lost = compared = 0
    restart = RequestState.restart

    def counted(state: RequestState) -> list[int]:
        nonlocal lost
        lost += 1
        return restart(state)

    monkeypatch.setattr(RequestState, "restart", counted)
    for at_once, options in (
        (2, {}),
        (8, {"token_budget": 37}),
        (32, {"token_budget": 90, "cache_tokens": 512, "feature_bytes": 1 << 16}),
    ):
        monkeypatch.setattr(local, "IN_FLIGHT", at_once)
        monkeypatch.setattr(local, "READ_AHEAD", at_once)
        model._engine = engine_of(model, max_running=at_once, **options)
        shuffled = random.Random(at_once).sample(requests, count)
        completions = model.generate(shuffled)
        hits += sum(c.usage.cached_tokens > 0 for c in completions)
        found = tokens(completions)
        assert [i for i in alone if found[i] != alone[i]] == []
        compared += sum(map(len, found.values()))
    assert hits > count // 4
    assert lost > 0  # some had to give up their blocks
    measured = {"tokens compared": compared, "begun from the cache": hits, "preempted": lost}
    for name, value in measured.items():
        record_property(name, value)
    print(f"\n{dtype}, {count} requests: {measured}")  # noqa: T201
