"""The engine on tiny random models: equal tokens whatever the order, the split and the company."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.engine.blocks import BLOCK_TOKENS
from qvl.engine.engine import Chunk, Engine, pack
from qvl.engine.graphs import StaticDecode
from qvl.engine.lookup import Lookup
from qvl.engine.request import (
    EngineImage,
    EngineRequest,
    Event,
    Finished,
    Reasoning,
    RequestState,
    Token,
)
from qvl.engine.sampler import sample
from qvl.errors import DeadlineError, EngineError, OutOfMemoryError, PromptTooLongError
from qvl.models.attention import PackedCausal
from qvl.models.batch import ForwardBatch
from qvl.models.qwen_vl import QwenVL
from qvl.types import BACKGROUND, ResponseFormat
from tiny_engine import (
    CONTEXT,
    END,
    GENERATIONS,
    IMAGE,
    MIX,
    NAMED,
    ROWS,
    START,
    TOKENIZER_SIZE,
    VIDEO,
    WITH_PICTURE,
    asking,
    drain,
    end_of,
    error_of,
    ids_of,
    letters,
    new_engine,
    picture,
    prompt,
    run,
    text_of,
    tiny_model,
    token_bytes,
    unfinished_text,
)


@cache
def alone(generation: str, index: int) -> list[int]:
    return ids_of(run(tiny_model(generation), [MIX[index]]), MIX[index].id)


@torch.inference_mode()
def uncached(model: QwenVL, request: EngineRequest) -> tuple[list[int], torch.Tensor]:
    """Tokens and their logits when the whole sequence is computed anew for every token."""
    rows_sc = torch.cat([torch.as_tensor(image.rows) for image in request.images])
    vision = model.encode_images(rows_sc, [image.grid for image in request.images])
    ids = [int(i) for i in request.ids]
    prompt_ids, positions = ids.copy(), torch.as_tensor(request.positions)
    places = torch.tensor([i for i, token_id in enumerate(ids) if token_id == IMAGE])
    banned_v = torch.tensor([i >= TOKENIZER_SIZE or IMAGE <= i <= END for i in range(ROWS)])
    logits = []
    for k in range(request.params.max_new_tokens):
        attend, wanted = PackedCausal([0, len(ids)]), torch.tensor([len(ids) - 1])
        batch = ForwardBatch(torch.tensor(ids), positions, attend, wanted, vision, places)
        logits.append(model(batch)[0])
        token_id = sample(
            logits[-1],
            request.params,
            position=len(ids),
            prompt_ids=prompt_ids,
            output_ids=ids[len(prompt_ids) :],
            banned_v=banned_v,
        ).token_id
        ids.append(token_id)
        positions = torch.cat([positions, torch.full((3, 1), request.next_position + k)], dim=1)
    return ids[len(prompt_ids) :], torch.stack(logits)


def with_logits(model: QwenVL, request: EngineRequest, **options) -> tuple[list[int], torch.Tensor]:
    options["draft_tokens"] = 0  # one row of logits for each token
    rows: list[torch.Tensor] = []
    hook = model.register_forward_hook(lambda _model, _args, out: rows.append(out.clone()))
    try:
        events = run(model, [request], **options)
    finally:
        hook.remove()
    return ids_of(events, request.id), torch.cat(rows)


# --- one request: the cache and the split of the prompt change nothing


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("index", [0, 2, 3])
def test_cached_equals_uncached(generation, index):
    model = tiny_model(generation)
    ids, logits = with_logits(model, MIX[index])
    expected_ids, expected_logits = uncached(model, MIX[index])
    assert ids == expected_ids
    torch.testing.assert_close(logits, expected_logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_token_budget_gives_the_same_tokens(generation):
    model = tiny_model(generation)
    whole_ids, whole_logits = with_logits(model, WITH_PICTURE)
    for budget in range(1, len(WITH_PICTURE.ids) + 1):
        ids, logits = with_logits(model, WITH_PICTURE, token_budget=budget)
        assert ids == whole_ids, budget
        torch.testing.assert_close(logits, whole_logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("generation", GENERATIONS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(budgets=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_any_split_of_a_prompt_with_two_pictures_gives_the_same_tokens(generation, budgets):
    engine = new_engine(tiny_model(generation))
    engine.add(MIX[3])
    events: list[Event] = []
    while not engine.idle:
        engine._token_budget = budgets[0]
        budgets = budgets[1:] + budgets[:1]
        events += engine.step()
    assert ids_of(events, "two") == alone(generation, 3)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_picture_is_seen(generation):
    """Otherwise the equalities above would hold for an engine that drops the features."""
    other = replace(WITH_PICTURE, images=(picture(3, 4, 6, seed=99),))
    model = tiny_model(generation)
    _, logits = with_logits(model, WITH_PICTURE)
    _, other_logits = with_logits(model, other)
    assert not torch.allclose(logits[0], other_logits[0], atol=1e-2)


def test_no_token_of_pictures_or_beyond_the_tokenizer_is_generated():
    model = tiny_model("qwen3_vl")
    requests = [
        prompt(f"r{seed}", [1, 2], temperature=2.0, seed=seed, max_new_tokens=20)
        for seed in range(20)
    ]
    events = run(model, requests)
    generated = {e.token_id for e in events if isinstance(e, Token)}
    assert len(generated) > 60
    assert max(generated) < TOKENIZER_SIZE
    assert not generated & {IMAGE, VIDEO, START, END}


# --- videos: each temporal patch is a picture, made into rows when it is reached


def film(request_id: str, patches: int, made: list[int]) -> tuple[EngineRequest, EngineRequest]:
    """The same video as temporal patches side by side, whose making is noted, and as one picture."""
    whole = prompt(request_id, [1, 2, START, *[(4, 4)] * patches, END, 3, 4])
    ids = [VIDEO if token_id == IMAGE else int(token_id) for token_id in whole.ids]
    parts = []
    for number, part in enumerate(whole.images):

        def rows(number: int = number, part: EngineImage = part) -> np.ndarray:
            made.append(number)
            return np.asarray(part.rows)

        parts.append(replace(part, rows=rows, content=f"{request_id} {number}"))
    first = whole.images[0]
    together = replace(
        first,
        rows=torch.cat([torch.as_tensor(i.rows) for i in whole.images]),
        grid=(patches, 4, 4),
        tokens=4 * patches,
    )
    whole = replace(whole, ids=ids)
    return replace(whole, images=tuple(parts)), replace(whole, images=(together,))


@pytest.mark.parametrize("generation", GENERATIONS)
def test_temporal_patches_alone_are_the_video(generation):
    made: list[int] = []
    apart, together = film("film", 5, made)
    wanted, wanted_logits = with_logits(tiny_model(generation), together)
    for budget in (2048, 7):
        got, logits = with_logits(tiny_model(generation), apart, token_budget=budget)
        assert got == wanted
        assert torch.allclose(logits[-len(wanted) :], wanted_logits[-len(wanted) :], atol=1e-5)
    assert made == [0, 1, 2, 3, 4] * 2


def test_rows_of_a_video_are_made_when_their_tokens_are_reached_and_once():
    made: list[int] = []
    apart, _ = film("film", 12, made)
    engine = new_engine(tiny_model("qwen3_vl"), token_budget=8)
    engine.add(apart)
    seen = []
    while not engine.idle:
        engine.step()
        seen.append(len(made))
    assert seen[:4] == [2, 4, 6, 8]
    assert made == list(range(12))
    engine.add(replace(apart, id="again"))
    events = drain(engine)
    assert end_of(events, "again").cached_tokens >= 48
    assert made == list(range(12))


# --- many requests: company and order change nothing


@pytest.mark.parametrize("generation", GENERATIONS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    order=st.permutations(range(len(MIX))),
    arrivals=st.lists(st.integers(0, 5), min_size=len(MIX), max_size=len(MIX)),
    budget=st.integers(1, 40),
    max_running=st.integers(1, len(MIX)),
)
def test_a_request_in_any_batch_equals_it_alone(generation, order, arrivals, budget, max_running):
    engine = new_engine(tiny_model(generation), token_budget=budget, max_running=max_running)
    events: list[Event] = []
    for index, wait in zip(order, arrivals, strict=True):
        for _ in range(wait):
            events += engine.step()
        engine.add(MIX[index])
    events += drain(engine)
    for index, request in enumerate(MIX):
        assert ids_of(events, request.id) == alone(generation, index)
        assert end_of(events, request.id).reason == "length"


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    model = tiny_model("qwen2_vl")
    requests = [
        prompt(name, [1, 2, 3], temperature=1.5, seed=seed, max_new_tokens=12)
        for name, seed in (("a", 4), ("b", 4), ("c", 5))
    ]
    events = run(model, requests)
    a, b, c = (ids_of(events, name) for name in "abc")
    assert a == b == ids_of(run(model, requests[:1]), "a")
    assert a != c


def test_a_step_stays_within_its_token_budget_and_generation_goes_first():
    model = tiny_model("qwen2_vl")
    steps: list[list[int]] = []
    hook = model.register_forward_pre_hook(
        lambda _model, args: steps.append([s.stop - s.start for s in args[0].attend.spans])
    )
    try:
        engine = new_engine(model, token_budget=10)
        engine.add(prompt("first", [1, 2, 3]))
        engine.step()
        engine.add(prompt("second", list(range(25)), max_new_tokens=2))
        drain(engine)
    finally:
        hook.remove()
    assert steps == [[3], [1, 9], [1, 9], [1, 7], [1, 1], [1]]


def test_only_the_oldest_requests_run():
    engine = new_engine(tiny_model("qwen2_vl"), max_running=2)
    for name in "abc":
        engine.add(prompt(name, [1, 2], max_new_tokens=1 if name == "a" else 3))
    assert {e.request_id for e in engine.step()} == {"a", "b"}
    assert {e.request_id for e in engine.step()} == {"b", "c"}


def test_pictures_of_a_step_are_encoded_in_one_call_and_once(monkeypatch):
    model = tiny_model("qwen3_vl")
    calls: list[int] = []
    encode = model.encode_images
    monkeypatch.setattr(
        model, "encode_images", lambda rows, grids: calls.append(len(grids)) or encode(rows, grids)
    )
    run(model, MIX)
    assert calls == [4]
    calls.clear()
    run(model, MIX, token_budget=3)
    assert calls == [1, 1, 1, 1]


# --- how requests end


def test_a_stop_id_ends_a_request_without_text():
    model = tiny_model("qwen2_vl")
    ids = alone("qwen2_vl", 1)
    stop_id = ids[3]
    expected = ids[: ids.index(stop_id) + 1]
    request = prompt("text", [7, 8, 9], max_new_tokens=9, stop_ids=frozenset({stop_id}))
    events = run(model, [request])
    assert ids_of(events, "text") == expected
    assert end_of(events, "text").reason == "stop"
    assert text_of(events) == b"".join(map(token_bytes, expected[:-1])).decode(errors="replace")


def test_a_stop_string_ends_a_request_before_it():
    model = tiny_model("qwen2_vl")
    choices = {"temperature": 1.2, "max_new_tokens": 60, "seed": 3}
    whole = text_of(run(model, [prompt("a", [1], **choices)]))
    stop = whole[10:13]
    events = run(model, [prompt("a", [1], stop=(stop,), **choices)])
    assert text_of(events) == whole[: whole.index(stop)]
    assert end_of(events, "a").reason == "stop"


def test_a_loop_ends_a_request_when_asked():
    model = tiny_model("qwen2_vl")
    bias = {"logit_bias": ((5, 100.0),), "max_new_tokens": 100}
    events = run(model, [prompt("a", [1], stop_loops=True, **bias), prompt("b", [1], **bias)])
    assert (len(ids_of(events, "a")), end_of(events, "a").reason) == (64, "loop")
    assert (len(ids_of(events, "b")), end_of(events, "b").reason) == (100, "length")


def test_pieces_of_text_joined_are_the_text_of_the_tokens():
    model = tiny_model("qwen2_vl")
    for seed in range(10):
        request = prompt("a", [1], temperature=1.5, max_new_tokens=40, seed=seed)
        events = run(model, [request])
        data = b"".join(token_bytes(i) for i in ids_of(events, "a"))
        assert text_of(events) == data.decode("utf-8", errors="replace")


def test_a_request_ends_where_the_context_does():
    request = prompt("a", [1] * (CONTEXT - 3), max_new_tokens=50)
    events = run(tiny_model("qwen2_vl"), [request])
    assert len(ids_of(events, "a")) == 3
    assert end_of(events, "a").reason == "length"


def test_the_probability_is_the_models():
    request = prompt("a", [1, START, (2, 2), END], max_new_tokens=1)
    (token, _) = run(tiny_model("qwen2_vl"), [request])
    _, logits = uncached(tiny_model("qwen2_vl"), request)
    assert isinstance(token, Token)
    assert token.probability == pytest.approx(float(logits[0].softmax(-1)[token.token_id]))


@pytest.mark.parametrize("steps", [0, 1, 4, 8])
def test_an_aborted_request_frees_what_it_holds_and_leaves_the_others_alone(steps):
    """Waiting, within the prompt before and after its picture began, and while generating."""
    engine = new_engine(tiny_model("qwen3_vl"), token_budget=4)
    engine.add(WITH_PICTURE)
    engine.add(MIX[1])
    events = [event for _ in range(steps) for event in engine.step()]
    held = len(engine._requests["picture"].blocks)
    assert (held > 0) == (steps > 0)
    free = engine._pool.free
    rest = unfinished_text(events, "picture")
    assert engine.abort("picture") == Finished("picture", text=rest, reason="cancelled")
    assert engine._pool.free == free + held
    assert engine.abort("picture") is None
    events += drain(engine)
    assert engine._pool.free == engine._pool.total
    assert ids_of(events, "text") == alone("qwen3_vl", 1)


def test_features_are_let_go_when_their_tokens_are_computed():
    engine = new_engine(tiny_model("qwen3_vl"), token_budget=5, feature_bytes=0)
    engine.add(WITH_PICTURE)
    state = engine._requests["picture"]
    engine.step()
    assert len(state.features) == 1
    while state.num_computed < state.images[0].stop:
        engine.step()
    assert state.features == {}


# --- answers of a given form


def test_a_grammar_decides_what_may_be_said_and_skips_what_must():
    model = tiny_model("qwen3_vl")
    form = ResponseFormat("regex", "abc(d|e)fg(h|i)j")
    given = [
        replace(
            prompt(f"r{n}", [1, 2, n], max_new_tokens=20, temperature=2.0, seed=n),
            grammar=letters().compile(form),
        )
        for n in range(6)
    ]
    steps: list[int] = []
    hook = model.register_forward_pre_hook(lambda _model, _args: steps.append(1))
    try:
        events = run(model, [*given, MIX[1]])
    finally:
        hook.remove()
    said = {"".join("abcdefghij"[i] for i in ids_of(events, r.id)) for r in given}
    assert said <= {"abcdfghj", "abcdfgij", "abcefghj", "abcefgij"}
    assert len(said) > 1
    assert all(end_of(events, r.id).reason == "stop" for r in given)
    assert ids_of(events, "text") == alone("qwen3_vl", 1)
    # of eight letters two are a choice; what comes first is chosen too, the rest follows
    assert len(steps) <= len(alone("qwen3_vl", 1))
    asked = [e.probability for e in events if isinstance(e, Token) and e.request_id == "r0"]
    assert [p is None for p in asked] == [False, True, True, False, True, True, False, True]


# --- reasoning before the answer

THINK, SPACE = 7, 12  # what ends the reasoning, and what the template says before the answer


def reasoning(limit: int, **choices) -> EngineRequest:
    """One that says 8 for ever, rather than the end (89) and far rather than what ends the reasoning."""
    bias = ((8, 50.0), (89, 30.0))
    told = {"max_new_tokens": 20, "logit_bias": bias, "stop_ids": frozenset([89])} | choices
    request = prompt("a", [1, 2], **told)
    return replace(request, reasoning=Reasoning((THINK, SPACE), limit))


def test_reasoning_ends_by_itself_and_the_form_begins_after_it():
    eager = ((89, 90.0), (THINK, 50.0))  # an end within the reasoning would leave no answer
    request = replace(
        reasoning(10, logit_bias=eager), grammar=letters().compile(ResponseFormat("regex", "abc"))
    )
    events = run(tiny_model("qwen3_vl"), [request])
    assert ids_of(events, "a") == [THINK, SPACE, 0, 1, 2]
    assert [e.is_reasoning for e in events] == [True, True, False, False, False, False]
    assert end_of(events, "a").reason == "stop"


@pytest.mark.parametrize("limit", [1, 4])
def test_reasoning_of_too_many_tokens_is_closed_and_answered(limit: int):
    request = replace(reasoning(limit), grammar=letters().compile(ResponseFormat("regex", "abc")))
    events = run(tiny_model("qwen3_vl"), [request])
    assert ids_of(events, "a") == [8] * limit + [THINK, SPACE, 0, 1, 2]
    free = run(tiny_model("qwen3_vl"), [reasoning(limit)])
    assert ids_of(free, "a") == [8] * limit + [THINK, SPACE] + [8] * (18 - limit)
    assert end_of(free, "a").reason == "length"


def test_reasoning_in_a_loop_is_closed_and_answered():
    events = run(tiny_model("qwen3_vl"), [reasoning(100, max_new_tokens=120, stop_loops=True)])
    assert ids_of(events, "a") == [8] * 64 + [THINK, SPACE] + [8] * 54
    assert end_of(events, "a").reason == "length"


@pytest.mark.parametrize("room", [1, 5, 6, 7])
def test_tokens_that_end_before_the_answer_are_told(room: int):
    events = run(tiny_model("qwen3_vl"), [reasoning(5, max_new_tokens=room)])
    assert ids_of(events, "a") == ([8] * 5 + [THINK, SPACE])[:room]
    assert end_of(events, "a").reason == "reasoning"


def test_no_word_of_the_reasoning_is_the_answers():
    """Stop strings are the answer's, and characters that stay unfinished are told where they belong."""
    cut = token_bytes(8)
    request = reasoning(3, stop=(cut.decode(errors="replace"),))
    events = run(tiny_model("qwen3_vl"), [request])
    thought = text_of([e for e in events if e.is_reasoning])
    answer = text_of([e for e in events if not e.is_reasoning])
    assert thought == (cut * 3).decode(errors="replace")
    assert answer == ""
    assert end_of(events, "a").reason == "stop"
    # half a character is certain with the next token
    assert ids_of(events, "a") == [8] * 3 + [THINK, SPACE] + [8] * 2


