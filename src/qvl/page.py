"""The parts of an HTML page on which nothing comes from outside: no script, no style, no picture."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from qvl.types import Box, Point

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


# what such a page may load: nothing but what stands in it
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def beginning(title: str, heading: str, style: str = "") -> str:
    """All before the first article."""
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style>\n<h1>{escape(heading)}</h1>\n"
    )


ENDING = "\n</html>\n"


def data_address(data: bytes) -> str | None:
    """A picture's file as an address; None for what a browser does not show or is very large."""
    kind = next((kind for start, kind in SIGNATURES.items() if data.startswith(start)), None)
    if kind is None or len(data) > EMBED_LIMIT_BYTES:
        return None
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def figure(source: str, label: str, size: tuple[int, int], found: Sequence[Box | Point]) -> str:
    """A picture with boxes and points drawn over it, in pixels of its original, of that size."""
    shapes = "".join(shape(place, number, size[0]) for number, place in enumerate(found))
    return (
        f'<figure><img src="{source}" alt="{escape(label, quote=True)}">'
        f'<svg viewBox="0 0 {size[0]} {size[1]}" aria-hidden="true">{shapes}</svg></figure>'
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
