"""The sampler against a slow oracle in plain Python, transformers' processors and statistics."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from qvl.engine import sampler
from qvl.engine.request import SamplingParams
from qvl.engine.sampler import _mix64, adjust, draw, kept, sample, uniform
from qvl.errors import EngineError

LOGIT = st.one_of(
    st.floats(-8, 8, width=32), st.sampled_from([-1.0, 0.0, 0.5, 2.0])
)  # the second makes equal ones likely
LOGITS = st.lists(LOGIT, min_size=2, max_size=12)


def params(**changes) -> SamplingParams:
    return replace(SamplingParams(max_new_tokens=1, seed=0), **changes)


def choose(logits, given, *, position=0, prompt_ids=(), output_ids=(), banned=()) -> int:
    banned_v = torch.tensor([i in banned for i in range(len(logits))])
    sampled = sample(
        torch.tensor(logits),
        given,
        position=position,
        prompt_ids=prompt_ids,
        output_ids=output_ids,
        banned_v=banned_v,
    )
    return sampled.token_id


def oracle(logits, given, position, prompt_ids, output_ids, banned):
    """The chosen id, and how close to a decision's border it was."""
    scores = {}
    for i, logit in enumerate(torch.tensor(logits, dtype=torch.float32)):
        if i in {*prompt_ids, *output_ids}:
            logit = (
                logit * given.repetition_penalty if logit < 0 else logit / given.repetition_penalty
            )
        if i in output_ids:
            penalty = given.presence_penalty + given.frequency_penalty * output_ids.count(i)
            logit = logit - torch.tensor(penalty, dtype=torch.float32)
        scores[i] = float(logit + torch.tensor(dict(given.logit_bias).get(i, 0.0)))
    allowed = given.allowed_ids or range(len(logits))
    order = [i for i in scores if i not in banned and i in allowed]
    order.sort(key=lambda i: (-scores[i], i))
    if given.temperature == 0:
        return order[0], 1.0
    if given.top_k == 0 and given.top_p == 1 and given.min_p == 0:
        best = max(order, key=lambda i: scores[i])
        order = [best, *(i for i in sorted(order) if i != best)]  # best first only for its weight
        weights = {i: math.exp((scores[i] - scores[best]) / given.temperature) for i in order}
        target = uniform(given.seed, position) * sum(weights.values())
        reached, chosen, margin = 0.0, None, 1.0
        for i in sorted(order):
            reached += weights[i]
            margin = min(margin, abs(reached - target))
            if chosen is None and reached > target:
                chosen = i
        return chosen, margin
    order = order[: given.top_k or None]
    weights = [math.exp((scores[i] - scores[order[0]]) / given.temperature) for i in order]
    p = [w / sum(weights) for w in weights]
    margin, kept, mass = 1.0, [], 0.0
    for i, share in zip(order, p, strict=True):
        margin = min(margin, abs(mass - given.top_p), abs(share - given.min_p * p[0]) or 1.0)
        if mass < given.top_p and share >= given.min_p * p[0]:
            kept.append((i, share))
        mass += share
    target = uniform(given.seed, position) * sum(share for _, share in kept)
    reached, chosen = 0.0, None
    for i, share in kept:
        reached += share
        margin = min(margin, abs(reached - target))
        if chosen is None and reached > target:
            chosen = i
    return chosen, margin


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.data())
def test_sample_equals_the_slow_oracle(data):
    logits = data.draw(LOGITS)
    ids = st.integers(0, len(logits) - 1)
    given_params = params(
        seed=data.draw(st.integers(0, 2**63 - 1)),
        temperature=data.draw(st.sampled_from([0.0, 0.01, 0.7, 1.0, 2.0])),
        top_k=data.draw(st.integers(0, 14)),
        top_p=data.draw(st.floats(0.05, 1.0)),
        min_p=data.draw(st.one_of(st.just(0.0), st.floats(0.0, 1.0))),
        repetition_penalty=data.draw(st.sampled_from([1.0, 0.5, 1.05, 2.0])),
        presence_penalty=data.draw(st.sampled_from([0.0, -1.5, 0.5, 2.0])),
        frequency_penalty=data.draw(st.sampled_from([0.0, -0.5, 1.0])),
        logit_bias=tuple(data.draw(st.dictionaries(ids, st.sampled_from([-3.0, 2.5]))).items()),
    )
    position = data.draw(st.integers(0, 10**6))
    prompt_ids = data.draw(st.lists(ids, max_size=5))
    output_ids = data.draw(st.lists(ids, max_size=5))
    banned = data.draw(st.sets(ids, max_size=len(logits) - 1))
    allowed = data.draw(st.sets(ids))
    if allowed - banned:
        given_params = replace(given_params, allowed_ids=tuple(allowed))
    expected, margin = oracle(logits, given_params, position, prompt_ids, output_ids, banned)
    assume(margin > 1e-9)
    got = choose(
        logits,
        given_params,
        position=position,
        prompt_ids=prompt_ids,
        output_ids=output_ids,
        banned=banned,
    )
    assert got == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(LOGITS, st.integers(0, 2**63 - 1), st.sampled_from([0.01, 1.0, 2.0]))