def test_reasoning_says_the_same_with_and_without_guesses_and_beside_others():
    model = tiny_model("qwen3_vl")
    request = replace(reasoning(9, logit_bias=(), temperature=1.0), id="z")
    alone = ids_of(run(model, [request], draft_tokens=0), "z")
    assert ids_of(run(model, [request], draft_tokens=3), "z") == alone
    assert ids_of(run(model, [request, *MIX], token_budget=8), "z") == alone


# --- guesses at what comes next


def passes(model: QwenVL, requests: Sequence[EngineRequest], **options) -> tuple[list[Event], int]:
    counted: list[int] = []
    hook = model.register_forward_pre_hook(lambda _model, _args: counted.append(1))
    try:
        return run(model, requests, **options), len(counted)
    finally:
        hook.remove()


def parrot(request_id: str, words: Sequence[int], **choices) -> EngineRequest:
    """A prompt, and a grammar by which the answer can only be its letters again or one other."""
    text = "".join("abcdefghij"[i] for i in words)
    form = ResponseFormat("regex", "".join(f"({letter}|j)" for letter in text))
    bias = tuple((i, 2.0) for i in range(9))
    request = prompt(request_id, [*words, 40, 41], logit_bias=bias, **choices)
    return replace(request, grammar=letters().compile(form))


