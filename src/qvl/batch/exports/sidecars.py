"""A file for each item in a folder: its text (.txt), its record (.json), or for a row XMP (.xmp)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from qvl.batch.exports.by_row import by_row, words
from qvl.batch.exports.jsonl import as_object, json_line
from qvl.batch.exports.table import cell_of
from qvl.batch.names import inside, safe_name
from qvl.cells import storable
from qvl.errors import InvalidParamError
from qvl.runs.record import Finished
from qvl.runs.whole import write_whole
from qvl.xmp import packet

Kind = Literal["txt", "json", "xmp"]


def write(finished: Iterable[Finished], folder: Path, kind: Kind) -> int:
    """Each file whole; names come of ids, so they are the same in each export. Returns how many.

    Items without an answer have a .json alone. The .xmp of a row has all its languages, and is named
    after the row, as the copies of `copies.write` are. Raises InvalidParamError, StorageError.
    """
    written = 0
    match kind:
        case "txt":
            files = ((one.item.id, text_of(one)) for one in finished)
        case "json":
            files = ((one.item.id, json_line(as_object(one))) for one in finished)
        case "xmp":
            files = ((row[0].item.row, xmp_of(row)) for row in by_row(finished))
        case _:
            raise InvalidParamError(f"there is no sidecar {kind!r}", hint="txt, json or xmp")
    for name, data in files:
        if data is not None:
            write_whole(inside(folder, f"{safe_name(name)}.{kind}"), data)
            written += 1
    return written


def text_of(one: Finished) -> bytes | None:
    text = one.told("text")
    return storable(cell_of(text)).encode() + b"\n" if text is not None else None


def xmp_of(row: list[Finished]) -> bytes | None:
    said = words(row)
    return packet(said, None, row[0].item.row) if said is not None else None
