"""What a batch run costs beside the engine alone, whether sorting pays, and how wrong the estimate is.

Run: python -m benchmarks.batch [--items 160] [--repeat 3] [--model FOLDER]
Prints three parts: runs of `qvl batch` against `LocalModel.results` on the same requests, alternating;
requests in their order against sorted by how much there is to see; three runs of different kind, each
with what was estimated beforehand and how long it took.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from qvl import scenes
from qvl.batch.asked import Asked
from qvl.batch.carry_out import carry_out
from qvl.batch.inputs import items
from qvl.batch.plan import estimated, planned
from qvl.batch.words import first_request
from qvl.runs.record import Item
from qvl.runs.run import Run
from qvl.vlm.chat_model import EMBEDDED, ChatModel
from qvl.vlm.open_model import open_model

SIDES = (128, 160, 192, 224, 288, 384)
DESCRIBED = Asked(task="describe", options={"language": "en"}, seed=1)
KINDS = {  # of runs whose time is estimated: scenes, and what is asked about them
    "describe, plain, ru": (
        ("object", "crowd"),
        Asked(task="describe", options={"language": "ru"}, seed=1),
    ),
    "ocr of receipts": (("receipt",), Asked(task="ocr", options={}, seed=1)),
    "a count": (
        ("copies", "mixed"),
        Asked(task="ask", options={"question": "How many?", "answer_as": "int"}, seed=1),
    ),
}


def drawn(folder: Path, kinds: Sequence[str], count: int) -> list[Item]:
    """So many pictures of the kinds, of sizes from SIDES, as items."""
    folder.mkdir()
    rng = random.Random(5)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        size = (
            (rng.choice(SIDES), rng.choice(SIDES))
            if kind in ("object", "crowd", "copies", "mixed")
            else None
        )
        picture = scenes.draw(kind, "held-out", number, size).pictures[0]
        picture.save(folder / f"{number:05}.png")
    return [one for one in items([str(folder)]) if isinstance(one, Item)]


def seconds(do: Callable[[], object]) -> float:
    began_s = time.monotonic()
    do()
    return time.monotonic() - began_s


def run_of(folder: Path, some: Sequence[Item], model: ChatModel, asked: Asked) -> None:
    with Run.create(folder, {}, some) as run:
        carry_out(run, model, partial(asked.row, model), stops=lambda: 0)
        assert run.counts().pending == 0


def engine_alone(some: Sequence[Item], model: ChatModel, asked: Asked) -> None:
    generation = model.info.generation
    for _ in model.results(first_request(asked, item, generation) for item in some):
        pass


def names(folder: Path) -> Iterator[Path]:
    number = 0
    while True:
        number += 1
        yield folder / f"run-{number}"


@contextmanager
def opened(name: str, others: Sequence[Item]) -> Iterator[ChatModel]:
    """A model that has seen none of the pictures to come, and is past what happens once."""
    with closing(open_model(name)) as model:
        engine_alone(others, model, DESCRIBED)
        yield model


def against_engine(
    folder: Path, some: Sequence[Item], others: Sequence[Item], name: str, repeat: int
) -> None:
    fresh = names(folder)
    pairs = []
    for _ in range(repeat):
        with opened(name, others) as model:
            alone_s = seconds(lambda: engine_alone(some, model, DESCRIBED))
        with opened(name, others) as model:
            run_s = seconds(lambda: run_of(next(fresh), some, model, DESCRIBED))
        pairs.append((alone_s, run_s))
    alone, run = (statistics.median(column) for column in zip(*pairs, strict=True))
    share = statistics.median(a / b for a, b in pairs)
    print(
        f"engine alone: {len(some) / alone:.1f} items/s; a run: {len(some) / run:.1f}; a run has"
        f" {share:.0%} ({min(a / b for a, b in pairs):.0%} to {max(a / b for a, b in pairs):.0%})",
        flush=True,
    )


def ordered(some: Sequence[Item], others: Sequence[Item], name: str, repeat: int) -> None:
    by_size = sorted(some, key=lambda item: Path(item.sources[0].where).stat().st_size)
    gains = []
    for _ in range(repeat):
        took = []
        for order in (some, by_size):
            with opened(name, others) as model:
                took.append(seconds(lambda order=order: engine_alone(order, model, DESCRIBED)))
        gains.append(took[0] / took[1])
    gain = statistics.median(gains)
    print(
        f"sorted by how much there is to see: {gain:.2f} x the items/s of the inputs' order",
        flush=True,
    )


def estimates(folder: Path, count: int, others: Sequence[Item], name: str) -> None:
    print("| run | items | estimated, s | took, s | error |\n|---|---|---|---|---|")
    fresh = names(folder / "estimated")
    for what, (kinds, asked) in KINDS.items():
        pictures = folder / what.replace(" ", "-")
        some = drawn(pictures, kinds, count)
        plan = planned(lambda pictures=pictures: items([str(pictures)]), asked)
        with opened(name, others) as model:
            told = estimated(plan, model, asked)
        with opened(name, others) as model:
            took_s = seconds(lambda some=some, asked=asked: run_of(next(fresh), some, model, asked))
        error = told.seconds / took_s - 1
        print(
            f"| {what} | {count} | {told.seconds:.1f} | {took_s:.1f} | {error:+.0%} |", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=160)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--model", default=EMBEDDED)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        others = drawn(folder / "others", ("object", "crowd"), 40)[:20]
        some = drawn(folder / "pictures", ("crowd", "object"), asked.items)
        against_engine(folder, some, others, asked.model, asked.repeat)
        ordered(some, others, asked.model, asked.repeat)
        estimates(folder, 4 * asked.items, others, asked.model)


if __name__ == "__main__":
    main()
