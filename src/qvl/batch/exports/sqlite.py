"""SQLite: the table `items`, for queries. It is made anew each time: what a run knows is in its own folder."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from qvl.batch.exports.table import NUMBERS, WHOLE, table
from qvl.cells import storable
from qvl.errors import StorageError
from qvl.runs.record import Finished
from qvl.runs.whole import whole_file

TYPES = {int: "INTEGER", float: "REAL", str: "TEXT"}


def write(finished: Iterable[Finished], target: Path) -> None:
    """Columns whose names differ in case alone get a number, as SQL has no case. Raises StorageError."""
    with whole_file(target) as part, table(finished) as items:
        names = (*items.columns, *WHOLE)
        kinds = [TYPES[NUMBERS.get(name, str)] for name in names]
        columns = ", ".join(map(" ".join, zip(quoted(names), kinds, strict=True)))
        places = ", ".join("?" * len(names))
        rows = ([text(row.cells.get(name)) for name in names] for row in items.rows())
        try:
            with closing(sqlite3.connect(part, isolation_level=None)) as base:
                # nobody sees it before it is whole, so it needs no journal of its own
                base.execute("PRAGMA journal_mode = OFF")
                base.execute("PRAGMA synchronous = OFF")
                base.execute("BEGIN")
                base.execute(f"CREATE TABLE items ({columns})")
                base.executemany(f"INSERT INTO items VALUES ({places})", rows)
                base.execute("COMMIT")
        except sqlite3.Error as err:
            raise StorageError(
                f"{target.name!r} cannot be written: {err}",
                hint="free some space; of over 1900 columns none can be made",
            ) from err


def quoted(names: Sequence[str]) -> list[str]:
    taken: set[str] = set()
    told = []
    for name in names:
        plain = storable(name).replace("\0", "")
        chosen, number = plain, 1
        while chosen.casefold() in taken:
            number += 1
            chosen = f"{plain}_{number}"
        taken.add(chosen.casefold())
        told.append('"' + chosen.replace('"', '""') + '"')
    return told


def text(value: object) -> object:
    return storable(value) if isinstance(value, str) else value