WORDS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 2, 1, 0, 4, 7, 3, 1, 6, 2)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    draft=st.integers(1, 6),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    seed=st.integers(0, 99),
    budget=st.integers(1, 30),
    room=st.integers(3, 8),
)
def test_drafts_change_no_token(draft, temperature, seed, budget, room):
    model = tiny_model("qwen3_vl")
    choices = {"temperature": temperature, "seed": seed, "max_new_tokens": 18}
    asked = [
        parrot("parrot", WORDS, **choices),
        prompt("free", [5, 6, 7, 5, 6, 7, 5, 6], repetition_penalty=1.1, **choices),
        prompt("stopped", [7, 8, 9, 7, 8], **choices),
    ]
    stop = text_of(run(model, [asked[2]], draft_tokens=0))[3:5]
    if stop:
        asked[2] = replace(asked[2], params=replace(asked[2].params, stop=(stop,)))
    said = {}
    for tokens in (0, draft):
        asked[0] = parrot("parrot", WORDS, **choices)  # a grammar is of one run
        engine = new_engine(model, draft_tokens=tokens, token_budget=budget, cache_tokens=16 * room)
        for request in asked:
            engine.add(request)
        events = drain(engine)
        said[tokens] = [(ids_of(events, r.id), end_of(events, r.id)) for r in asked]
        assert engine._pool.free == room
    assert said[draft] == said[0]


