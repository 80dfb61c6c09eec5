"""The items of one row of the input, its languages, together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from qvl.batch.exports.table import cell_of, language_of
from qvl.errors import InputError
from qvl.runs.record import Finished
from qvl.xmp import Said, Words, words_of


def by_row(finished: Iterable[Finished]) -> Iterator[list[Finished]]:
    """Raises InputError where items of one row do not come one after the other."""
    seen: set[str] = set()
    for row, items in groupby(finished, key=lambda one: one.item.row):
        if row in seen:
            raise InputError(
                f"the items of row {row!r} are apart", hint="give them in the order of the run"
            )
        seen.add(row)
        yield list(items)


def words(row: list[Finished]) -> Words | None:
    """What is said of the row's picture, in each language that has an answer; None where none has."""
    said = [
        Said(
            language=language_of(one) or "en",
            text=cell_of(one.told("text")),
            alt_text=cell_of(one.told("alt_text")),
            keywords=tuple(filter(None, cell_of(one.told("keywords")).split("; "))),
        )
        for one in row
    ]
    found = words_of(row[0].item.row, said)
    return found if found.description else None
