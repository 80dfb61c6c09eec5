"""What a run keeps of each item: what is asked, what came of it, and what a person made of that.

Plain values that are JSON without more ado, so that a store of years ago can be read by anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# of a review; an item without one is "new"
ReviewState = Literal["approved", "edited", "rejected"]


@dataclass(frozen=True, slots=True)
class Source:
    """A picture, video or document by absolute path or by address, and which part of it is meant.

    `part` is "" (all of it), "page=3" (of a PDF, from 1), "t=10,20" (seconds of a video),
    "member=a/b.jpg" (of a zip) or "cell=Sheet1!B2" (a picture in a workbook).
    """

    where: str
    part: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What one answer is asked for. `id` is the item's own in its run, `row` that of the row of the
    input that it comes of: several languages make several items of one row.

    `columns` are the cells of that row as text, `options` those of the task that this item has of its
    own, as JSON; "seed" and the other keys of a sampling stand there too.
    """

    id: str
    row: str
    sources: tuple[Source, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of the item with that `ordinal` (its place in the run's inputs, from 0).

    `out` is the row that every door shows (`tasks.task.as_row`): an answer, or an "error" whose "code"
    and "message" say why there is none. `attempt` counts from 1; of several outcomes of an item the
    last one holds. `duration_s` is of this attempt, by a monotonic clock.
    """

    ordinal: int
    id: str
    ok: bool
    out: Mapping[str, Any]
    attempt: int = 1
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What a person made of an item's answer; of several the last one holds.

    `fields` are the texts in their words, by the key of `out` ("text", "title", ...), and `of` is the
    attempt that they looked at: an answer that came later leaves them as they are.
    """

    id: str
    state: ReviewState
    fields: Mapping[str, str] = field(default_factory=dict)
    of: int = 1
    by: str = ""
    note: str = ""
    at: str = ""  # ISO 8601, by the wall clock, for people


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """An item with what came of it and with its review: what exports are made of."""

    ordinal: int
    item: Item
    outcome: Outcome | None  # None: not asked yet
    review: Review | None = None

    def told(self, key: str) -> Any:
        """A value of the answer, in the reviewer's words where there are any; None where there is none."""
        if self.review is not None and key in self.review.fields:
            return self.review.fields[key]
        return self.outcome.out.get(key) if self.outcome is not None and self.outcome.ok else None