def test_an_answer_that_repeats_the_prompt_takes_fewer_passes():
    model = tiny_model("qwen3_vl")
    choices = {"logit_bias": tuple((i, 30.0) for i in (1, 2, 3)), "max_new_tokens": 40}
    request = prompt("again", [1, 2, 3] * 6, **choices)
    plain, slow = passes(model, [request], draft_tokens=0)
    drafted, fast = passes(model, [request], draft_tokens=3)
    assert ids_of(drafted, "again") == ids_of(plain, "again")
    assert slow == 40
    assert fast < 25


def test_drafts_that_are_never_right_are_given_up():
    tokens = [1, 2, 3] * 5
    lookup = Lookup(tokens)
    assert lookup.draft(3) == (1, 2, 3)
    tried = 0
    for _ in range(40):
        tokens += [50 + len(tokens), 1, 2]  # ends as before, and goes on otherwise
        if draft := lookup.draft(3):
            tried += 1
            lookup.judge(len(draft), 0)
    assert 1 <= tried < 15


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 5))
def test_a_draft_is_what_followed_the_same_end(tokens, most):
    draft = Lookup(tokens).draft(most)
    assert len(draft) <= most
    if draft:
        ends = [tuple(tokens[i - 2 : i]) for i in range(2, len(tokens))]
        assert tuple(tokens[-2:]) in ends
        assert any(
            tuple(tokens[i : i + len(draft)]) == draft and tokens[i - 2 : i] == tokens[-2:]
            for i in range(2, len(tokens))
        )


