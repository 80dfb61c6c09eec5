"""A journal: records that are added at the end and never changed, one JSON object a line.

In a folder they are NAME-000001.jsonl, NAME-000002.jsonl, ...; the last key of each record is the
CRC-32 of the object without it. Records are written in groups, and each holds the number "b" of its
group: a group counts when the call that wrote it has returned, because its bytes are synced by then.

What a crash can leave is a torn tail: bad lines, and behind them nothing but records of the last group
(after a power loss its sectors may have landed in any order). It is cut when the journal is opened to
be written. A bad line elsewhere is damage, which only `repair` removes.

Once an fsync has failed, Linux may have dropped what was to be written, and a later one says nothing
of it. So that file is written and synced no more: NAME-....sum says how much of it counts, and the next
one is begun. A full segment ends with such a file, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvl.errors import InvalidParamError, StorageError, StoreCorruptError
from qvl.runs.disk import DISK, Disk, write_all
from qvl.runs.whole import write_whole

VERSION = 1
SEGMENT_BYTES = 2**30
READ_BYTES = 2**20
REPAIR_HINT = "`qvl batch repair` puts the bad lines aside; their items are run again"
FULL_HINT = "free some space or make the folder writable, then resume; what was done is kept"
_TAIL = re.compile(rb',"crc":"([0-9a-f]{8})"}\n\Z')
_TAIL_BYTES = 19
_PLACE_BITS = 40  # of a place, those of the offset


def encode(record: Mapping[str, Any], what: str) -> bytes:
    """The object as JSON without its braces, to which `line` adds what a journal needs.

    Raises InvalidParamError, naming `what`, for values that JSON does not have.
    """
    try:
        try:
            text = _PLAIN.encode(record).encode()
        except UnicodeEncodeError:  # a lone surrogate, as of a file's name that is no UTF-8
            text = _ESCAPED.encode(record).encode()
    except (TypeError, ValueError, RecursionError) as err:
        raise InvalidParamError(f"{what} cannot be kept as JSON: {err}") from err
    return text[1:-1]


def _known(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a value is of type {type(value).__name__}")


_FORM: dict[str, Any] = {"allow_nan": False, "separators": (",", ":"), "default": _known}
_PLAIN = json.JSONEncoder(ensure_ascii=False, **_FORM)
_ESCAPED = json.JSONEncoder(ensure_ascii=True, **_FORM)


def line(group: int, body: bytes) -> bytes:
    """A whole line of a journal, from what `encode` gives."""
    start = b'{"v":%d,"b":%d,%s' % (VERSION, group, body)
    return b'%s,"crc":"%08x"}\n' % (start, zlib.crc32(b"}", zlib.crc32(start)))


def decode(data: bytes) -> dict[str, Any] | None:
    """The record of a line; None where it is not as it was written."""
    tail = _TAIL.search(data)
    if tail is None:
        return None
    with memoryview(data) as view:
        found = zlib.crc32(b"}", zlib.crc32(view[:-_TAIL_BYTES]))
    if found != int(tail[1], 16):
        return None
    try:
        record = json.loads(data)
    except ValueError:  # RecursionError cannot be: what was encoded was no deeper
        return None
    return record if isinstance(record, dict) and isinstance(record.get("b"), int) else None


@dataclass(frozen=True, slots=True, order=True)
class End:
    """Where the records of a journal end: that many bytes of that segment."""

    segment: int = 1
    size_bytes: int = 0


class Journal:
    """Read with `read`, as often as there may be more; written with `commit` after all was read.

    One process writes at a time; who calls sees to that by a lock.
    """

    def __init__(
        self, folder: Path, name: str, *, disk: Disk = DISK, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self.folder, self.name = folder, name
        self.safe = End()  # up to there all was synced once: a bad line there is no torn tail
        self.torn_bytes = 0  # of the tail that `open` cut
        self._disk, self._segment_bytes = disk, segment_bytes
        self._segment, self._offset, self._lines = 1, 0, 0  # where the records read so far end
        self._group, self._group_at = 0, 0  # the last one's number and where it begins
        self._descriptor: int | None = None
        self._opened: dict[int, int] = {}  # segments that `at` looks into, by number
        self._is_broken = False
        weakref.finalize(self, _close_all, self._opened)

    @property
    def end(self) -> End:
        return End(self._segment, self._offset)

    def path(self, segment: int) -> Path:
        return self.folder / f"{self.name}-{segment:06}.jsonl"

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The records that came since the last call, each with its place (see `at`).

        Raises StoreCorruptError naming file, line and byte; StorageError for a file that cannot be
        read. While another process writes, the line it is at is left for the next call.
        """
        try:
            while True:
                # asked first: what the writer adds here before it goes on there must be read, too
                is_last = not self.path(self._segment + 1).exists()
                yield from self._read_segment(is_last=is_last)
                if is_last:
                    return
                self._segment, self._offset, self._lines = self._segment + 1, 0, 0
        except OSError as err:
            raise StorageError(
                f"the {self.name} in {self.folder.name!r} cannot be read: {err.strerror}"
            ) from err

    def _read_segment(self, *, is_last: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        path = self.path(self._segment)
        counted = sealed_bytes(path)
        if is_last and counted is None and not path.exists():
            return
        with path.open("rb", buffering=READ_BYTES) as file:
            file.seek(self._offset)
            for data in file:
                if counted is not None and self._offset >= counted:
                    return
                record = decode(data)
                if record is None:
                    tail_counts = is_last and counted is None
                    if not (tail_counts and self._is_torn(file)):
                        raise self._damage(path)
                    return
                if record["b"] != self._group:
                    self._group, self._group_at = record["b"], self._offset
                place = self._segment << _PLACE_BITS | self._offset
                self._offset += len(data)
                self._lines += 1
                yield place, record
        if counted is not None and self._offset < counted:
            raise self._damage(path)

    def _is_torn(self, rest: Iterable[bytes]) -> bool:
        """Whether the bad line at the end of what was read, with the rest of the file, is a torn tail."""
        groups = {record["b"] for record in map(decode, rest) if record is not None}
        if not groups:
            return True
        is_below = self.end < self.safe
        return not is_below and len(groups) == 1 and groups <= {self._group, self._group + 1}

    def _damage(self, path: Path) -> StoreCorruptError:
        return StoreCorruptError(
            f"{path.name} of {self.folder.name!r} is damaged in line {self._lines + 1},"
            f" at byte {self._offset}",
            hint=REPAIR_HINT,
        )

    def at(self, place: int) -> dict[str, Any]:
        """The record at a place that `read` or `commit` gave."""
        segment, offset = place >> _PLACE_BITS, place & (1 << _PLACE_BITS) - 1
        path, data, size_bytes = self.path(segment), b"", 2**12
        try:
            if segment not in self._opened:
                self._opened[segment] = os.open(path, os.O_RDONLY)
            while b"\n" not in data and len(data) < size_bytes:
                size_bytes = 4 * len(data) or size_bytes
                data = os.pread(self._opened[segment], size_bytes, offset)
        except OSError as err:
            raise StorageError(
                f"{path.name} of {self.folder.name!r} cannot be read: {err.strerror}"
            ) from err
        record = decode(data[: data.find(b"\n") + 1])
        if record is None:
            raise StoreCorruptError(
                f"{path.name} of {self.folder.name!r} is damaged at byte {offset}",
                hint=REPAIR_HINT,
            )
        return record

    def open(self) -> None:
        """Be ready to write behind what was read: a torn tail is cut. Raises StorageError."""
        path = self.path(self._segment)
        with self._stopping():
            if sealed_bytes(path) is not None:
                self._next_segment()
            elif path.exists():
                self._descriptor = self._disk.open(path)
                # Whoever wrote the last group may have been killed before its fsync, or that failed
                # and the disk took no .sum either: written once more, it is on the disk for certain.
                with path.open("rb") as file:
                    file.seek(self._group_at)
                    group = file.read(self._offset - self._group_at)
                write_all(self._disk, self._descriptor, group, self._group_at)
                self.torn_bytes = path.stat().st_size - self._offset
                self._disk.truncate(self._descriptor, self._offset)
                self._disk.fsync(self._descriptor)

    def commit(self, bodies: Sequence[bytes]) -> list[int]:
        """Add a group of records and give their places; they are on the disk when this returns.

        Raises StorageError, and from then on at each call: what the group left is cut if possible.
        """
        with self._stopping():
            if self._offset >= self._segment_bytes:
                seal(self.path(self._segment), self._offset, self._lines, self._disk)
                self._next_segment()
            path = self.path(self._segment)
            if self._descriptor is None:
                self._descriptor = self._disk.open(path)
                self._disk.sync_folder(self.folder)
            group = self._group + 1
            lines = [line(group, body) for body in bodies]
            try:
                write_all(self._disk, self._descriptor, b"".join(lines), self._offset)
            except OSError:
                with suppress(OSError):
                    self._disk.truncate(self._descriptor, self._offset)
                raise
            try:
                self._disk.fsync(self._descriptor)
            except OSError:
                with suppress(OSError):
                    self._disk.truncate(self._descriptor, self._offset)
                with suppress(OSError, StorageError):
                    seal(path, self._offset, self._lines, self._disk)
                raise
            self._group, self._group_at = group, self._offset
            places = []
            for data in lines:
                places.append(self._segment << _PLACE_BITS | self._offset)
                self._offset += len(data)
            self._lines += len(lines)
            return places

    def close(self) -> None:
        self.stop_writing()
        _close_all(self._opened)

    def stop_writing(self) -> None:
        """`open` begins again."""
        if self._descriptor is not None:
            with suppress(OSError):
                self._disk.close(self._descriptor)
            self._descriptor = None

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """What fails within is a StorageError, after which this journal is not written again."""
        if self._is_broken:
            raise StorageError(
                f"the {self.name} in {self.folder.name!r} could not be written before",
                hint=FULL_HINT,
            )
        try:
            yield
        except StorageError:
            self._is_broken = True
            raise
        except OSError as err:
            self._is_broken = True
            raise StorageError(
                f"the {self.name} in {self.folder.name!r} cannot be written: {err.strerror}",
                hint=FULL_HINT,
            ) from err

    def _next_segment(self) -> None:
        self.stop_writing()
        self._segment, self._offset, self._lines = self._segment + 1, 0, 0


def _close_all(descriptors: dict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def seal(path: Path, size_bytes: int, records: int, disk: Disk = DISK) -> None:
    """Write that the first bytes of a segment count, and no more will come. Raises OSError, StorageError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        rest = size_bytes
        while data := file.read(min(rest, READ_BYTES)):
            digest.update(data)
            rest -= len(data)
    kept = {"bytes": size_bytes, "records": records, "sha256": digest.hexdigest()}
    text = json.dumps(kept) + "\n"
    write_whole(
        path.with_suffix(".sum"),
        text.encode(),
        hint=FULL_HINT,
        shown=f"{path.stem}.sum of {path.parent.name!r}",
        mode=0o600,
        disk=disk,
    )


def sealed_bytes(path: Path) -> int | None:
    """How much of a segment counts if it will never be written again, None if it may be.

    Raises StoreCorruptError for a .sum file that is none.
    """
    try:
        return int(json.loads(path.with_suffix(".sum").read_bytes())["bytes"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as err:
        raise StoreCorruptError(
            f"{path.stem}.sum of {path.parent.name!r} is damaged", hint=REPAIR_HINT
        ) from err
