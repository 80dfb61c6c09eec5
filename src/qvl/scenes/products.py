"""Things of our own drawing, whose colour and pattern are known: clothes, tableware, boxes.

Main path: product(key, paint) -> RGBA sprite. A body is drawn once as a mask with its seams and edges, and
filled with the paint's pattern.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from qvl.scenes.kinds import Kind, by_key
from qvl.scenes.phrases import Colour, Pattern, patterned

SIDE_PX, FINE = 144, 3  # of a sprite; how much finer a body is drawn
SEAM = (0, 0, 0, 90)
SHADE = (0, 0, 0, 45)
INSIDE = (40, 40, 46, 150)
LIGHT = (255, 255, 255, 255)


@dataclass(frozen=True, slots=True)
class Paint:
    """`second` is the colour of the pattern; `tone` and `second_tone` are as they are drawn."""

    colour: Colour
    pattern: Pattern
    second: Colour
    tone: tuple[int, int, int]
    second_tone: tuple[int, int, int]
    steps: int = 6  # stripes, or squares, across
    turned: bool = False  # stripes go down instead of across

    def named(self, kind: Kind) -> Kind:
        return patterned(kind, self.colour, self.pattern, self.second)


class Pen:
    """Draws a body and what lies upon it, in parts of the side."""

    def __init__(self) -> None:
        side = SIDE_PX * FINE
        self.side = side
        self.body = Image.new("L", (side, side))
        self.upon = Image.new("RGBA", (side, side))
        self._body = ImageDraw.Draw(self.body)
        self._upon = ImageDraw.Draw(self.upon)

    def _at(self, numbers: Sequence[float]) -> list[float]:
        return [number * self.side for number in numbers]

    def shape(self, *numbers: float) -> None:
        """A polygon of the body: x and y in turn."""
        self._body.polygon(self._at(numbers), fill=255)

    def disc(self, *box: float) -> None:
        self._body.ellipse(self._at(box), fill=255)

    def plate(self, *box: float, corner: float = 0.05) -> None:
        self._body.rounded_rectangle(self._at(box), corner * self.side, fill=255)

    def ring(self, *box: float, wide: float) -> None:
        self._body.arc(self._at(box), 0, 360, fill=255, width=round(wide * self.side))

    def cut(self, *numbers: float) -> None:
        """A polygon taken out of the body."""
        self._body.polygon(self._at(numbers), fill=0)

    def cut_disc(self, *box: float) -> None:
        self._body.ellipse(self._at(box), fill=0)

    def seam(self, *numbers: float, wide: float = 0.012, ink: tuple[int, ...] = SEAM) -> None:
        self._upon.line(self._at(numbers), fill=ink, width=max(1, round(wide * self.side)))

    def rim(self, *box: float, ink: tuple[int, ...] = INSIDE, wide: float = 0.0) -> None:
        """An ellipse upon the body, or with `wide` only its line."""
        if wide:
            self._upon.ellipse(self._at(box), outline=ink, width=round(wide * self.side))
        else:
            self._upon.ellipse(self._at(box), fill=ink)

    def patch(self, *numbers: float, ink: tuple[int, ...] = SHADE) -> None:
        """A polygon upon the body; opaque ink is a part of its own that the body need not have."""
        self._upon.polygon(self._at(numbers), fill=ink)
        if ink[3] == 255:
            self.shape(*numbers)


def mug(pen: Pen) -> None:
    pen.ring(0.6, 0.3, 0.97, 0.74, wide=0.075)
    pen.plate(0.08, 0.14, 0.74, 0.94, corner=0.09)
    pen.rim(0.08, 0.06, 0.74, 0.22)
    pen.disc(0.08, 0.06, 0.74, 0.22)


def plate(pen: Pen) -> None:
    pen.disc(0.02, 0.02, 0.98, 0.98)
    pen.rim(0.2, 0.2, 0.8, 0.8, ink=SHADE, wide=0.025)


def bowl(pen: Pen) -> None:
    pen.disc(0.04, -0.12, 0.96, 0.86)
    pen.cut(0, 0, 1, 0, 1, 0.3, 0, 0.3)
    pen.disc(0.04, 0.2, 0.96, 0.42)
    pen.rim(0.04, 0.2, 0.96, 0.42)
    pen.plate(0.34, 0.82, 0.66, 0.92, corner=0.02)


def vase(pen: Pen) -> None:
    pen.disc(0.18, 0.3, 0.82, 0.94)
    pen.shape(0.38, 0.06, 0.62, 0.06, 0.66, 0.44, 0.34, 0.44)
    pen.disc(0.32, 0.02, 0.68, 0.14)
    pen.rim(0.32, 0.02, 0.68, 0.14)
    pen.plate(0.34, 0.88, 0.66, 0.97, corner=0.02)


def jug(pen: Pen) -> None:
    pen.ring(0.5, 0.22, 0.95, 0.78, wide=0.07)
    pen.shape(
        0.2, 0.1, 0.66, 0.1, 0.62, 0.3, 0.76, 0.6, 0.72, 0.96, 0.16, 0.96, 0.12, 0.6, 0.24, 0.3
    )
    pen.shape(0.08, 0.08, 0.3, 0.08, 0.26, 0.26)
    pen.seam(0.2, 0.14, 0.66, 0.14)


def bottle(pen: Pen) -> None:
    pen.plate(0.3, 0.36, 0.7, 0.98, corner=0.06)
    pen.shape(0.41, 0.14, 0.59, 0.14, 0.7, 0.44, 0.3, 0.44)
    pen.patch(0.4, 0.02, 0.6, 0.02, 0.6, 0.15, 0.4, 0.15, ink=(90, 92, 98, 255))
    pen.seam(0.36, 0.46, 0.36, 0.9, wide=0.03, ink=(255, 255, 255, 90))


def t_shirt(pen: Pen) -> None:
    pen.shape(
        0.3, 0.08, 0.7, 0.08, 0.98, 0.26, 0.86, 0.46, 0.75, 0.4, 0.75, 0.95, 0.25, 0.95, 0.25, 0.4, 0.14, 0.46,
        0.02, 0.26,
    )  # fmt: skip
    pen.cut_disc(0.38, -0.04, 0.62, 0.18)
    pen.seam(0.25, 0.4, 0.28, 0.2)
    pen.seam(0.75, 0.4, 0.72, 0.2)


def jumper(pen: Pen) -> None:
    pen.shape(
        0.32, 0.08, 0.68, 0.08, 0.82, 0.16, 0.98, 0.82, 0.85, 0.86, 0.74, 0.44, 0.74, 0.94, 0.26, 0.94, 0.26, 0.44,
        0.15, 0.86, 0.02, 0.82, 0.18, 0.16,
    )  # fmt: skip
    pen.cut_disc(0.4, 0.0, 0.6, 0.14)
    pen.patch(0.26, 0.87, 0.74, 0.87, 0.74, 0.94, 0.26, 0.94)
    pen.patch(0.83, 0.78, 0.96, 0.74, 0.98, 0.82, 0.85, 0.86)
    pen.patch(0.17, 0.78, 0.04, 0.74, 0.02, 0.82, 0.15, 0.86)
    pen.seam(0.74, 0.44, 0.72, 0.24)
    pen.seam(0.26, 0.44, 0.28, 0.24)


def skirt(pen: Pen) -> None:
    pen.shape(0.3, 0.08, 0.7, 0.08, 0.96, 0.92, 0.04, 0.92)
    pen.patch(0.3, 0.08, 0.7, 0.08, 0.72, 0.16, 0.28, 0.16)
    for x in (0.36, 0.5, 0.64):
        pen.seam(0.5 + (x - 0.5) * 0.6, 0.3, 0.5 + (x - 0.5) * 1.7, 0.9)


def trousers(pen: Pen) -> None:
    pen.shape(0.28, 0.03, 0.72, 0.03, 0.84, 0.97, 0.58, 0.97, 0.5, 0.34, 0.42, 0.97, 0.16, 0.97)
    pen.patch(0.28, 0.03, 0.72, 0.03, 0.73, 0.1, 0.27, 0.1)
    pen.seam(0.5, 0.1, 0.5, 0.34)


def dress(pen: Pen) -> None:
    pen.shape(
        0.32, 0.03, 0.4, 0.03, 0.5, 0.14, 0.6, 0.03, 0.68, 0.03, 0.7, 0.2, 0.62, 0.42, 0.92, 0.96, 0.08, 0.96,
        0.38, 0.42, 0.3, 0.2,
    )  # fmt: skip
    pen.patch(0.38, 0.4, 0.62, 0.4, 0.63, 0.46, 0.37, 0.46)


def sock(pen: Pen) -> None:
    pen.shape(
        0.4, 0.03, 0.76, 0.03, 0.76, 0.6, 0.7, 0.78, 0.42, 0.95, 0.2, 0.95, 0.14, 0.8, 0.4, 0.58
    )
    pen.patch(0.4, 0.03, 0.76, 0.03, 0.76, 0.14, 0.4, 0.14)
    pen.patch(0.14, 0.8, 0.24, 0.72, 0.34, 0.95, 0.2, 0.95)


def tie(pen: Pen) -> None:
    pen.shape(0.4, 0.02, 0.6, 0.02, 0.57, 0.15, 0.68, 0.8, 0.5, 0.98, 0.32, 0.8, 0.43, 0.15)
    pen.patch(0.4, 0.02, 0.6, 0.02, 0.57, 0.15, 0.43, 0.15)


def cap(pen: Pen) -> None:
    pen.disc(0.08, 0.18, 0.74, 1.06)
    pen.cut(0, 0.62, 1, 0.62, 1, 1, 0, 1)
    pen.shape(0.6, 0.5, 0.98, 0.62, 0.98, 0.7, 0.6, 0.7, 0.1, 0.64, 0.1, 0.58)
    pen.patch(0.6, 0.5, 0.98, 0.62, 0.98, 0.7, 0.6, 0.7, 0.34, 0.64)
    pen.seam(0.41, 0.18, 0.36, 0.6)


def boot(pen: Pen) -> None:
    pen.shape(0.28, 0.04, 0.66, 0.04, 0.64, 0.54, 0.9, 0.66, 0.94, 0.84, 0.26, 0.84)
    pen.patch(
        0.24,
        0.84,
        0.96,
        0.84,
        0.96,
        0.92,
        0.46,
        0.92,
        0.44,
        0.97,
        0.24,
        0.97,
        ink=(70, 50, 40, 255),
    )
    pen.seam(0.28, 0.12, 0.66, 0.12)


def trainer(pen: Pen) -> None:
    pen.shape(0.05, 0.26, 0.3, 0.22, 0.52, 0.46, 0.86, 0.56, 0.97, 0.72, 0.04, 0.72)
    pen.patch(0.02, 0.7, 0.98, 0.7, 0.97, 0.8, 0.03, 0.8, ink=(236, 236, 232, 255))
    for x in (0.36, 0.43, 0.5):
        pen.seam(
            x - 0.05,
            0.46 + (x - 0.36) * 0.6,
            x + 0.06,
            0.36 + (x - 0.36) * 0.8,
            wide=0.025,
            ink=LIGHT,
        )


def shopping_bag(pen: Pen) -> None:
    pen.ring(0.34, 0.02, 0.66, 0.42, wide=0.035)
    pen.shape(0.14, 0.24, 0.86, 0.24, 0.92, 0.97, 0.08, 0.97)
    pen.patch(0.14, 0.24, 0.22, 0.24, 0.16, 0.97, 0.08, 0.97)


def cushion(pen: Pen) -> None:
    pen.shape(
        0.04, 0.08, 0.26, 0.12, 0.5, 0.13, 0.74, 0.12, 0.96, 0.08, 0.92, 0.3, 0.91, 0.5, 0.92, 0.7, 0.96, 0.92,
        0.74, 0.88, 0.5, 0.87, 0.26, 0.88, 0.04, 0.92, 0.08, 0.7, 0.09, 0.5, 0.08, 0.3,
    )  # fmt: skip
    pen.seam(0.06, 0.1, 0.2, 0.22)
    pen.seam(0.94, 0.9, 0.8, 0.78)


def ball(pen: Pen) -> None:
    pen.disc(0.03, 0.03, 0.97, 0.97)
    pen.rim(0.2, 0.14, 0.42, 0.3, ink=(255, 255, 255, 120))


def lamp(pen: Pen) -> None:
    pen.shape(0.3, 0.04, 0.7, 0.04, 0.92, 0.52, 0.08, 0.52)
    pen.patch(0.47, 0.52, 0.53, 0.52, 0.53, 0.9, 0.47, 0.9, ink=(96, 84, 70, 255))
    pen.patch(0.3, 0.9, 0.7, 0.9, 0.74, 0.97, 0.26, 0.97, ink=(96, 84, 70, 255))


def rug(pen: Pen) -> None:
    pen.plate(0.08, 0.2, 0.92, 0.8, corner=0.01)
    for step in range(15):
        y = 0.22 + step * 0.04
        pen.seam(0.01, y, 0.08, y, wide=0.014, ink=(226, 216, 196, 255))
        pen.seam(0.92, y, 0.99, y, wide=0.014, ink=(226, 216, 196, 255))


def armchair(pen: Pen) -> None:
    pen.plate(0.2, 0.08, 0.8, 0.7, corner=0.12)
    pen.plate(0.03, 0.38, 0.26, 0.84, corner=0.09)
    pen.plate(0.74, 0.38, 0.97, 0.84, corner=0.09)
    pen.plate(0.16, 0.56, 0.84, 0.86, corner=0.04)
    pen.seam(0.26, 0.62, 0.74, 0.62, wide=0.018)
    pen.seam(0.26, 0.46, 0.26, 0.84)
    pen.seam(0.74, 0.46, 0.74, 0.84)
    pen.patch(0.12, 0.86, 0.2, 0.86, 0.2, 0.96, 0.13, 0.96, ink=(80, 58, 40, 255))
    pen.patch(0.8, 0.86, 0.88, 0.86, 0.87, 0.96, 0.8, 0.96, ink=(80, 58, 40, 255))


def box(pen: Pen) -> None:
    pen.shape(0.06, 0.3, 0.62, 0.3, 0.62, 0.96, 0.06, 0.96)
    pen.shape(0.06, 0.3, 0.34, 0.06, 0.94, 0.06, 0.62, 0.3)
    pen.shape(0.62, 0.3, 0.94, 0.06, 0.94, 0.7, 0.62, 0.96)
    pen.patch(0.62, 0.3, 0.94, 0.06, 0.94, 0.7, 0.62, 0.96, ink=(0, 0, 0, 80))
    pen.patch(0.06, 0.3, 0.34, 0.06, 0.94, 0.06, 0.62, 0.3, ink=(255, 255, 255, 70))
    pen.seam(0.34, 0.3, 0.63, 0.06)


def umbrella(pen: Pen) -> None:
    pen.disc(0.02, 0.04, 0.98, 1.0)
    pen.cut(0, 0.5, 1, 0.5, 1, 1, 0, 1)
    for x in (0.02, 0.26, 0.5, 0.74):
        pen.cut_disc(x, 0.45, x + 0.24, 0.57)
    pen.seam(0.5, 0.05, 0.26, 0.48)
    pen.seam(0.5, 0.05, 0.74, 0.48)
    pen.patch(0.485, 0.04, 0.515, 0.04, 0.515, 0.9, 0.485, 0.9, ink=(70, 60, 54, 255))
    pen.patch(0.4, 0.86, 0.515, 0.9, 0.515, 0.96, 0.4, 0.93, ink=(70, 60, 54, 255))


def scarf(pen: Pen) -> None:
    pen.shape(0.28, 0.12, 0.54, 0.03, 0.8, 0.14, 0.76, 0.34, 0.5, 0.42, 0.26, 0.32)
    pen.cut_disc(0.4, 0.13, 0.66, 0.25)
    pen.shape(0.3, 0.3, 0.52, 0.36, 0.44, 0.92, 0.2, 0.9)
    pen.shape(0.5, 0.36, 0.7, 0.3, 0.82, 0.8, 0.6, 0.84)
    pen.seam(0.26, 0.32, 0.5, 0.42)
    for x in (0.21, 0.27, 0.33, 0.39):
        pen.patch(x, 0.9, x + 0.03, 0.9, x + 0.02, 0.97, x, 0.97, ink=(226, 216, 196, 255))


BODIES: dict[str, Callable[[Pen], None]] = {
    "mug": mug, "plate": plate, "bowl": bowl, "vase": vase, "jug": jug, "bottle": bottle,
    "t-shirt": t_shirt, "jumper": jumper, "skirt": skirt, "trousers": trousers, "dress": dress,
    "sock": sock, "tie": tie, "cap": cap, "boot": boot, "trainer": trainer,
    "shopping-bag": shopping_bag, "cushion": cushion, "ball": ball, "lamp": lamp, "rug": rug,
    "armchair": armchair, "box": box, "umbrella": umbrella, "scarf": scarf,
}  # fmt: skip
# where an emblem stands, and how large; where there is no room, a product has none
EMBLEMS: dict[str, tuple[float, float, float]] = {
    "mug": (0.41, 0.56, 0.22), "plate": (0.5, 0.5, 0.27), "bowl": (0.5, 0.6, 0.17), "vase": (0.5, 0.64, 0.22),
    "jug": (0.44, 0.64, 0.2), "t-shirt": (0.5, 0.5, 0.2), "jumper": (0.5, 0.5, 0.18),
    "skirt": (0.5, 0.6, 0.2), "dress": (0.5, 0.72, 0.2), "cap": (0.36, 0.42, 0.16),
    "shopping-bag": (0.5, 0.62, 0.26), "cushion": (0.5, 0.5, 0.28), "ball": (0.5, 0.54, 0.3),
    "rug": (0.5, 0.5, 0.22), "lamp": (0.5, 0.3, 0.17), "box": (0.34, 0.63, 0.22),
}  # fmt: skip


@cache
def product_kinds() -> tuple[Kind, ...]:
    return tuple(by_key()[key] for key in BODIES)


def product(key: str, paint: Paint) -> Image.Image:
    """An RGBA sprite, cropped to what is visible."""
    body, upon = drawn(key)
    pixels = np.asarray(painted(key, paint), dtype=np.float32) * rounding()
    filled = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    filled.paste(upon, (0, 0), upon)
    filled.putalpha(body)
    return filled.crop(body.getbbox())


@cache
def drawn(key: str) -> tuple[Image.Image, Image.Image]:
    """The body's mask, which takes in its parts of other colours, and what lies upon it."""
    pen = Pen()
    BODIES[key](pen)
    own = pen.upon.getchannel("A").point(lambda alpha: 255 * (alpha == 255))
    size = (SIDE_PX, SIDE_PX)
    body = ImageChops.lighter(pen.body, own).resize(size, Image.Resampling.BOX)
    return body, pen.upon.resize(size, Image.Resampling.BOX)


