"""The process that reads PDF documents, so that a hostile one can only kill this process.

Started by pdf.py as `python -I pdf_worker.py TASK`, a JSON object: "paths" to look for packages in,
what is asked ("count", or "page": a number from 1, or null for the first), and limits. It imports
pypdfium2, Pillow and decode_worker.py: no numpy, no torch. PDFium comes without JavaScript, and nothing
here follows an action or a link.

On stdin: 8 bytes of length and the document. On stdout: one READY byte, then {"pages"} or the page as
decode_worker.py sends a picture. Refusals are as there, too.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from dataclasses import dataclass
from typing import Any

if __name__ == "__main__":
    # -I hides all but the standard library
    sys.path += json.loads(sys.argv[1])["paths"]

import pypdfium2 as pdfium
from pypdfium2 import raw

from qvl.processing.decode_worker import (
    DAMAGE,
    READY,
    TINY_PX,
    Limits,
    Refusal,
    check_size,
    limit_resources,
    read_exactly,
    refusal_header,
    write_all,
)

POINTS_PER_INCH = 72
ANOTHER_COPY = "download or copy it again, or print it to a PDF anew"


@dataclass(frozen=True, slots=True)
class Rules:
    dpi: int
    side_pt: int
    pages: int
    limits: Limits


def document(data: bytes, rules: Rules) -> pdfium.PdfDocument:
    try:
        opened = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as err:
        if raw.FPDF_GetLastError() in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
            raise Refusal("pdf", "needs a password", "save it without one") from err
        raise Refusal("pdf", "is damaged, or has no pages", ANOTHER_COPY) from err
    count = len(opened)
    if count > rules.pages:
        message = f"has {count} pages, the limit is {rules.pages}"
        raise Refusal("pdf", message, "cut it into several documents")
    return opened


def rendered(opened: pdfium.PdfDocument, number: int, rules: Rules) -> tuple[Any, list[str]]:
    """The page with this number as a Pillow image, and notes."""
    opened.init_forms()  # or the fields that somebody has filled in stay empty
    page = opened[number - 1]
    width_pt, height_pt = page.get_size()
    if not (width_pt > 0 and height_pt > 0):
        raise Refusal("pdf", f"has a page {number} without a size", ANOTHER_COPY)
    if max(width_pt, height_pt) > rules.side_pt:
        size = f"{width_pt:.0f}x{height_pt:.0f} points"
        message = f"has a page {number} of {size}, the limit is {rules.side_pt} a side"
        raise Refusal("pdf", message, "save the page at a smaller size")
    notes: list[str] = []
    scale = rules.dpi / POINTS_PER_INCH
    fitting = math.sqrt(rules.limits.pixels / (width_pt * height_pt))
    if fitting < scale:
        scale = fitting * 0.995  # sides are rounded up
        notes.append(f"a large page: rendered at {scale * POINTS_PER_INCH:.0f} dpi")
    width_px, height_px = math.ceil(width_pt * scale), math.ceil(height_pt * scale)
    check_size(width_px, height_px, rules.limits)
    if min(width_px, height_px) < TINY_PX:
        notes.append(f"tiny, {width_px}x{height_px} px")
    return page.render(scale=scale).to_pil().convert("RGB"), notes


def answer(data: bytes, task: dict[str, Any], rules: Rules) -> tuple[dict[str, object], bytes]:
    opened = document(data, rules)
    count, number = len(opened), 1 if task["page"] is None else task["page"]
    if task["count"]:
        return {"pages": count}, b""
    if not 1 <= number <= count:
        message = f"has no page {number}: it has {count}"
        raise Refusal("invalid_param", message, f"give a page from 1 to {count}")
    image, notes = rendered(opened, number, rules)
    if task["page"] is None and count > 1:
        notes.insert(0, f"{count} pages: the first one is used")
    return {"width": image.width, "height": image.height, "notes": notes}, image.tobytes()


def main(task: dict[str, Any]) -> None:
    limits = Limits(
        pixels=task["pixels"],
        aspect=task["aspect"],
        memory_bytes=task["memory_bytes"],
        wall_s=task["wall_s"],
    )
    rules = Rules(task["dpi"], task["side_pt"], task["pages"], limits)
    limit_resources(limits.memory_bytes)
    # A library that prints must not write into the answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    write_all(answers, READY)
    length = read_exactly(0, 8)
    data = read_exactly(0, int.from_bytes(length, "little")) if length else None
    if data is None:
        return
    # The parent kills at wall_s. Should it be gone by then, the alarm ends a stuck reader.
    signal.alarm(limits.wall_s + 5)
    pixels = b""
    try:
        header, pixels = answer(data, task, rules)
    except Refusal as no:
        header = refusal_header(no)
    except MemoryError:
        message = f"needs more than {limits.memory_bytes / 2**30:g} GiB of memory to read"
        header = refusal_header(Refusal("pdf", message, "save the page as a picture"))
    except (pdfium.PdfiumError, *DAMAGE):
        header = refusal_header(Refusal("pdf", "is damaged: its page cannot be read", ANOTHER_COPY))
    encoded = json.dumps(header).encode()
    write_all(answers, len(encoded).to_bytes(4, "little") + encoded)
    write_all(answers, pixels)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
