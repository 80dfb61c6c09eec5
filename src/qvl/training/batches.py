"""Training batches: pictures with several independent questions each, under one mask.

Every picture is one row of L tokens: the prompt's beginning with the visual tokens, then for each
question a branch (question, answer) that sees the beginning and itself, never another branch, so an
answer cannot be copied from an earlier turn. Positions of every branch go on from the picture.
Batch number `step` depends on the seed and on nothing else, so a resumed run sees the same data.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from qvl.processing.patches import PixelRules, to_patches
from qvl.training.dense import CellTruth, cell_truth
from qvl.training.phrases import (
    LANGUAGES,
    OPPOSITE,
    QUESTIONS,
    RELATION_ANSWER,
    Kind,
    Shape,
    box_answer,
    coloured,
    counted,
    describe_question,
    description,
    kind_name,
    name_of,
    placed,
    printed,
    relation_question,
    second_name,
)
from qvl.training.scenes import SCENE_KINDS, Scene, Split, Thing, draw
from qvl.training.vocabulary import token_id

PATCH_PX, MERGE = 16, 2
RULES = PixelRules(
    patch_px=PATCH_PX,
    merge=MERGE,
    temporal_patch=2,
    min_px=128 * 128,
    max_px=192 * 192,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
SIDES = (128, 160, 160, 192)
IGNORE = -100


@dataclass(frozen=True, slots=True)
class Asked:
    """One question about a scene, its true answer and what it tests.

    Without an answer the question only names things. named: (words, thing) in the question's order.
    """

    kind: str
    language: str
    question: str
    answer: str
    named: tuple[tuple[str, Thing], ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """T packed tokens about B pictures of one size.

    rows [S, C] patch rows; ids [T], positions [3, T]; branch [T] (0 the beginning, then 1, 2, ...);
    targets [T], the next token where it is part of an answer, else -100, and what it counts in the
    loss; lengths of the B rows; what stands under each visual token; the last tokens of things'
    names in questions, and the tokens before the answers that are about one of them.
    """

    rows: Tensor
    grid: tuple[int, int, int]
    ids: Tensor
    positions: Tensor
    branch: Tensor
    targets: Tensor
    weights: Tensor
    vision_at: Tensor
    lengths: tuple[int, ...]
    cells: CellTruth
    nouns: Pointing
    answers: Pointing


@dataclass(frozen=True, slots=True)
class Pointing:
    """Tokens at [N], and the boxes [N, 4] that they are about, as shares of the picture's sides."""

    at: Tensor
    boxes: Tensor


@dataclass(slots=True)
class Row:
    """The tokens of one picture with its questions; the fields are Batch's, and count from here."""

    ids: list[int]
    positions: list[np.ndarray]
    branch: list[int]
    targets: list[int]
    weights: list[float]
    nouns: list[tuple[int, Thing]]
    answers: list[tuple[int, Thing]]


def phrase_of(scene: Scene, language: str) -> str:
    """What the scene shows, as a noun phrase."""
    first = scene.things[0]
    if scene.kind == "word":
        return printed(" ".join(str(thing.what) for thing in scene.things), language)
    if isinstance(first.what, Shape) and first.colour is not None:
        return coloured(first.what, first.colour, language)
    if not isinstance(first.what, Kind):
        raise TypeError(f"a {scene.kind} scene without an object")
    if scene.kind != "pair":
        return counted(first.what, len(scene.things), language)
    other = scene.things[1].what
    relation = scene.relation
    if not isinstance(other, Kind):
        raise TypeError("a pair scene without two objects")
    if relation % 2:  # told from the left or upper one, so that a scene has one true wording
        return placed(other, OPPOSITE[relation], first.what, language)
    return placed(first.what, relation, other, language)


