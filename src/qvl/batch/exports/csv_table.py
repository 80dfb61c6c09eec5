"""CSV: a row for each item, for spreadsheets and for review."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qvl.batch.exports import keys
from qvl.batch.exports.table import shown, table
from qvl.cells import BYTE_ORDER_MARK, csv_row
from qvl.runs.record import Finished
from qvl.runs.whole import whole_file


def write(
    finished: Iterable[Finished], target: Path, *, bom: bool = True, delimiter: str = ","
) -> None:
    """A delimiter of ";" is what Excel wants where numbers have a decimal comma. Raises StorageError."""
    with (
        whole_file(target) as part,
        table(finished) as items,
        part.open("w", encoding="utf-8", newline="") as file,
    ):
        names = [*items.columns, keys.COLUMN]
        file.write((BYTE_ORDER_MARK if bom else "") + csv_row([*map(shown, names)], delimiter))
        for row in items.rows():
            cells = {name: text_of(row.cells.get(name)) for name in items.columns}
            edited = {name: cells[name] for name in items.edited}
            key = keys.key(row.cells["qvl_id"], row.cells["qvl_attempt"], edited)
            file.write(csv_row([*cells.values(), key], delimiter))


def text_of(value: Any) -> str:
    return "" if value is None else shown(str(value))
