"""What a camera makes of a page: perspective, light, paper, folds, blur and JPEG, and places that follow."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from qvl.scenes.page import Page
from qvl.scenes.scene import PixelBox, Thing

TABLES = (
    (96, 74, 54),
    (120, 122, 126),
    (60, 72, 84),
    (170, 150, 122),
    (40, 40, 44),
    (188, 190, 186),
)
MAX_SHIFT = 0.05  # of a corner, as a share of the picture's side, at strength 1


def photographed(page: Page, rng: random.Random, strength: float) -> Page:
    """The page as in a photo; `strength` from 0 (untouched) to 1. Each effect comes by chance.

    The picture keeps its size; every box becomes the one around its moved corners.
    """
    if strength <= 0:
        return page
    canvas, rows = page.canvas, page.rows
    if rng.random() < 0.35 + 0.5 * strength:
        canvas, rows = turned(canvas, rows, rng, strength)
    pixels = np.array(canvas, dtype=np.float32)
    if rng.random() < 0.3 + 0.6 * strength:
        pixels *= shading(rng, canvas.size, strength)[..., None]
    if rng.random() < 0.3 + 0.4 * strength:  # paper, or the camera's noise
        noise = np.random.default_rng(rng.getrandbits(32))
        grain = noise.standard_normal(pixels.shape[:2], dtype=np.float32)
        pixels += grain[..., None] * (1 + 7 * strength * rng.random())
    canvas = Image.fromarray(pixels.clip(0, 255, out=pixels).astype(np.uint8))
    if rng.random() < 0.3 + 0.3 * strength:
        canvas = canvas.filter(ImageFilter.BoxBlur(0.2 + 0.4 * strength * rng.random()))
    if rng.random() < 0.2 + 0.5 * strength:
        canvas = as_jpeg(canvas, round(95 - 45 * strength * rng.random()))
    return replace(page, canvas=canvas, pen=ImageDraw.Draw(canvas), rows=rows)


def turned(
    canvas: Image.Image, rows: Sequence[Sequence[Thing]], rng: random.Random, strength: float
) -> tuple[Image.Image, list[list[Thing]]]:
    """The page seen from aside, its corners drawn inwards, on a table."""
    width, height = canvas.size
    shift = MAX_SHIFT * strength
    flat = [(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)]
    inwards = [(1, 1), (-1, 1), (-1, -1), (1, -1)]
    seen = [
        (x + dx * rng.uniform(0, shift) * width, y + dy * rng.uniform(0, shift) * height)
        for (x, y), (dx, dy) in zip(flat, inwards, strict=True)
    ]
    back = homography(seen, flat)  # PIL asks of each pixel where it comes from
    table = tuple(min(255, max(0, v + rng.randint(-12, 12))) for v in rng.choice(TABLES))
    shown = canvas.transform(
        canvas.size,
        Image.Transform.PERSPECTIVE,
        tuple(back.flatten()[:8]),
        Image.Resampling.BILINEAR,
        fillcolor=table,
    )
    forth = np.linalg.inv(back)
    return shown, [[moved(thing, forth) for thing in row] for row in rows]


def homography(
    start: Sequence[tuple[float, float]], end: Sequence[tuple[float, float]]
) -> np.ndarray:
    """[3, 3] that takes four points to four others (Hartley and Zisserman 2004, 4.1)."""
    rows, values = [], []
    for (x, y), (u, v) in zip(start, end, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1.0).reshape(3, 3)


def moved(thing: Thing, forth: np.ndarray) -> Thing:
    boxes = moved_boxes([thing.box, *(box for _, box in thing.letters)], forth)
    letters = tuple(
        (letter, box) for (letter, _), box in zip(thing.letters, boxes[1:], strict=True)
    )
    return replace(thing, box=boxes[0], letters=letters)


def moved_boxes(boxes: Sequence[PixelBox], forth: np.ndarray) -> list[PixelBox]:
    flat = np.array(boxes, dtype=np.float64)  # [n, 4]
    corners = flat[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    seen = np.concatenate([corners, np.ones((*corners.shape[:2], 1))], axis=2) @ forth.T
    seen = seen[..., :2] / seen[..., 2:]
    low, high = seen.min(axis=1), seen.max(axis=1)
    return [
        (float(a), float(b), float(c), float(d)) for (a, b), (c, d) in zip(low, high, strict=True)
    ]


def shading(rng: random.Random, size: tuple[int, int], strength: float) -> np.ndarray:
    """[H, W] by which the light is multiplied: a lamp from one side, soft crumples, a fold."""
    width, height = size
    across, down = np.linspace(-1, 1, width), np.linspace(-1, 1, height)
    lamp = strength * 0.3
    light = (
        1
        - lamp * rng.random() / 2
        + np.add.outer(down * rng.uniform(-lamp, lamp), across * rng.uniform(-lamp, lamp))
    )
    if rng.random() < 0.5:
        coarse = np.random.default_rng(rng.getrandbits(32)).normal(0, 1, (7, 6))
        crumple = Image.fromarray(coarse.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
        light = light + 0.07 * strength * np.asarray(crumple)
    if rng.random() < 0.3:
        along = (down if rng.random() < 0.5 else across) - rng.uniform(-0.5, 0.5)
        fold = 0.15 * strength * np.exp(-np.abs(along) * 9) * np.sign(along)
        light = light + (fold[:, None] if len(along) == height else fold[None, :])
    return light.astype(np.float32)


def as_jpeg(canvas: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")
