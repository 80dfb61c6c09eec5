"""What a run is trained on, and in which order: rows read once to know them, units, batches of each step.

Main path: survey (every row encoded, every picture opened) -> Unit -> Order.steps -> Reader.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from qvl.errors import QvlError
from qvl.training.examples import Encoder, Example, common_beginning, joined
from qvl.training.passes import Passage, collate
from qvl.training.rows import Problem, Row
from qvl.types import Image, Video

READERS = 2


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows that are computed together, by their numbers; `tokens` in all, of which `said` are learnt and
    `visual` are of pictures.
    """

    rows: tuple[int, ...]
    tokens: int
    said: int
    visual: int = 0


def survey(
    encoder: Encoder,
    rows: Sequence[Row],
    *,
    most_tokens: int,
    seen: Callable[[int], None] = lambda _: None,
) -> tuple[list[Unit], list[Problem]]:
    """Rows about the same pictures, next to each other or not, share a unit of up to `most_tokens`.

    `seen` is told how many rows are done.
    """
    together: dict[Hashable, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        together[shown(row) or number].append(number)
    units: list[Unit] = []
    problems: list[Problem] = []
    done = 0

    def examined(group: list[int]) -> tuple[list[Unit], list[Problem]]:
        examples, wrong = {}, []
        for number in group:
            try:
                example = encoder.example(rows[number])
                if len(example.ids) > most_tokens:
                    long = f"{len(example.ids)} tokens, at most {most_tokens} fit a pass"
                    wrong.append(Problem(rows[number].name, long))
                    continue
                examples[number] = example
            except QvlError as err:
                wrong.append(Problem(rows[number].name, err.message))
        return list(cut_units(examples, most_tokens)), wrong

    with ThreadPoolExecutor(READERS, "qvl-survey") as pool:
        for group, (made, wrong) in zip(
            together.values(), pool.map(examined, together.values()), strict=True
        ):
            units += made
            problems += wrong
            done += len(group)
            seen(done)
    place = {row.name: number for number, row in enumerate(rows)}
    return units, sorted(problems, key=lambda problem: place[problem.name])


def shown(row: Row) -> Hashable:
    """The pictures of a row, or nothing."""
    parts = [part for message in row.messages for part in message.content]
    return tuple(part for part in parts if isinstance(part, Image | Video))


def cut_units(examples: Mapping[int, Example], most_tokens: int) -> Iterator[Unit]:
    """As many neighbours as fit, joined where they begin alike (`examples.joined`)."""
    group = _Group()
    for number, example in examples.items():
        longer = group.with_one(number, example)
        if group.rows and not longer.fits(most_tokens):
            yield group.unit()
            longer = _Group().with_one(number, example)
        group = longer
    if group.rows:
        yield group.unit()


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that may become a unit: how many tokens they begin alike with, how many all of them have,
    how many are learnt, and where the last picture of any of them ends.
    """

    first: Example | None = None
    rows: tuple[int, ...] = ()
    shared: int = 0
    lengths: int = 0
    said: int = 0
    pictures_end: int = 0

    def with_one(self, number: int, example: Example) -> _Group:
        shared = len(example.ids)
        if self.first is not None:
            shared = min(self.shared, common_beginning([self.first, example]))
        ends = (image.start + image.tokens for image in example.images)
        return _Group(
            self.first or example,
            (*self.rows, number),
            shared,
            self.lengths + len(example.ids),
            self.said + example.said,
            max(self.pictures_end, *ends, 0),
        )

    @property
    def tokens(self) -> int:
        """Once what is shared, then what each has of its own."""
        return self.lengths - (len(self.rows) - 1) * self.shared

    def fits(self, most_tokens: int) -> bool:
        return self.pictures_end <= self.shared and self.tokens <= most_tokens

    def unit(self) -> Unit:
        images = self.first.images if self.first else ()
        return Unit(self.rows, self.tokens, self.said, sum(image.tokens for image in images))


@dataclass(frozen=True, slots=True)
class Order:
    """Which units each step learns from: epoch after epoch in an order that the seed decides.

    A step has the next units that together hold at least `batch` rows, cut into passes of at most
    `most_tokens`; which, depends on the seed and the number of the step alone.
    """

    units: tuple[Unit, ...]
    batch: int
    most_tokens: int
    seed: int

    def epoch(self, number: int) -> list[list[Unit]]:
        """The steps of an epoch; the last may be smaller."""
        order = list(self.units)
        random.Random(f"{self.seed}/{number}").shuffle(order)
        steps: list[list[Unit]] = [[]]
        rows = 0
        for unit in order:
            if rows >= self.batch:
                steps.append([])
                rows = 0
            steps[-1].append(unit)
            rows += len(unit.rows)
        return steps

    def steps(self, first: int) -> Iterator[list[list[Unit]]]:
        """The passes of step `first` and all after it, without end."""
        number = 0
        while True:
            steps = self.epoch(number)
            if first < len(steps):
                yield from (self.passes(step) for step in steps[first:])
                first = 0
            else:
                first -= len(steps)
            number += 1

    def passes(self, units: Sequence[Unit]) -> list[list[Unit]]:
        """The longest first, each where it fits: fewer passes, and the same for the same units."""
        filled: list[tuple[int, list[Unit]]] = []
        for unit in sorted(units, key=lambda u: (-u.tokens, u.rows)):
            for index, (tokens, inside) in enumerate(filled):
                if tokens + unit.tokens <= self.most_tokens:
                    filled[index] = (tokens + unit.tokens, [*inside, unit])
                    break
            else:
                filled.append((unit.tokens, [unit]))
        return [inside for _, inside in filled]


@dataclass(frozen=True, slots=True)
class Share:
    """The units of a pass of one process; without `learns` it only keeps the others company."""

    units: tuple[Unit, ...]
    learns: bool = True


@dataclass(frozen=True, slots=True)
class Reader:
    """Makes passages of units; pictures are read, by threads, while the step before is computed."""

    encoder: Encoder
    rows: Sequence[Row]

    def passage(self, share: Share) -> Passage:
        examples = [[self.encoder.example(self.rows[n]) for n in u.rows] for u in share.units]
        passage = collate([joined(group) for group in examples])
        return passage if share.learns else passage.unlearned()

    def ahead(self, steps: Iterator[list[Share]]) -> Iterator[list[Passage]]:
        """The passages of each step, those of the next being made."""
        with ThreadPoolExecutor(READERS, "qvl-read") as pool:
            coming = None
            for step in steps:
                made = [pool.submit(self.passage, share) for share in step]
                if coming is not None:
                    yield [future.result() for future in coming]
                coming = made
            if coming is not None:
                yield [future.result() for future in coming]
