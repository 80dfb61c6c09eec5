"""A row of a table as its reader gives it, and its values as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from typing import Any

from qvl.batch.row import row_name
from qvl.errors import QvlError, TableError
from qvl.runs.record import Source

MAX_CELL_CHARS = 1 << 20


@dataclass(frozen=True, slots=True)
class Cells:
    """The values of a row by the names of its columns, or what is wrong with it; `number` from 1.

    `pictures` are those that lie in the table itself, by the name of their column, `shown_in` all columns
    that have any; `request` is the line of a file of requests to OpenAI's API.
    """

    number: int
    values: Mapping[str, Any] | QvlError
    pictures: Mapping[str, Source] = field(default_factory=dict)
    shown_in: tuple[str, ...] = ()
    request: Mapping[str, Any] | None = None


def as_text(value: Any) -> str:
    """As a person would type it: no .0 behind a whole number, dates as 2026-01-31."""
    match value:
        case None:
            return ""
        case str():
            return value
        case float() if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        case datetime() if value.time() == time():
            return value.date().isoformat()
        case date() | time():  # a datetime is a date
            return value.isoformat()
        case bool():
            return str(value).lower()
        case list() if all(isinstance(one, str) for one in value):
            return "; ".join(value)
        case list() | dict():
            return json.dumps(value, ensure_ascii=False)
    return str(value)


def unlike(names: list[str]) -> list[str]:
    """Names of columns, each one's own: one without a name, or with another's, gets its place."""
    taken: set[str] = set()
    for place, name in enumerate(names, 1):
        name = name.strip() or f"column {place}"
        while name in taken:
            name = f"{name} ({place})"
        taken.add(name)
        names[place - 1] = name
    return names


def checked(number: int, table: str, names: list[str], values: list[Any]) -> Cells:
    """A row of a table with a header. Fewer cells than columns are empty ones, more are an error."""
    if len(values) > len(names) and any(as_text(value).strip() for value in values[len(names) :]):
        error = TableError(
            f"{row_name(table, number)} has {len(values)} cells, the header has {len(names)}",
            hint="put cells that hold the delimiter into quotes",
        )
        return Cells(number, error)
    for name, value in zip(names, values, strict=False):
        if isinstance(value, str) and len(value) > MAX_CELL_CHARS:
            error = TableError(
                f"{row_name(table, number)} has {len(value)} characters in {name!r}, the limit is {MAX_CELL_CHARS}",
                hint="give long texts in files of their own",
            )
            return Cells(number, error)
    values += [""] * (len(names) - len(values))
    return Cells(number, dict(zip(names, values, strict=False)))
