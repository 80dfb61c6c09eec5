"""One HTML page of what was found: picture, boxes, texts; nothing on it comes from outside."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from qvl.cli.output import Outcome
from qvl.errors import QvlError
from qvl.tasks.task import Result
from qvl.types import Box, Image, Point

EMBED_LIMIT_BYTES = 4 * 2**20
# what browsers show, by the file's first bytes
SIGNATURES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG": "image/png",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem;
       color: #1f2328; background: #fff }
h1 { font-size: 1.4rem } h2 { font-size: 1rem; overflow-wrap: anywhere; margin: 0 0 .3rem }
article { display: flex; flex-wrap: wrap; gap: 1rem; padding: 1rem 0; border-top: 1px solid #d0d7de }
figure { position: relative; margin: 0; width: min(16rem, 100%); align-self: flex-start }
figure img { display: block; width: 100% } figure svg { position: absolute; inset: 0 }
.text { flex: 1; min-width: min(16rem, 100%) } .error { color: #b42318 }
dl { display: grid; grid-template-columns: 2.5rem 1fr; margin: 0 } dt { color: #57606a } dd { margin: 0; white-space: pre-wrap }
small { color: #57606a }
"""


def page(outcomes: list[Outcome]) -> str:
    """The whole page."""
    body = "\n".join(article(outcome) for outcome in outcomes)
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>qvl: what was found</title><style>{STYLE}</style>\n"
        f"<h1>What was found</h1>\n{body}\n</html>\n"
    )


def article(outcome: Outcome) -> str:
    title = f"<h2>{escape(outcome.name)}</h2>"
    if isinstance(outcome.found, QvlError):
        message = escape(outcome.found.message)
        return f'<article><div class="text">{title}<p class="error">{message}</p></div></article>'
    texts = "".join(
        f'<dt>{result.language}</dt><dd lang="{result.language}">{escape(result.text)}</dd>'
        for result in outcome.found
    )
    first = outcome.found[0]
    sure = min(result.completion.confidence for result in outcome.found)
    provenance = first.completion.provenance
    info = (*provenance.images, *provenance.videos)[0]
    notes = "; ".join(
        (f"{info.width_px}x{info.height_px} px", f"confidence {sure:.2f}", *info.notes)
    )
    return (
        f"<article>{figure(outcome, first)}"
        f'<div class="text">{title}<dl>{texts}</dl><small>{escape(notes)}</small></div></article>'
    )


def figure(outcome: Outcome, result: Result) -> str:
    """The picture with boxes and points drawn over it, in pixels of the upright original."""
    source = picture_source(outcome)
    if source is None:
        return ""
    info = result.completion.provenance.images[0]
    found = [*result.boxes, *result.points]
    shapes = "".join(shape(place, number, info.width_px) for number, place in enumerate(found))
    label = escape(result.text, quote=True)
    return (
        f'<figure><img src="{source}" alt="{label}">'
        f'<svg viewBox="0 0 {info.width_px} {info.height_px}" aria-hidden="true">{shapes}</svg></figure>'
    )


def shape(place: Box | Point, number: int, width_px: int) -> str:
    from qvl.drawing import COLOURS  # brings Pillow and numpy: not for `qvl --help`

    colour = COLOURS[number % len(COLOURS)]
    size = max(6.0, width_px / 18)
    line = width_px / 120
    if isinstance(place, Box):
        x, y = place.x1, place.y1
        outline = (
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{place.x2 - x:.1f}" '
            f'height="{place.y2 - y:.1f}" fill="none" stroke="{colour}" stroke-width="{line:.1f}"/>'
        )
    else:
        x, y = place.x, place.y
        outline = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2 * line:.1f}" fill="{colour}"/>'
    return (
        f'{outline}<text x="{x + 2:.1f}" y="{max(y, size):.1f}" font-size="{size:.1f}" '
        f'fill="{colour}" stroke="#fff" stroke-width="{size / 6:.1f}" paint-order="stroke">'
        f"{escape(place.label)}</text>"
    )


def picture_source(outcome: Outcome) -> str | None:
    """The picture as a data address; None for what a browser does not show or is very large."""
    shown = outcome.seen[0]
    if not isinstance(shown, Image) or shown.page is not None:
        return None
    if not isinstance(shown.source, bytes | Path):  # at its address may lie another by now
        return None
    source = shown.source
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError:  # it was there when it was described; the text stays
        return None
    kind = next((kind for start, kind in SIGNATURES.items() if data.startswith(start)), None)
    if kind is None or len(data) > EMBED_LIMIT_BYTES:
        return None
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
