"""Scenes with text and numbers: every job can be answered, and its answer is read as its truth."""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import astuple, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from embedded import grammars, tokenizer
from qvl.scenes import documents, receipts
from qvl.scenes.page import CHINESE_FACE, HAND_FACE, SIGNS_FACE, STYLE_FACE, Page
from qvl.scenes.papers import Stock, layouts
from qvl.scenes.scene import Job, Scene, Split, Thing, held_out
from qvl.scenes.words import PRODUCTS, SHOPS
from qvl.tasks import TASKS
from qvl.tasks.ask import Answer
from qvl.tasks.checks import checked
from qvl.tasks.classify import Classification
from qvl.tasks.extract import Extraction
from qvl.tasks.ground import Found
from qvl.tasks.moderate import Moderation
from qvl.tasks.ocr import Reading
from qvl.tasks.solve import Solution
from qvl.tasks.task import Result, from_json
from qvl.tasks.wanted import of_profile
from qvl.types import Completion, Image, Request, ResponseFormat
from scripted import Scripted, chosen, completion

SPLITS: tuple[Split, ...] = ("train", "held-out", "style")
SEEDS = 3  # of every kind and split
WRONG = {"language", "wrong_step", "underived_answer", "empty", "cut", "unsure"}  # flags


def draw(kind: str, split: Split, seed: int) -> Scene:
    return documents.KINDS[kind][0](split, random.Random(f"{kind}/{split}/{seed}"), None)


@cache
def scenes() -> list[Scene]:
    return [
        draw(kind, split, seed)
        for kind in documents.KINDS
        for split in SPLITS
        for seed in range(SEEDS)
    ]


class Told:
    """A model that answers a job's questions in turn, and its last answer to all that come after."""

    def __init__(self, job: Job, scene: Scene) -> None:
        self.says, self.size = (*job.before, job.answer), scene.pictures[0].size
        self.asked: list[object] = []
        self.form: ResponseFormat | None = None

    def __call__(self, request: Request) -> Completion:
        if request.messages not in self.asked:
            self.asked.append(request.messages)
        number = self.asked.index(request.messages)
        text = self.says[min(number, len(self.says) - 1)]
        if number == len(self.says) - 1:
            self.form = self.form or request.response_format
        form = request.response_format
        if form is not None and form.kind == "choice":
            choices = json.loads(form.value)
            told = chosen(request, {**dict.fromkeys(choices, 1e-6), text: 1.0})
        else:
            told = completion(text, request)
        width, height = self.size
        images = tuple(
            replace(
                image,
                width_px=width,
                height_px=height,
                resized_width_px=width,
                resized_height_px=height,
            )
            for image in told.provenance.images
        )
        return replace(told, provenance=replace(told.provenance, images=images))


def outcome(job: Job, scene: Scene) -> tuple[Result, ResponseFormat | None]:
    """What the task makes of the right answer, and the form that it had to have."""
    told = Told(job, scene)
    file = io.BytesIO()
    scene.pictures[0].save(file, "PNG", compress_level=1)
    task = from_json(TASKS[job.task], job.options)
    return task.run(Scripted(told), [Image(file.getvalue(), "scene")]), told.form


def value(job: Job, result: Result) -> Any:
    match result:
        case Answer(value=found) | Solution(answer=found):
            return found
        case Classification(labels=labels):
            return list(labels)
        case Moderation():
            return result.reason if job.before else result.category
        case Found():
            return [list(astuple(box)[1:]) for box in result.boxes]
        case Extraction() if job.before:
            return [list(astuple(box)[1:]) for box in result.boxes[:1]]
        case Extraction():
            return dict(result.data)
        case Reading() if result.lines:
            return [[line.text, list(astuple(line.box)[1:])] for line in result.lines if line.box]
    return result.text


def same(told: Any, truth: Any, tolerance: float) -> bool:
    """Equal, places to half a step of the grid that boxes are told on."""
    match told:
        case list():
            return len(told) == len(truth) and all(
                same(a, b, tolerance) for a, b in zip(told, truth, strict=True)
            )
        case float():
            return told == truth or abs(told - truth) <= tolerance
    return told == truth and type(told) is type(truth)


