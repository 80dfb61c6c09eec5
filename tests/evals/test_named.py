"""Objects that a text names, in three languages and their forms."""

import pytest

from qvl.evals.named import invented, named
from qvl.scenes import draw
from qvl.scenes.kinds import by_key
from qvl.scenes.phrases import LANGUAGES, counted


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("The picture shows a cat and 3 dogs.", {"cat", "dog"}),
        ("На картинке 5 кошек, вижу собаку", {"cat", "dog"}),
        ("图中有三只猫和一只狗。", {"cat", "dog"}),
        ("A hot dog", {"hot-dog"}),
        ("Красная звезда", {"star"}),
        ("A catalogue of doggerel", set()),
        ("", set()),
    ],
)
def test_names_are_found_in_their_forms(text, keys):
    assert named(text) == keys


def test_a_colour_is_no_fruit():
    assert named("an orange ball") == named("Colour: orange; a ball") == {"ball"}
    assert named("a ball and an orange") == {"ball", "orange"}


def test_a_word_with_a_name_in_it_is_none():
    assert named("约占画面的三分之一") == set()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_kind_is_found_by_what_counts_it(language):
    for kind in by_key().values():
        for n in (1, 3) if kind.counted else (1,):
            assert len(named(counted(kind, n, language))) == 1, kind.key


def test_what_is_there_or_in_the_true_text_is_not_invented():
    said = "图中有一只猫和一只狗。"
    assert invented(said, ["cat"], "") == {"dog"}
    assert invented(said, ["cat", "dog"], "") == set()
    assert invented(said, ["cat"], "a dog of toys") == set()


@pytest.mark.parametrize("kind", ["object", "copies", "mixed", "crowd", "pair", "tinted", "clip"])
def test_true_descriptions_invent_nothing(kind):
    for seed in range(12):
        scene = draw(kind, "held-out", seed)
        there = {thing.what for things in scene.things for thing in things}
        for job in scene.jobs:
            if job.skill.startswith("describe") or (job.task == "video" and job.facts):
                assert invented(job.answer, there, "") == set(), job.answer
