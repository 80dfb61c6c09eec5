"""Who may be computed now, who waits, and who is told to come back later.

All of it runs in the event loop's thread, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from qvl.serve.errors import Refusal
from qvl.serve.limits import Limits

MINUTE_S = 60.0


@dataclass(order=True, slots=True)
class _Waiting:
    priority: int
    number: int
    choices: int = field(compare=False)
    tokens: int = field(compare=False)
    admitted: asyncio.Future[None] = field(compare=False)


class Admission:
    """A bounded queue by priority and arrival; `context` is how many positions the model has.

    While it is closed nothing new is taken, `closed` says why; what was taken before goes on.
    """

    def __init__(self, limits: Limits, context: int) -> None:
        self._limits = limits
        self._token_limit = limits.queued_contexts * context
        self._numbers = itertools.count()
        self._waiting: list[_Waiting] = []
        self._running_of: Counter[str] = Counter()  # requests of each key, those that wait too
        self._asked_s: defaultdict[str, deque[float]] = defaultdict(deque)
        self._seconds = 1.0  # that a request takes, roughly
        self.running = 0  # answers
        self._last_s = 0.0  # when something was asked, by time.monotonic
        self.closed: Callable[[], Refusal] | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def is_quiet(self, for_s: float) -> bool:
        """Whether nothing is computed or waits, and nothing was asked for so many seconds."""
        return not (self.running or self._waiting) and time.monotonic() - self._last_s >= for_s

    def refuse_if_closed(self) -> None:
        if self.closed is not None:
            raise self.closed()

    def refuse_if_full(self) -> None:
        """Raises Refusal while nothing more is taken, whatever it may be."""
        self.refuse_if_closed()
        if len(self._waiting) >= self._limits.queued:
            raise self.overloaded()

    def count(self, key: str) -> None:
        """One more request of a key. Raises Refusal when it has asked too often in a minute."""
        if not key:
            return
        now_s, asked_s = time.monotonic(), self._asked_s[key]
        while asked_s and asked_s[0] <= now_s - MINUTE_S:
            asked_s.popleft()
        limit = self._limits.key_requests_per_minute
        if len(asked_s) >= limit:
            wait_s = int(asked_s[0] + MINUTE_S - now_s) + 1
            raise Refusal(
                429,
                "rate_limit_exceeded",
                f"this key has made {limit} requests within a minute",
                retry_after_s=min(60, wait_s),
            )
        asked_s.append(now_s)

    @contextmanager
    def taken(self, key: str) -> Iterator[None]:
        """One more request of a key, until it is answered; computing it enters once or more often.

        Raises Refusal when the key has asked too often, or has too many of them.
        """
        self.count(key)
        if key and self._running_of[key] >= self._limits.key_running:
            message = f"this key has {self._limits.key_running} requests running"
            raise Refusal(429, "too_many_running", message, retry_after_s=self._wait_s())
        self._running_of[key] += 1
        try:
            yield
        finally:
            self._running_of[key] -= 1

    async def enter(
        self, *, choices: int, tokens: int, priority: int, has_begun: bool = False
    ) -> None:
        """Wait until so many answers may be computed; `leave` must follow.

        `tokens` is about what they need. Raises Refusal instead of waiting in a queue that is full,
        but not where something of the same request is computed already: that would be lost.
        """
        self._last_s = time.monotonic()
        if not self._waiting and self._fits(choices):
            self.running += choices
            return
        queued = sum(other.tokens for other in self._waiting)
        is_full = self.waiting >= self._limits.queued or queued + tokens > self._token_limit
        if is_full and not has_begun:
            raise self.overloaded()
        admitted = asyncio.get_running_loop().create_future()
        waiting = _Waiting(priority, next(self._numbers), choices, tokens, admitted)
        heapq.heappush(self._waiting, waiting)
        try:
            await admitted
        except BaseException:
            if admitted.done() and not admitted.cancelled() and admitted.exception() is None:
                self.running -= choices  # admitted at the very moment in which it left
            elif waiting in self._waiting:
                self._waiting.remove(waiting)
                heapq.heapify(self._waiting)
            self._admit()
            raise

    def leave(self, choices: int, took_s: float) -> None:
        """The answers are no longer computed, whatever became of them."""
        self.running -= choices
        self._seconds += (took_s - self._seconds) / 8
        self._admit()

    def give_up(self, why: Callable[[], Refusal]) -> None:
        """Refuse all who wait."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.admitted.done():
                one.admitted.set_exception(why())

    def overloaded(self) -> Refusal:
        return Refusal(
            429,
            "overloaded",
            "too many requests wait already",
            hint="try again after the time of Retry-After",
            retry_after_s=self._wait_s(),
        )

    def _fits(self, choices: int) -> bool:
        return self.running + choices <= max(self._limits.running, choices)

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0].choices):
            first = heapq.heappop(self._waiting)
            if not first.admitted.done():  # its client has not left just now
                self.running += first.choices
                first.admitted.set_result(None)

    def _wait_s(self) -> int:
        """About when there is room: what waits now, as fast as of late."""
        rounds = 1 + len(self._waiting) / max(1, self._limits.running)
        return max(1, min(60, round(rounds * self._seconds)))


def draining() -> Refusal:
    return Refusal(
        503,
        "draining",
        "the server is about to stop",
        retry_after_s=5,
        headers={"connection": "close"},
    )
