"""Scenes with known truth: drawn objects, copies of one, pairs, plain shapes, printed words.

Main path: draw(split, rng) -> Scene. A fifth of all combinations (which two objects and how, how
many of what, which colour on which shape, which word in which face, which object on which
background) never occurs in training: `held_out` splits them by hash, and a held-out scene uses
only such combinations.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from qvl.training.phrases import COLOURS, DATA, SHAPES, Colour, Kind, Shape, kinds, words

Split = Literal["train", "held-out"]
SceneKind = Literal["single", "copies", "crowd", "mixed", "pair", "shape", "silhouette", "word"]
SCENE_KINDS: tuple[SceneKind, ...] = get_args(SceneKind)
CELL_PX = 96
FACES = (
    "sans.ttf",
    "sans-bold.ttf",
    "serif.ttf",
    "serif-bold.ttf",
    "mono-bold.ttf",
    "sans-condensed-bold.ttf",
)
BACKGROUNDS = (  # light, so that every colour of COLOURS stands out
    (255, 255, 255),
    (236, 236, 238),
    (245, 238, 220),
    (222, 236, 250),
    (226, 244, 224),
    (250, 228, 232),
    (214, 214, 220),
    (240, 232, 250),
)
PixelBox = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Thing:
    """A drawn object and its box in pixels."""

    what: Kind | Shape | str
    box: PixelBox
    colour: Colour | None = None
    letters: tuple[tuple[str, PixelBox], ...] = ()  # of a printed text, with their places


@dataclass(frozen=True, slots=True)
class Scene:
    kind: SceneKind
    picture: Image.Image
    things: tuple[Thing, ...]
    relation: int = -1  # of things[0] to things[1], index into phrases.RELATIONS

    def box_1000(self, thing: Thing) -> tuple[int, int, int, int]:
        """The thing's box on the 0..1000 grid, in steps of ten."""
        width, height = self.picture.size
        scaled = (v / side * 100 for v, side in zip(thing.box, (width, height) * 2, strict=True))
        x1, y1, x2, y2 = (min(99, max(0, round(v))) * 10 for v in scaled)
        return x1, y1, x2, y2


def held_out(*combination: object) -> bool:
    digest = hashlib.sha256("|".join(map(str, combination)).encode()).digest()
    return digest[0] % 5 == 0


def belongs(split: Split, *combination: object) -> bool:
    """Whether scenes of this split may show the combination."""
    return held_out(*combination) == (split == "held-out")


@cache
def sprites() -> dict[str, Image.Image]:
    """Every object's glyph, cropped to what is visible."""
    with (DATA / "sprites.png").open("rb") as file:
        atlas = Image.open(file).convert("RGBA")
    with (DATA / "objects.tsv").open(encoding="utf-8") as lines:
        keys = [row["key"] for row in csv.DictReader(lines, delimiter="\t")]
    columns = atlas.width // CELL_PX
    out = {}
    for index, key in enumerate(keys):
        left, top = index % columns * CELL_PX, index // columns * CELL_PX
        cell = atlas.crop((left, top, left + CELL_PX, top + CELL_PX))
        out[key] = cell.crop(cell.getchannel("A").getbbox())
    return out


def draw(
    split: Split,
    rng: random.Random,
    *,
    size: tuple[int, int],
    kind: SceneKind | None = None,
) -> Scene:
    """A scene of `size` (width, height) pixels; the same rng state gives the same scene."""
    kind = kind or rng.choices(SCENE_KINDS, weights=(6, 22, 12, 32, 12, 5, 3, 8))[0]
    return DRAW[kind](split, rng, size)


