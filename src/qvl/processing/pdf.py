"""Documents: how many pages a PDF has, its pages as images, and one page as pixels.

Main path: pages -> page_count, and image.read_image -> render; each asks a process of its own
(pdf_worker.py) once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from qvl.errors import EngineError, ImageAspectError, InvalidParamError, PdfError, UsageError
from qvl.processing.patches import MAX_ASPECT
from qvl.processing.source import is_pdf, quoted, read_encoded
from qvl.processing.worker import (
    Decoded,
    Refused,
    Worker,
    WorkerDiedError,
    WorkerTimedOutError,
    folders_of,
)
from qvl.types import Image, Url, Video

MAX_PAGES = 500
MAX_PIXELS = 25_000_000
MAX_SIDE_PT = 14_400  # the largest page that PDF itself allows for (ISO 32000-1, annex C): 5 m
DPI = 144
DECODE_MEMORY_BYTES = 3 * 2**29
DECODE_WALL_S = 10

_REFUSALS = {kind.code: kind for kind in (PdfError, ImageAspectError, InvalidParamError)}
T = TypeVar("T")


def pages(image: Image, which: str | None = None) -> list[Image]:
    """A document's pages as images, by number as in "1-5,8", or all of them; nothing is rendered.

    Each is called after the document and its number. A document at an address is fetched here, once.
    Raises as page_count, and InvalidParamError for pages that it has not.
    """
    if isinstance(image.source, Url):
        image = replace(image, source=read_encoded(image))
    total = page_count(image)
    numbers = range(1, total + 1) if which is None else _numbers(which, total, quoted(image.name))
    return [replace(image, name=f"{image.name}, page {number}", page=number) for number in numbers]


def with_pages(seen: Iterable[Image | Video]) -> list[Image | Video]:
    """The same, with all pages of each document of which no page is named.

    What lies in a file or at an address is a document if it is called ....pdf. Raises as `pages`.
    """
    found: list[Image | Video] = []
    for one in seen:
        if isinstance(one, Image) and one.page is None and _is_document(one):
            found += pages(one)
        else:
            found.append(one)
    return found


def pages_for(most: int, seen: Sequence[Image | Video]) -> Sequence[Image | Video]:
    """As `with_pages` for who looks at several, `most` at a time; for anybody else the same."""
    return with_pages(seen) if 1 < most >= len(seen) else seen


def _is_document(image: Image) -> bool:
    match image.source:
        case bytes(encoded):
            return is_pdf(encoded)
        case Url(address):
            return re.split("[?#]", address)[0].lower().endswith(".pdf")
        case path:
            return path.suffix.lower() == ".pdf"


def page_count(image: Image) -> int:
    """Raises the errors of read_encoded for where it lies, PdfError for the content, UsageError without
    pypdfium2, EngineError when no reader can be started.
    """
    name = quoted(image.name)
    encoded = read_encoded(image)
    if not is_pdf(encoded):
        raise PdfError(f"{name} is not a PDF document", hint="give a PDF, or leave out the pages")
    return _ask(encoded, name, {"count": True, "page": None}, _count)


def render(encoded: bytes, page: int | None, name: str) -> Decoded:
    """A page at 144 dpi, or fewer where MAX_PIXELS are reached, upright on white; None: the first.

    Raises PdfError and ImageAspectError for the content, InvalidParamError for a page that is not
    there, UsageError without pypdfium2, EngineError when no reader can be started.
    """
    return _ask(encoded, name, {"count": False, "page": page}, Worker.picture)


def _numbers(which: str, total: int, name: str) -> list[int]:
    numbers: dict[int, None] = {}  # each once
    for part in which.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,6})\s*(?:-\s*([0-9]{1,6})\s*)?", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= first <= last <= total:
            raise InvalidParamError(
                f"{quoted(which)} are not pages of {name}, which has {total}",
                hint=f"give numbers from 1 to {total}, such as 1-5,8",
            )
        numbers |= dict.fromkeys(range(first, last + 1))
    return list(numbers)


def _count(worker: Worker) -> int | Refused:
    header = worker.header()
    if isinstance(header, Refused):
        return header
    count = header.get("pages")
    if not isinstance(count, int) or not 1 <= count <= MAX_PAGES:
        raise WorkerDiedError
    return count


def _ask(
    encoded: bytes, name: str, question: dict[str, object], answer: Callable[[Worker], T | Refused]
) -> T:
    worker = _start(question)
    try:
        with worker.killed_after(DECODE_WALL_S):
            worker.write(len(encoded).to_bytes(8, "little"))
            worker.write(encoded)
            told = answer(worker)
    except WorkerTimedOutError as err:
        raise PdfError(
            f"{name} was not read within {DECODE_WALL_S} s", hint="save the page as a picture"
        ) from err
    except WorkerDiedError as err:
        raise PdfError(
            f"{name} made the PDF reader crash", hint="save the page as a picture"
        ) from err
    finally:
        worker.stop()
    if isinstance(told, Refused):
        kind = _REFUSALS.get(told.code, PdfError)
        raise kind(f"{name} {told.message}", hint=told.hint)
    return told


def _start(question: dict[str, object]) -> Worker:
    folders = folders_of("pypdfium2", "PIL", "qvl")
    if folders is None:
        raise UsageError(
            "PDF documents need the package pypdfium2", hint="pip install 'qvl[documents]'"
        )
    task = {
        **question,
        "paths": folders,
        "dpi": DPI,
        "side_pt": MAX_SIDE_PT,
        "pages": MAX_PAGES,
        "pixels": MAX_PIXELS,
        "aspect": MAX_ASPECT,
        "memory_bytes": DECODE_MEMORY_BYTES,
        "wall_s": DECODE_WALL_S,
    }
    script = Path(__file__).resolve().with_name("pdf_worker.py")
    try:
        worker = Worker(script, json.dumps(task), max_pixels=MAX_PIXELS, own_group=False)
    except OSError as err:
        raise EngineError("the PDF reader cannot be started") from err
    try:
        worker.wait_until_ready()
    except BaseException as err:
        worker.stop()
        if isinstance(err, WorkerDiedError | WorkerTimedOutError):
            raise EngineError(
                "the PDF reader does not start",
                hint="check that `python -c 'import pypdfium2'` works",
            ) from err
        raise
    return worker
