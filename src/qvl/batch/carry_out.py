"""A run carried out: every pending item asked, checked and written down, however it was left before.

Main path: carry_out -> answer, in threads (Asked.row, or what else makes a row of an item) -> Run.record.
Answers are written down as they come, in whatever order: an item's seed is its own, so its words are
the same beside whatever it is made.
"""

from __future__ import annotations

import heapq
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from qvl.errors import EngineClosedError, EngineError, QvlError, RemoteError, as_fault
from qvl.runs.record import Item, Outcome
from qvl.runs.run import Run
from qvl.vlm.chat_model import ChatModel

log = logging.getLogger(__name__)
ASKED = (
    3  # items at a time, for each that the model works at: some are read or written down meanwhile
)
ATTEMPTS = 3
PAUSES_S = (1.0, 2.0, 4.0)  # at most, before an item is asked again
RETRIED_SHARE, RETRIED_LEAST = 0.1, 10  # of the items of a run, how many may be asked again
BREAKER = 50  # faults of the model or its server, one after another, that end a run
MOST_AT_ONCE = 64  # where it changes how many
LOOK_S = 0.2  # how often a run looks whether it is to stop
RowOf = Callable[[Item], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, order=True)
class Attempt:
    """`due_s` by time.monotonic."""

    due_s: float
    ordinal: int
    item: Item = field(compare=False)
    number: int = field(compare=False, default=1)


@dataclass(slots=True)
class Course:
    """Of one run: what waits for another attempt, and how many more may be made."""

    stops: Callable[[], int]
    rng: random.Random
    retries: int
    later: list[Attempt] = field(default_factory=list)
    faults: int = 0  # one after another

    def next_one(self, fresh: Iterator[Attempt]) -> Attempt | None:
        """An attempt whose pause is over, else an item that was not asked yet."""
        if self.stops():
            return None
        if self.later and self.later[0].due_s <= time.monotonic():
            return heapq.heappop(self.later)
        return next(fresh, None)

    def take(self, attempt: Attempt, told: Outcome | QvlError) -> Outcome | None:
        """What is written down of it now: None where it is asked once more."""
        if not isinstance(told, QvlError):
            self.faults = 0
            return told
        self.faults = self.faults + 1 if isinstance(told, EngineError | RemoteError) else 0
        if self.faults >= BREAKER:
            raise told
        if told.retryable and attempt.number < ATTEMPTS and self.retries > 0:
            self.retries -= 1
            pause_s = self.rng.uniform(0, PAUSES_S[attempt.number - 1])
            due_s = time.monotonic() + pause_s
            again = Attempt(due_s, attempt.ordinal, attempt.item, attempt.number + 1)
            heapq.heappush(self.later, again)
            return None
        row = {"id": attempt.item.id, "error": told.as_json()}
        return Outcome(
            ordinal=attempt.ordinal, id=attempt.item.id, ok=False, out=row, attempt=attempt.number
        )


def answer(row_of: RowOf, attempt: Attempt) -> Outcome | QvlError:
    """What comes of one attempt."""
    began_s = time.monotonic()
    try:
        row = row_of(attempt.item)
    except Exception as err:  # noqa: BLE001 - the edge of one item: the others go on
        return as_fault(err, attempt.item.id)
    return Outcome(
        ordinal=attempt.ordinal,
        id=attempt.item.id,
        ok=True,
        out=row,
        attempt=attempt.number,
        duration_s=round(time.monotonic() - began_s, 6),
    )


def carry_out(
    run: Run,
    model: ChatModel,
    row_of: RowOf,
    *,
    stops: Callable[[], int],
    at_once: Callable[[], int] | None = None,
    rng: random.Random | None = None,
) -> None:
    """Ask about every item that is pending, and write down what comes of it.

    `row_of` makes the row of an item with the model's help, in a thread, and raises what is wrong.
    `stops` says how often the end was asked for: once, and what is being asked is finished; twice, and
    it is given up. `at_once` says how many may be asked now, which may be none for a while (None:
    ASKED times as many as the model works at, so that it never waits).

    Raises StorageError where it cannot be kept, and the model's own error after BREAKER faults of it,
    one after another. What was being asked when it ends early is asked again by the next.
    """
    retries = max(RETRIED_LEAST, int(RETRIED_SHARE * len(run)))
    course = Course(stops, rng or random.Random(), retries)
    fresh = (
        Attempt(0.0, ordinal, item, run.attempts(ordinal) + 1) for ordinal, item in run.pending()
    )
    width = ASKED * model.info.at_once if at_once is None else MOST_AT_ONCE
    done: SimpleQueue[tuple[Attempt, Outcome | QvlError]] = SimpleQueue()
    going: set[int] = set()  # ordinals
    pool = ThreadPoolExecutor(width, "qvl-item")
    held: Attempt | None = None  # one that crashed a process: it is asked alone
    alone = False

    def ask(attempt: Attempt) -> None:
        done.put((attempt, answer(row_of, attempt)))

    try:
        while True:
            room = width if at_once is None else min(width, at_once())
            is_paused = not room and not stops()
            while len(going) < room and not alone:
                attempt, held = held or course.next_one(fresh), None
                if attempt is None:
                    break
                alone = bool(run.crashes(attempt.ordinal))
                if alone and going:
                    held, alone = attempt, False
                    break
                run.begin([attempt.ordinal])
                going.add(attempt.ordinal)
                pool.submit(ask, attempt)
            if not going:
                if stops() or not (course.later or is_paused):
                    break
                time.sleep(LOOK_S)
                continue
            if stops() > 1:
                model.close()
            with suppress(Empty):
                attempt, result = done.get(timeout=LOOK_S)
                going.remove(attempt.ordinal)
                # one that was given up is asked again by the next
                given_up = isinstance(result, EngineClosedError)
                if not given_up and (outcome := course.take(attempt, result)) is not None:
                    run.record(outcome)
                if alone:
                    run.flush()
                    alone = False
        run.flush()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        model.close()
        raise
    finally:
        pool.shutdown()