def background(rng: random.Random, size: tuple[int, int], index: int) -> Image.Image:
    """A light colour, in a third of the cases a gradient to another, with a little noise."""
    base = np.array(BACKGROUNDS[index], dtype=np.float32)
    width, height = size
    pixels = np.broadcast_to(base, (height, width, 3)).copy()
    if rng.random() < 0.35:
        other = np.array(rng.choice(BACKGROUNDS), dtype=np.float32)
        ramp = np.linspace(0, 1, height if rng.random() < 0.5 else width, dtype=np.float32)
        ramp = ramp[:, None, None] if len(ramp) == height else ramp[None, :, None]
        pixels += (other - base) * ramp
    if rng.random() < 0.5:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 3, (height, width, 1))
        pixels += noise.astype(np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def sprite(kind: Kind, side_px: int, rng: random.Random) -> Image.Image:
    """The glyph with its longer side `side_px`, sometimes mirrored, a little turned and lit."""
    glyph = sprites()[kind.key]
    if rng.random() < 0.4:
        glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:
        glyph = glyph.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC, expand=True)
        glyph = glyph.crop(glyph.getchannel("A").getbbox())
    scale = side_px / max(glyph.size)
    width, height = (max(8, round(v * scale)) for v in glyph.size)
    glyph = glyph.resize((width, height), Image.Resampling.LANCZOS)
    light = rng.uniform(0.85, 1.1)
    red, green, blue, alpha = glyph.split()
    bands = [band.point(lambda v: min(255, int(v * light))) for band in (red, green, blue)]
    return Image.merge("RGBA", (*bands, alpha))


def paste(canvas: Image.Image, glyph: Image.Image, x: int, y: int) -> PixelBox:
    canvas.paste(glyph, (x, y), glyph)
    return float(x), float(y), float(x + glyph.width), float(y + glyph.height)


def place_anywhere(canvas: Image.Image, glyph: Image.Image, rng: random.Random) -> PixelBox:
    x = rng.randint(0, max(0, canvas.width - glyph.width))
    y = rng.randint(0, max(0, canvas.height - glyph.height))
    return paste(canvas, glyph, x, y)


def draw_single(split: Split, rng: random.Random, size: tuple[int, int]) -> Scene:
    kind = rng.choice(kinds())
    options = [g for g in range(len(BACKGROUNDS)) if belongs(split, "on", kind.key, g)]
    if not options:  # a few objects have no held-out background at all
        return draw_single(split, rng, size)
    ground = rng.choice(options)
    canvas = background(rng, size, ground)
    glyph = sprite(kind, round(min(size) * rng.uniform(0.35, 0.85)), rng)
    return Scene("single", canvas, (Thing(kind, place_anywhere(canvas, glyph, rng)),))


def draw_copies(split: Split, rng: random.Random, size: tuple[int, int]) -> Scene:
    """2 to 6 copies of one object."""
    kind = rng.choice(kinds())
    options = [n for n in range(2, 7) if belongs(split, "n", kind.key, n)]
    if not options:  # a few objects have no held-out number at all
        return draw_copies(split, rng, size)
    return scattered("copies", [kind] * rng.choice(options), rng, size)


def draw_crowd(split: Split, rng: random.Random, size: tuple[int, int]) -> Scene:
    """2 to 6 different objects, so that no number goes with some objects only."""
    return scattered("crowd", rng.sample(kinds(), rng.randint(2, 6)), rng, size)


def draw_mixed(split: Split, rng: random.Random, size: tuple[int, int]) -> Scene:
    """3 to 6 objects of two kinds: what they are says nothing about how many they are together.

    Each kind's own number is one that the split may show.
    """
    total = rng.randint(3, 6)
    own = rng.randint(1, total - 1)
    numbers = dict(zip(rng.sample(kinds(), 2), (own, total - own), strict=True))
    if not all(n == 1 or belongs(split, "n", kind.key, n) for kind, n in numbers.items()):
        return draw_mixed(split, rng, size)
    return scattered("mixed", [kind for kind, n in numbers.items() for _ in range(n)], rng, size)


