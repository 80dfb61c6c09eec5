"""What is known of each item of a run: the sum of its results and events, in memory.

11 bytes an item; all of it is read anew when a run is opened.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qvl.runs.items import Shard
from qvl.runs.journal import End
from qvl.runs.record import Outcome

PENDING, DONE, FAILED = range(3)
MOST_ATTEMPTS = 2**16 - 1
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How far a run is: items by what came of them last, and how often each flag and error code.

    `duration_s` is of all attempts together.
    """

    total: int
    done: int
    failed: int
    pending: int
    flags: Mapping[str, int]
    errors: Mapping[str, int]
    reviews: Mapping[str, int]
    duration_s: float


class State:
    """Items are counted by their place in the shard, from 0, or by their ordinal in the whole run."""

    def __init__(self, count: int, shard: Shard) -> None:
        self._shard = shard
        self.status = bytearray(count)
        self.attempts = array("H", bytes(2 * count))
        self.at = array("Q", bytes(8 * count))  # where the last outcome is; 0: there is none
        self.crashes: Counter[int] = Counter()  # by ordinal
        self.ended = End()  # of the results, at the last event
        self.is_in_session = False  # a process began, and did not end in order
        self.sessions = 0
        self._again: dict[int, int] = {}  # by place: the attempt after which it was requeued
        self._statuses = [count, 0, 0]
        self._flags: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._duration_s = 0.0

    def note_outcome(self, record: Record, at: int, earlier: Callable[[int], Record]) -> None:
        """A result that came; `earlier` reads the one at a place of the journal."""
        place, attempt = self._shard.place(record["i"]), min(record["attempt"], MOST_ATTEMPTS)
        if self.at[place]:
            self._tally(earlier(self.at[place]), -1)
        self._tally(record, 1)
        self._duration_s += record["duration_s"]
        self.at[place], self.attempts[place] = at, max(attempt, self.attempts[place])
        if attempt > self._again.get(place, 0):
            self._set(place, DONE if record["ok"] else FAILED)

    def note_event(self, event: Record) -> None:
        match event["event"]:
            case "start":
                self.sessions += 1
                self.is_in_session = True
                self.crashes.update(event["crashed"])
            case "stop":
                self.is_in_session = False
            case "requeue":
                for ordinal, attempt in event["i"]:
                    place = self._shard.place(ordinal)
                    self._again[place] = attempt
                    self.crashes.pop(ordinal, None)
                    if self.attempts[place] <= attempt:
                        self._set(place, PENDING)
        self.ended = End(event["segment"], event["bytes"])

    def counts(self, reviews: Mapping[str, int]) -> Counts:
        pending, done, failed = self._statuses
        return Counts(
            total=len(self.status),
            done=done,
            failed=failed,
            pending=pending,
            flags=dict(+self._flags),
            errors=dict(+self._errors),
            reviews=reviews,
            duration_s=self._duration_s,
        )

    def _set(self, place: int, status: int) -> None:
        self._statuses[self.status[place]] -= 1
        self._statuses[status] += 1
        self.status[place] = status

    def _tally(self, record: Record, step: int) -> None:
        for flag in record["out"].get("flags", ()):
            self._flags[flag] += step
        if not record["ok"]:
            self._errors[record["out"].get("error", {}).get("code", "")] += step


def as_record(outcome: Outcome) -> dict[str, Any]:
    """As it is kept."""
    return {
        "i": outcome.ordinal,
        "id": outcome.id,
        "ok": outcome.ok,
        "attempt": outcome.attempt,
        "duration_s": outcome.duration_s,
        "out": outcome.out,
    }


def as_outcome(record: Mapping[str, Any]) -> Outcome:
    """From what is kept."""
    return Outcome(
        ordinal=record["i"],
        id=record["id"],
        ok=record["ok"],
        attempt=record["attempt"],
        duration_s=record["duration_s"],
        out=record["out"],
    )