def reading_order(scene: Scene, thing: Thing) -> tuple[float, float]:
    """Top to bottom for lines of text and things above each other, left to right otherwise."""
    x, y = (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2
    return (y, x) if scene.relation >= 2 or scene.kind == "word" else (x, y)


def ask_describe(scene: Scene, language: str, rng: random.Random) -> Asked:
    style, question = describe_question(language, rng)
    answer = description(phrase_of(scene, language), style, language)
    return Asked("describe", language, question, answer)


def mention(thing: Thing, language: str, rng: random.Random) -> Asked:
    """The question for a thing's box, unanswered."""
    label = name_of(thing.what, language)
    question = rng.choice(QUESTIONS["box"][language]).format(a=label)
    return Asked("mention", language, question, "", ((label, thing),))


def ask(kind: str, scene: Scene, language: str, rng: random.Random) -> Asked:
    """The question `kind` about the scene, in one of its wordings."""
    if kind == "describe":
        return ask_describe(scene, language, rng)
    first = scene.things[0]
    if kind == "relation":
        one, other, relation = first, scene.things[1], scene.relation
        if rng.random() < 0.5:
            one, other, relation = other, one, OPPOSITE[relation]
        a, b = one.what, other.what
        if not (isinstance(a, Kind) and isinstance(b, Kind)):
            raise TypeError("a relation needs two objects")
        question = relation_question(a, b, language, rng)
        named = ((kind_name(a, language), one), (second_name(b, language), other))
        return Asked(kind, language, question, RELATION_ANSWER[language][relation], named)
    if kind == "place":
        kind = rng.choice(("box", "boxes"))
    wording = rng.choice(QUESTIONS[kind][language])
    if kind == "boxes":
        things = sorted(scene.things, key=lambda t: reading_order(scene, t))
        found = [(name_of(t.what, language), scene.box_1000(t)) for t in things]
        return Asked(kind, language, wording, box_answer(found))
    if kind == "box":
        thing = rng.choice(scene.things)
        answer = box_answer([(name_of(thing.what, language), scene.box_1000(thing))])
        return replace(mention(thing, language, rng), kind=kind, answer=answer)
    if kind == "count":
        return Asked(kind, language, wording, str(len(scene.things)))
    if kind == "read":
        return Asked(kind, language, wording, "\n".join(str(t.what) for t in scene.things))
    if kind == "colour" and first.colour is not None:
        colour = first.colour
        answer = {"en": colour.en, "ru": colour.ru[0], "zh": colour.zh}[language]
        return Asked(kind, language, wording, answer)
    return Asked(kind, language, wording, name_of(first.what, language))


# what is asked about each kind of scene in training; languages are drawn for each question
TRAINING_QUESTIONS: dict[str, tuple[str, ...]] = {
    "single": ("name", "describe", "place", "count"),
    "copies": ("count", "count", "describe", "name"),
    "crowd": ("count", "count", "box", "mentions", "mentions"),
    "mixed": ("count", "count"),
    "pair": ("relation", "relation", "relation", "describe", "box", "mentions"),
    "shape": ("colour", "describe", "name", "place"),
    "silhouette": ("colour", "colour"),
    "word": ("read", "read", "describe", "box"),
}
# how often each of SCENE_KINDS is drawn where nothing is asked: letters need the most to be learnt,
# and stay learnt while counting takes their place (they had 82 of 100 until it did)
LOOKED_AT = (8, 20, 14, 32, 10, 4, 2, 10)
LOOKED_EVERY = 4  # batches; 2 while reading was learnt
# the same table for scoring: question kind -> the kinds of scene it is asked about
SCORED_ON: dict[str, tuple[str, ...]] = {
    "name": ("single",),
    "colour": ("shape",),
    "count": ("single", "copies"),
    "relation": ("pair",),
    "box": ("single", "pair"),
    "read": ("word",),
    "describe": ("pair",),
}


class Packer(Dataset[Batch]):
    """Builds batch number `step`; holds the tokenizer and the ids of the template.

    Batches ask about `pictures` scenes, every LOOKED_EVERY-th one only shows twice as many.
    """

    def __init__(self, tokenizer: Tokenizer, *, seed: int, pictures: int) -> None:
        self.tokenizer, self.seed, self.pictures = tokenizer, seed, pictures
        self.image_pad = token_id(tokenizer, "<|image_pad|>")
        self.end = tokenizer.encode("<|im_end|>").ids

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def __getitem__(self, index: int) -> Batch:
        rng = random.Random(f"{self.seed}/{index}")
        size = (rng.choice(SIDES), rng.choice(SIDES))
        if (
            index % LOOKED_EVERY == LOOKED_EVERY - 1
        ):  # a step that trains the tower alone, for half the price of a picture
            drawn = rng.choices(SCENE_KINDS, LOOKED_AT, k=2 * self.pictures)
            scenes = [draw("train", rng, size=size, kind=kind) for kind in drawn]
            return self.pack(scenes, [[] for _ in scenes])
        scenes = [draw("train", rng, size=size) for _ in range(self.pictures)]
        return self.pack(scenes, [self.questions(scene, rng) for scene in scenes])

    @staticmethod
    def questions(scene: Scene, rng: random.Random) -> list[Asked]:
        out: list[Asked] = []
        for kind in TRAINING_QUESTIONS[scene.kind]:
            if kind == "mentions":
                out += [mention(thing, rng.choice(LANGUAGES), rng) for thing in scene.things]
            else:
                out.append(ask(kind, scene, rng.choice(LANGUAGES), rng))
        return out

    def pack(self, scenes: list[Scene], asked: list[list[Asked]]) -> Batch:
        patches = [to_patches(np.asarray(scene.picture), RULES) for scene in scenes]
        grid = patches[0].grid
        head = self.encode("<|im_start|>user\n<|vision_start|>")
        gh, gw = grid[1] // MERGE, grid[2] // MERGE
        beginning = [*head, *[self.image_pad] * (gh * gw), *self.encode("<|vision_end|>")]
        start = len(head)
        cells = np.indices((1, gh, gw)).reshape(3, -1) + start
        after = start + max(gh, gw)
        place = np.concatenate(
            [np.tile(np.arange(start), (3, 1)), cells, np.full((3, 1), after)], axis=1
        )
        lines = [self.row(beginning, place, after + 1, questions) for questions in asked]
        lengths = tuple(len(line.ids) for line in lines)
        starts = np.cumsum((0, *lengths[:-1]))
        at = np.arange(gh * gw)[None] + (starts + start)[:, None]
        return Batch(
            rows=torch.from_numpy(np.concatenate([p.rows for p in patches])),
            grid=grid,
            ids=torch.tensor([i for line in lines for i in line.ids]),
            positions=torch.from_numpy(
                np.concatenate([part for line in lines for part in line.positions], axis=1)
            ),
            branch=torch.tensor([i for line in lines for i in line.branch]),
            targets=torch.tensor([i for line in lines for i in line.targets]),
            weights=torch.tensor([w for line in lines for w in line.weights]),
            vision_at=torch.from_numpy(at.reshape(-1)),
            lengths=lengths,
            cells=cell_truth(scenes, gh, gw),
            nouns=pointing([line.nouns for line in lines], starts, scenes),
            answers=pointing([line.answers for line in lines], starts, scenes),
        )

    def row(
        self, beginning: list[int], place: np.ndarray, following: int, asked: list[Asked]
    ) -> Row:
        size = len(beginning)
        row = Row(list(beginning), [place], [0] * size, [IGNORE] * size, [0.0] * size, [], [])
        for number, item in enumerate(asked, start=1):
            question = self.tokenizer.encode(item.question)
            row.nouns += [(len(row.ids) + at, thing) for at, thing in noun_ends(question, item)]
            prompt = list(question.ids)
            answer: list[int] = []
            if item.answer:
                prompt += self.encode("<|im_end|>\n<|im_start|>assistant\n")
                answer = self.encode(item.answer) + self.end
            length = len(prompt) + len(answer)
            if item.answer and item.named:
                row.answers.append((len(row.ids) + len(prompt) - 1, item.named[0][1]))
            row.ids += prompt + answer
            row.branch += [number] * length
            row.targets += [IGNORE] * (len(prompt) - 1) + answer + [IGNORE]
            # every answer counts the same: else the digits of boxes, thirty tokens an answer,
            # outweigh the one word that says left or right
            row.weights += [1 / max(1, len(answer))] * length
            row.positions.append(np.tile(following + np.arange(length), (3, 1)))
        return row


def noun_ends(question: Encoding, asked: Asked) -> list[tuple[int, Thing]]:
    """The last token of every name in the question, and what it names."""
    ends, after = [], 0
    for words, thing in asked.named:
        after = asked.question.index(words, after) + len(words)
        ends.append((question.char_to_token(after - 1), thing))
    return ends


def pointing(
    found: Sequence[Sequence[tuple[int, Thing]]], starts: np.ndarray, scenes: Sequence[Scene]
) -> Pointing:
    """What was found in each row, which begin at `starts`."""
    at, boxes = [], []
    for row, start, scene in zip(found, starts, scenes, strict=True):
        at += [int(start) + token for token, _ in row]
        boxes += [np.array(thing.box) / (scene.picture.size * 2) for _, thing in row]
    box_n4 = torch.tensor(np.array(boxes), dtype=torch.float32).view(-1, 4)
    return Pointing(torch.tensor(at, dtype=torch.long), box_n4)


def scored_scenes(kind: str, split: Split, count: int, seed: int) -> list[Scene]:
    """`count` scenes for the question kind, from a seed of their own."""
    rng = random.Random(f"scored/{kind}/{split}/{seed}")
    on = [k for k in SCENE_KINDS if k in SCORED_ON[kind]]
    sizes = [(rng.choice(SIDES), rng.choice(SIDES)) for _ in range(count)]
    weights = [5 if k == "copies" else 1 for k in on]  # counts 1 to 6 alike: one in six is a single
    return [draw(split, rng, size=s, kind=rng.choices(on, weights)[0]) for s in sizes]
