"""Texts with places for what is known of an item: {column}, and {file}, {stem}, {folder}.

`{{` and `}}` are braces. A value is put in as it is: what looks like a place in a cell is text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from qvl.batch.row import Row
from qvl.errors import InvalidParamError, nearest
from qvl.processing.source import quoted
from qvl.runs.record import Item, Source

OF_FILE = ("file", "stem", "folder")
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}\n]*)\}|[{}]")
_BRACES = {"{{": "{", "}}": "}"}


@dataclass(frozen=True, slots=True)
class Place:
    name: str


@lru_cache(256)
def parsed(text: str) -> tuple[str | Place, ...]:
    """The text and the places in it. Raises InvalidParamError for a brace that is neither."""
    parts: list[str | Place] = []
    end = 0
    for found in _PIECE.finditer(text):
        parts.append(text[end : found.start()])
        end = found.end()
        if found[0] in _BRACES:
            parts.append(_BRACES[found[0]])
        elif (name := (found[1] or "").strip()) and len(found[0]) > 1:
            parts.append(Place(name))
        else:
            raise InvalidParamError(
                f"{quoted(text)} has a brace that is not the name of a column",
                hint="write {title} for a column, {{ and }} for braces",
            )
    return tuple(part for part in (*parts, text[end:]) if part != "")


def filled(value: Any, item: Item) -> Any:
    """An option with the item's values in the places of its texts, also of those in lists and mappings.

    Raises InvalidParamError for a text with a wrong brace, or a place that nothing is known for.
    """
    match value:
        case str():
            known = values(item.columns, item.sources)
            return "".join(_value(part, known) for part in parsed(value))
        case list() | tuple():
            return type(value)(filled(one, item) for one in value)
        case Mapping():
            return {key: filled(one, item) for key, one in value.items()}
    return value


def names_in(value: Any) -> tuple[str, ...]:
    """The names of the places in a value's texts, each once. Raises InvalidParamError."""
    match value:
        case str():
            found = [part.name for part in parsed(value) if isinstance(part, Place)]
        case list() | tuple():
            found = [name for one in value for name in names_in(one)]
        case Mapping():
            found = [name for one in value.values() for name in names_in(one)]
        case _:
            found = []
    return tuple(dict.fromkeys(found))


def check_names(names: Sequence[str], columns: Collection[str], where: str) -> None:
    """Raises InvalidParamError for a name of no column; `where` is the table, or the file without any."""
    known = (*OF_FILE, *columns)
    for name in names:
        if name not in known:
            raise InvalidParamError(
                f"{where} has no column {name!r}, which {{{name}}} stands for",
                hint=nearest(name, known) or f"there are {', '.join(known)}",
            )


def check_filled(names: Sequence[str], row: Row) -> None:
    """Raises InvalidParamError where a name is of no column of the row, or its cell is empty."""
    check_names(names, row.columns, row.name)
    for name in names:
        if name in row.columns and not row.columns[name].strip():
            raise InvalidParamError(
                f"{row.name} has nothing in the column {name!r}, which {{{name}}} stands for",
                hint="fill the cell, or take the name out of the template",
            )


def values(columns: Mapping[str, str], sources: Sequence[Source]) -> dict[str, str]:
    """What is known by name; a column that is called like a part of the file's name comes first."""
    where = sources[0] if sources else Source("")
    inner = where.part.removeprefix("member=") if where.part.startswith("member=") else where.where
    path = PurePosixPath(re.split("[?#]", inner)[0] if "://" in inner else inner)
    return {"file": path.name, "stem": path.stem, "folder": path.parent.name, **columns}


def _value(part: str | Place, known: Mapping[str, str]) -> str:
    if isinstance(part, str):
        return part
    if part.name not in known:
        raise InvalidParamError(f"nothing is known for {{{part.name}}}")
    return known[part.name]