@cache
def rounding() -> np.ndarray:
    """[H, W, 1] that darkens the right edge a little, as light from the left does."""
    across = np.linspace(-1, 1, SIDE_PX, dtype=np.float32)
    return np.broadcast_to(
        (1.03 - 0.1 * (across + 0.25) ** 2)[None, :, None], (SIDE_PX, SIDE_PX, 1)
    )


def painted(key: str, paint: Paint) -> Image.Image:
    """A square of the pattern."""
    flat = Image.new("RGB", (SIDE_PX, SIDE_PX), paint.tone)
    if paint.pattern == "plain":
        return flat
    flat.paste(paint.second_tone, (0, 0), mask_of(key, paint.pattern, paint.steps, paint.turned))
    return flat


@cache
def mask_of(key: str, pattern: Pattern, steps: int, turned: bool) -> Image.Image:  # noqa: FBT001
    """Where the second colour is."""
    side = SIDE_PX * 2
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    step = side / steps
    match pattern:
        case "stripes":
            for at in range(steps):
                low, high = (at + 0.3) * step, (at + 0.72) * step
                pen.rectangle((low, 0, high, side) if turned else (0, low, side, high), fill=255)
        case "dots":
            radius = step * 0.24
            for row in range(steps + 1):
                for column in range(-1, steps + 1):
                    x, y = (column + 0.5 + row % 2 / 2) * step, (row + 0.5) * step
                    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        case "checks":
            for at in range(steps):  # lines, so that it is clear which colour is the ground
                low, high = (at + 0.4) * step, (at + 0.62) * step
                pen.rectangle((low, 0, high, side), fill=255)
                pen.rectangle((0, low, side, high), fill=255)
        case "star" | "heart":
            x, y, radius = (number * side for number in EMBLEMS[key])
            pen.polygon(outline(pattern, x, y, radius), fill=255)
    return mask.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)


