"""What people made of a run's answers: added at the end of a journal of its own, never replaced.

Any process may add, also while another one writes results; a lock of its own is held for that moment.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qvl.errors import InputError, StorageError
from qvl.runs.disk import DISK, Disk
from qvl.runs.items import Items, Shard
from qvl.runs.journal import Journal, encode
from qvl.runs.lock import Lock
from qvl.runs.record import Review

PATIENCE_S = 5.0


class Reviews:
    """Of one run: the last of each item."""

    def __init__(self, folder: Path, items: Items, shard: Shard, disk: Disk = DISK) -> None:
        self._folder, self._items, self._shard, self._disk = folder, items, shard, disk
        self._adding = threading.Lock()
        self._start()

    def _start(self) -> None:
        self._journal = Journal(self._folder, "reviews", disk=self._disk)
        self._last: dict[int, int] = {}  # place of the item -> that in the journal
        self.states: dict[int, str] = {}

    def refresh(self) -> None:
        """Read what other processes added. Raises StoreCorruptError, StorageError."""
        for at, record in self._journal.read():
            self._note(at, record)

    def _note(self, at: int, record: Mapping[str, Any]) -> None:
        place = self._shard.place(record["i"])
        self._last[place], self.states[place] = at, record["state"]

    def add(self, reviews: Sequence[Review]) -> None:
        """They are on the disk when this returns.

        Raises InputError for an id that no item has, RunLockedError, StorageError.
        """
        records, bodies = [], []
        for review in reviews:
            place = self._items.find(review.id)
            if place is None:
                raise InputError(
                    f"no item of run {self._folder.name!r} has the id {review.id!r}",
                    hint="was it exported from another run?",
                )
            review = replace(review, at=review.at or self._disk.now())
            record = {"i": self._shard.ordinal(place), **asdict(review)}
            records.append(record)
            bodies.append(encode(record, f"the review of {review.id!r}"))
        if not bodies:
            return
        what = f"the reviews of run {self._folder.name!r}"
        with (
            self._adding,
            closing(Lock(self._folder / "reviews.lock", what, patience_s=PATIENCE_S)),
        ):
            try:
                self.refresh()
                self._journal.open()
                places = self._journal.commit(bodies)
            except StorageError:
                # a journal that failed is not written again, another one may be, once there is room
                self._journal.close()
                self._start()
                raise
            finally:
                self._journal.stop_writing()
            for at, record in zip(places, records, strict=True):
                self._note(at, record)

    def of(self, place: int) -> Review | None:
        """The last review of the item at that place. Raises StoreCorruptError, StorageError."""
        if place not in self._last:
            return None
        record = self._journal.at(self._last[place])
        names = Review.__dataclass_fields__
        return Review(**{name: record[name] for name in names})

    def close(self) -> None:
        self._journal.close()
