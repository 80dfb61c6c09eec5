"""What `sprout` learns from: scenes drawn on the fly, each with several jobs that see not one another.

Main path: Lessons[step] -> scenes (qvl.scenes) -> requests as the product makes them -> one Lesson.
Lesson number `step` depends on the seed and the stage of reading alone, so a resumed run sees the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from qvl import scenes
from qvl.errors import QvlError
from qvl.loading.model import read_parts
from qvl.processing.image import Picture
from qvl.scenes.asked import request_of, seen_of
from qvl.scenes.canvas import SIDES
from qvl.scenes.scene import Job, Scene, Thing
from qvl.scenes.text import STAGES
from qvl.training.dense import CellTruth, cells_of, unknown_cells
from qvl.training.examples import IGNORE, Encoder, Example, joined
from qvl.training.passes import Passage, collate
from qvl.training.rows import Row
from qvl.types import Image, Message, Text

JOBS = 4  # about each scene, of those that it has
LONGEST = 1200  # tokens of a scene with its jobs
READING = 0.4  # of all scenes, are lines of text
LATER = 0.25  # of these lines, are of the stages before
PAPERS_FROM = 6  # the stage of reading from which whole papers are shown


@dataclass(frozen=True, slots=True)
class Said:
    """An answer in a lesson: where its tokens are among the targets, and what it is a sign of."""

    first: int
    last: int
    kind: str
    skill: str


@dataclass(frozen=True, slots=True)
class Pointing:
    """Tokens at [N], and the boxes [N, 4] that they are about, as shares of the picture's sides."""

    at: Tensor
    boxes: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """`weights` [N] of the passage's targets: every answer counts the same; `cells` of all V visual
    tokens; the last tokens of names in questions, and the tokens before the answers about one of them.
    """

    passage: Passage
    rows: Tensor  # [S, C]
    grids: tuple[tuple[int, int, int], ...]
    weights: Tensor
    said: tuple[Said, ...]
    cells: CellTruth
    nouns: Pointing
    answers: Pointing


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """One scene with its jobs as one example, and what is known of it."""

    example: Example
    weights: np.ndarray  # [T]
    said: tuple[tuple[str, int], ...]  # skill and tokens of each answer, in order
    kind: str
    cells: tuple[np.ndarray, ...]
    nouns: tuple[tuple[int, np.ndarray], ...]
    answers: tuple[tuple[int, np.ndarray], ...]


class Lessons(Dataset):
    """`pictures` scenes a step for the checkpoint in `folder`; `stage` is that of reading (scenes.text)."""

    def __init__(self, folder: Path, *, seed: int, pictures: int, stage: int) -> None:
        self.folder, self.seed, self.pictures, self.stage = folder, seed, pictures, stage

    def __getitem__(self, index: int) -> Lesson:
        rng = random.Random(f"{self.seed}/{index}/{self.stage}")
        drawn: list[Drawn] = []
        size = (
            rng.choice(SIDES),
            rng.choice(SIDES),
        )  # of a step: pictures of one are computed together
        while len(drawn) < self.pictures:
            kind = pick(self.stage, rng)
            own = kind in scenes.documents.KINDS  # print needs room
            scene = scenes.draw(kind, "train", rng.getrandbits(48), None if own else size)
            if (one := taught(scene, chosen(scene.jobs, rng), self.folder)) is not None:
                drawn.append(one)
        return together(drawn)


@cache
def weights_of(stage: int) -> Mapping[str, float]:
    """How often each kind of scene is shown while reading is at that stage."""
    lines = {f"text-{n}" for n in range(len(STAGES))}
    papers = set(scenes.documents.KINDS) - lines
    rest = {k: w for k, (_, w) in scenes.KINDS.items() if k not in lines}
    if stage < PAPERS_FROM:
        rest = {k: w for k, w in rest.items() if k not in papers}
    whole = sum(rest.values())
    shares = {k: (1 - READING) * w / whole for k, w in rest.items()}
    shares[f"text-{stage}"] = READING * (1 - LATER if stage else 1)
    for earlier in range(stage):
        shares[f"text-{earlier}"] = READING * LATER / stage
    return shares


def pick(stage: int, rng: random.Random) -> str:
    shares = weights_of(stage)
    return rng.choices(list(shares), list(shares.values()))[0]


def chosen(jobs: Sequence[Job], rng: random.Random) -> list[Job]:
    """Some of a scene's jobs, of different skills as far as there are."""
    order = rng.sample(list(jobs), len(jobs))
    seen: dict[str, int] = {}
    ranked = []
    for job in order:
        seen[job.skill] = seen.get(job.skill, 0) + 1
        ranked.append((seen[job.skill], job))
    ranked.sort(key=lambda pair: pair[0])
    return [job for _, job in ranked[:JOBS]]


@cache
def tools(folder: Path) -> tuple[Encoder, Tokenizer]:
    return Encoder(read_parts(folder), thinks=False), Tokenizer.from_file(
        str(folder / "tokenizer.json")
    )


