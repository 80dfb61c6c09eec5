"""What is known of items before a model is asked: files that are missing or no pictures, sizes, stamps.

Main path: looked_at, which reads the header of each picture, a few at a time, and goes on after errors.
What lies at an address or in a store is not fetched for that.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from qvl.batch import object_store
from qvl.batch.media import is_video, max_bytes, seen_in, shown
from qvl.batch.row import Refused
from qvl.errors import (
    ImageTooLargeError,
    InputError,
    QvlError,
    VideoTooLargeError,
)
from qvl.processing.image import read_sizes
from qvl.processing.source import opened, quoted
from qvl.runs.record import Item, Source
from qvl.types import Image, is_address

AT_ONCE = min(4, os.cpu_count() or 1)
AT_A_TIME = 32  # items whose headers are asked for together


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file was when it was looked at; `sha256` is of its bytes, where that was asked for."""

    size_bytes: int
    mtime_ns: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Looked:
    """An item whose sources can be used, as far as their headers tell.

    `sizes` are (width, height) in pixels, None of what has none before it is read: videos, pages of
    documents, addresses, objects of stores. `stamps` are of the files, None of what is no file.
    """

    item: Item
    sizes: tuple[tuple[int, int] | None, ...]
    stamps: tuple[Stamp | None, ...]


def looked_at(
    items: Iterable[Item | Refused], *, with_sha256: bool = False
) -> Iterator[Looked | Refused]:
    """Each item as it was looked at, in order; what cannot be used is Refused, and so stays what is.

    With `with_sha256` every file is read to its end.
    """
    going: deque[Future[list[Looked | Refused]]] = deque()
    waiting = iter(items)
    with ThreadPoolExecutor(AT_ONCE, "qvl-check") as pool:
        try:
            while some := list(islice(waiting, AT_A_TIME)):
                going.append(pool.submit(look, some, with_sha256=with_sha256))
                if len(going) > AT_ONCE:
                    yield from going.popleft().result()
            while going:
                yield from going.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def look(some: Sequence[Item | Refused], *, with_sha256: bool = False) -> list[Looked | Refused]:
    """As `looked_at`, of a few."""
    told: list[Looked | Refused | tuple[Item, tuple[Stamp | None, ...]]] = []
    pictures: list[Image] = []
    places: list[tuple[int, int]] = []  # item, source
    for number, item in enumerate(some):
        if isinstance(item, Refused):
            told.append(item)
            continue
        try:
            stamps = tuple(stamp(source, with_sha256=with_sha256) for source in item.sources)
            found = [_measured(source) for source in item.sources]
        except QvlError as err:
            told.append(Refused(item.id, err))
            continue
        told.append((item, stamps))
        for place, picture in enumerate(found):
            if picture is not None:
                pictures.append(picture)
                places.append((number, place))
    sizes = dict(zip(places, read_sizes(pictures), strict=True))
    return [
        one if isinstance(one, Looked | Refused) else _looked(*one, number, sizes)
        for number, one in enumerate(told)
    ]


def _looked(
    item: Item,
    stamps: tuple[Stamp | None, ...],
    number: int,
    sizes: Mapping[tuple[int, int], tuple[int, int] | QvlError],
) -> Looked | Refused:
    own = [sizes.get((number, place)) for place in range(len(item.sources))]
    for one in own:
        if isinstance(one, QvlError):
            return Refused(item.id, one)
    return Looked(item, tuple(own), stamps)  # type: ignore[arg-type] # no errors are left


def _measured(source: Source) -> Image | None:
    """What has a size by its header; None for videos, pages, addresses and objects of stores.

    Raises the errors of the archive or workbook that it lies in.
    """
    where, part = source.where, source.part
    document = where.lower().endswith(".pdf") or "#page=" in part or part.startswith("page=")
    if document or is_address(where) or object_store.is_store(where) or _is_video(source):
        return None
    found = seen_in(source)
    return found if isinstance(found, Image) else None


def _is_video(source: Source) -> bool:
    member = source.part.removeprefix("member=") if source.part.startswith("member=") else ""
    return is_video(member or source.where) or source.part.startswith("t=")


def stamp(source: Source, *, with_sha256: bool = False) -> Stamp | None:
    """Of the file that a source lies in; None of an address or an object of a store.

    Raises InputNotFoundError, InputUnreadableError, ImageTooLargeError, VideoTooLargeError.
    """
    if is_address(source.where) or object_store.is_store(source.where):
        return None
    name = quoted(shown(source))
    with opened(Path(source.where), name) as fd:
        found = os.fstat(fd)
        limit = max_bytes(source.where)
        inside = source.part.startswith(("member=", "cell="))
        if found.st_size > limit and not inside:
            kind = VideoTooLargeError if _is_video(source) else ImageTooLargeError
            raise kind(
                f"{name} has {found.st_size / 2**20:.1f} MiB, the limit is {limit >> 20}",
                hint="make it smaller",
            )
        sha256 = ""
        if with_sha256:
            with open(fd, "rb", closefd=False) as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Stamp(found.st_size, found.st_mtime_ns, sha256)


def changed(item: Item, before: tuple[Stamp | None, ...]) -> tuple[str, ...]:
    """The item's files that are not what they were, as messages call them: replaced, or gone."""
    return tuple(
        shown(source)
        for source, old in zip(item.sources, before, strict=True)
        if old is not None and not _is_same(source, old)
    )


def _is_same(source: Source, old: Stamp) -> bool:
    try:
        return stamp(source, with_sha256=bool(old.sha256)) == old
    except InputError:
        return False