@pytest.mark.parametrize("kind", documents.KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_read_as_its_truth(kind: str, split: Split) -> None:
    for scene in (s for s in scenes_of(kind, split)):
        tolerance = 0.0026 * max(scene.pictures[0].size)
        for job in scene.jobs:
            result, _ = outcome(job, scene)
            assert same(value(job, result), job.truth, tolerance), job
            assert not WRONG & set(result.flags), job
            for fact in job.facts:
                assert fact in job.answer


def scenes_of(kind: str, split: Split) -> list[Scene]:
    at = SEEDS * (list(documents.KINDS).index(kind) * len(SPLITS) + SPLITS.index(split))
    return scenes()[at : at + SEEDS]


@pytest.mark.parametrize("kind", documents.KINDS)
def test_answers_have_the_form_that_the_grammar_lets_a_model_write(kind: str) -> None:
    scene = draw(kind, "train", 1)
    checked_forms = 0
    for job in scene.jobs:
        _, form = outcome(job, scene)
        if form is None:
            continue
        grammar = grammars().compile(form)
        for token in tokenizer().encode_text(job.answer):
            assert grammar.allowed()[token], (job, token)
            grammar.accept(token)
        assert grammar.is_complete or grammar.allowed()[grammar.end_ids[0]], job
        assert job.answer == job.answer.strip()
        if form.kind == "json_schema":  # compact: no space that is not in a value
            loaded = json.dumps(json.loads(job.answer), ensure_ascii=False, separators=(",", ":"))
            assert len(job.answer) >= len(loaded) - 2
            assert '": ' not in job.answer.replace('\\"', "")
        checked_forms += 1
    assert checked_forms


def test_all_languages_and_tasks_are_asked() -> None:
    jobs = [job for scene in scenes() for job in scene.jobs]
    asked = Counter((job.task, job.options["language"]) for job in jobs)
    tasks = ("ask", "classify", "extract", "ground", "moderate", "ocr", "solve")
    assert {task for task, _ in asked} == set(tasks)
    assert all(asked[task, language] for task in tasks for language in ("ru", "en", "zh"))


@pytest.mark.parametrize(
    ("kind", "skill"),
    [
        ("text-5", "is-there"),
        ("hours", "is-open"),
        ("sign", "is-open"),
        ("price-tag", "is-reduced"),
        ("receipt", "receipt-bought"),
        ("bar-chart", "chart-more"),
    ],
)
def test_yes_and_no_are_right_about_as_often(kind: str, skill: str) -> None:
    drawn = (draw(kind, "train", seed) for seed in range(45))
    truths = [job.truth for scene in drawn for job in scene.jobs if job.skill == skill]
    assert 0.2 < sum(truths) / len(truths) < 0.8


@pytest.mark.parametrize("kind", documents.KINDS)
def test_the_same_seed_draws_the_same_scene(kind: str) -> None:
    first, again, other = draw(kind, "train", 5), draw(kind, "train", 5), draw(kind, "train", 6)
    assert first.pictures[0].tobytes() == again.pictures[0].tobytes()
    assert (first.jobs, first.things) == (again.jobs, again.things)
    assert first.things != other.things


def test_places_lie_in_the_picture_and_have_ink() -> None:
    for scene in scenes():
        picture = scene.pictures[0]
        grey = np.asarray(picture.convert("L"), dtype=np.float32)
        for thing in scene.things[0]:
            assert_inside(thing.box, picture.size, scene)
            for letter, box in thing.letters:
                left, top, right, bottom = box
                part = grey[
                    max(0, int(top) - 1) : int(bottom) + 2, max(0, int(left) - 1) : int(right) + 2
                ]
                assert part.max() - part.min() > 18, (scene.kind, thing.what, letter, box)
            spelt = "".join(letter for letter, _ in thing.letters)
            assert spelt == "".join(thing.what.split())


def assert_inside(
    box: tuple[float, float, float, float], size: tuple[int, int], scene: Scene
) -> None:
    left, top, right, bottom = box
    assert -1 <= left < right <= size[0] + 1, (scene.kind, box, size)
    assert -1 <= top < bottom <= size[1] + 1, (scene.kind, box, size)


def test_sides_are_whole_visual_tokens_and_asked_sizes_are_kept() -> None:
    for scene in scenes():
        assert all(side % 32 == 0 for side in scene.pictures[0].size)
        assert max(scene.pictures[0].size) <= 512
    for kind, (function, _) in documents.KINDS.items():
        wide, high = function("train", random.Random(3), (416, 480)).pictures[0].size
        assert (wide, high) == (416, 480), kind


def extracted(kind: str, seeds: int) -> Iterator[Mapping[str, Any]]:
    for seed in range(seeds):
        for job in draw(kind, "train", seed).jobs:
            if job.task == "extract" and not job.before:
                yield job.truth


@pytest.mark.parametrize("kind", ["receipt", "invoice", "label", "passport", "business-card"])
def test_what_is_printed_passes_its_checks_but_for_planned_faults(kind: str) -> None:
    planned = {"receipt": {"total"}, "invoice": {"total"}, "passport": {"mrz_2"}}.get(kind, set())
    failed = Counter()
    for data in extracted(kind, 40):
        checks = checked(data, of_profile(kind).rules)
        failed.update({check.field for check in checks if not check.ok} or {"none"})
    assert set(failed) <= planned | {"none"}
    assert failed["none"] >= 28


def test_the_profiles_of_papers_have_null_for_what_is_not_printed() -> None:
    seen = list(extracted("receipt", 20))
    assert all(list(data) == list(of_profile("receipt").schema["required"]) for data in seen)
    for field in ("address", "inn", "discount", "payment"):
        assert {data[field] is None for data in seen} == {True, False}


def test_a_wrong_total_is_told_from_a_right_one() -> None:
    answers = Counter()
    for seed in range(60):
        scene = draw("receipt", "train", seed)
        (whole,) = (j for j in scene.jobs if j.task == "extract" and not j.before)
        for job in scene.jobs:
            if job.skill == "receipt-adds-up":
                adds_up = abs(
                    sum(line["sum"] for line in whole.truth["lines"]) - whole.truth["total"]
                )
                assert job.truth == (adds_up < 0.005)
                answers[job.truth] += 1
    assert len(answers) == 2


def test_held_out_layouts_are_never_trained_on() -> None:
    def shown(split: Split) -> set[object]:
        rng = random.Random(1)
        return {layouts("receipt", 4, ("sans", "mono", "serif"), split, rng) for _ in range(400)}

    train, held_out = shown("train"), shown("held-out")
    assert train
    assert held_out
    assert not train & held_out


@pytest.mark.parametrize("kind", ["receipt", "table", "label", "bar-chart", "advert", "notice"])
def test_papers_of_the_training_print_no_word_in_a_face_that_is_held_out(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: set[tuple[str, str]] = set()
    real = Page.write

    def recorded(page: Page, text: str, at: Any, face: str, size_px: int, **more: Any) -> Thing:
        printed.add((text, face))
        return real(page, text, at, face, size_px, **more)

    monkeypatch.setattr(Page, "write", recorded)
    for seed in range(20):
        draw(kind, "train", seed)
    names = {name for one in (*(p.names for p in PRODUCTS), *SHOPS) for name in one}
    told = [(text, face) for text, face in printed if text in names]
    assert told
    assert not [one for one in told if held_out("text", *one)]


def test_one_face_is_kept_for_the_split_style(monkeypatch: pytest.MonkeyPatch) -> None:
    from qvl.scenes import page

    used: set[str] = set()
    real = page.glyph

    def recorded(letter: str, face: str, size_px: int) -> page.Glyph:
        used.add(face)
        return real(letter, face, size_px)

    monkeypatch.setattr(page, "glyph", recorded)
    for split in ("train", "held-out"):
        for kind in documents.KINDS:
            draw(kind, split, 0)
    assert STYLE_FACE not in used
    used.clear()
    for kind in documents.KINDS:
        draw(kind, "style", 0)
    assert used - {SIGNS_FACE, CHINESE_FACE, "mono"} == {
        STYLE_FACE
    }  # "mono": machine readable zones
    assert HAND_FACE not in used


def test_what_was_sold_is_rounded_as_tills_round() -> None:
    rng = random.Random(4)
    for line in receipts.sold(Stock("train", "sans", "ru"), 20, rng):
        assert abs(float(line.count) * float(line.price) - float(line.sum)) <= 0.00501