def taught(scene: Scene, jobs: Sequence[Job], folder: Path) -> Drawn | None:
    """The scene and its jobs as one example; None for one that is too long."""
    encoder, tokenizer = tools(folder)
    named = {f"picture {n}": picture for n, picture in enumerate(scene.pictures, start=1)}
    seen = seen_of(scene, [Image(name.encode(), name) for name in named])

    def read(image: Image) -> Picture:
        return Picture(np.asarray(named[image.name]), image.name, image.name, ())

    own = replace(encoder, read=read)
    examples, asked = [], []
    total = 0
    for job in jobs:
        request = request_of(job, scene, seen)
        answer = Message("assistant", (Text(job.answer),))
        try:
            example = own.example(Row(scene.kind, (*request.messages, answer)))
        except QvlError:
            return None
        behind = len(example.ids) - (end_of_pictures(example) if examples else 0)
        if total + behind <= LONGEST:
            total += behind
            examples.append(example)
            asked.append((job, request.messages[-1]))
    if not examples:
        return None
    try:
        whole = joined(examples)
    except QvlError:  # something else than the picture comes first
        examples, asked = examples[:1], asked[:1]
        whole = examples[0]
    shared = int((whole.branch == 0).sum()) if len(examples) > 1 else len(whole.ids)
    weights, nouns, answers = [], [], []
    offset = shared
    for example, (job, message) in zip(examples, asked, strict=True):
        weights.append(np.where(example.targets != IGNORE, 1 / max(1, example.said), 0.0))

        def place(at: int, offset: int = offset) -> int:
            return at if at < shared else offset + at - shared

        if not scene.times_s and len(scene.pictures) == 1:
            size = scene.pictures[0].size * 2
            for at, thing in noun_ends(job, message, example, tokenizer):
                nouns.append((place(at), np.array(thing.box) / size))
            if job.about:
                before = int((example.targets != IGNORE).argmax())
                answers.append((place(before), np.array(job.about[0][1].box) / size))
        offset += len(example.ids) - shared
    return Drawn(
        whole,
        np.concatenate([weights[0][:shared], *(w[shared:] for w in weights)]),
        tuple((job.skill, e.said) for e, (job, _) in zip(examples, asked, strict=True)),
        scene.kind,
        cells(scene, whole),
        tuple(nouns),
        tuple(answers),
    )


def end_of_pictures(example: Example) -> int:
    return max((i.start + i.tokens for i in example.images), default=0)


def noun_ends(
    job: Job, message: Message, example: Example, tokenizer: Tokenizer
) -> Iterator[tuple[int, Thing]]:
    """The last token of every name in the question, and what it names."""
    texts = [part.text for part in message.content if isinstance(part, Text)]
    if not job.about or len(texts) != 1:
        return
    encoding = tokenizer.encode(texts[0], add_special_tokens=False)
    first, after = end_of_pictures(example) + 1, 0
    for words, thing in job.about:
        found = texts[0].find(words, after)
        if found < 0:
            continue
        after = found + len(words)
        token = encoding.char_to_token(after - 1)
        if token is not None:
            yield first + token, thing


def cells(scene: Scene, example: Example) -> tuple[np.ndarray, ...]:
    """The truth about every visual token of the scene."""
    parts = []
    for number, image in enumerate(example.images):
        _, rows, columns = image.patches.grid
        if scene.times_s or len(example.images) != len(scene.pictures):
            parts.append(unknown_cells(image.tokens))
            continue
        size = scene.pictures[number].size
        parts.append(cells_of(scene.things[number], size, rows // 2, columns // 2))
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def together(drawn: Sequence[Drawn]) -> Lesson:
    passage = collate([one.example for one in drawn])
    starts = passage.bounds
    weights = np.concatenate([one.weights for one in drawn])
    said, first = [], 0
    for one in drawn:
        for skill, count in one.said:
            said.append(Said(first, first + count, one.kind, skill))
            first += count
    return Lesson(
        passage=replace(passage, images=()),
        rows=torch.from_numpy(np.concatenate([i.patches.rows for i in passage.images])),
        grids=tuple(image.patches.grid for image in passage.images),
        weights=torch.from_numpy(weights).float()[passage.wanted],
        said=tuple(said),
        cells=CellTruth(
            *(
                torch.from_numpy(np.concatenate(arrays))
                for arrays in zip(*(one.cells for one in drawn), strict=True)
            )
        ),
        nouns=pointing([one.nouns for one in drawn], starts),
        answers=pointing([one.answers for one in drawn], starts),
    )


def pointing(found: Sequence[Sequence[tuple[int, np.ndarray]]], starts: Sequence[int]) -> Pointing:
    at = [
        start + token for tokens, start in zip(found, starts, strict=False) for token, _ in tokens
    ]
    boxes = [box for tokens in found for _, box in tokens]
    box_n4 = torch.tensor(np.array(boxes), dtype=torch.float32).view(-1, 4)
    return Pointing(torch.tensor(at, dtype=torch.long), box_n4)
