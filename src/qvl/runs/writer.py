"""Group commit: a thread that writes to a journal what others hand in, many records at one fsync."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from qvl.errors import StorageError
from qvl.runs.journal import Journal

GROUP = 32  # records
GROUP_S = 0.2
WAITING = 256  # records; who hands in more waits for the disk

T = TypeVar("T")


class Writer(Generic[T]):
    """`committed(values, places)` is called in the writer's thread, once for each group, when all of it
    is on the disk. It must not raise, nor call the writer.
    """

    def __init__(
        self, journal: Journal, committed: Callable[[Sequence[T], list[int]], None]
    ) -> None:
        self._journal, self._committed = journal, committed
        self._waiting: list[tuple[bytes, T]] = []
        self._since_s = 0.0  # when the first of those came
        self._is_writing = self._is_hurried = self._is_closing = False
        self._error: StorageError | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="qvl-writer", daemon=True)
        self._thread.start()

    def add(self, body: bytes, value: T) -> None:
        """Hand in a record, see `journal.encode`. Raises StorageError once one could not be written."""
        with self._changed:
            while len(self._waiting) >= WAITING and self._error is None:
                self._changed.wait()
            self._check()
            if not self._waiting:
                self._since_s = time.monotonic()
            self._waiting.append((body, value))
            if len(self._waiting) in (1, GROUP):
                self._changed.notify_all()

    def flush(self) -> None:
        """Return when all that was handed in is on the disk. Raises StorageError."""
        with self._changed:
            while (self._waiting or self._is_writing) and self._error is None:
                self._is_hurried = True
                self._changed.notify_all()
                self._changed.wait()
            self._check()

    def close(self) -> None:
        """End the thread after what was handed in is written. Raises StorageError."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join()
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            # a new one each time: an error that is raised twice collects both tracebacks
            raise StorageError(self._error.message, hint=self._error.hint) from self._error

    def _work(self) -> None:
        error = StorageError("the thread that writes the results has ended")
        try:
            while group := self._next_group():
                places = self._journal.commit([body for body, _ in group])
                self._committed([value for _, value in group], places)
                with self._changed:
                    self._is_writing = False
                    self._changed.notify_all()
            return
        except StorageError as err:
            error = err
        finally:
            with self._changed:
                if not self._is_closing or self._waiting or self._is_writing:
                    self._error = error
                self._changed.notify_all()

    def _next_group(self) -> list[tuple[bytes, T]]:
        """What waits, once it is enough or has waited long enough; nothing when all is done."""
        with self._changed:
            while True:
                left_s = self._since_s + GROUP_S - time.monotonic() if self._waiting else None
                is_due = self._is_hurried or self._is_closing or len(self._waiting) >= GROUP
                if (self._waiting and is_due) or (left_s is not None and left_s <= 0):
                    break
                if self._is_closing:
                    return []
                self._is_hurried = False
                self._changed.wait(left_s)
            group, self._waiting = self._waiting, []
            self._is_writing, self._is_hurried = True, False
            self._changed.notify_all()
            return group
