"""Rows about the same pictures as units: what a unit is said to hold is what it holds."""

from __future__ import annotations

import random
from itertools import groupby

import numpy as np
import pytest

from qvl.errors import InvalidParamError
from qvl.processing.patches import Patches
from qvl.processing.prompt import PromptImage
from qvl.training.data import Unit, cut_units
from qvl.training.examples import IGNORE, Example, joined

PICTURE, OTHER = 90, 91


def image(start: int, tokens: int) -> PromptImage:
    nothing = Patches(np.zeros((0, 1), np.float32), (1, 2, 2 * tokens))
    return PromptImage(nothing, start, tokens, "a", None)


def example(rng: random.Random) -> Example:
    """A beginning that some have in common, a picture or two, then a question and an answer."""
    beginning = [1, 2, *[PICTURE] * 6, 3][: rng.choice((9, 9, 9, 4))]
    images = [image(2, 6)] if len(beginning) == 9 else []
    question = [rng.choice((7, 8)) for _ in range(rng.randrange(1, 6))]
    if rng.random() < 0.2:
        images.append(image(len(beginning) + len(question), 3))
        question += [OTHER] * 3
    said = [rng.randrange(20, 90) for _ in range(rng.randrange(1, 5))]
    ids = np.array([*beginning, *question, *said])
    targets = np.full(len(ids), IGNORE)
    targets[-len(said) - 1 : -1] = said
    positions = np.tile(np.arange(len(ids)), (3, 1))
    return Example("", ids, positions, targets, np.zeros_like(ids), tuple(images))


def unit_of(rows: list[int], whole: Example) -> Unit:
    return Unit(tuple(rows), len(whole.ids), whole.said, sum(i.tokens for i in whole.images))


def one_by_one(examples: dict[int, Example], most_tokens: int) -> list[Unit]:
    """By joining all rows of a unit again for every row that may come to it."""
    units: list[Unit] = []
    rows: list[int] = []
    for number, one in examples.items():
        try:
            longer = joined([*(examples[n] for n in rows), one])
        except InvalidParamError:
            longer = None
        if rows and (longer is None or len(longer.ids) > most_tokens):
            units.append(unit_of(rows, joined([examples[n] for n in rows])))
            rows = []
        rows.append(number)
    return [*units, unit_of(rows, joined([examples[n] for n in rows]))]


@pytest.mark.parametrize("seed", range(12))
def test_units_are_what_their_rows_are_when_joined(seed: int) -> None:
    rng = random.Random(seed)
    examples = {3 * n: example(rng) for n in range(40)}
    for most_tokens in (30, 60, 1000):
        found = list(cut_units(examples, most_tokens))
        assert found == one_by_one(examples, most_tokens)
        assert [n for unit in found for n in unit.rows] == list(examples)
    sizes = [len(unit.rows) for unit in found]
    assert max(sizes) > 2
    assert len(list(groupby(sizes))) > 1
