"""The kinds of objects: their names in three languages, and how each drawing style shows them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from PIL import Image

from qvl.scenes.scene import Split

DATA = Path(str(files("qvl.scenes"))) / "data"
NO_ICON = "-"
CELL_PX, COLUMNS = 64, 20  # of an atlas
STYLES = ("noto", "fluent-emoji", "fluent-emoji-flat", "emojione", "twemoji")
STYLE_APART = "twemoji"  # of the split "style" alone


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object: its forms in three languages, and the icon that the sets know it by.

    `en_number` is "one" for "a cup", "mass" for "bread", "many" for "scissors"; `ru_gender` m, f, n,
    or p for what has no singular, and `ru_few` stands after 2, 3 and 4. Only what has a number in all three languages is `counted`.
    """

    key: str
    group: str
    icon: str
    en: str
    en_number: str
    en_plural: str
    ru: str
    ru_gender: str
    ru_gen: str
    ru_acc: str
    ru_few: str
    ru_plural: str
    ru_gen_plural: str
    zh: str
    zh_measure: str
    counted: bool


@cache
def kinds() -> tuple[Kind, ...]:
    """All that the atlases show, in the order of their cells."""
    return tuple(kind for kind in by_key().values() if kind.icon != NO_ICON)


@cache
def by_key() -> dict[str, Kind]:
    """The kinds of the atlases, then those that `products` alone draws."""
    with (DATA / "kinds.tsv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    texts = [field for field in Kind.__slots__ if field != "counted"]
    return {
        row["key"]: Kind(*(row[field] for field in texts), counted=row["counted"] == "1")
        for row in rows
    }


@cache
def sprites(style: str) -> dict[str, Image.Image]:
    """Every kind that the style has, by its key: RGBA, cropped to what is visible."""
    with (DATA / f"{style}.webp").open("rb") as file:
        atlas = Image.open(file).convert("RGBA")
    out = {}
    for index, kind in enumerate(kinds()):
        left, top = index % COLUMNS * CELL_PX, index // COLUMNS * CELL_PX
        cell = atlas.crop((left, top, left + CELL_PX, top + CELL_PX))
        if box := cell.getchannel("A").point(lambda alpha: 255 * (alpha > 24)).getbbox():
            out[kind.key] = cell.crop(box)
    return out


@cache
def styles_of(key: str, split: Split) -> tuple[str, ...]:
    """The styles that scenes of the split show the kind in."""
    wanted = (STYLE_APART,) if split == "style" else [s for s in STYLES if s != STYLE_APART]
    return tuple(style for style in wanted if key in sprites(style))
