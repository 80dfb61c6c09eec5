"""Glyphs stand where their boxes say, also in perspective; what a camera does moves nothing."""

import random

import numpy as np
import pytest
from PIL import Image

from qvl.scenes.canvas import (
    FAR,
    GROUNDS,
    Canvas,
    cells,
    distance,
    ground_for,
    photographed,
    posed,
    within,
)
from qvl.scenes.kinds import kinds, sprites
from qvl.scenes.phrases import COLOURS
from qvl.scenes.products import BODIES, EMBLEMS, Paint, product


def changed(picture: Image.Image, ground: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The box of the pixels that differ from the ground."""
    away = np.abs(np.asarray(picture, dtype=int) - np.array(ground)).max(axis=2) > 24
    ys, xs = np.nonzero(away)
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def overlap(one, other) -> float:
    """Intersection over union."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0, across) * max(0, down)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return both / (area - both)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_boxes_are_tight_also_in_perspective(strength):
    rng = random.Random(1)
    ground = (255, 0, 255)  # the colour of none of them
    for kind in rng.sample(kinds(), 60):
        sprite = sprites("noto")[kind.key]
        glyph = posed(sprite, rng.uniform(50, 120), rng, strength)
        at = Canvas(Image.new("RGB", (160, 160), ground), rng)
        thing = at.place(glyph, within(glyph, (0, 0, 160, 160), rng), kind.key)
        assert overlap(thing.box, changed(at.image, ground)) > 0.9, kind.key


def test_a_pose_has_the_size_that_is_asked_for():
    rng = random.Random(2)
    for kind in rng.sample(kinds(), 40):
        side = rng.uniform(24, 150)
        glyph = posed(sprites("fluent-emoji")[kind.key], side, rng, 1.0)
        assert 0.8 * side <= max(glyph.size) <= side + 2


def test_what_covers_a_thing_leaves_its_box():
    rng = random.Random(3)
    ground = (255, 0, 255)
    for _ in range(30):
        at = Canvas(Image.new("RGB", (160, 160), ground), rng, 0.0)
        glyph = Image.new("RGBA", (rng.randint(50, 120), rng.randint(50, 120)), (0, 90, 0, 255))
        thing = at.place(glyph, within(glyph, (0, 0, 160, 160), rng), "board")
        before = changed(at.image, ground)
        at.cover(thing)
        assert changed(at.image, ground) == before


def test_a_camera_moves_nothing():
    picture = Image.new("RGB", (128, 128), "white")
    picture.paste((0, 0, 0), (32, 48, 80, 100))
    for seed in range(60):
        seen = photographed(picture, random.Random(seed), 1.0)
        assert seen.size == picture.size
        dark = np.asarray(seen.convert("L"), dtype=int) < 110
        ys, xs = np.nonzero(dark)
        box = (
            np.quantile(xs, 0.01),
            np.quantile(ys, 0.01),
            np.quantile(xs, 0.99),
            np.quantile(ys, 0.99),
        )
        assert np.abs(np.array(box) - (32, 48, 79, 99)).max() <= 2.5


def test_a_picture_without_strength_is_left_alone():
    picture = Image.new("RGB", (64, 64), "red")
    assert photographed(picture, random.Random(0), 0.0) is picture


@pytest.mark.parametrize("colour", COLOURS, ids=lambda colour: colour.en)
def test_every_colour_stands_out_from_some_background(colour):
    for seed in range(20):
        ground = GROUNDS[ground_for(random.Random(seed), [colour.rgb])]
        assert distance(ground, colour.rgb) >= FAR


@pytest.mark.parametrize("size", [(128, 128), (224, 128), (128, 224), (192, 160)])
@pytest.mark.parametrize("count", range(1, 10))
def test_cells_are_apart_and_large_enough(size, count):
    for seed in range(10):
        chosen = cells(count, size, random.Random(seed))
        assert len(set(chosen)) == count
        for x1, y1, x2, y2 in chosen:
            assert x2 <= size[0] + 1e-6
            assert y2 <= size[1] + 1e-6
            assert min(x2 - x1, y2 - y1) > 25


@pytest.mark.parametrize("key", BODIES)
def test_both_colours_of_a_product_are_seen(key):
    red, white = COLOURS[0], COLOURS[10]
    patterns = ("stripes", "dots", "checks", *(("star", "heart") if key in EMBLEMS else ()))
    for pattern in patterns:
        paint = Paint(red, pattern, white, red.rgb, white.rgb)
        pixels = np.asarray(product(key, paint), dtype=int)
        solid = pixels[pixels[..., 3] > 200][:, :3]
        near_red = (np.abs(solid - red.rgb).max(axis=1) < 60).mean()
        near_white = (solid.min(axis=1) > 185).mean()
        assert near_red > 0.2, (key, pattern)
        assert near_white > 0.04, (key, pattern)
