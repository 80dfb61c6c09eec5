"""Where a text says that a picture lies, and which parts of what lies there are items of their own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace

from qvl.batch import object_store
from qvl.batch.media import part_of_video, seen_in
from qvl.batch.row import Refused, Row, Wanted
from qvl.errors import InvalidParamError, QvlError
from qvl.runs.record import Source
from qvl.types import VIDEO_SUFFIXES, Image, Video, is_address, page_apart


def located(text: str, folder: str) -> Source:
    """What a cell or a line names: an address, or a path relative to the folder; with a part behind it.

    Raises InvalidParamError for a data: URL.
    """
    if text[:5].lower() == "data:":
        raise InvalidParamError(
            "a data: URL is not a path or an address", hint="save the picture to a file"
        )
    text, page = page_apart(text)
    part = "" if page is None else f"page={page}"
    if not part:
        text, part = part_of_video(text)
    if is_address(text) or object_store.is_store(text):
        return Source(text, part)
    path = os.path.join(folder, text.removeprefix("file://"))
    if "\\" in path and not os.path.exists(path):  # as Windows writes it
        path = path.replace("\\", "/")
    return Source(os.path.normpath(path), part)


def parts(row: Row, wanted: Wanted) -> Iterator[Row | Refused]:
    """The row, or one for each part of it: a page of its document, each so many seconds of its video."""
    source = row.sources[0]
    suffix = _suffix(source.where)
    is_document = suffix == ".pdf"
    is_cut = wanted.every_s is not None and suffix in VIDEO_SUFFIXES
    if len(row.sources) != 1 or source.part or not (is_document or is_cut):
        yield row
        return
    try:
        found = _pages(source) if is_document else _segments(source, wanted.every_s or 0)
    except QvlError as err:
        yield Refused(row.name, err)
        return
    for part in found:
        yield replace(row, id=f"{row.id}#{part}", sources=(Source(source.where, part),))


def _suffix(where: str) -> str:
    path = re.split("[?#]", where)[0] if "://" in where else where
    return os.path.splitext(path)[1].lower()


def _pages(source: Source) -> list[str]:
    from qvl.processing.pdf import pages

    document = seen_in(source)
    return [f"page={page.page}" for page in pages(document)] if isinstance(document, Image) else []


def _segments(source: Source, every_s: float) -> list[str]:
    from qvl.processing.video import duration_s

    if not every_s > 0:
        raise InvalidParamError(f"segments of {every_s:g} s are none", hint="give --every 10")
    video = seen_in(source)
    count = int(duration_s(video) // every_s) + 1 if isinstance(video, Video) else 0
    return [f"t={n * every_s:g},{(n + 1) * every_s:g}" for n in range(count)]


def storable(text: str) -> str:
    """The text with bytes that are no UTF-8, which a file's name may hold, as %E9."""
    if text.isascii():
        return text
    return "".join(f"%{ord(c) - 0xDC00:02X}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)
