"""What the tower is told about every cell is what the scene shows there."""

from __future__ import annotations

import random

import pytest
import torch

from qvl.training.dense import (
    CLASSES,
    LETTERS,
    Pointer,
    Probes,
    cell_truth,
    class_names,
    naming_loss,
)
from qvl.training.phrases import forms_of
from qvl.training.scenes import SCENE_KINDS, draw

ROWS, COLS = 5, 6


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_the_cell_at_a_things_middle_tells_its_class_and_its_box(kind) -> None:
    rng = random.Random(7)
    for _ in range(20):
        scene = draw("train", rng, size=(192, 160), kind=kind)
        truth = cell_truth([scene], ROWS, COLS)
        middles = set()
        for thing in scene.things:
            x1, y1, x2, y2 = thing.box
            at = int((y1 + y2) / 2 / 160 * ROWS) * COLS + int((x1 + x2) / 2 / 192 * COLS)
            middles.add(at)
            if len(middles) == len(scene.things):  # two middles in one cell: the later one has it
                assert truth.what[at] == CLASSES[thing.what]
                expected = torch.tensor([x1 / 192, y1 / 160, x2 / 192, y2 / 160])
                torch.testing.assert_close(truth.box[at], expected)
        assert set(truth.middle.nonzero().flatten().tolist()) == middles
        assert (truth.what == 0).any() or kind != "single"


def test_a_words_letters_are_found_from_left_to_right() -> None:
    rng = random.Random(8)
    for _ in range(30):
        scene = draw("held-out", rng, size=(192, 160), kind="word")
        (word,) = scene.things
        assert "".join(letter for letter, _ in word.letters) == word.what
        starts = [place[0] for _, place in word.letters]
        assert starts == sorted(starts)
        found = cell_truth([scene], ROWS, COLS).letters.any(0).nonzero().flatten().tolist()
        assert set(found) <= {LETTERS[letter] for letter in str(word.what)}


def test_cells_of_several_scenes_stand_one_after_another() -> None:
    rng = random.Random(9)
    scenes = [draw("train", rng, size=(192, 160)) for _ in range(3)]
    together = cell_truth(scenes, ROWS, COLS)
    alone = torch.cat([cell_truth([scene], ROWS, COLS).what for scene in scenes])
    assert torch.equal(together.what, alone)


def test_the_probes_loss_is_small_only_for_the_truth() -> None:
    """Features that hold the truth can be read off; shuffled ones cannot."""
    torch.manual_seed(0)
    rng = random.Random(10)
    truth = cell_truth([draw("train", rng, size=(192, 160)) for _ in range(4)], ROWS, COLS)
    features = torch.randn(len(truth.what), 256)
    probes = Probes(256)
    optim = torch.optim.Adam(probes.parameters(), lr=0.02)
    for _ in range(150):
        optim.zero_grad()
        probes.loss(features, truth).backward()
        optim.step()
    with torch.no_grad():
        own = probes.loss(features, truth)
        strange = probes.loss(features.flip(0), truth)
    assert own < 0.2 * strange


def test_every_class_has_its_name_in_every_form() -> None:
    names_lct = class_names(lambda text: list(text.encode()))
    for number, what in enumerate(CLASSES):
        spelt = [bytes(i for i in ids if i >= 0).decode() for ids in names_lct[:, number].tolist()]
        assert tuple(spelt) == forms_of(what)
    cat = next(spelt for spelt in map(forms_of, CLASSES) if "cat" in spelt)
    assert cat == ("кошка", " кошка", " кошки", "cat", " cat", "猫")


def test_the_pointer_reads_a_place_that_is_there() -> None:
    torch.manual_seed(2)
    boxes = torch.rand(64, 4)
    nouns = torch.randn(64, 32) @ torch.randn(32, 32)
    nouns[:, :4] = 20 * (boxes - 0.5)
    pointer = Pointer(32)
    optim = torch.optim.Adam(pointer.parameters(), lr=0.02)
    for _ in range(300):
        optim.zero_grad()
        pointer.loss(nouns, boxes).backward()
        optim.step()
    with torch.no_grad():
        assert pointer.loss(nouns, boxes) < 0.5 * pointer.loss(nouns.flip(0), boxes)


def test_the_naming_loss_is_small_where_a_thing_lies_by_its_name() -> None:
    torch.manual_seed(1)
    rng = random.Random(11)
    truth = cell_truth([draw("train", rng, size=(192, 160)) for _ in range(4)], ROWS, COLS)
    names_lct = torch.arange(len(CLASSES)).view(1, -1, 1)  # one language of one-token names
    embeddings = torch.randn(len(CLASSES), 64)
    lies_by_its_name = embeddings[(truth.what - 1).clamp(min=0)]
    small = naming_loss(3 * lies_by_its_name, truth, embeddings, names_lct)
    large = naming_loss(lies_by_its_name.roll(1, 0), truth, embeddings, names_lct)
    assert small < 0.1 < 2 < large
