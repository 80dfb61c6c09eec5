"""HTML: every item with its small picture, its texts and its review, on one page that loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from qvl.batch.differences import word_difference
from qvl.batch.exports.table import OURS, answer_cells, cell_of, fixed_cells
from qvl.batch.exports.thumbnails import thumbnail
from qvl.cells import storable
from qvl.page import ENDING, beginning, data_address, figure
from qvl.runs.record import Finished
from qvl.runs.whole import whole_file
from qvl.types import Box, Point

# a browser lays out only what is in sight
STYLE = """
article { content-visibility: auto; contain-intrinsic-size: auto 18rem }
dl { grid-template-columns: max-content 1fr; column-gap: .6rem } dd { overflow-wrap: anywhere }
.approved { color: #15803d } .rejected { color: #b42318 } ins { background: #dafbe1 } del { background: #ffebe9 }
"""


def write(finished: Iterable[Finished], target: Path, *, title: str = "Results") -> None:
    """Raises StorageError."""
    with whole_file(target) as part, part.open("w", encoding="utf-8") as file:
        file.write(beginning(f"qvl: {title}", title, STYLE))
        for one in finished:
            file.write(storable(article(one)) + "\n")
        file.write(ENDING)


def article(one: Finished) -> str:
    fixed = fixed_cells(one)
    status = fixed["qvl_status"]
    if one.outcome is None:
        told = "<p>not asked yet</p>"
    elif fixed["qvl_error"]:
        told = f'<p class="error">{escape(fixed["qvl_error"])}</p>'
    else:
        told = ""
    texts = "".join(
        f"<dt>{escape(name.removeprefix(OURS))}</dt>"
        f'<dd lang="{escape(fixed["qvl_language"], quote=True)}">{text_of(one, name, text)}</dd>'
        for name, text in answer_cells(one).items()
        if text and name not in ("qvl_boxes", "qvl_points")
    )
    notes = [fixed["qvl_source"], fixed["qvl_flags"], fixed["qvl_note"]]
    return (
        f'<article>{picture(one)}<div class="text"><h2>{escape(one.item.id)}</h2>{told}'
        f'<dl>{texts}</dl><p class="{status}">{status}</p>'
        f"<small>{escape('; '.join(filter(None, notes)))}</small></div></article>"
    )


def text_of(one: Finished, name: str, text: str) -> str:
    """The text; where a reviewer changed it, with what they took away and added."""
    key = name.removeprefix(OURS)
    if one.review is None or one.outcome is None or key not in one.review.fields:
        return escape(text)
    marks = {"kept": "{}", "removed": "<del>{}</del>", "added": "<ins>{}</ins>"}
    found = word_difference(cell_of(one.outcome.out.get(key)), text)
    return "".join(marks[piece.kind].format(escape(piece.text)) for piece in found.pieces)


def picture(one: Finished) -> str:
    small = thumbnail(one.item.sources)
    source = data_address(small) if small is not None else None
    if source is None:
        return ""
    out: Any = one.outcome.out if one.outcome is not None else {}
    seen = (out.get("meta") or {}).get("images") or [{}]
    size = (seen[0].get("width_px", 0), seen[0].get("height_px", 0))
    found = shapes(out) if all(size) else []
    return figure(source, cell_of(one.told("text")), size, found)


def shapes(out: Any) -> list[Box | Point]:
    """Boxes and points as answers have them."""
    rows: Sequence[tuple[type[Box] | type[Point], str]] = ((Box, "boxes"), (Point, "points"))
    return [kind(**place) for kind, name in rows for place in out.get(name) or ()]
