"""How well the embedded model does its job: held-out scenes, each question alone, decoded freely.

Scenes come from a seed of their own and only from combinations that training never drew (see
qvl.training.scenes). Every question goes through the product's own door, greedy.
Run: python -m benchmarks.sprout_scores [--scenes 500] [--model FOLDER]
Prints a table (share right by question kind and language); exit code 1 when a figure is below its bar.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from qvl.api import VLM
from qvl.errors import QvlError
from qvl.tasks.boxes import parse_boxes
from qvl.tasks.prompts import wording
from qvl.training.batches import Asked, ask, scored_scenes
from qvl.training.phrases import LANGUAGES, OPPOSITE, Kind, placed, sentence
from qvl.training.scenes import Scene
from qvl.types import Box, Completion, Image, Message, Request, Sampling

BARS = {
    "name": 0.95,
    "colour": 0.97,
    "count": 0.90,
    "relation": 0.85,
    "box": 0.85,
    "read": 0.60,
    "describe": 0.80,
}
GREEDY = Sampling(temperature=0, max_new_tokens=64)


@dataclass(frozen=True, slots=True)
class Case:
    scene: Scene
    asked: Asked
    request: Request


def cases(kind: str, language: str, scenes: int, seed: int) -> Iterator[Case]:
    rng = random.Random(f"asked/{kind}/{language}/{seed}")
    for number, scene in enumerate(scored_scenes(kind, "held-out", scenes, seed)):
        asked = ask(kind, scene, language, rng)
        question = wording("describe", "plain", language) if kind == "describe" else asked.question
        image = Image(png(scene), f"{kind}-{number}")
        message = Message.user(image, question)
        yield Case(scene, asked, Request(messages=(message,), sampling=GREEDY, id=image.name))


def png(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    scene.picture.save(buffer, "PNG")
    return buffer.getvalue()


def is_right(case: Case, completion: Completion) -> bool:
    scene, asked = case.scene, case.asked
    if asked.kind == "box":
        return box_is_right(case, completion)
    if asked.kind == "describe":
        return normal(completion.text) in {normal(text) for text in true_descriptions(case)}
    return normal(completion.text) == normal(asked.answer) and bool(scene.things)


def true_descriptions(case: Case) -> Iterator[str]:
    """Both objects and their relation, told from either side."""
    (first, second), language = case.scene.things, case.asked.language
    if isinstance(first.what, Kind) and isinstance(second.what, Kind):
        relation = case.scene.relation
        yield sentence(placed(first.what, relation, second.what, language), language)
        yield sentence(placed(second.what, OPPOSITE[relation], first.what, language), language)


def box_is_right(case: Case, completion: Completion) -> bool:
    info = completion.provenance.images[0]
    found = parse_boxes(completion.text, info, generation="qwen3_vl")
    true = parse_boxes(case.asked.answer, info, generation="qwen3_vl")[0]
    return bool(found) and overlap(found[0], true) >= 0.5


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = max(0.0, min(a.x2, b.x2) - max(a.x1, b.x1))
    height = max(0.0, min(a.y2, b.y2) - max(a.y1, b.y1))
    both = width * height
    areas = (a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1)
    return both / (areas - both)


def normal(text: str) -> str:
    return text.strip().rstrip(".。").lower().replace("ё", "е")


def share_right(model: VLM, kind: str, language: str, scenes: int, seed: int) -> float:
    asked = list(cases(kind, language, scenes, seed))
    right = 0
    results = model.results(case.request for case in asked)
    for case, result in zip(asked, results, strict=True):
        if isinstance(result, QvlError):
            raise result
        right += is_right(case, result)
    return right / len(asked)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=500, help="for each kind and language")
    parser.add_argument("--model", default="sprout")
    parser.add_argument("--seed", type=int, default=2026)
    args = parser.parse_args()
    model = VLM(args.model)
    print(f"{args.scenes} held-out scenes for each kind and language, seed {args.seed}")
    print(f"{'question':<10} {'bar':>5} " + " ".join(f"{code:>6}" for code in LANGUAGES))
    below = False
    for kind, bar in BARS.items():
        began_s = time.monotonic()
        shares = [share_right(model, kind, code, args.scenes, args.seed) for code in LANGUAGES]
        below |= min(shares) < bar
        figures = " ".join(f"{share:>6.3f}" for share in shares)
        note = "" if min(shares) >= bar else "  below its bar"
        print(f"{kind:<10} {bar:>5.2f} {figures}  ({time.monotonic() - began_s:.0f} s){note}")
    return int(below)


if __name__ == "__main__":
    sys.exit(main())