def scattered(
    name: SceneKind, which: Sequence[Kind], rng: random.Random, size: tuple[int, int]
) -> Scene:
    """The objects in cells of a loose grid, never overlapping."""
    canvas = background(rng, size, rng.randrange(len(BACKGROUNDS)))
    columns, rows = (3, 2) if size[0] >= size[1] else (2, 3)
    if len(which) <= 4 and rng.random() < 0.4:
        columns, rows = 2, 2
    cell_w, cell_h = size[0] / columns, size[1] / rows
    side = min(cell_w, cell_h) * rng.uniform(0.6, 0.9)
    things = []
    for kind, cell in zip(which, rng.sample(range(columns * rows), len(which)), strict=True):
        glyph = sprite(kind, round(side * rng.uniform(0.85, 1.0)), rng)
        x = cell % columns * cell_w + rng.uniform(0, max(0.0, cell_w - glyph.width))
        y = cell // columns * cell_h + rng.uniform(0, max(0.0, cell_h - glyph.height))
        things.append(Thing(kind, paste(canvas, glyph, int(x), int(y))))
    return Scene(name, canvas, tuple(things))


def draw_pair(split: Split, rng: random.Random, size: tuple[int, int]) -> Scene:
    """Two different objects, clearly beside or above each other; in random order in `things`."""
    first = rng.choice(kinds())
    others = [k for k in kinds() if k is not first]
    while True:
        second = rng.choice(others)
        pair = sorted((first.key, second.key))
        if belongs(split, "pair", *pair):
            break
    beside = rng.random() < 0.5
    canvas = background(rng, size, rng.randrange(len(BACKGROUNDS)))
    along, across = (size[0], size[1]) if beside else (size[1], size[0])
    cut = along * rng.uniform(0.42, 0.58)
    things = []
    for kind, start, end in ((first, 0.0, cut), (second, cut, float(along))):
        side = min(end - start, across) * rng.uniform(0.65, 0.98)
        glyph = sprite(kind, round(side), rng)
        extent = glyph.width if beside else glyph.height
        breadth = glyph.height if beside else glyph.width
        lengthwise = int(start + rng.uniform(0, max(0.0, end - start - extent)))
        # across the axis the two stay near one line, so that the relation is never in doubt
        middle = (across - breadth) / 2
        sideways = int(max(0.0, middle + rng.uniform(-0.5, 0.5) * middle))
        x, y = (lengthwise, sideways) if beside else (sideways, lengthwise)
        things.append(Thing(kind, paste(canvas, glyph, x, y)))
    relation = 0 if beside else 2
    if rng.random() < 0.5:
        things.reverse()
        relation += 1
    return Scene("pair", canvas, tuple(things), relation)