# --- what was computed before is found again


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_second_question_about_a_picture_begins_where_the_first_did(generation, monkeypatch):
    model = tiny_model(generation)
    calls: list[int] = []
    encode = model.encode_images
    monkeypatch.setattr(
        model, "encode_images", lambda rows, grids: calls.append(len(grids)) or encode(rows, grids)
    )
    first = asking("first", [1, 2, 3], NAMED[0])
    second = asking("second", [4, 5] * 8, NAMED[0], temperature=0.9)
    other = asking("other", [4, 5] * 8, NAMED[1], temperature=0.9)
    cold = [ids_of(run(model, [r]), r.id) for r in (first, second, other)]
    calls.clear()
    engine = new_engine(model)
    warm, cached = [], []
    for request in (first, second, second, other):
        engine.add(request)
        events = drain(engine)
        warm.append(ids_of(events, request.id))
        cached.append(end_of(events, request.id).cached_tokens)
    assert warm == [cold[0], cold[1], cold[1], cold[2]]
    # 38 tokens are common; of a question asked again all full blocks but the last token's
    assert cached == [0, 32, 48, 16]
    assert calls == [1, 1]


def test_requests_of_one_step_share_what_the_first_computes():
    model = tiny_model("qwen3_vl")
    requests = [asking(name, [7 + i, 8], NAMED[0]) for i, name in enumerate("abc")]
    events = run(model, requests)
    assert [end_of(events, name).cached_tokens for name in "abc"] == [0, 32, 32]
    for request in requests:
        assert ids_of(events, request.id) == ids_of(run(model, [request]), request.id)


