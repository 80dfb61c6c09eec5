"""Boxes and points drawn on a copy of a picture, each with its label.

Letters come from two fonts that the package ships: European ones and Chinese. A label with letters
that neither has is drawn as its number among the boxes, then the points, counted from 1.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qvl.types import Box, Point

COLOURS = ("#d62828", "#1d4ed8", "#15803d", "#b45309", "#7c3aed", "#be185d")
FOLDER = Path(__file__).parent / "scenes" / "data" / "fonts"
FACES = ("labels.ttf", "chinese.ttf")
SMALLEST_PX = 9
NO_LETTER = "\U0010ffff"  # drawn as a font draws what it does not have


def drawn(
    pixels: np.ndarray, boxes: Sequence[Box], points: Sequence[Point] = ()
) -> tuple[Image.Image, tuple[str, ...]]:
    """A picture, uint8 [H, W, 3], with what is found on it, and the labels that became numbers.

    Things of one label have one colour.
    """
    canvas = Image.fromarray(pixels)
    pen = ImageDraw.Draw(canvas)
    across = min(canvas.size)
    width, size = max(2, across // 250), min(40, max(12, across // 28))
    found = [*boxes, *points]
    labels = list(dict.fromkeys(place.label for place in found))
    numbered: dict[str, None] = {}
    for number, place in enumerate(found, start=1):
        colour = COLOURS[labels.index(place.label) % len(COLOURS)]
        if isinstance(place, Box):
            corners = (place.x1, place.y1, place.x2, place.y2)
            pen.rectangle(corners, outline=colour, width=width)
        else:
            radius = 3 * width
            corners = (place.x - radius, place.y - radius, place.x + radius, place.y + radius)
            pen.ellipse(corners, fill=colour, outline="white", width=max(1, width // 2))
        label = " ".join(place.label.split())
        if not all(face_of(letter) for letter in label):
            numbered[place.label] = None
            label = str(number)
        if label:
            write(pen, label, corners, canvas.size, size, colour)
    return canvas, tuple(numbered)


def write(
    pen: ImageDraw.ImageDraw,
    label: str,
    corners: tuple[float, float, float, float],
    picture: tuple[int, int],
    size: int,
    colour: str,
) -> None:
    """White letters on a plate above the place, or in it where the picture ends.

    A label that is wider than the picture gets smaller letters, then it is cut.
    """
    margin = size // 4
    room = picture[0] - 2 * margin
    if (length := length_of(label, size)) > room:
        size = max(SMALLEST_PX, int(size * room / length))
        while len(label) > 1 and length_of(label, size) > room:
            label = label[:-2] + "…"
    width, height = length_of(label, size) + 2 * margin, size + 2 * margin
    left = max(0.0, min(corners[0], picture[0] - width))
    top = corners[1] - height if corners[1] >= height else corners[1]
    pen.rectangle((left, top, left + width, top + height), fill=colour)
    x, baseline = left + margin, top + margin + size * 0.85
    for text, font in runs(label, size):
        pen.text((x, baseline), text, font=font, fill="white", anchor="ls")
        x += font.getlength(text)


def length_of(label: str, size: int) -> float:
    return sum(font.getlength(text) for text, font in runs(label, size))


def runs(label: str, size: int) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """The label in pieces, each with the font that has its letters."""
    pieces = itertools.groupby(label, key=lambda letter: face_of(letter) or FACES[0])
    return [("".join(letters), font_of(name, size)) for name, letters in pieces]


@cache
def face_of(letter: str) -> str | None:
    """The font that has the letter."""
    for name in FACES:
        if letter == " " or ink(letter, name) != ink(NO_LETTER, name):
            return name
    return None


def ink(letter: str, face: str) -> bytes:
    mask = font_of(face, 24).getmask(letter)
    return bytes(mask)  # pyrefly: ignore[bad-argument-type]


@cache
def font_of(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(io.BytesIO((FOLDER / name).read_bytes()), size)
