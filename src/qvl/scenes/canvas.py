"""Drawing one picture: backgrounds, glyphs in perspective, shadows, and what a camera does to it all.

Main path: glyph -> Canvas.place -> Canvas.photo. Geometry is done to each glyph before it is placed, so
a box is that of the pixels that are pasted; light, blur, noise and JPEG come last and move nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from qvl.scenes.photo import as_jpeg, homography
from qvl.scenes.scene import PixelBox, Thing

Rgb = tuple[int, int, int]
Size = tuple[int, int]
SIDES = tuple(range(128, 225, 32))
LEAST_CELL_PX = 52  # of a grid with free cells; without them nine things still fit 128 pixels
SOLID = 96  # from which alpha a pixel is of the thing
GROUNDS: tuple[Rgb, ...] = (
    (255, 255, 255), (238, 238, 240), (246, 238, 220), (222, 236, 250), (226, 244, 224),
    (250, 228, 232), (240, 232, 250), (212, 212, 218), (196, 176, 146), (158, 178, 196),
    (170, 192, 164), (206, 172, 168), (116, 124, 136), (92, 110, 98), (110, 86, 66), (54, 60, 74),
)  # fmt: skip
TEXTURES = ("plain", "plain", "ramp", "floor", "wood", "tiles", "grain", "cloth", "blobs")
FAR = 75.0  # how far apart two colours are that are told apart on sight, in RGB


def size_of(rng: random.Random, size: Size | None) -> Size:
    return size or (rng.choice(SIDES), rng.choice(SIDES))


def strength_of(rng: random.Random) -> float:
    """How much of a photo a picture is, 0 to 1; a third of them are clean."""
    return max(0.0, rng.uniform(-0.5, 1.0))


@dataclass
class Canvas:
    """A picture that is being drawn, and the things on it so far."""

    image: Image.Image
    rng: random.Random
    strength: float = 0.0
    things: list[Thing] = field(default_factory=list)

    def place(
        self, glyph: Image.Image, spot: tuple[int, int], what: str, colour: str | None = None
    ) -> Thing:
        """Paste the glyph with its upper left corner there; at strength 0 without a shadow."""
        x, y = spot
        if self.strength > 0 and self.rng.random() < 0.45:
            self._shadow(glyph, x, y)
        self.image.paste(glyph, (x, y), glyph)
        left, top, right, bottom = solid_box(glyph)
        width, height = self.image.size
        box = (
            float(max(0, x + left)),
            float(max(0, y + top)),
            float(min(width, x + right)),
            float(min(height, y + bottom)),
        )
        thing = Thing(what, box, colour)
        self.things.append(thing)
        return thing

    def _shadow(self, glyph: Image.Image, x: int, y: int) -> None:
        reach = max(2, round(max(glyph.size) * 0.04))
        alpha = glyph.getchannel("A").point(lambda v: v * 0.45)
        wide = Image.new("L", (glyph.width + 4 * reach, glyph.height + 4 * reach))
        wide.paste(alpha, (2 * reach, 2 * reach))
        wide = wide.filter(ImageFilter.BoxBlur(reach))
        across = self.rng.choice((-1, 1)) * reach
        self.image.paste((20, 20, 28), (x - 2 * reach + across, y - reach), wide)

    def cover(self, thing: Thing) -> None:
        """Something in front of a part of the thing that leaves its box as it was."""
        x1, y1, x2, y2 = thing.box
        side = min(x2 - x1, y2 - y1)
        if side < 40:
            return
        radius = side * self.rng.uniform(0.06, 0.13)
        cx = self.rng.uniform(x1 + 0.25 * (x2 - x1), x2 - 0.25 * (x2 - x1))
        cy = self.rng.uniform(y1 + 0.25 * (y2 - y1), y2 - 0.25 * (y2 - y1))
        shade = self.rng.choice(GROUNDS)
        blob = Image.new("L", (64, 64))
        turn = self.rng.uniform(0, math.pi)
        corners = [
            (32 + 31 * math.cos(turn + k * math.pi / 3), 32 + 31 * math.sin(turn + k * math.pi / 3))
            for k in range(6)
        ]
        ImageDraw.Draw(blob).polygon(corners, fill=255)
        blob = blob.resize((max(2, round(2 * radius)),) * 2, Image.Resampling.BILINEAR)
        self.image.paste(shade, (round(cx - radius), round(cy - radius)), blob)

    def photo(self) -> Image.Image:
        """The picture as a camera of that strength gives it; nothing moves."""
        return photographed(self.image, self.rng, self.strength)


def canvas(
    rng: random.Random,
    size: Size,
    *,
    ground: int | None = None,
    strength: float | None = None,
    inks: Sequence[Rgb] = (),
) -> Canvas:
    """A background that colours of the things, `inks`, stand out from; `ground` of GROUNDS is fixed."""
    strength = strength_of(rng) if strength is None else strength
    if ground is None:
        ground = ground_for(rng, inks)
    return Canvas(background(rng, size, GROUNDS[ground], strength), rng, strength)


def ground_for(rng: random.Random, inks: Sequence[Rgb], among: Sequence[int] = ()) -> int:
    """One of GROUNDS, or of some of them, that the inks stand out from as well as may be."""
    order = list(among or range(len(GROUNDS)))
    rng.shuffle(order)
    room = {at: min((distance(GROUNDS[at], ink) for ink in inks), default=FAR) for at in order}
    return next((at for at in order if room[at] >= FAR), max(order, key=room.__getitem__))


def distance(one: Rgb, other: Rgb) -> float:
    return math.dist(one, other)


def background(rng: random.Random, size: Size, base: Rgb, strength: float) -> Image.Image:
    """The colour all over, with a texture that stays near it."""
    width, height = size
    texture = rng.choice(TEXTURES) if strength > 0 else "plain"
    flat = np.array(base, dtype=np.float32)
    noise = np.random.default_rng(rng.getrandbits(32))
    depth = rng.uniform(6, 20)
    light = np.zeros((height, width), dtype=np.float32)
    down = np.arange(height, dtype=np.float32)[:, None]
    across = np.arange(width, dtype=np.float32)[None, :]
    match texture:
        case "plain":
            return Image.new("RGB", size, base)
        case "ramp":
            turn = rng.uniform(0, 2 * math.pi)
            light += depth * (
                math.cos(turn) * (2 * across / width - 1) + math.sin(turn) * (2 * down / height - 1)
            )
        case "floor":
            edge = height * rng.uniform(0.45, 0.8)
            light += np.where(down > edge, -depth, depth * 0.4)
        case "wood":
            wave = np.sin(across / rng.uniform(30, 70) + rng.uniform(0, 6)) * rng.uniform(2, 5)
            light += depth * 0.6 * np.sin((down + wave) / rng.uniform(1.5, 4))
        case "tiles":
            step = rng.randint(18, 44)
            light += np.where((down % step < 1.5) | (across % step < 1.5), -depth, depth * 0.2)
        case "grain":
            light += noise.standard_normal((height, width), dtype=np.float32) * depth * 0.6
        case "cloth":
            step = rng.uniform(1.2, 2.5)
            light += depth * 0.4 * (np.sin(down / step) + np.sin(across / step))
        case "blobs":
            rough = noise.standard_normal((5, 5), dtype=np.float32) * depth
            light += np.asarray(Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC))
    pixels = flat + light[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def posed(sprite: Image.Image, side: float, rng: random.Random, strength: float) -> Image.Image:
    """The sprite with its longer side about `side` pixels: mirrored, turned, leaning, in perspective.

    At most 12 degrees, so that left and right, above and below stay what they are.
    """
    if rng.random() < 0.4:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = side / max(sprite.size)
    width, height = sprite.width * scale, sprite.height * scale
    lean = 0.02 + 0.1 * strength
    turn = math.radians(rng.uniform(-12, 12)) if rng.random() < 0.6 else 0.0
    cos, sin = math.cos(turn), math.sin(turn)
    corners = []
    for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        x = sx * width / 2 * (1 + rng.uniform(-lean, lean))
        y = sy * height / 2 * (1 + rng.uniform(-lean, lean))
        corners.append((x * cos - y * sin, x * sin + y * cos))
    xs, ys = zip(*corners, strict=True)
    shrink = side / max(max(xs) - min(xs), max(ys) - min(ys))
    seen = [((x - min(xs)) * shrink, (y - min(ys)) * shrink) for x, y in corners]
    wide, high = (max(4, math.ceil(max(edge))) for edge in zip(*seen, strict=True))
    if scale < 0.7:  # else every other pixel would be left out
        sprite = sprite.resize((max(4, round(width)), max(4, round(height))), Image.Resampling.BOX)
    flat = [(0, 0), (sprite.width, 0), (sprite.width, sprite.height), (0, sprite.height)]
    back = homography(seen, flat)  # PIL asks of each pixel where it comes from
    shown = sprite.transform(
        (wide, high),
        Image.Transform.PERSPECTIVE,
        tuple(back.flatten()[:8]),
        Image.Resampling.BICUBIC,
    )
    box = solid_box(shown)
    shown = shown.crop(box)
    return lit(shown, rng.uniform(0.86, 1.1))


def lit(glyph: Image.Image, light: float) -> Image.Image:
    red, green, blue, alpha = glyph.split()
    table = [min(255, int(v * light)) for v in range(256)]
    return Image.merge("RGBA", (*(band.point(table) for band in (red, green, blue)), alpha))


def solid_box(glyph: Image.Image) -> tuple[int, int, int, int]:
    """Where the glyph can be seen; all of it, if that is nowhere."""
    table = [255 * (v >= SOLID) for v in range(256)]
    return glyph.getchannel("A").point(table).getbbox() or (0, 0, *glyph.size)


def ink_of(glyph: Image.Image) -> Rgb:
    """The mean colour of what can be seen."""
    pixels = np.asarray(glyph.resize((12, 12), Image.Resampling.BOX), dtype=np.float32)
    weight = pixels[..., 3:] + 1e-3
    red, green, blue = ((pixels[..., :3] * weight).sum((0, 1)) / weight.sum()).tolist()
    return round(red), round(green), round(blue)


def photographed(image: Image.Image, rng: random.Random, strength: float) -> Image.Image:
    """Light from a side, noise, blur, JPEG, each by chance; `strength` 0 leaves the picture alone."""
    if strength <= 0:
        return image
    width, height = image.size
    if rng.random() < 0.3 + 0.4 * strength:
        pixels = np.asarray(image, dtype=np.float32)
        fall = 0.25 * strength
        light = (
            1
            + rng.uniform(-fall, fall) * np.linspace(-1, 1, width, dtype=np.float32)[None, :]
            + rng.uniform(-fall, fall) * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        )
        tint = np.array([1 + rng.uniform(-0.05, 0.05) * strength for _ in range(3)], np.float32)
        pixels = pixels * (light[..., None] * tint)
        if rng.random() < 0.6:
            noise = np.random.default_rng(rng.getrandbits(32))
            grain = noise.standard_normal((height, width), dtype=np.float32)
            pixels += grain[..., None] * (1 + 6 * strength * rng.random())
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.35 * strength:
        image = image.filter(ImageFilter.BoxBlur(0.3 + 0.5 * strength * rng.random()))
    if rng.random() < 0.5 * strength:
        image = as_jpeg(image, quality=round(92 - 50 * strength * rng.random()))
    return image


def cells(count: int, size: Size, rng: random.Random) -> list[PixelBox]:
    """So many cells of a loose grid over a picture, in random order."""
    width, height = size
    columns = max(1, round(math.sqrt(count * width / height)))
    rows = -(-count // columns)
    if rng.random() < 0.4:  # a free row or column, where the cells stay large enough
        if width / columns > height / rows:
            columns += width / (columns + 1) >= LEAST_CELL_PX
        else:
            rows += height / (rows + 1) >= LEAST_CELL_PX
    across, down = width / columns, height / rows
    chosen = rng.sample(range(columns * rows), count)
    return [
        (
            at % columns * across,
            at // columns * down,
            (at % columns + 1) * across,
            (at // columns + 1) * down,
        )
        for at in chosen
    ]


def within(glyph: Image.Image, cell: PixelBox, rng: random.Random) -> tuple[int, int]:
    """Where in the cell the glyph is put."""
    x1, y1, x2, y2 = cell
    return (
        int(x1 + rng.random() * max(0.0, x2 - x1 - glyph.width)),
        int(y1 + rng.random() * max(0.0, y2 - y1 - glyph.height)),
    )