def test_nothing_is_shared_across_salts_or_for_pictures_without_a_name():
    model = tiny_model("qwen3_vl")
    request = asking("a", [1, 2, 3], NAMED[0])
    unnamed = replace(request, images=(replace(request.images[0], content=""),))
    cases = [
        (request, replace(request, salt="another tenant"), 0),
        (unnamed, unnamed, 16),
        (request, request, 32),
    ]
    for earlier, later, expected in cases:
        engine = new_engine(model)
        engine.add(earlier)
        drain(engine)
        engine.add(later)
        assert end_of(drain(engine), "a").cached_tokens == expected


def test_of_a_prompt_that_is_all_there_one_block_is_computed_again():
    """Its last token's logits are in no cache."""
    model = tiny_model("qwen2_vl")
    request = prompt("a", list(range(32)))
    engine = new_engine(model)
    for expected in (0, 16):
        engine.add(request)
        events = drain(engine)
        assert end_of(events, "a").cached_tokens == expected
        assert ids_of(events, "a") == ids_of(run(model, [request]), "a")


def test_a_conversation_goes_on_from_its_answer():
    model = tiny_model("qwen2_vl")
    first = prompt("first", list(range(10)), max_new_tokens=30)
    engine = new_engine(model)
    engine.add(first)
    answer = ids_of(drain(engine), "first")
    turn = prompt("turn", [*range(10), *answer, 3, 4, 5])
    engine.add(turn)
    events = drain(engine)
    assert end_of(events, "turn").cached_tokens == 32
    assert ids_of(events, "turn") == ids_of(run(model, [turn]), "turn")


# --- when room is short


@pytest.mark.parametrize("generation", GENERATIONS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    order=st.permutations(range(len(MIX))),
    priorities=st.lists(st.sampled_from([0, 1, BACKGROUND]), min_size=len(MIX), max_size=len(MIX)),
    waits=st.lists(st.integers(0, 3), min_size=len(MIX), max_size=len(MIX)),
    budget=st.integers(1, 40),
    room=st.integers(2, 5),
)
def test_requests_that_lose_their_blocks_say_the_same(
    generation, order, priorities, waits, budget, room
):
    engine = new_engine(
        tiny_model(generation), token_budget=budget, cache_tokens=16 * room, feature_bytes=0
    )
    events: list[Event] = []
    for index, priority, wait in zip(order, priorities, waits, strict=True):
        for _ in range(wait):
            events += engine.step()
        engine.add(replace(MIX[index], priority=priority))
    events += drain(engine)
    for index, request in enumerate(MIX):
        assert ids_of(events, request.id) == alone(generation, index)
    assert engine._pool.free == room


def test_a_request_of_higher_priority_takes_the_room_of_a_lower_one():
    model = tiny_model("qwen2_vl")
    engine = new_engine(model, cache_tokens=32)
    slow = prompt("slow", [1, 2, 3], max_new_tokens=20)
    urgent = replace(prompt("urgent", list(range(20)), max_new_tokens=3), priority=-1)
    engine.add(slow)
    events = [event for _ in range(4) for event in engine.step()]
    engine.add(urgent)
    events += drain(engine)
    ends = [e.request_id for e in events if isinstance(e, Finished)]
    assert ends == ["urgent", "slow"]
    for request in (slow, urgent):
        assert ids_of(events, request.id) == ids_of(run(model, [request]), request.id)


