"""Scenes, their truth and the packed batches that sprout learns from."""

from __future__ import annotations

import copy
import random
from collections import Counter

import pytest
import torch
from tokenizers import Tokenizer

from qvl.models.attention import PackedCausal
from qvl.models.batch import ForwardBatch
from qvl.models.qwen_vl import QwenVL
from qvl.training.batches import Packer, ask, mention
from qvl.training.dense import class_names
from qvl.training.loop import Branches, Taught, losses_of
from qvl.training.phrases import LANGUAGES, Kind, Shape, counted, kinds, words
from qvl.training.scenes import SCENE_KINDS, draw, held_out
from qvl.training.sprout import initialise, sprout_config
from qvl.vlm.chat_model import EMBEDDED_FOLDER


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(EMBEDDED_FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> QwenVL:
    torch.manual_seed(0)
    model = QwenVL(sprout_config(tokenizer))
    initialise(model)
    return model


def test_the_lists_are_what_the_product_says() -> None:
    assert len(kinds()) == len({k.key for k in kinds()}) >= 60
    assert len(words()) == len(set(words())) == 100


def test_numbers_agree_with_nouns() -> None:
    cat = next(k for k in kinds() if k.key == "cat")
    assert [counted(cat, n, "ru") for n in (1, 2, 4, 5, 6)] == [
        "кошка", "2 кошки", "4 кошки", "5 кошек", "6 кошек",
    ]  # fmt: skip
    apple = next(k for k in kinds() if k.key == "apple")
    assert (counted(apple, 1, "en"), counted(apple, 3, "en")) == ("an apple", "3 apples")
    assert (counted(cat, 1, "zh"), counted(cat, 3, "zh")) == ("一只猫", "3只猫")


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_a_scene_is_its_seed_and_its_boxes_lie_inside(kind) -> None:
    for split in ("train", "held-out"):
        first, again = (draw(split, random.Random(5), size=(160, 128), kind=kind) for _ in range(2))
        assert first.picture.tobytes() == again.picture.tobytes()
        assert first.things == again.things
        for thing in first.things:
            x1, y1, x2, y2 = first.box_1000(thing)
            assert 0 <= x1 < x2 <= 1000
            assert 0 <= y1 < y2 <= 1000


def test_no_held_out_combination_is_ever_trained_on() -> None:
    rng = random.Random(1)
    for _ in range(300):
        for split in ("train", "held-out"):
            scene = draw(split, rng, size=(128, 128))
            first = scene.things[0]
            if scene.kind == "pair":
                keys = sorted(t.what.key for t in scene.things if isinstance(t.what, Kind))
                combination = ("pair", *keys)
            elif scene.kind == "copies" and isinstance(first.what, Kind):
                combination = ("n", first.what.key, len(scene.things))
            elif isinstance(first.what, Shape) and first.colour is not None:
                combination = (first.what.en, first.colour.en)
            else:
                continue
            assert held_out(*combination) == (split == "held-out")


def test_a_mixed_scene_shows_no_held_out_number_either() -> None:
    rng = random.Random(11)
    totals = set()
    for _ in range(150):
        scene = draw("train", rng, size=(128, 128), kind="mixed")
        numbers = Counter(t.what.key for t in scene.things if isinstance(t.what, Kind))
        assert len(numbers) == 2
        assert not any(n > 1 and held_out("n", key, n) for key, n in numbers.items())
        totals.add(len(scene.things))
    assert totals == {3, 4, 5, 6}


def test_a_relation_is_what_the_boxes_say() -> None:
    rng = random.Random(2)
    for _ in range(50):
        scene = draw("train", rng, size=(160, 160), kind="pair")
        (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = (t.box for t in scene.things)
        dx, dy = (ax1 + ax2) - (bx1 + bx2), (ay1 + ay2) - (by1 + by2)
        assert (dx < 0, dx > 0, dy < 0, dy > 0)[scene.relation]


def test_a_batch_is_its_step(tokenizer: Tokenizer) -> None:
    one, two = (Packer(tokenizer, seed=3, pictures=3)[7] for _ in range(2))
    assert torch.equal(one.ids, two.ids)
    assert torch.equal(one.rows, two.rows)


def test_a_question_among_others_is_the_question_alone(tokenizer: Tokenizer, model: QwenVL) -> None:
    """Branches see the picture and themselves only: packed logits equal those asked one by one."""
    rng = random.Random(4)
    scenes = [draw("train", rng, size=(128, 160), kind=k) for k in ("pair", "word", "single")]
    packer = Packer(tokenizer, seed=0, pictures=3)
    asked = [[a for a in packer.questions(s, rng) if a.answer] for s in scenes]
    packed = packer.pack(scenes, asked)
    with torch.inference_mode():
        together = answer_logits(model, packed, Branches(packed.branch, packed.lengths))
        alone = []
        for scene, questions in zip(scenes, asked, strict=True):
            for question in questions:
                single = packer.pack([scene], [[question]])
                attend = PackedCausal((0, len(single.ids)))
                alone.append(answer_logits(model, single, attend))
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=0)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_nouns_of_a_question_are_found_with_their_boxes(tokenizer: Tokenizer, language) -> None:
    rng = random.Random(8)
    packer = Packer(tokenizer, seed=0, pictures=1)
    for kind in ("pair", "crowd", "word", "shape"):
        for _ in range(20):
            scene = draw("train", rng, size=(128, 160), kind=kind)
            asked = [mention(thing, language, rng) for thing in scene.things]
            asked += [ask("relation", scene, language, rng)] if kind == "pair" else []
            batch = packer.pack([scene], [asked])
            named = [pair for question in asked for pair in question.named]
            assert len(batch.nouns.at) == len(named) == len(batch.nouns.boxes)
            for at, box, (name, thing) in zip(
                batch.nouns.at, batch.nouns.boxes, named, strict=True
            ):
                beginning = tokenizer.decode(batch.ids[batch.branch == batch.branch[at]].tolist())
                assert name in beginning
                last = tokenizer.decode([int(batch.ids[at])]).strip()
                assert name.endswith(last)
                assert last
                sides = torch.tensor([128, 160, 128, 160])
                torch.testing.assert_close(
                    box * sides, torch.tensor(thing.box, dtype=torch.float32)
                )


def test_an_answer_is_about_the_first_thing_named(tokenizer: Tokenizer) -> None:
    rng = random.Random(9)
    for kind in ("relation", "box"):
        scene = draw("train", rng, size=(128, 160), kind="pair")
        asked = [ask(kind, scene, language, rng) for language in LANGUAGES]
        batch = Packer(tokenizer, seed=0, pictures=1).pack([scene], [asked])
        for at, box, question in zip(batch.answers.at, batch.answers.boxes, asked, strict=True):
            sides = torch.tensor([128, 160, 128, 160])
            first = torch.tensor(question.named[0][1].box, dtype=torch.float32)
            torch.testing.assert_close(box * sides, first)
            begins = tokenizer.decode([int(batch.targets[at])])
            assert question.answer.startswith(begins)


def test_an_unanswered_question_is_not_learnt(tokenizer: Tokenizer) -> None:
    scene = draw("train", random.Random(3), size=(128, 160), kind="pair")
    asked = [mention(thing, "en", random.Random(1)) for thing in scene.things]
    assert (Packer(tokenizer, seed=0, pictures=1).pack([scene], [asked]).targets < 0).all()


def answer_logits(model: QwenVL, batch, attend) -> torch.Tensor:
    return model(
        ForwardBatch(
            ids_t=batch.ids,
            positions_3t=batch.positions,
            attend=attend,
            wanted_b=(batch.targets >= 0).nonzero().flatten(),
            vision=model.encode_images(batch.rows, [batch.grid] * len(batch.lengths)),
            vision_at_v=batch.vision_at,
        )
    )


def test_training_prompts_are_the_products_own(tokenizer: Tokenizer) -> None:
    """What a training row says before an answer is what the door says to the model."""
    import io

    from qvl.loading.config import parse_config
    from qvl.loading.rules import parse_pixel_rules
    from qvl.processing.prompt import build_prompt
    from qvl.processing.tokenizer import Tokenizer as ProductTokenizer
    from qvl.types import Image, Message

    config = parse_config(EMBEDDED_FOLDER)
    scene = draw("train", random.Random(6), size=(160, 128), kind="single")
    file = io.BytesIO()
    scene.picture.save(file, "PNG")
    for language in LANGUAGES:
        question = ask("describe", scene, language, random.Random(1))
        prompt = build_prompt(
            (Message.user(Image(file.getvalue()), question.question),),
            tokenizer=ProductTokenizer.from_folder(EMBEDDED_FOLDER),
            rules=parse_pixel_rules(EMBEDDED_FOLDER, config),
            generation=config.generation,
            image_token_id=config.image_token_id,
        )
        row = Packer(tokenizer, seed=0, pictures=1).pack([scene], [[question]])
        length = len(prompt.ids)
        assert row.ids[:length].tolist() == prompt.ids.tolist()
        assert row.positions[:, :length].tolist() == prompt.positions.tolist()
        assert torch.equal(row.rows, torch.as_tensor(prompt.images[0].patches.rows))


def test_a_step_lowers_the_loss(tokenizer: Tokenizer, model: QwenVL) -> None:
    batch = Packer(tokenizer, seed=1, pictures=6)[0]
    for part in ("answers", "cells", "pointed"):
        taught = Taught(copy.deepcopy(model), class_names(lambda text: tokenizer.encode(text).ids))
        before = getattr(losses_of(taught, batch), part)
        before.backward()
        # the probes stay as they are: the model itself learns
        torch.nn.utils.clip_grad_norm_(taught.model.parameters(), 0.01)
        torch.optim.SGD(taught.model.parameters(), lr=1.0).step()
        assert getattr(losses_of(taught, batch), part) < before