def test_top_k_1_is_greedy_with_the_lowest_of_equal_ids(logits, seed, temperature):
    best = logits.index(max(logits))
    assert choose(logits, params(temperature=0, seed=seed)) == best
    assert choose(logits, params(temperature=temperature, top_k=1, seed=seed)) == best


def test_kept_candidates_are_those_of_transformers():
    """Same order too: temperature, top-k, top-p, min-p."""
    torch.manual_seed(1)
    logits_v = torch.randn(500) * 3
    warpers = LogitsProcessorList(
        [
            TemperatureLogitsWarper(0.8),
            TopKLogitsWarper(40),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.05),
        ]
    )
    expected = warpers(torch.LongTensor([[0]]), logits_v[None].clone())[0].isfinite()
    given = params(temperature=0.8, top_k=40, top_p=0.9, min_p=0.05)
    drawn = {draw(logits_v, given, position) for position in range(3000)}
    assert drawn == set(expected.nonzero().squeeze(1).tolist())


def test_repetition_penalty_is_that_of_transformers():
    torch.manual_seed(2)
    logits_v = torch.randn(50)
    prompt_ids, output_ids = [3, 3, 7, 41], [7, 0]
    processor = RepetitionPenaltyLogitsProcessor(1.3)
    expected = processor(torch.LongTensor([prompt_ids + output_ids]), logits_v[None].clone())[0]
    got = adjust(logits_v, params(repetition_penalty=1.3), prompt_ids, output_ids)
    assert torch.equal(got, expected)


def test_presence_penalty_counts_the_output_only_and_each_token_once():
    logits_v = torch.zeros(4)
    got = adjust(logits_v, params(presence_penalty=1.5), [0, 1], [1, 2, 2, 2])
    assert got.tolist() == [0, -1.5, -1.5, 0]
    assert logits_v.tolist() == [0, 0, 0, 0]


# chi-square with 7 degrees of freedom exceeds this once in a thousand times; the seeds are fixed
CHI_SQUARE_7 = 24.32


@pytest.mark.parametrize("vary", ["seed", "position"])
def test_draws_follow_the_softmax(vary):
    logits_v = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, 0.5, 1.5, -0.5])
    count = 10_000
    drawn = [0] * 8
    for n in range(count):
        seed, position = (n, 17) if vary == "seed" else (17, n)
        drawn[draw(logits_v, params(seed=seed, temperature=1.5), position)] += 1
    expected = ((logits_v / 1.5).softmax(-1) * count).tolist()
    assert sum((d - e) ** 2 / e for d, e in zip(drawn, expected, strict=True)) < CHI_SQUARE_7


def test_neighbouring_draws_do_not_depend_on_each_other():
    """Pairs of neighbouring positions, and of neighbouring seeds, fill the square evenly."""
    for pairs in (
        [(uniform(5, n), uniform(5, n + 1)) for n in range(8000)],
        [(uniform(n, 5), uniform(n + 1, 5)) for n in range(8000)],
    ):
        cells = [0] * 16
        for a, b in pairs:
            cells[int(a * 4) * 4 + int(b * 4)] += 1
        assert sum((c - 500) ** 2 / 500 for c in cells) < 37.7  # 15 degrees of freedom, 0.1 %