def test_of_the_background_one_request_at_a_time_goes_on_beside_others():
    """They keep what they have computed, and say the same in the end."""
    model = tiny_model("qwen2_vl")
    engine = new_engine(model)
    behind = [
        replace(prompt(f"b{n}", [1, 2, n + 3], max_new_tokens=20), priority=BACKGROUND)
        for n in range(3)
    ]
    for request in behind:
        engine.add(request)
    events = [event for _ in range(4) for event in engine.step()]
    before = [len(ids_of(events, request.id)) for request in behind]
    assert min(before) >= 4
    live = prompt("live", [7, 8, 9], max_new_tokens=6)
    engine.add(live)
    held = engine.cache_usage
    beside: list[Event] = []
    while not any(e.request_id == "live" for e in beside if isinstance(e, Finished)):
        beside += engine.step()
    assert {e.request_id for e in beside} == {"live", "b0"}
    assert engine.cache_usage >= held
    assert engine.preemptions == 0
    events += beside + drain(engine)
    for request in (*behind, live):
        assert ids_of(events, request.id) == ids_of(run(model, [request]), request.id)


def test_a_request_larger_than_the_cache_is_refused():
    engine = new_engine(tiny_model("qwen2_vl"), cache_tokens=32)
    with pytest.raises(OutOfMemoryError, match="need 40 tokens of cache, there is room for 32"):
        engine.add(prompt("large", [1, 2, 3], max_new_tokens=37))
    assert engine.idle


def test_a_request_past_its_deadline_ends_with_an_error_and_the_others_go_on():
    engine = new_engine(tiny_model("qwen2_vl"))
    engine.add(replace(prompt("late", [1, 2, 3]), deadline_s=time.monotonic()))
    engine.add(replace(MIX[1], deadline_s=time.monotonic() + 3600))
    events = drain(engine)
    assert isinstance(error_of(events, "late"), DeadlineError)
    assert ids_of(events, "text") == alone("qwen2_vl", 1)


# --- faults


def poison(token_id: int, error: Callable[[], BaseException]):
    def hook(_model, args) -> None:
        if token_id in args[0].ids_t.tolist():
            raise error()

    return hook


def bad_requests() -> list[EngineRequest]:
    (image,) = WITH_PICTURE.images
    rows = torch.as_tensor(image.rows)
    narrow = replace(image, rows=rows[:, :-1])
    blank = replace(image, rows=torch.full_like(rows, torch.nan))
    return [
        replace(WITH_PICTURE, id="narrow", images=(narrow,)),
        replace(WITH_PICTURE, id="blank", images=(blank,)),
    ]


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("budget", [7, 2048])
def test_a_fault_in_one_request_leaves_the_others_alone(generation, budget):
    narrow, blank = bad_requests()
    requests = [MIX[0], narrow, MIX[1], MIX[2], blank, MIX[3], MIX[4]]
    events = run(tiny_model(generation), requests, token_budget=budget)
    for index, request in enumerate(MIX):
        assert ids_of(events, request.id) == alone(generation, index)
    for request in (narrow, blank):
        assert ids_of(events, request.id) == []
        assert isinstance(error_of(events, request.id), EngineError)
    assert error_of(events, "narrow").message == "'narrow' failed while computing"
    assert "not finite" in error_of(events, "blank").message


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_memory_that_runs_out_is_said_to_have_run_out(error):
    model = tiny_model("qwen2_vl")
    hook = model.register_forward_pre_hook(poison(77, error))
    try:
        events = run(model, [MIX[1], prompt("large", [1, 77, 2])])
    finally:
        hook.remove()
    assert isinstance(error_of(events, "large"), OutOfMemoryError)
    assert ids_of(events, "text") == alone("qwen2_vl", 1)


def test_a_fault_does_not_keep_the_tensors_of_its_step(monkeypatch):
    model = tiny_model("qwen2_vl")
    refs: list[weakref.ref] = []

    def fail(x_td, *_args):
        refs.append(weakref.ref(x_td))
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(model.model.language_model.layers[1], "forward", fail)
    events = run(model, [prompt("a", [1, 2, 3])])
    assert isinstance(error_of(events, "a").__cause__, RuntimeError)
    assert [ref() for ref in refs] == [None]


def test_after_an_interrupt_the_engine_is_empty_and_usable():
    model = tiny_model("qwen2_vl")
    engine = new_engine(model)
    engine.add(prompt("a", [1, 77]))
    engine.add(MIX[1])
    hook = model.register_forward_pre_hook(poison(77, KeyboardInterrupt))
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    finally:
        hook.remove()
    assert engine.idle
    assert engine.step() == []
    engine.add(MIX[1])
    assert ids_of(drain(engine), "text") == alone("qwen2_vl", 1)


