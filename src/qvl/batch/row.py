"""A row of the inputs before it is an item, one that cannot be used, and how inputs are read.

A file that is named, or lies in a folder, is a row of its own, without columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvl.errors import QvlError
from qvl.processing.source import quoted
from qvl.runs.record import Source

Tell = Callable[[str], None]  # what a person should know of how the inputs were read
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Refused:
    """What of the inputs becomes no item, as messages call it, and why."""

    name: str
    error: QvlError


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`table` is the file that it stands in, `number` where, counted as a spreadsheet does from 1; 0 is
    the file itself. The id `is_given` by a cell, or made of where the picture lies.
    """

    table: str
    number: int = 0
    id: str
    is_given: bool = False
    sources: tuple[Source, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return row_name(self.table, self.number)


def row_name(table: str, number: int) -> str:
    return f"{quoted(table)}, row {number}" if number else quoted(table)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How inputs are read.

    `ids` is the name of the column of ids (None: found by its name), or "auto": ids that come again
    are told apart by the number of their row. `languages` make an item each; `prompts` is a file of a
    prompt a line for all pictures in natural order; `image_columns` hold the pictures (none: found by
    their names). Of a video each `every_s` seconds are an item. Links out of a folder are followed
    with `follow`. `options` are those of the task, whose texts are templates; their names are checked.
    """

    ids: str | None = None
    languages: tuple[str, ...] = ()
    prompts: Path | None = None
    image_columns: tuple[str, ...] = ()
    every_s: float | None = None
    follow: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
