"""Boxes and points out of a model's answer, in pixels of the upright original picture.

| generation | how it writes a place | what its numbers count |
|---|---|---|
| Qwen-VL | `<ref>label</ref><box>(x,y),(x,y)</box>`, several boxes in a row, `<quad>` with four corners | thousandths |
| Qwen2-VL | the same with `<\\|object_ref_start\\|>`, `<\\|box_start\\|>`, `<\\|quad_start\\|>` and `..._end` | thousandths |
| Qwen2.5-VL | JSON: `{"bbox_2d": [x, y, x, y], "label": ...}` or `"point_2d": [x, y]` | pixels of the picture as it was resized |
| Qwen3-VL, `sprout` | the same JSON | thousandths |

Both ways of writing are read whatever the generation, since an answer follows what it was asked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from qvl.types import Box, Completion, ImageInfo, Point, ResponseFormat
from qvl.vlm.answer_json import refuse

GRID = 1000
IN_PIXELS = ("qwen2_5_vl",)  # of the resized picture; all the others count thousandths
IN_TAGS = ("qwen_vl", "qwen2_vl")  # whose tags are control tokens, which no grammar spells
LARGEST_SIDE_PX = 99_999
_SPECIAL = re.compile(r"<\|(object_ref|box|quad)_(start|end)\|>")
_TAGGED = re.compile(r"(?:<ref>([^<]*)</ref>\s*)?((?:<(?:box|quad)>[^<]*</(?:box|quad)>\s*)+)")
_TAG = re.compile(r"<(?:box|quad)>([^<]*)")
_PAIR = re.compile(r"\(\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*,\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*\)")

Place = tuple[str, Sequence[float]]  # label; x and y in turn: 2 numbers are a point


def places_form(
    generation: str, key: Literal["bbox_2d", "point_2d"], label: Mapping[str, Any]
) -> ResponseFormat | None:
    """A list of places as the generation writes it in JSON; None for those that write tags.

    `label` is the one property beside the numbers: its name and its schema.
    """
    if generation in IN_TAGS:
        return None
    largest = LARGEST_SIDE_PX if generation in IN_PIXELS else GRID
    count = 4 if key == "bbox_2d" else 2
    numbers = {
        "type": "array",
        "items": {"type": "integer", "minimum": 0, "maximum": largest},
        "minItems": count,
        "maxItems": count,
    }
    place = {
        "type": "object",
        "properties": {key: numbers, **label},
        "required": [key, *label],
        "additionalProperties": False,
    }
    return ResponseFormat("json_schema", json.dumps({"type": "array", "items": place}))


def parse_boxes(text: str, image: ImageInfo, *, generation: str) -> tuple[Box, ...]:
    """Every well-formed box in the text: corners in order, clamped to the picture, area above 0.

    Four corners are the box around them. `image` is the picture that was asked about, `generation`
    that of the model (`Provenance.generation`).
    """
    lines = parse_lines(text, image, generation=generation)
    return tuple(box for _, box in lines if box is not None)


def parse_lines(
    text: str, image: ImageInfo, *, generation: str
) -> tuple[tuple[str, Box | None], ...]:
    """As `parse_boxes`, each after its label, which stays where the box spans nothing (None)."""
    lines: list[tuple[str, Box | None]] = []
    for label, numbers in _places(text):
        if len(numbers) < 4:
            continue
        xs, ys = _pixels(numbers, image, generation)
        box = Box(label, min(xs), min(ys), max(xs), max(ys))
        lines.append((label, box if box.x2 > box.x1 and box.y2 > box.y1 else None))
    return tuple(lines)


def boxes_of(completion: Completion, picture: int = 0) -> tuple[Box, ...]:
    """The boxes in an answer about one of the pictures that were asked about."""
    how = completion.provenance
    return parse_boxes(completion.text, how.images[picture], generation=how.generation)


def parse_points(text: str, image: ImageInfo, *, generation: str) -> tuple[Point, ...]:
    """Every well-formed point in the text, clamped to the picture; arguments as of `parse_boxes`."""
    points = []
    for label, numbers in _places(text):
        if len(numbers) == 2:
            (x,), (y,) = _pixels(numbers, image, generation)
            points.append(Point(label, x, y))
    return tuple(points)


def _pixels(
    numbers: Sequence[float], image: ImageInfo, generation: str
) -> tuple[list[float], list[float]]:
    in_pixels = generation in IN_PIXELS
    across = image.resized_width_px if in_pixels else GRID
    down = image.resized_height_px if in_pixels else GRID
    xs = [min(1.0, max(0.0, x / across)) * image.width_px for x in numbers[::2]]
    ys = [min(1.0, max(0.0, y / down)) * image.height_px for y in numbers[1::2]]
    return xs, ys


def _places(text: str) -> Iterator[Place]:
    yield from _tagged(text)
    for value in _objects(text):
        yield from _in_json(value)


def _tagged(text: str) -> Iterator[Place]:
    names = {"object_ref": "ref", "box": "box", "quad": "quad"}
    slash = {"start": "", "end": "/"}
    plain = _SPECIAL.sub(lambda m: f"<{slash[m[2]]}{names[m[1]]}>", text)
    for label, tags in _TAGGED.findall(plain):
        for tag in _TAG.findall(tags):
            numbers = [float(number) for pair in _PAIR.findall(tag) for number in pair]
            if len(numbers) in (2, 4, 8):
                yield label.strip(), numbers


def _objects(text: str) -> Iterator[object]:
    """Every whole JSON object in the text, whatever surrounds it; a list may be cut off."""
    decoder = json.JSONDecoder(parse_int=float, parse_constant=refuse)
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except RecursionError:  # no answer to a question is that deep
            return
        except ValueError:
            end = at + 1
        else:
            yield value
        at = text.find("{", end)


def _in_json(value: object) -> Iterator[Place]:
    """The places in a value, however deep, in their order."""
    waiting: list[Any] = [value]
    while waiting:
        match value := waiting.pop():
            case {"bbox_2d": [_, _, _, _] as numbers} | {"point_2d": [_, _] as numbers}:
                if all(isinstance(n, float) and math.isfinite(n) for n in numbers):
                    yield _label(value), numbers
            case dict():
                waiting += reversed(value.values())
            case list():
                waiting += reversed(value)


def _label(found: Mapping[str, object]) -> str:
    """What it says of itself: its label, or else the first text in it, as of a printed word."""
    texts = [text for text in found.values() if isinstance(text, str)]
    label = found.get("label")
    return label if isinstance(label, str) else next(iter(texts), "")
