"""What the tower is told about every cell is what the scene shows there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qvl import scenes
from qvl.training.dense import (
    CLASSES,
    LETTERS,
    MARKS,
    UNKNOWN,
    CellTruth,
    Pointer,
    Probes,
    cells_of,
    class_names,
    class_of,
    naming_loss,
    unknown_cells,
)

ROWS, COLS = 5, 6


def truth(parts: tuple[np.ndarray, ...]) -> CellTruth:
    return CellTruth(*(torch.from_numpy(part) for part in parts))


@pytest.mark.parametrize("kind", ["object", "copies", "crowd", "shapes", "text-3"])
def test_the_cell_at_a_things_middle_tells_its_class_and_its_box(kind: str) -> None:
    for seed in range(20):
        scene = scenes.draw(kind, "train", seed, (192, 160))
        what, _, box, middle, _ = cells_of(scene.things[0], (192, 160), ROWS, COLS)
        told = {}
        for thing in scene.things[0]:
            x1, y1, x2, y2 = thing.box
            told[int((y1 + y2) / 2 / 32) * COLS + int((x1 + x2) / 2 / 32)] = thing
        for cell, thing in told.items():
            assert middle[cell] == 1
            if len(told) == len(scene.things[0]):
                assert what[cell] == class_of(thing)
                edges = np.array(thing.box) / (192, 160, 192, 160)
                assert np.allclose(box[cell], edges, atol=1e-6)
        assert middle.sum() == len(told)


def test_letters_are_told_where_they_stand() -> None:
    scene = scenes.draw("text-2", "train", 3, (192, 160))
    *_, letters = cells_of(scene.things[0], (192, 160), ROWS, COLS)
    known = {LETTERS[c] for thing in scene.things[0] for c, _ in thing.letters if c in LETTERS}
    assert known
    assert set(np.flatnonzero(letters.sum(0)).tolist()) <= known


def test_letters_that_look_alike_are_one() -> None:
    assert LETTERS["А"] == LETTERS["A"]
    assert len(set(LETTERS.values())) == MARKS


def test_the_probes_learn_what_is_told_and_nothing_of_what_is_not() -> None:
    scene = scenes.draw("shapes", "train", 0, (192, 160))
    told = truth(cells_of(scene.things[0], (192, 160), ROWS, COLS))
    torch.manual_seed(0)
    rows = torch.randn(ROWS * COLS, 32)
    probes = Probes(32)
    optim = torch.optim.Adam(probes.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = probes.loss(rows, told)
        losses.append(loss.item())
        optim.zero_grad()
        loss.backward()
        optim.step()
    assert losses[-1] < 0.2 * losses[0]
    silent = truth(unknown_cells(ROWS * COLS))
    both = CellTruth(
        *(torch.cat(pair) for pair in zip(_fields(told), _fields(silent), strict=True))
    )
    doubled = probes.loss(torch.cat([rows, torch.randn(ROWS * COLS, 32)]), both)
    assert doubled.item() == pytest.approx(probes.loss(rows, told).item(), rel=1e-5)


def _fields(told: CellTruth) -> list[torch.Tensor]:
    return [told.what, told.colour, told.box, told.middle, told.letters]


def test_features_go_to_the_name_of_what_they_show() -> None:
    names = class_names(lambda text: [ord(text[-1]) % 50])
    assert names.shape[0] == 6
    embeddings = torch.eye(50)
    told = truth(unknown_cells(2))
    told.what[:] = torch.tensor([1, UNKNOWN])
    near = embeddings[names[3, 0, 0]].expand(2, 50).clone()
    far = -near
    assert naming_loss(near, told, embeddings, names) < naming_loss(far, told, embeddings, names)
    told.what[:] = UNKNOWN
    assert naming_loss(near, told, embeddings, names) == 0


def test_a_pointer_learns_places() -> None:
    pointer = Pointer(8)
    assert pointer.loss(torch.zeros(0, 8), torch.zeros(0, 4)) == 0
    with torch.no_grad():
        pointer.read.weight.zero_()
        pointer.read.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert pointer.loss(torch.randn(3, 8), torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 3)) < 1e-6


def test_classes_are_told_apart() -> None:
    assert len(set(CLASSES.values())) == len(CLASSES)
    assert min(CLASSES.values()) == 1