def shape_points(shape: Shape, cx: float, cy: float, r: float) -> list[tuple[float, float]]:
    def polar(n: int, radii: tuple[float, ...], turn: float = -math.pi / 2) -> list:
        step = 2 * math.pi / n
        return [
            (
                cx + r * radii[i % len(radii)] * math.cos(turn + i * step),
                cy + r * radii[i % len(radii)] * math.sin(turn + i * step),
            )
            for i in range(n)
        ]

    if shape.en == "triangle":
        return polar(3, (1.0,))
    if shape.en == "star":
        return polar(10, (1.0, 0.42))
    if shape.en == "square":
        return polar(4, (1.0,), -math.pi / 4)
    if shape.en == "circle":
        return polar(48, (1.0,))
    if shape.en == "cross":
        a = 0.33
        corners = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a)]
        corners += [(a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
        return [(cx + r * x, cy + r * y) for x, y in corners]
    steps = (2 * math.pi * i / 48 for i in range(48))  # the heart curve x = 16 sin^3 t
    return [
        (
            cx + r * math.sin(t) ** 3,
            cy - r * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in steps
    ]  # fmt: skip


def draw_shape(split: Split, rng: random.Random, size: tuple[int, int]) -> Scene:
    shape = rng.choice(SHAPES)
    options = [c for c in COLOURS if belongs(split, shape.en, c.en)]
    if not options:
        return draw_shape(split, rng, size)
    colour = rng.choice(options)
    canvas = background(rng, size, rng.randrange(len(BACKGROUNDS)))
    radius = min(size) * rng.uniform(0.17, 0.45)
    cx = rng.uniform(radius, size[0] - radius)
    cy = rng.uniform(radius, size[1] - radius)
    points = shape_points(shape, cx, cy, radius)
    ImageDraw.Draw(canvas).polygon(points, fill=shaded(colour, rng))
    xs, ys = zip(*points, strict=True)
    return Scene("shape", canvas, (Thing(shape, (min(xs), min(ys), max(xs), max(ys)), colour),))


def shaded(colour: Colour, rng: random.Random) -> tuple[int, int, int]:
    red, green, blue = (max(0, min(255, v + rng.randint(-18, 18))) for v in colour.rgb)
    return red, green, blue


def draw_silhouette(split: Split, rng: random.Random, size: tuple[int, int]) -> Scene:
    """An object's outline in one colour, so that no colour goes with a few shapes only."""
    kind, colour = rng.choice(kinds()), rng.choice(COLOURS)
    if not belongs(split, "outline", kind.key, colour.en):
        return draw_silhouette(split, rng, size)
    canvas = background(rng, size, rng.randrange(len(BACKGROUNDS)))
    glyph = sprite(kind, round(min(size) * rng.uniform(0.35, 0.85)), rng)
    flat = Image.new("RGBA", glyph.size, (*shaded(colour, rng), 255))
    flat.putalpha(glyph.getchannel("A"))
    return Scene("silhouette", canvas, (Thing(kind, place_anywhere(canvas, flat, rng), colour),))


@cache
def face(name: str, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(io.BytesIO((DATA / "fonts" / name).read_bytes()), size_px)


def draw_word(split: Split, rng: random.Random, size: tuple[int, int]) -> Scene:
    """One item of the closed list; in training also up to four, a line each, top to bottom."""
    lines = 1 if split == "held-out" else rng.choices((1, 2, 3, 4), weights=(18, 17, 30, 35))[0]
    canvas = background(rng, size, rng.randrange(len(BACKGROUNDS)))
    row = (size[0], size[1] // lines)
    texts = rng.sample(words(), lines)
    things = [draw_line(canvas, t, i * row[1], row, split, rng) for i, t in enumerate(texts)]
    if None in things:  # a few items have no held-out face at all
        return draw_word(split, rng, size)
    if rng.random() < 0.2:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.7)))
    return Scene("word", canvas, tuple(t for t in things if t is not None))


def draw_line(
    canvas: Image.Image,
    text: str,
    top_px: int,
    room: tuple[int, int],
    split: Split,
    rng: random.Random,
) -> Thing | None:
    """The text within `room` (width, height) below top_px, bare or on a plate; None without a face."""
    options = [f for f in FACES if belongs(split, text, f)]
    if not options:
        return None
    name = rng.choice(options)
    probe = face(name, 40).getbbox(text)
    fit = min(room[0] * 0.94 / (probe[2] - probe[0]), room[1] * 0.85 / (probe[3] - probe[1]))
    fit = min(fit, room[0] * 0.5 / (probe[3] - probe[1]))
    font = face(name, max(10, int(40 * fit * rng.uniform(0.75, 1.0))))
    left, top, right, bottom = font.getbbox(text)
    width, height = int(right - left), int(bottom - top)
    x = rng.randint(0, max(0, room[0] - width))
    y = top_px + rng.randint(0, max(0, room[1] - height))
    pen = ImageDraw.Draw(canvas)
    ink = rng.choice(COLOURS).rgb if rng.random() < 0.2 else (30, 30, 34)
    if rng.random() < 0.2:
        pen.rectangle((x - 6, y - 4, x + width + 6, y + height + 4), fill=rng.choice(COLOURS).rgb)
        ink = (255, 255, 255)
    pen.text((x - left, y - top), text, font=font, fill=ink)
    ends = [x - left + font.getlength(text[:n]) for n in range(len(text) + 1)]
    letters = tuple(
        (letter, (start, float(y), end, float(y + height)))
        for letter, start, end in zip(text, ends, ends[1:], strict=False)
    )
    return Thing(text, (x, y, x + width, y + height), letters=letters)


DRAW = {
    "single": draw_single,
    "copies": draw_copies,
    "crowd": draw_crowd,
    "mixed": draw_mixed,
    "pair": draw_pair,
    "shape": draw_shape,
    "silhouette": draw_silhouette,
    "word": draw_word,
}
