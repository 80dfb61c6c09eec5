"""A run that begins with what another one has: for inputs that grew, or were put right."""

from __future__ import annotations

from dataclasses import replace

from qvl.runs.run import Run

REVIEWS = 1000  # that are written at once


def take_over(old: Run, new: Run) -> int:
    """Record in `new` what came in `old` of the same items, with their reviews; how many that were.

    Nothing is taken where the two ask anything else, or of an item that failed.
    """
    if old.identity.values != new.identity.values:
        return 0
    taken, reviews = 0, []
    for one in new.finished():
        ordinal = old.find(one.item.id)
        if one.outcome is not None or ordinal is None:
            continue
        before = old.at(ordinal)
        if before.item != one.item or before.outcome is None or not before.outcome.ok:
            continue
        new.record(replace(before.outcome, ordinal=one.ordinal))
        taken += 1
        if before.review is not None:
            reviews.append(before.review)
    new.flush()
    for at in range(0, len(reviews), REVIEWS):
        new.review(reviews[at : at + REVIEWS])
    return taken
