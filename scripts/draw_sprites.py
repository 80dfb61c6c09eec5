"""Draw the atlases of src/qvl/scenes/data from the icon sets that NOTICE.md names.

    npm pack @iconify-json/noto @iconify-json/fluent-emoji @iconify-json/fluent-emoji-flat \\
        @iconify-json/emojione @iconify-json/twemoji
    pip install resvg_py                  # then unpack each archive as SETS/NAME
    python scripts/draw_sprites.py SETS

An atlas has a cell for every row of kinds.tsv, in their order; a set without the icon leaves it empty.
"""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image

from qvl.scenes.kinds import CELL_PX, COLUMNS, DATA, STYLES, kinds


def main(sets: Path) -> None:
    for style in STYLES:
        found = json.loads((sets / style / "package" / "icons.json").read_text("utf-8"))
        rows = -(-len(kinds()) // COLUMNS)
        atlas = Image.new("RGBA", (COLUMNS * CELL_PX, rows * CELL_PX))
        for index, kind in enumerate(kinds()):
            if (svg := svg_of(found, kind.icon)) is None:
                continue
            glyph = rasterised(svg)
            left, top = index % COLUMNS * CELL_PX, index // COLUMNS * CELL_PX
            inset = (CELL_PX - glyph.width) // 2, (CELL_PX - glyph.height) // 2
            atlas.paste(glyph, (left + inset[0], top + inset[1]))
        atlas.save(DATA / f"{style}.webp", quality=78, alpha_quality=90, method=6)


def svg_of(found: dict[str, Any], name: str) -> str | None:
    """The icon as a picture of its own; None where the set has no such icon."""
    alias = found.get("aliases", {}).get(name)
    icon = found["icons"].get(alias["parent"] if alias else name)
    if icon is None:
        return None
    width = icon.get("width", found.get("width", 16))
    height = icon.get("height", found.get("height", 16))
    size = f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{icon["body"]}</svg>'


def rasterised(svg: str) -> Image.Image:
    """What is visible, as large as a cell allows."""
    side = 8 * CELL_PX
    svg = re.sub(r"<svg ", f'<svg width="{side}" height="{side}" ', svg, count=1)
    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    # a faint shadow or glow is not the thing
    visible = drawn.getchannel("A").point(lambda alpha: 255 * (alpha > 40))
    drawn = drawn.crop(visible.getbbox())
    scale = CELL_PX / max(drawn.size)
    size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
    return drawn.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
