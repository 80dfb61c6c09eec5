"""A scene: pictures, what stands in them, and jobs about them with their true answers.

Main path: qvl.scenes.draw(kind, split, seed) -> Scene; asked.request_of(job, scene) -> what the product
asks.
The same kind, split and seed always give the same scene. A fifth of all combinations (`held_out`) never
occurs in training, and one drawing style is kept for the split "style" alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

Split = Literal["train", "held-out", "style"]
PixelBox = tuple[float, float, float, float]  # x1, y1, x2, y2


@dataclass(frozen=True, slots=True)
class Thing:
    """Something drawn, and its box in pixels: what it is (the key of an object, the name of a shape, or
    a printed text), its colour by its English name, the letters of a text with their places.
    """

    what: str
    box: PixelBox
    colour: str | None = None
    letters: tuple[tuple[str, PixelBox], ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """One of the product's tasks about a scene, and what a perfect model answers.

    `options` are the task's own, as its JSON body has them (language among them), so that the job can
    be asked through any door; `answer` is the text that the model should write, in the form that the
    task reads; `truth` is what a scorer compares `asked.value` of the task's result with; `skill` names
    the row of the table that it is scored in. `about`: words of the question, in order, and what they
    name.

    `facts` are pieces of a free text that carry its truth: a text in other words is right if it has
    them all, whatever their case. `before` are the answers to what the task asks before the question
    that the job is about: of `moderate` the broken rule, where the job is to give the reason.
    """

    task: str
    options: Mapping[str, Any]
    answer: str
    truth: Any
    skill: str
    about: tuple[tuple[str, Thing], ...] = ()
    facts: tuple[str, ...] = ()
    before: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scene:
    """`things` has one tuple for each picture; `times_s` are those of the frames of a clip."""

    kind: str
    pictures: tuple[Image.Image, ...]
    things: tuple[tuple[Thing, ...], ...]
    jobs: tuple[Job, ...]
    times_s: tuple[float, ...] = field(default=())


def held_out(*combination: object) -> bool:
    digest = hashlib.sha256("|".join(map(str, combination)).encode()).digest()
    return digest[0] % 5 == 0


def belongs(split: Split, *combination: object) -> bool:
    """Whether scenes of this split may show the combination."""
    return held_out(*combination) == (split == "held-out")