def test_a_request_whose_parts_do_not_agree_is_refused():
    engine = new_engine(tiny_model("qwen2_vl"))
    (image,) = WITH_PICTURE.images
    wrong = [
        replace(WITH_PICTURE, images=()),
        replace(WITH_PICTURE, images=(replace(image, start=image.start + 1),)),
        replace(WITH_PICTURE, images=(replace(image, grid=(1, 4, 4)),)),
        replace(WITH_PICTURE, images=(replace(image, rows=torch.as_tensor(image.rows)[:-1]),)),
        replace(WITH_PICTURE, positions=torch.zeros(3, 4)),
        replace(WITH_PICTURE, ids=[], images=(), positions=torch.zeros(3, 0)),
    ]
    for request in wrong:
        with pytest.raises(EngineError, match="'picture'"):
            engine.add(request)
    with pytest.raises(PromptTooLongError, match=f"{CONTEXT} tokens"):
        engine.add(prompt("long", [1] * CONTEXT))
    assert engine.idle


def test_an_id_can_be_used_again_only_after_its_request_ended():
    engine = new_engine(tiny_model("qwen2_vl"))
    engine.add(MIX[1])
    with pytest.raises(EngineError, match="'text'"):
        engine.add(MIX[1])
    drain(engine)
    engine.add(MIX[1])


# --- decode steps of fixed shapes, as a GPU replays them; computed here without a graph


def compared(engine: Engine, model: QwenVL, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every static step is computed as an ordinary one too; how many requests each of them had."""
    counts: list[int] = []
    static = StaticDecode(model, engine._cache, torch.device("cpu"))

    def both(states: Sequence[RequestState]) -> torch.Tensor:
        chunks = [Chunk(s, len(s.tokens) - 1, len(s.tokens)) for s in states]
        logits = static(states).clone()
        ordinary = model(pack(chunks, engine._cache, torch.device("cpu")))
        torch.testing.assert_close(logits, ordinary, atol=2e-5, rtol=1e-4)
        counts.append(len(states))
        return logits

    monkeypatch.setattr(engine, "_static", both)
    return counts


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("room", [5, 40])
def test_steps_of_fixed_shapes_say_the_same(generation, room, monkeypatch):
    """While requests come, end, and with little room lose their blocks to earlier ones."""
    monkeypatch.setattr("qvl.engine.graphs.SPLIT", BLOCK_TOKENS)  # contexts of 1, 2, 4 .. pages
    model = tiny_model(generation)
    restarted: list[str] = []
    restart = RequestState.restart

    def noted(state: RequestState) -> list[int]:
        restarted.append(state.id)
        return restart(state)

    monkeypatch.setattr(RequestState, "restart", noted)
    texts = [prompt(f"{n}", [n, n + 1], seed=n, max_new_tokens=10 + 7 * n) for n in range(6)]
    engine = new_engine(model, draft_tokens=0, cache_tokens=BLOCK_TOKENS * room, feature_bytes=0)
    counts = compared(engine, model, monkeypatch)
    events: list[Event] = []
    for request in (*texts[:3], *MIX, *texts[3:]):
        events += engine.step()
        engine.add(request)
    events += drain(engine)
    requests = (*texts, *MIX)
    for request in requests:
        fresh = ids_of(run(model, [request]), request.id)
        assert ids_of(events, request.id) == fresh
    assert {1, 2, 3} <= set(counts)  # sizes 1, 2 and 4, the last one padded
    assert (len(restarted) > 2 * len(requests)) == (room == 5)  # each ends with one, runs have one


def test_tokens_that_a_grammar_forces_are_computed_one_by_one_as_ever(monkeypatch):
    """With a budget of one, a step of one token may not be the one after which a token is drawn."""
    model = tiny_model("qwen3_vl")
    engine = new_engine(model, token_budget=1, draft_tokens=0)
    counts = compared(engine, model, monkeypatch)

    def request() -> EngineRequest:
        form = ResponseFormat("regex", "(a|b)cdefg(h|i)abcd(i|j)")
        return replace(prompt("form", [5, 6], max_new_tokens=13), grammar=letters().compile(form))

    engine.add(request())
    said = ids_of(drain(engine), "form")
    assert said == ids_of(run(model, [request()], draft_tokens=0), "form")
    assert 0 < len(counts) < len(said) - 3


def test_more_requests_than_the_largest_shape_are_computed_as_ever(monkeypatch):
    model = tiny_model("qwen2_vl")
    requests = [prompt(f"{n}", [n, 1], seed=n, max_new_tokens=3 + n % 3) for n in range(66)]
    engine = new_engine(model, max_running=66)
    counts = compared(engine, model, monkeypatch)
    for request in requests:
        engine.add(request)
    events = drain(engine)
    expected = run(model, requests, max_running=66)
    assert [ids_of(events, r.id) for r in requests] == [ids_of(expected, r.id) for r in requests]
    assert max(counts) <= 64 < len(requests)
