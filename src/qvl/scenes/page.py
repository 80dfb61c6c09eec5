"""A page that is printed on: each text with its place and those of its letters, row by row.

Main path: Page.blank -> write -> rows -> photo.photographed -> jobs about it (`reading`). A text is
drawn letter after letter without kerning, so that a letter's place is the sum of the widths before it.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qvl.scenes.scene import PixelBox, Split, Thing

FOLDER = Path(__file__).parent / "data" / "fonts"
PRINT_FACES = (
    "sans", "sans-bold", "serif", "serif-bold", "sans-condensed-bold", "mono-bold", "slab", "narrow",
)  # fmt: skip
PAPER_FACES = ("mono", "mono-bold", "sans", "serif", "slab")  # legible from 10 px on
HAND_FACE, STYLE_FACE = "hand", "round"  # STYLE_FACE prints in the split "style" alone
SIGNS_FACE, CHINESE_FACE = "labels", "chinese"  # for letters that the others lack
LIGHT = (
    (255, 255, 255), (236, 236, 238), (245, 238, 220), (222, 236, 250),
    (226, 244, 224), (250, 228, 232), (240, 232, 250), (252, 244, 200),
)  # fmt: skip
DARK = ((24, 26, 32), (20, 60, 120), (150, 24, 32), (16, 92, 60), (92, 44, 120), (70, 52, 40))
BLACK, WHITE = (26, 26, 30), (255, 255, 255)
Rgb = tuple[int, int, int]
Side = Literal["left", "centre", "right"]
_SIGNS = frozenset("×÷°²³·¥")  # which some faces lack


@cache
def font(face: str, size_px: int) -> ImageFont.FreeTypeFont:
    data = io.BytesIO((FOLDER / f"{face}.ttf").read_bytes())
    return ImageFont.truetype(data, size_px, layout_engine=ImageFont.Layout.BASIC)


def face_for(letter: str, face: str) -> str:
    """The face itself, or the one that has what it lacks."""
    if letter >= "\u3000":
        return CHINESE_FACE
    return SIGNS_FACE if letter in _SIGNS or (letter == "₽" and face == "slab") else face


@dataclass(frozen=True, slots=True)
class Glyph:
    """A letter's ink and where it lies from the pen's place on the baseline; a space has no ink."""

    mask: Image.Image | None
    left: int
    top: int
    advance: float


@lru_cache(100_000)
def advance(letter: str, face: str, size_px: int) -> float:
    return font(face_for(letter, face), size_px).getlength(letter)


@lru_cache(50_000)
def glyph(letter: str, face: str, size_px: int) -> Glyph:
    """Kept, since to render one takes longer than to paste a line of them."""
    its_font = font(face_for(letter, face), size_px)
    left, top, right, bottom = (round(v) for v in its_font.getbbox(letter, anchor="ls"))
    across = advance(letter, face, size_px)
    if right <= left or bottom <= top:
        return Glyph(None, 0, 0, across)
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), letter, font=its_font, fill=255, anchor="ls")
    return Glyph(mask, left, top, across)


def width_of(text: str, face: str, size_px: int) -> float:
    return sum(advance(letter, face, size_px) for letter in text)


def fitting(text: str, face: str, width_px: float, most_px: int) -> int:
    """The largest size up to `most_px` at which the text is no wider than that; at least 6."""
    size = most_px
    while size > 6 and (across := width_of(text, face, size)) > width_px:
        size = max(6, min(size - 1, int(size * width_px / across)))
    return size


def faces_of(split: Split, faces: Sequence[str] = PRINT_FACES) -> Sequence[str]:
    """Those that a split prints with."""
    return (STYLE_FACE,) if split == "style" else faces


@dataclass(slots=True)
class Page:
    """`rows` are the printed texts in reading order, the parts of a row from left to right; `named`
    says which of them (row, part) stands for what, "total" or "lines[0].sum".
    """

    canvas: Image.Image
    pen: ImageDraw.ImageDraw
    rows: list[list[Thing]] = field(default_factory=list)
    named: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def blank(cls, size: tuple[int, int], colour: Rgb) -> Page:
        canvas = Image.new("RGB", size, colour)
        return cls(canvas, ImageDraw.Draw(canvas))

    @property
    def size(self) -> tuple[int, int]:
        return self.canvas.size

    @property
    def things(self) -> tuple[Thing, ...]:
        return tuple(thing for row in self.rows for thing in row)

    @property
    def lines(self) -> tuple[Thing, ...]:
        """Each row as one text, its parts a space apart, with the box around them."""
        return tuple(joined(row) for row in self.rows)

    @property
    def text(self) -> str:
        return "\n".join(line.what for line in self.lines)

    def thing(self, name: str) -> Thing:
        row, part = self.named[name]
        return self.rows[row][part]

    def write(
        self,
        text: str,
        at: tuple[float, float],
        face: str,
        size_px: int,
        *,
        side: Side = "left",
        ink: Rgb = BLACK,
        name: str | None = None,
        same_row: bool = False,
    ) -> Thing:
        """A line of text; `at` is the x of its `side` and the y of its baseline."""
        across = width_of(text, face, size_px)
        x = float(round(at[0] - {"left": 0.0, "centre": across / 2, "right": across}[side]))
        baseline = round(at[1])
        edges, inked = [x], []
        for letter in text:
            made = glyph(letter, face, size_px)
            left, top = round(edges[-1]) + made.left, baseline + made.top
            edges.append(edges[-1] + made.advance)
            if made.mask is not None:
                self.canvas.paste(ink, (left, top), made.mask)
                inked.append((left, top, left + made.mask.width, top + made.mask.height))
        left, top, right, bottom = around(inked)
        letters = tuple(
            (letter, (start, top, end, bottom))
            for letter, start, end in zip(text, edges, edges[1:], strict=False)
            if not letter.isspace()
        )
        thing = Thing(text, (left, top, right, bottom), letters=letters)
        if same_row:
            self.rows[-1].append(thing)
        else:
            self.rows.append([thing])
        if name is not None:
            self.named[name] = len(self.rows) - 1, len(self.rows[-1]) - 1
        return thing


def joined(row: Sequence[Thing]) -> Thing:
    if len(row) == 1:
        return row[0]
    letters = tuple(letter for part in row for letter in part.letters)
    return Thing(" ".join(part.what for part in row), around(p.box for p in row), letters=letters)


def around(boxes: Iterable[PixelBox]) -> PixelBox:
    left, top, right, bottom = zip(*boxes, strict=True)
    return float(min(left)), float(min(top)), float(max(right)), float(max(bottom))


def tinted(rng: random.Random, size: tuple[int, int], index: int) -> Image.Image:
    """One of LIGHT, in a third of the cases running into another."""
    if rng.random() < 0.65:
        return Image.new("RGB", size, LIGHT[index])
    ends = np.array([LIGHT[index], rng.choice(LIGHT)], dtype=np.uint8)
    strip = Image.fromarray(ends[:, None] if rng.random() < 0.5 else ends[None, :])
    return strip.resize(size, Image.Resampling.BILINEAR)
