"""A style of your own, taught to the embedded model in minutes from 200 pictures with texts.

    python examples/new_style.py [FOLDER]

The style is a line of a stock list in Russian: "кошка, 3". The pictures are drawn, so that
their truth is known; FOLDER/train.csv has the columns image and text, as your own would. `qvl train`
learns an adapter from it, with the command that is printed. Then 100 pictures that it never saw, of
combinations that it never saw, are described without the adapter and with it. Beside the style a skill
that has nothing to do with it is asked for: English questions about other pictures.
The table printed last is in examples/new_style.md.
"""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from PIL.Image import Image

from qvl import VLM
from qvl.evals.scores import exact, normal, overlap
from qvl.scenes import draw
from qvl.scenes.asked import answered, request_of, value
from qvl.scenes.kinds import by_key
from qvl.scenes.scene import Split

LEARNT, HELD_OUT, QUESTIONS = 200, 100, 60
SOLD = (
    "cat", "dog", "horse", "cow", "pig", "elephant", "rabbit", "lion", "monkey", "giraffe", "frog", "turtle",
    "duck", "penguin", "fish", "crab", "snail", "butterfly", "apple", "pear", "lemon", "banana", "pineapple",
    "mushroom", "doughnut", "candy", "crown", "hat", "umbrella", "bed", "chair", "candle", "key", "hammer",
    "book", "car", "bus", "tractor", "bicycle", "rocket", "guitar", "drum", "tulip", "cactus",
)  # fmt: skip
TRAIN = ("--model", "sprout", "--epochs", "10", "--rate", "0.002", "--rank", "16", "--batch", "8")


def lines(split: Split, wanted: int) -> Iterator[tuple[Image, str]]:
    """Pictures of one to nine of a thing, and the line of the list that each should have."""
    for seed in count():
        for kind in ("object", "copies"):
            scene = draw(kind, split, seed)
            (things,) = scene.things
            if things[0].what in SOLD:
                yield (
                    scene.pictures[0],
                    f"{by_key()[things[0].what].ru}, {len(things)}",
                )
                wanted -= 1
                if not wanted:
                    return


def write(folder: Path, name: str, split: Split, wanted: int) -> list[tuple[Path, str]]:
    """NAME.csv, and its pictures beside it."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (picture, text) in enumerate(lines(split, wanted)):
        file = folder / name / f"{number}.png"
        picture.save(file)
        rows.append((file, text))
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as table:
        out = csv.writer(table)
        out.writerow(("image", "text"))
        out.writerows((file.relative_to(folder), text) for file, text in rows)
    return rows


def style_scores(vlm: VLM, rows: list[tuple[Path, str]]) -> tuple[float, float]:
    """The share of texts that are right as a whole, and the mean F1 over their characters."""
    pairs = [(vlm.describe(file, language="ru").text, true) for file, true in rows]
    right = sum(exact(told, true) for told, true in pairs)
    characters = sum(overlap(normal(told), normal(true)).f1 for told, true in pairs)
    return right / len(pairs), characters / len(pairs)


def questions_right(vlm: VLM) -> float:
    """Of short English questions about pictures: what is it, and how many are there?"""
    asked = []
    for seed in count():
        for kind in ("object", "copies"):
            scene = draw(kind, "held-out", seed)
            asked += [
                (scene, job)
                for job in scene.jobs
                if job.skill in ("name", "count") and job.options["language"] == "en"
            ]
        if len(asked) >= QUESTIONS:
            break
    right = 0
    for scene, job in asked:
        (said,) = vlm.generate([request_of(job, scene)])
        right += value(job, answered(job, scene, said.text)) == job.truth
    return right / len(asked)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out/new_style")
    data = write(folder, "train", "train", LEARNT)
    held = write(folder, "held_out", "held-out", HELD_OUT)
    plain = VLM("sprout")
    before = style_scores(plain, held), questions_right(plain)

    command = ("qvl", "train", str(folder / "train.csv"), "--out", str(folder / "run"), *TRAIN)
    print(f"{len(data)} rows such as {data[0][1]!r}\n$ {shlex.join(command)}", file=sys.stderr)
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-m", *command], check=True, stdout=sys.stderr)
    minutes = (time.monotonic() - began_s) / 60

    vlm = VLM("sprout", adapters={"stock": folder / "run" / "adapter"})
    adapted = vlm.using("stock")
    after = style_scores(adapted, held), questions_right(adapted)
    without = style_scores(vlm, held), questions_right(vlm)
    print("| | exact | F1 over characters | other questions right |\n|---|---|---|---|")
    for name, (style, others) in {
        "before": before,
        "after, with the adapter": after,
        "after, without it": without,
    }.items():
        print(f"| {name} | {style[0]:.2f} | {style[1]:.3f} | {others:.2f} |")
    print(f"\nLearnt from {len(data)} pictures in {minutes:.1f} minutes.")


if __name__ == "__main__":
    main()
