"""Boxes out of answers: pixels of the original, tolerant of what surrounds them, never outside."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from qvl import Image
from qvl.processing.image import read_image
from qvl.processing.patches import resize, smart_resize
from qvl.tasks.boxes import parse_boxes, parse_points
from qvl.types import Box, ImageInfo, Point

INFO = ImageInfo(
    name="a",
    sha256="",
    width_px=400,
    height_px=200,
    resized_width_px=160,
    resized_height_px=96,
    tokens=15,
)
TALL = replace(INFO, width_px=100, height_px=1000, resized_width_px=84, resized_height_px=1008)
GENERATIONS = ("qwen_vl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")


def boxes(text: str, image: ImageInfo = INFO, generation: str = "qwen3_vl") -> tuple[Box, ...]:
    return parse_boxes(text, image, generation=generation)


def points(text: str, image: ImageInfo = INFO, generation: str = "qwen3_vl") -> tuple[Point, ...]:
    return parse_points(text, image, generation=generation)


def written(generation: str, label: str, numbers: list[int]) -> str:
    """One place of 2 or 4 numbers as a model of the generation writes it."""
    pairs = ",".join(f"({x},{y})" for x, y in zip(numbers[::2], numbers[1::2], strict=True))
    match generation:
        case "qwen_vl":
            return f"<ref>{label}</ref><box>{pairs}</box>"
        case "qwen2_vl":
            return f"<|object_ref_start|>{label}<|object_ref_end|><|box_start|>{pairs}<|box_end|>"
    key = "bbox_2d" if len(numbers) == 4 else "point_2d"
    return f"```json\n{json.dumps([{key: numbers, 'label': label}], ensure_ascii=False)}\n```"


@pytest.mark.parametrize("image", [INFO, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_quarter_of_the_picture_is_that_in_every_generation(
    generation: str, image: ImageInfo
) -> None:
    full = (1000, 1000)
    if generation == "qwen2_5_vl":  # pixels of the picture as the model saw it
        full = (image.resized_width_px, image.resized_height_px)
    x, y = full[0] // 4, full[1] // 2
    box = written(generation, "кошка", [0, y, x, full[1]])
    expected = Box("кошка", 0, image.height_px / 2, image.width_px / 4, image.height_px)
    assert boxes(f"Here: {box}.", image, generation) == (expected,)
    point = written(generation, "нос", [x, y])
    expected_point = Point("нос", image.width_px / 4, image.height_px / 2)
    assert points(f"Here: {point}.", image, generation) == (expected_point,)
    assert points(box, image, generation) == boxes(point, image, generation) == ()


def test_tags_in_a_row_share_their_label_and_four_corners_are_a_box() -> None:
    text = (
        "<ref> cups</ref><box>(0,0),(100,100)</box><box>(500,500),(600,600)</box> on "
        "<box>(0,0),(1000,1000)</box><quad>(100,0),(200,100),(100,200),(0,100)</quad>"
    )
    assert boxes(text, generation="qwen_vl") == (
        Box("cups", 0, 0, 40, 20),
        Box("cups", 200, 100, 240, 120),
        Box("", 0, 0, 400, 200),
        Box("", 0, 0, 80, 40),
    )


@pytest.mark.parametrize("generation", GENERATIONS)
def test_corners_are_put_in_order_and_clamped(generation: str) -> None:
    text = written(generation, "x", [2000, 900, -50, -7])
    (box,) = boxes(text, generation=generation)
    assert (box.x1, box.y1, box.x2) == (0, 0, 400)
    assert box.y2 == (200 if generation == "qwen2_5_vl" else 180)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_no_box_without_an_area_and_none_in_plain_text(generation: str) -> None:
    for numbers in ([10, 10, 10, 50], [10, 10, 50, 10], [2000, 0, 3000, 50]):
        assert boxes(written(generation, "a", numbers), generation=generation) == ()
    for text in ("nothing (1,2),(3,4) here", "<box>(1,2),(3,4)", "<box></box>", "<box>(1,2"):
        assert boxes(text, generation=generation) == ()


def test_a_list_that_was_cut_off_keeps_its_whole_boxes() -> None:
    whole = '{"bbox_2d":[0,0,500,500],"label":"a"}'
    for start in ("[", "```json\n[", '{"objects": [', "Sure: "):
        for end in ("", ",", ',{"bbox_2d":[0,0,50', ',{"bbox_2d":[0,0,50,60],"lab', "]\n```"):
            assert boxes(start + whole + end) == (Box("a", 0, 0, 200, 100),)


def test_keys_may_come_in_any_order_and_a_printed_word_is_a_label() -> None:
    assert boxes('{"label": "b", "bbox_2d": [0, 0, 500, 500.0], "colour": "red"}')[0].label == "b"
    assert boxes('{"bbox_2d": [0, 0, 500, 500], "text_content": "SALE"}')[0].label == "SALE"
    assert boxes('{"found": {"cups": [{"bbox_2d": [0, 0, 500, 500]}]}}')[0].label == ""


@pytest.mark.parametrize(
    "numbers",
    [
        '["1","2","3","4"]',
        "[1.2.3,1,2,3]",
        "[NaN,0,1,1]",
        "[true,0,1,1]",
        "[1,2,3]",
        "null",
        "[0,0,1,1e999]",
        f"[0,0,{'9' * 5000},1]",
    ],
)
def test_what_is_no_place_is_none(numbers: str) -> None:
    assert boxes(f'{{"bbox_2d": {numbers}, "label": "a"}}') == ()


def test_a_deep_answer_does_no_harm() -> None:
    assert boxes("[" * 50_000 + '{"a":' * 50_000) == ()
    assert boxes('{"a":' * 500 + written("qwen3_vl", "a", [0, 0, 500, 500]) + "}" * 500) != ()


@given(st.text(alphabet='[]{}",:.0123456789bbox_2d label-кошка', max_size=200))
def test_any_text_is_read_without_a_fault(text: str) -> None:
    for box in boxes(text):
        assert 0 <= box.x1 < box.x2 <= INFO.width_px
        assert 0 <= box.y1 < box.y2 <= INFO.height_px


whole = st.integers(0, 99).map(lambda v: v * 10)


@given(st.lists(st.tuples(whole, whole, whole, whole), max_size=5))
def test_what_training_writes_is_read_back(corners: list[tuple[int, int, int, int]]) -> None:
    proper = [(x1, y1, x2, y2) for x1, y1, x2, y2 in corners if x1 < x2 and y1 < y2]
    written = [{"bbox_2d": list(box), "label": "вещь"} for box in proper]
    found = boxes(json.dumps(written, ensure_ascii=False, separators=(",", ":")))
    grid = [
        tuple(round(v) for v in (b.x1 / 0.4, b.y1 / 0.2, b.x2 / 0.4, b.y2 / 0.2)) for b in found
    ]
    assert grid == proper


# width : height
SHAPES = ((1, 1), (4, 3), (3, 4), (16, 9), (9, 16), (3, 1))


FACTORS_PX = {"qwen2_vl": 28, "qwen2_5_vl": 28, "qwen3_vl": 32, "qwen3_vl_moe": 32}
# how an upright picture is turned to lie in a file of that EXIF orientation (TIFF 6.0, tag 274)
LYING = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_90,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_270,
}


def square_on_white(shape: tuple[int, int]) -> Pillow.Image:
    """About a megapixel with a dark square left of the middle, above it."""
    unit = (1_000_000 / shape[0] / shape[1]) ** 0.5
    width, height = (round(side * unit) for side in shape)
    picture = Pillow.new("RGB", (width, height), "white")
    side = min(width, height) * 2 // 3
    left, top = (width - side) // 3, (height - side) // 4
    picture.paste((20, 20, 60), (left, top, left + side, top + side))
    return picture


def dark_box(pixels: np.ndarray) -> tuple[float, float, float, float]:
    """Where the square is in uint8 [H, W, 3]: half of the way from white counts as an edge."""
    dark = pixels[:, :, 0] < 138
    xs, ys = np.flatnonzero(dark.any(0)), np.flatnonzero(dark.any(1))
    return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)


def model_size(generation: str, pixels: np.ndarray) -> tuple[int, int]:
    """(height, width) that a model of the generation sees: about half a megapixel, or its square."""
    if generation == "qwen_vl":
        return 448, 448
    factor_px = FACTORS_PX[generation]
    return smart_resize(*pixels.shape[:2], factor_px=factor_px, min_px=3136, max_px=500_000)


def overlap(box: Box, other: tuple[float, float, float, float]) -> float:
    """Intersection over union."""
    x1, y1, x2, y2 = other
    across = min(box.x2, x2) - max(box.x1, x1)
    down = min(box.y2, y2) - max(box.y1, y1)
    shared = max(0.0, across) * max(0.0, down)
    return shared / ((box.x2 - box.x1) * (box.y2 - box.y1) + (x2 - x1) * (y2 - y1) - shared)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_a_square_comes_back_to_where_it_is(shape: tuple[int, int], orientation: int) -> None:
    """Of a photograph that lies in its file as its EXIF orientation says, seen in the model's size."""
    upright = square_on_white(shape)
    lying = upright.transpose(LYING[orientation]) if orientation > 1 else upright
    exif, file = Pillow.Exif(), io.BytesIO()
    exif[274] = orientation
    lying.save(file, "PNG", exif=exif)
    truth = dark_box(np.asarray(upright))
    picture = read_image(Image(file.getvalue()))
    for generation in GENERATIONS:
        size = model_size(generation, picture.pixels)
        seen = dark_box(resize(picture.pixels, size))
        info = replace(
            INFO,
            width_px=picture.pixels.shape[1],
            height_px=picture.pixels.shape[0],
            resized_width_px=size[1],
            resized_height_px=size[0],
        )
        across, down = (1, 1) if generation == "qwen2_5_vl" else (1000 / size[1], 1000 / size[0])
        numbers = [round(n * s) for n, s in zip(seen, (across, down) * 2, strict=True)]
        (box,) = boxes(written(generation, "square", numbers), info, generation)
        assert overlap(box, truth) >= 0.99, (generation, box, truth)
