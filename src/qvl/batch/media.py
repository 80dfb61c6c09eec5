"""The one place where a run's sources become pictures and videos that a task looks at.

Files and addresses are read only when they are looked at, by `processing`; members of archives, pictures
in workbooks and objects of stores are read here, each within its limit.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from qvl.errors import InvalidParamError
from qvl.processing.source import MAX_BYTES, MAX_PDF_BYTES, quoted
from qvl.processing.video import MAX_BYTES as MAX_VIDEO_BYTES
from qvl.runs.record import Item, Source
from qvl.types import VIDEO_SUFFIXES, Image, Url, Video, is_address, page_apart, without_password

_SECONDS = re.compile(r"t=([0-9.]*),([0-9.]*)")


def seen(item: Item) -> tuple[Image | Video, ...]:
    """What the item's sources show, in order. Safe to call from several threads.

    Raises the errors of the archive, workbook or store that a source lies in, and InvalidParamError for
    a part that means nothing; those of files and addresses come when they are looked at.
    """
    return tuple(map(seen_in, item.sources))


def seen_in(source: Source) -> Image | Video:
    """As `seen`, of one source."""
    from qvl.batch import archives, object_store, workbook

    where, part = source.where, source.part
    name = shown(source)
    if part.startswith("member="):
        member, page = page_apart(part.removeprefix("member="))
        data = archives.read(Path(where), member, max_bytes(member))
        return Video(source=data, name=name) if is_video(member) else Image(data, name, page)
    if part.startswith("cell="):
        return Image(workbook.picture(Path(where), part.removeprefix("cell=")), name)
    inner: Path | bytes | Url
    if object_store.is_store(where):
        inner = object_store.read(where, max_bytes(where))
    else:
        inner = Url(where) if is_address(where) else Path(where)
    if part.startswith("page="):
        return Image(inner, name, _page(part, name))
    if part.startswith("t=") or is_video(where):
        start_s, end_s = _seconds(part, name)
        return Video(source=inner, name=name, start_s=start_s, end_s=end_s)
    if part:
        raise InvalidParamError(f"{quoted(name)} has no part {quoted(part)}")
    return Image(inner, name)


def shown(source: Source) -> str:
    """The source as messages and results call it."""
    where = without_password(source.where)
    if source.part.startswith("member="):
        return f"{Path(where).name}/{source.part.removeprefix('member=')}"
    return f"{where}#{source.part}" if source.part else where


def is_video(where: str) -> bool:
    path = re.split("[?#]", where)[0] if "://" in where else where
    return os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES


def max_bytes(where: str) -> int:
    if is_video(where):
        return MAX_VIDEO_BYTES
    return MAX_PDF_BYTES if where.lower().endswith(".pdf") else MAX_BYTES


def part_of_video(text: str) -> tuple[str, str]:
    """A path or an address without the `#t=10,20` behind it, as W3C Media Fragments has it, and that."""
    rest, mark, part = text.rpartition("#")
    if mark and _SECONDS.fullmatch(part):
        return rest, part
    return text, ""


def _page(part: str, name: str) -> int:
    number = part.removeprefix("page=")
    if not re.fullmatch("[0-9]{1,6}", number) or not int(number):
        raise InvalidParamError(f"{quoted(name)} is not a page", hint="pages count from 1")
    return int(number)


def _seconds(part: str, name: str) -> tuple[float | None, float | None]:
    if not part:
        return None, None
    try:
        found = _SECONDS.fullmatch(part)
        start_s, end_s = (float(text) if text else None for text in found.groups())  # pyrefly: ignore
    except (AttributeError, ValueError) as err:
        raise InvalidParamError(
            f"{quoted(name)} is not a part of a video", hint="write seconds as t=10,20"
        ) from err
    return start_s or None, end_s
