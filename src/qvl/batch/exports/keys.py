"""`qvl_key`: what a table for review says of its rows, so that a person's changes can be found in it.

A key has a part for each item that its row shows: which one, which attempt, what the names of its
columns end with (a language, where a row shows several), and a digest of each cell that a person may
change. A cell without its digest there was changed, wherever its column and its row are now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from qvl.errors import InputError

COLUMN = "qvl_key"
VERSION = "q1"
ITEM, CELL = 16, 12  # hex digits


@dataclass(frozen=True, slots=True)
class Key:
    item: str  # the digest of its id
    attempt: int
    ending: str
    digests: frozenset[str]


def key(item: str, attempt: int, cells: Mapping[str, str], ending: str = "") -> str:
    """The part for one item; `cells` are those that a person may change, as they are shown."""
    digests = "".join(digest(column, text) for column, text in cells.items())
    return f"{VERSION}:{item_digest(item)}:{attempt}:{ending}:{digests}"


def keys_of(text: str, where: str) -> tuple[Key, ...]:
    """The parts of a key's cell. Raises InputError, which says where it stands."""
    try:
        return tuple(_part(part) for part in text.split())
    except ValueError as err:
        raise InputError(
            f"{where}: the cell of {COLUMN!r} was changed, so nobody knows whose row it is",
            hint="copy the cell from the export, or leave the row out",
        ) from err


def _part(text: str) -> Key:
    version, item, attempt, ending, digests = text.split(":")
    if version != VERSION or len(item) != ITEM or len(digests) % CELL:
        raise ValueError
    cells = frozenset(digests[at : at + CELL] for at in range(0, len(digests), CELL))
    return Key(item, int(attempt), ending, cells)


def item_digest(item: str) -> str:
    return hashlib.sha256(item.encode("utf-8", "surrogatepass")).hexdigest()[:ITEM]


def digest(column: str, text: str) -> str:
    return hashlib.sha256(f"{column}\0{text}".encode()).hexdigest()[:CELL]
