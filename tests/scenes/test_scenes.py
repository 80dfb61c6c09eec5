"""Every kind of scene, over many seeds: the same again, read back by its tasks, within its pictures."""

import json
import random
from functools import cache

import numpy as np
import pytest

from qvl.scenes import KINDS, changes, draw, goods, objects, shop
from qvl.scenes.asked import answered, request_of, seen_of, value
from qvl.scenes.kinds import kinds, sprites, styles_of
from qvl.scenes.objects import sprite_of
from qvl.scenes.phrases import COLOURS, LANGUAGES, PATTERNS
from qvl.scenes.products import product_kinds
from qvl.scenes.scene import Job, Scene, Split, belongs
from qvl.types import Text

OURS = {**objects.KINDS, **goods.KINDS, **changes.KINDS, **shop.KINDS}
SEEDS = range(24)
SPLITS: tuple[Split, ...] = ("train", "held-out", "style")
NEAR_PX = 2.0  # places are written in hundredths of a side, of at most 224 pixels


@cache
def drawn(kind: str, seeds: range = SEEDS) -> tuple[Scene, ...]:
    """Of every split a third."""
    return tuple(draw(kind, SPLITS[seed % 3], seed) for seed in seeds)


def near(told: object, true: object) -> bool:
    """Equal, but for pixels, which the grid of an answer rounds."""
    match told, true:
        case (list() | tuple(), list() | tuple()):
            return len(told) == len(true) and all(map(near, told, true))
        case dict(), dict():
            return list(told) == list(true) and all(near(told[key], true[key]) for key in told)
        case (float(), float()):
            return abs(told - true) <= NEAR_PX
    return type(told) is type(true) and told == true


def test_each_kind_is_registered_once():
    ours = (objects.KINDS, goods.KINDS, changes.KINDS, shop.KINDS)
    assert len(OURS) == sum(map(len, ours))
    assert KINDS.keys() >= OURS.keys()


@pytest.mark.parametrize("kind", OURS)
def test_the_same_seed_gives_the_same_scene(kind):
    one, again, other = draw(kind, "train", 5), draw(kind, "train", 5), draw(kind, "train", 6)
    assert (one.jobs, one.things) == (again.jobs, again.things)
    assert [p.tobytes() for p in one.pictures] == [p.tobytes() for p in again.pictures]
    assert one.jobs != other.jobs


@pytest.mark.parametrize("kind", OURS)
def test_a_size_that_is_given_is_that_of_every_picture(kind):
    scene = draw(kind, "train", 3, (192, 128))
    assert {picture.size for picture in scene.pictures} == {(192, 128)}


