"""A lesson holds what the product would ask, and the true answers, each alone with the picture."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from qvl import scenes
from qvl.loading.model import load_model, read_parts
from qvl.scenes.asked import request_of, seen_of
from qvl.scenes.scene import Job
from qvl.scenes.text import STAGES
from qvl.training.lessons import Lessons, chosen, taught, together, weights_of
from qvl.training.passes import Loss
from qvl.vlm.chat_model import EMBEDDED_FOLDER
from qvl.vlm.local import LocalModel


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def test_a_lesson_depends_on_its_number_alone() -> None:
    first, second = (Lessons(EMBEDDED_FOLDER, seed=3, pictures=6, stage=2) for _ in range(2))
    one, again, next_one = first[5], second[5], first[6]
    assert same(one.passage.ids, again.passage.ids)
    assert same(one.rows, again.rows)
    assert one.said == again.said
    assert not same(one.passage.ids, next_one.passage.ids)


@pytest.mark.parametrize(
    "kind", ["object", "pair", "two", "clip", "receipt", "text-4", "moderated"]
)
def test_what_is_taught_is_what_the_product_asks(kind: str) -> None:
    """The ids of each branch are those that the model reads when the job is asked of it."""
    model = LocalModel(dtype="fp32")
    tokenizer = read_parts(EMBEDDED_FOLDER).tokenizer
    scene = scenes.draw(kind, "train", 1)
    for job in scene.jobs[:4]:
        drawn = taught(scene, [job], EMBEDDED_FOLDER)
        assert drawn is not None
        ids = drawn.example.ids.tolist()
        asked = model.prompt_ids(request_of(job, scene, seen_of(scene)))
        assert ids[: len(asked)] == asked
        assert tokenizer.decode(ids[len(asked) :]).strip() == job.answer.strip()
    model.close()


def test_answers_are_found_again_and_count_the_same() -> None:
    lesson = Lessons(EMBEDDED_FOLDER, seed=1, pictures=5, stage=0)[0]
    assert lesson.said[-1].last == len(lesson.passage.targets)
    for before, after in zip(lesson.said, lesson.said[1:], strict=False):
        assert before.last == after.first
    for said in lesson.said:
        assert lesson.weights[said.first : said.last].sum() == pytest.approx(1, abs=1e-4)
    assert len(lesson.cells.what) == len(lesson.passage.places)


def test_jobs_taught_together_are_jobs_taught_alone() -> None:
    scene = scenes.draw("pair", "train", 4)
    jobs = chosen(scene.jobs, random.Random(0))
    loss = Loss(load_model(EMBEDDED_FOLDER, dtype="fp32").model)

    def nats(*some: Job) -> float:
        drawn = taught(scene, some, EMBEDDED_FOLDER)
        assert drawn is not None
        lesson = together([drawn])
        return loss(replace(lesson.passage, images=drawn.example.images)).item()

    with torch.no_grad():
        assert nats(*jobs) == pytest.approx(sum(nats(job) for job in jobs), rel=1e-5)


def test_words_of_questions_point_to_what_they_name() -> None:
    scene = scenes.draw("pair", "train", 4)
    jobs = [job for job in scene.jobs if job.about]
    drawn = taught(scene, jobs[:2], EMBEDDED_FOLDER)
    assert drawn is not None
    assert drawn.nouns
    tokenizer = read_parts(EMBEDDED_FOLDER).tokenizer
    words = [words for job in jobs[:2] for words, _ in job.about]
    for (at, _), word in zip(drawn.nouns, words, strict=True):
        token = tokenizer.decode([int(drawn.example.ids[at])])
        assert token.strip()
        assert word.endswith(token.strip())


def test_reading_goes_on_from_stage_to_stage() -> None:
    for stage in range(len(STAGES)):
        shares = weights_of(stage)
        assert sum(shares.values()) == pytest.approx(1)
        assert not any(shares.get(f"text-{later}") for later in range(stage + 1, len(STAGES)))
        assert shares[f"text-{stage}"] >= 0.3
    assert weights_of(len(STAGES) - 1)["receipt"] > 0
