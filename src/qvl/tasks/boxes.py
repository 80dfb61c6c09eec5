"""Boxes out of a model's answer, in pixels of the upright original picture.

Qwen3-VL and `sprout` answer a JSON list of {"bbox_2d": [x1, y1, x2, y2], "label": ...} on a grid of
0..1000; other generations' conventions come with their own support.
"""

from __future__ import annotations

import re

from qvl.types import Box, ImageInfo

GRID = 1000.0
# one object of the list; tolerant of what surrounds it, of spaces and of a list that was cut off
_OBJECT = re.compile(
    r'\{\s*"bbox_2d"\s*:\s*\[\s*(-?[\d.]{1,9})\s*,\s*(-?[\d.]{1,9})\s*,\s*(-?[\d.]{1,9})\s*,'
    r'\s*(-?[\d.]{1,9})\s*\]\s*(?:,\s*"label"\s*:\s*"([^"]{0,200})")?'
)


def parse_boxes(text: str, image: ImageInfo) -> tuple[Box, ...]:
    """Every well-formed box in the text: corners in order, clamped to the picture, area above 0."""
    boxes = []
    for match in _OBJECT.finditer(text):
        try:
            x1, y1, x2, y2 = (float(v) / GRID for v in match.groups()[:4])
        except ValueError:  # "1.2.3"
            continue
        left, right = (min(1.0, max(0.0, v)) * image.width_px for v in sorted((x1, x2)))
        top, bottom = (min(1.0, max(0.0, v)) * image.height_px for v in sorted((y1, y2)))
        if right > left and bottom > top:
            boxes.append(Box(match.group(5) or "", left, top, right, bottom))
    return tuple(boxes)
