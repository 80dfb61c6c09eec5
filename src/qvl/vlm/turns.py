"""Many threads, one engine: who may use it now.

A plain lock would go to whoever asks fastest, which is the thread that has just given it back. Here
the threads that wait for a step all go on after one, whoever made it, and who comes or leaves goes
before the next step.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy = False
        self._visitors = 0  # that wait
        self.steps = 0  # that have ended

    @contextmanager
    def visit(self) -> Iterator[None]:
        """The engine for this thread alone, between two steps."""
        with self._changed:
            self._visitors += 1
            try:
                self._changed.wait_for(lambda: not self._busy)
            except BaseException:  # an interrupt: who waits for this visit to end must not
                self._changed.notify_all()
                raise
            finally:
                self._visitors -= 1
            self._busy = True
        try:
            yield
        finally:
            self._give_back()

    @contextmanager
    def step(self) -> Iterator[bool]:
        """True, and the engine for this thread alone, to make the next step; False once another
        thread has made one.
        """
        with self._changed:
            done = self.steps
            self._changed.wait_for(lambda: self.steps != done or not (self._busy or self._visitors))
            is_mine = self.steps == done
            self._busy = self._busy or is_mine
        if not is_mine:
            yield False
            return
        try:
            yield True
        finally:
            self.steps += 1
            self._give_back()

    def _give_back(self) -> None:
        with self._changed:
            self._busy = False
            self._changed.notify_all()
