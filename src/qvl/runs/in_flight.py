"""Which items a process works on, for whoever comes after it has crashed.

One line in the file `inflight`, written over at each begin and never synced: a process that dies takes
nothing with it that it wrote, and after a power loss there is nobody to put the crash down to.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from qvl.runs.disk import DISK, Disk, write_all
from qvl.runs.journal import FULL_HINT, decode, encode, line
from qvl.runs.whole import writing

FILE = "inflight"


class InFlight:
    def __init__(self, folder: Path, disk: Disk = DISK) -> None:
        self._path, self._disk = folder / FILE, disk
        self._descriptor: int | None = None
        self._attempts: dict[int, int] = {}  # that the item had before, by ordinal

    def left(self, session: int) -> dict[int, int]:
        """What that session was at when it ended: by ordinal, the attempts that the item had before."""
        with suppress(OSError), self._path.open("rb") as file:
            record = decode(file.readline())
            if record is not None and record["session"] == session:
                return dict(record["i"])
        return {}

    def add(self, attempts: Mapping[int, int], session: int) -> None:
        """Raises StorageError."""
        self._attempts |= attempts
        record = {"session": session, "i": [*self._attempts.items()]}
        with writing(f"{FILE} of {self._path.parent.name!r}", FULL_HINT):
            if self._descriptor is None:
                self._descriptor = self._disk.open(self._path)
            # what is left of a longer line is behind this one's end, where nobody looks
            write_all(self._disk, self._descriptor, line(0, encode(record, FILE)), 0)

    def drop(self, ordinal: int) -> None:
        self._attempts.pop(ordinal, None)

    def close(self) -> None:
        if self._descriptor is not None:
            self._disk.close(self._descriptor)
            self._descriptor = None
