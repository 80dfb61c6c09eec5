"""Many threads, one engine: who may use it now.

Whoever waits for something makes the engine's steps until it is there, for all others too; who comes or
leaves goes between two steps. A thread sleeps until what it waits for is there, or the turn is its own,
so that a step wakes only whom it concerns.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class _Waiter:
    """A thread that sleeps until it is woken: what it waited for is there, or the turn `is_its`."""

    over: Callable[[], bool]
    is_its: bool = False
    asleep: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.asleep.acquire()


def _never() -> bool:
    return False


def _at_once() -> bool:
    return True


class Turns:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = False
        self._visitors: deque[_Waiter] = deque()
        self._waiters: deque[_Waiter] = deque()
        self.steps = 0  # that have ended

    @contextmanager
    def visit(self) -> Iterator[None]:
        """The engine for this thread alone, between two steps."""
        self._take(_Waiter(_never), self._visitors)
        try:
            yield
        finally:
            self._pass_on(_at_once)

    def until(self, over: Callable[[], bool], step: Callable[[], None]) -> None:
        """Return once `over` says so, which is asked after each step; meanwhile make steps, whenever no
        other thread does.
        """
        while self._take(_Waiter(over), self._waiters):
            try:
                step()
            except BaseException:
                self.steps += 1
                self._pass_on(_at_once)
                raise
            self.steps += 1
            self._pass_on(over)

    def _take(self, waiter: _Waiter, queue: deque[_Waiter]) -> bool:
        """Sleep until the turn is this thread's; False where what it waits for is there before."""
        with self._lock:
            if waiter.over():
                return False
            if not self._busy and (queue is self._visitors or not self._visitors):
                self._busy = True
                return True
            queue.append(waiter)
        try:
            waiter.asleep.acquire()
        except BaseException:  # an interrupt: who waits for this thread's turn must not
            with self._lock:
                if waiter in queue:
                    queue.remove(waiter)
            if waiter.is_its:
                self._pass_on(_at_once)
            raise
        return waiter.is_its

    def _pass_on(self, over: Callable[[], bool]) -> None:
        """End this thread's turn: to the next visitor, else to itself if it is not over, else to whoever
        waits longest. Who has what it waits for is woken.
        """
        with self._lock:
            ended = [waiter for waiter in self._waiters if waiter.over()]
            for waiter in ended:
                self._waiters.remove(waiter)
                waiter.asleep.release()
            heir = None
            if self._visitors:
                heir = self._visitors.popleft()
            elif self._waiters and over():
                heir = self._waiters.popleft()
            self._busy = heir is not None
            if heir is not None:
                heir.is_its = True
                heir.asleep.release()