@pytest.mark.parametrize("kind", OURS)
def test_sizes_are_small_and_multiples_of_what_a_token_sees(kind):
    sides = {side for scene in drawn(kind) for p in scene.pictures for side in p.size}
    assert all(side % 32 == 0 and 128 <= side <= 224 for side in sides)
    assert len(sides) > 1


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize(
    "seeds", [SEEDS, pytest.param(range(1000, 1400), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_every_answer_is_read_by_its_task_as_the_truth(kind, seeds):
    languages = set()
    for scene in drawn(kind, seeds):
        for job in scene.jobs:
            result = answered(job, scene, job.answer)
            assert near(value(job, result), job.truth), (job, value(job, result))
            # the reason that moderation asks for later is answered with the rule's name
            wrong = () if job.task == "moderate" else set(result.flags) - {"hand_over"}
            assert not wrong, (job, wrong)
            languages.add(job.options["language"])
    assert languages == set(LANGUAGES)


@pytest.mark.parametrize("kind", OURS)
def test_what_carries_the_truth_is_said_in_the_answer(kind):
    for scene in drawn(kind):
        for job in scene.jobs:
            assert all(fact.lower() in job.answer.lower() for fact in job.facts), job


@pytest.mark.parametrize("kind", OURS)
def test_no_job_comes_twice_and_each_scene_has_some(kind):
    for scene in drawn(kind):
        assert len(scene.jobs) >= 2
        assert all(job not in scene.jobs[:at] for at, job in enumerate(scene.jobs))


@pytest.mark.parametrize("kind", OURS)
def test_words_about_a_thing_stand_in_the_question_in_that_order(kind):
    for scene in drawn(kind):
        for job in scene.jobs:
            asked = words(job, scene)
            after = 0
            for name, thing in job.about:
                assert thing in {t for things in scene.things for t in things}
                after = asked.index(name, after) + len(name)


def words(job: Job, scene: Scene) -> str:
    *_, said = request_of(job, scene).messages[-1].content
    assert isinstance(said, Text)
    return said.text


@pytest.mark.parametrize("kind", OURS)
def test_boxes_lie_within_the_picture(kind):
    for scene in drawn(kind):
        for picture, things in zip(scene.pictures, scene.things, strict=True):
            for thing in things:
                x1, y1, x2, y2 = thing.box
                assert 0 <= x1 < x2 <= picture.width, thing
                assert 0 <= y1 < y2 <= picture.height, thing


@pytest.mark.parametrize("kind", [name for name in OURS if name not in ("moving", "dish")])
def test_things_do_not_cover_each_other(kind):
    for scene in drawn(kind):
        for things in scene.things:
            for at, one in enumerate(things):
                for other in things[:at]:
                    across = min(one.box[2], other.box[2]) - max(one.box[0], other.box[0])
                    down = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
                    assert min(across, down) <= 1


def test_counts_of_copies_are_those_of_their_split():
    for split in SPLITS:
        for seed in range(60):
            things = draw("copies", split, seed).things[0]
            n = len(things)
            assert belongs("held-out", "n", things[0].what, n) == (split == "held-out")
            assert 2 <= n <= 9


def test_pairs_that_are_held_out_never_come_in_training():
    for seed in range(80):
        for split in SPLITS:
            one, other = draw("pair", split, seed).things[0]
            is_held_out = belongs("held-out", "pair", *sorted((one.what, other.what)))
            assert is_held_out == (split == "held-out")


def test_a_fifth_of_products_colours_and_patterns_is_held_out():
    combinations = [
        belongs("held-out", "ware", kind.key, colour.en, pattern)
        for kind in product_kinds()
        for colour in COLOURS
        for pattern in PATTERNS
    ]
    assert 0.15 < np.mean(combinations) < 0.25


def test_relations_are_those_of_the_boxes():
    sides = {
        ("left", "слева", "左边"): lambda a, b: a[2] <= b[0] + 1,
        ("right", "справа", "右边"): lambda a, b: a[0] >= b[2] - 1,
        ("above", "выше", "上方"): lambda a, b: a[3] <= b[1] + 1,
        ("below", "ниже", "下方"): lambda a, b: a[1] >= b[3] - 1,
    }
    looked = 0
    for seed in range(60):
        for job in draw("pair", "train", seed).jobs:
            if job.skill == "relation" and len(job.about) == 2:
                (_, one), (_, other) = job.about
                holds = next(test for said, test in sides.items() if job.answer in said)
                assert holds(one.box, other.box), job
                looked += 1
    assert looked > 80


def test_numbers_are_those_of_the_things():
    for seed in range(40):
        for kind in ("copies", "mixed", "crowd"):
            scene = draw(kind, "train", seed)
            for job in scene.jobs:
                if job.skill in ("count", "count-all"):
                    assert int(job.answer) == len(scene.things[0])


def test_events_are_when_their_things_are_seen():
    for seed in range(30):
        scene = draw("clip", "train", seed)
        events = next(job for job in scene.jobs if job.skill == "video-events")
        for start_s, end_s, _ in events.truth:
            seen = [
                {thing.what for thing in things}
                for time_s, things in zip(scene.times_s, scene.things, strict=True)
                if start_s <= time_s <= end_s
            ]
            assert set.intersection(*seen)
        shown = {thing.what for things in scene.things for thing in things}
        assert len(events.truth) == len(shown)


def test_the_right_class_is_not_always_in_one_place():
    places = [
        job.options["labels"].index(job.answer)
        for seed in range(120)
        for job in draw("object", "train", seed).jobs
        if job.task == "classify" and not job.options.get("multi")
    ]
    assert len(set(places)) > 3


def test_yes_and_no_come_about_as_often():
    said = [
        job.truth
        for kind in ("object", "crowd", "mixed", "copies", "shapes")
        for seed in range(60)
        for job in draw(kind, "train", seed).jobs
        if job.skill == "yes-no"
    ]
    assert len(said) > 100
    assert 0.35 < np.mean(said) < 0.65


def test_the_style_kept_apart_is_drawn_otherwise():
    for seed in range(20):  # over one combination the two draw alike but for the seed and the style
        kind, style = kinds()[seed], random.Random(seed)
        (apart,) = styles_of(kind.key, "style")
        trained = {sprites(name)[kind.key].tobytes() for name in styles_of(kind.key, "train")}
        assert sprite_of(kind, "style", style).tobytes() == sprites(apart)[kind.key].tobytes()
        assert sprite_of(kind, "style", style).tobytes() not in trained


def test_rows_of_messages_name_their_pictures(tmp_path):
    from qvl.scenes.__main__ import main

    main([str(tmp_path), "--kind", "two", "--count", "2"])
    lines = (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    scenes = [draw("two", "train", seed) for seed in range(2)]
    assert len(rows) == sum(len(scene.jobs) for scene in scenes)
    for row, job in zip(rows, [job for scene in scenes for job in scene.jobs], strict=True):
        asked, told = row["messages"]
        pictures = [p["image_url"]["url"] for p in asked["content"] if p["type"] == "image_url"]
        assert len(pictures) == 2
        assert all((tmp_path / name).exists() for name in pictures)
        assert told == {"role": "assistant", "content": job.answer}
        assert row.keys() == {"id", "messages"}


def test_pictures_are_made_once_for_several_jobs():
    scene = draw("object", "train", 1)
    seen = seen_of(scene)
    asked = [request_of(job, scene, seen) for job in scene.jobs]
    assert all(request.messages[0].content[0] is seen[0] for request in asked)
