"""Jobs through a model that answers the truth, nothing, or in the wrong form."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from qvl.errors import EngineError, QvlError
from qvl.evals.drawn import Asked, Scored, asked_of, scored
from qvl.scenes import KINDS, draw
from qvl.scenes.asked import seen_of
from qvl.types import Completion, Provenance, Request, Sampling, Timings, Usage

SEEDS = range(3)
NO_FORM = "{no form"


def asked(kind: str) -> list[Asked]:
    out = []
    for seed in SEEDS:
        scene = draw(kind, "train", seed)
        seen = seen_of(scene)
        out += [asked_of(job, scene, seen) for job in scene.jobs]
    return out


class Saying:
    """A ChatModel that says what `says` makes of the job whose request it is."""

    def __init__(self, jobs: Iterable[Asked], says: Callable[[Asked], str | QvlError]) -> None:
        self.by_request = {id(one.request): one for one in jobs}
        self.says = says
        self.most_tokens = 0

    def results(self, requests: Iterable[Request]):
        for request in requests:
            said = self.says(self.by_request[id(request)])
            yield said if isinstance(said, QvlError) else completion(said)


def completion(text: str) -> Completion:
    return Completion(
        text=text,
        finish_reason="stop",
        token_ids=(),
        confidence=0.75,
        usage=Usage(prompt_tokens=0, completion_tokens=0, image_tokens=0),
        timings=Timings(first_token_s=0.0, total_s=0.0),
        provenance=Provenance(
            model="saying",
            revision=None,
            generation="qwen3_vl",
            dtype="fp32",
            device="cpu",
            seed=None,
            sampling=Sampling(),
            images=(),
            version="",
        ),
    )


def answers(jobs: list[Asked], says: Callable[[Asked], str | QvlError]) -> list[Scored]:
    return list(scored(Saying(jobs, says), iter(jobs)))  # pyrefly: ignore


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_is_right_in_every_skill(kind):
    jobs = asked(kind)
    for one, job in zip(answers(jobs, lambda one: one.job.answer), jobs, strict=True):
        assert one.right == 1, (job.job, one.told)
        assert all(value == 1 for value in one.measures.values()), (job.job, one.measures)
        assert not one.is_refused
        assert (one.skill, one.kind) == (job.job.skill, job.scene.kind)
        assert one.confidence == 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_never_right(kind):
    for one in answers(asked(kind), lambda _: " "):
        assert (one.right, one.is_refused, one.told) == (0, True, None)
        assert not any(one.measures.values())


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_not_its_form_is_never_right_and_counted(kind):
    jobs = [one for one in asked(kind) if one.request.response_format is not None]
    assert jobs
    for one in answers(jobs, lambda _: NO_FORM):
        assert (one.right, one.is_refused) == (0, True)


def test_another_choice_than_was_offered_is_not_taken_for_the_first():
    (job,) = [one for one in asked("copies") if one.job.truth is False][:1]
    (one,) = answers([job], lambda _: "perhaps")
    assert (one.right, one.is_refused) == (0, True)


def test_an_error_of_one_answer_harms_no_other():
    jobs = asked("object")
    first = jobs[0]
    found = answers(jobs, lambda one: EngineError("no") if one is first else one.job.answer)
    assert (found[0].right, found[0].is_refused, found[0].confidence) == (0, True, 0)
    assert all(one.right == 1 for one in found[1:])


def test_answers_of_other_jobs_are_mostly_wrong():
    """Nothing scores by its form alone."""
    right = Counter()
    for kind in ("object", "pair", "receipt", "clip", "bar-chart"):
        jobs = asked(kind)
        others = {id(a): b.job.answer for a in jobs for b in jobs if a.job.skill != b.job.skill}
        for one in answers(jobs, lambda one, others=others: others[id(one)]):
            right[kind] += one.right > 0.6
            right["all"] += 1
    assert sum(right.values()) - right["all"] < 0.1 * right["all"]


def only(kind: str, skill: str, language: str) -> Asked:
    return next(
        asked_of(job, scene, seen_of(scene))
        for seed in range(99)
        for scene in [draw(kind, "train", seed)]
        for job in scene.jobs
        if (job.skill, job.options["language"]) == (skill, language)
    )


def test_an_invented_object_is_not_free():
    one = only("crowd", "describe-many", "en")
    there = {thing.what for things in one.scene.things for thing in things}
    other = next(what for what in ("cat", "dog", "horse") if what not in there)
    text = one.job.answer.removesuffix(".") + f" and a {other}."
    (found,) = answers([one], lambda _: text)
    assert found.measures["facts"] == 1
    assert found.measures["free"] == 0
    assert 0.5 < found.measures["named"] < 1
    assert found.right == 0


def test_the_facts_in_other_words_are_right():
    one = only("copies", "describe", "en")
    (found,) = answers([one], lambda _: f"Look: {one.job.facts[0]}!")
    assert found.right == 1


def test_events_that_are_told_backwards_are_out_of_order():
    one = only("clip", "video", "en")
    (found,) = answers([one], lambda _: "Then ".join(reversed([f"{f}. " for f in one.job.facts])))
    assert found.measures["facts"] == 1
    assert found.measures["order"] == 0


def test_a_point_is_right_anywhere_on_its_thing():
    one = only("crowd", "point", "en")
    x1, y1, x2, _ = one.job.about[0][1].box
    width, height = one.scene.pictures[0].size
    label = one.job.options["phrases"][0]

    def at(x: float, y: float) -> float:
        place = [round(x / width * 1000), round(y / height * 1000)]
        text = f'[{{"point_2d":{place},"label":"{label}"}}]'
        return answers([one], lambda _: text)[0].right

    assert at((x1 + x2) / 2, y1 + 3) == 1
    assert at((x1 + x2) / 2, y1 - 3) == 0


def test_requests_are_greedy_and_bounded_by_the_true_answer():
    for one in asked("receipt"):
        sampling = one.request.sampling
        assert sampling.temperature == 0
        assert sampling.max_new_tokens is not None
        assert len(one.job.answer) < sampling.max_new_tokens
        assert all(picture.getextrema() == (0, 0) for picture in one.scene.pictures)
        assert replace(one.request, sampling=Sampling()).messages[-1].content