def test_noise_is_the_published_generator_on_every_platform():
    state = 1234567  # the test vector that comes with the generator's reference code
    golden = 0x9E3779B97F4A7C15
    stream = [_mix64(state + n * golden) for n in (1, 2, 3)]
    assert stream == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [uniform(0, 0), uniform(42, 7)] == [0.6524484863740321, 0.7347204584623639]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40))
def test_noise_is_in_the_half_open_interval(seed, position):
    assert 0 <= uniform(seed, position) < 1


def test_the_probability_is_the_models_own():
    """Of the raw logits: whatever was penalised, banned or cut."""
    logits_v = torch.tensor([3.0, 2.0, 1.0, 0.0])
    given = params(temperature=0.1, top_k=1, repetition_penalty=2.0)
    banned_v = torch.tensor([True, False, False, False])
    sampled = sample(logits_v, given, position=4, prompt_ids=[3], output_ids=[], banned_v=banned_v)
    assert sampled.token_id == 1
    assert sampled.probability == pytest.approx(float(logits_v.softmax(-1)[1]))


def test_the_likeliest_ids_are_told_with_their_logarithms():
    logits_v = torch.tensor([0.5, 2.0, 2.0, -1.0])
    told = sample(
        logits_v, params(temperature=0, logprobs=3), position=0, prompt_ids=[], output_ids=[]
    ).best
    assert [i for i, _ in told] == [1, 2, 0]
    expected = logits_v.log_softmax(-1)[[1, 2, 0]].tolist()
    assert [value for _, value in told] == pytest.approx(expected)


@pytest.mark.parametrize("top_p", [0.5, 0.999])
def test_few_candidates_first_or_all_of_them_is_the_same(monkeypatch, top_p):
    """The nucleus of a flat row does not fit into the first ones, that of a steep one does."""
    torch.manual_seed(4)
    for scale in (0.1, 5.0):
        logits_v = torch.randn(3000) * scale
        given = params(temperature=0.9, top_p=top_p, min_p=0.0)
        ids, probabilities = kept(logits_v, given)
        with monkeypatch.context() as patch:
            patch.setattr(sampler, "FIRST_CANDIDATES", 3000)
            all_ids, all_probabilities = kept(logits_v, given)
        assert ids.tolist() == all_ids.tolist()
        assert probabilities.tolist() == all_probabilities.tolist()


@pytest.mark.parametrize("top_k", [0, 50])
def test_where_few_ids_are_left_no_banned_one_is_sorted_among_them(top_k):
    """A grammar mostly leaves few: to order the whole vocabulary took longer than the model's step."""
    torch.manual_seed(5)
    logits_v = torch.randn(3000)
    logits_v[torch.arange(3000) % 1000 > 0] = -torch.inf
    ids, probabilities = kept(logits_v, params(top_k=top_k, min_p=0.01, temperature=2.0))
    left = [0, 1000, 2000]
    assert ids.tolist() == sorted(left, key=lambda i: -float(logits_v[i]))
    expected = (logits_v[ids] / 2.0).softmax(-1).tolist()
    assert probabilities.tolist() == pytest.approx(expected)
    assert len(sampler.best_candidates(logits_v, 50)[0]) == 3


def test_the_one_best_candidate_is_the_first_of_several():
    logits_v = torch.tensor([0.5, 2.0, 2.0, -1.0])
    one, two = (sampler.best_candidates(logits_v, count) for count in (1, 2))
    assert one[0].tolist() == two[0][:1].tolist() == [1]
    assert one[1].tolist() == two[1][:1].tolist() == [2.0]


def test_when_no_token_is_left_it_is_an_error():
    with pytest.raises(EngineError, match="no token is allowed at position 3"):
        choose([1.0, 2.0], params(allowed_ids=(1,)), position=3, banned=(1,))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_is_an_error(bad):
    with pytest.raises(EngineError, match="not finite"):
        choose([0.0, bad, 1.0], params())