def outline(shape: str, cx: float, cy: float, r: float) -> list[tuple[float, float]]:
    """The corners of a plain shape of radius r; the heart is x = 16 sin^3 t (MathWorld, "heart curve")."""

    def polar(
        n: int, radii: Sequence[float], turn: float = -math.pi / 2
    ) -> list[tuple[float, float]]:
        return [
            (
                cx + r * radii[k % len(radii)] * math.cos(turn + 2 * math.pi * k / n),
                cy + r * radii[k % len(radii)] * math.sin(turn + 2 * math.pi * k / n),
            )
            for k in range(n)
        ]

    match shape:
        case "triangle":
            return polar(3, (1.0,))
        case "star":
            return polar(10, (1.0, 0.42))
        case "square":
            return polar(4, (1.0,), -math.pi / 4)
        case "circle":
            return polar(48, (1.0,))
        case "hexagon":
            return polar(6, (1.0,))
        case "cross":
            a = 0.33
            arm = [
                (-a, -1),
                (a, -1),
                (a, -a),
                (1, -a),
                (1, a),
                (a, a),
                (a, 1),
                (-a, 1),
                (-a, a),
                (-1, a),
                (-1, -a),
                (-a, -a),
            ]
            return [(cx + r * x, cy + r * y) for x, y in arm]
    turns = (2 * math.pi * k / 48 for k in range(48))
    return [
        (
            cx + r * math.sin(t) ** 3,
            cy
            - r
            * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
            / 16,
        )
        for t in turns
    ]
