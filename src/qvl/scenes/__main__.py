"""`python -m qvl.scenes FOLDER`: scenes as pictures and a file of OpenAI messages, to look at and train on."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qvl.scenes import KINDS, draw
from qvl.scenes.asked import request_of, seen_of
from qvl.scenes.scene import Scene
from qvl.types import Text, Video


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m qvl.scenes", description=__doc__)
    parser.add_argument("folder", type=Path, help="where pictures/ and rows.jsonl are written")
    parser.add_argument("--kind", choices=sorted(KINDS), help="draw this kind alone")
    parser.add_argument("--count", type=int, default=100, help="scenes (100)")
    parser.add_argument("--split", choices=("train", "held-out", "style"), default="train")
    parser.add_argument("--seed", type=int, default=0, help="of the first scene (0)")
    given = parser.parse_args(arguments)
    (given.folder / "pictures").mkdir(parents=True, exist_ok=True)
    with (given.folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for seed in range(given.seed, given.seed + given.count):
            kind = given.kind or drawn_kind(seed)
            scene = draw(kind, given.split, seed)
            names = saved(scene, given.folder, f"{kind}-{seed}")
            for row in rows(scene, names, f"{kind}-{seed}"):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def drawn_kind(seed: int) -> str:
    """One of KINDS by their weights."""
    weights = [weight for _, weight in KINDS.values()]
    return random.Random(f"kind/{seed}").choices(list(KINDS), weights)[0]


def saved(scene: Scene, folder: Path, name: str) -> list[str]:
    """The pictures' paths within the folder."""
    names = [f"pictures/{name}-{number}.png" for number in range(1, len(scene.pictures) + 1)]
    for picture, path in zip(scene.pictures, names, strict=True):
        picture.save(folder / path)
    return names


def rows(scene: Scene, names: Sequence[str], scene_id: str) -> Iterator[dict[str, Any]]:
    """A row for each job: what is asked, with the pictures where they stand, and the answer.

    A clip is its frames, one after another.
    """
    seen = seen_of(scene)
    for number, job in enumerate(scene.jobs, start=1):
        request = request_of(job, scene, seen)
        parts: list[dict[str, Any]] = []
        for part in request.messages[-1].content:
            if isinstance(part, Text):
                parts.append({"type": "text", "text": part.text})
            elif isinstance(part, Video):
                parts += [shown(name) for name in names]
            else:
                parts.append(shown(names[seen.index(part)]))
        yield {
            "id": f"{scene_id}-{number}-{job.skill}",
            "messages": [
                {"role": "user", "content": parts},
                {"role": "assistant", "content": job.answer},
            ],
        }


def shown(name: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": name}}


if __name__ == "__main__":
    main()
