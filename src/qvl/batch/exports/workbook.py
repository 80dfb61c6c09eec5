"""XLSX: a new workbook with a row for each item, small pictures, and what a reviewer needs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qvl.batch.exports import keys, sheet
from qvl.batch.exports.table import Row, Table, table
from qvl.batch.exports.thumbnails import thumbnail
from qvl.runs.record import Finished
from qvl.runs.whole import whole_file

SIDE_PX = 96
ROW_POINTS = 75.0
WIDTHS = {sheet.PICTURE: 14.0, "qvl_text": 60.0, "qvl_note": 30.0}
WIDTH = 20.0


def write(finished: Iterable[Finished], target: Path, *, pictures: bool = True) -> None:
    """Of over a million rows there are several sheets. Raises StorageError, UsageError."""
    book = sheet.openpyxl().Workbook(write_only=True)
    with (
        whole_file(target) as part,
        tempfile.TemporaryDirectory() as folder,  # of the pictures, until the workbook is packed
        table(finished) as items,
    ):
        names = [*([sheet.PICTURE] if pictures else []), *items.columns, sheet.CUT, keys.COLUMN]
        rows = items.rows()
        page, at, row = begun(book, names), 1, None
        for row in rows:
            if at == sheet.ROWS:
                page, at = begun(book, names), 1
            at += 1
            if pictures:
                add_picture(page, row, at, Path(folder) / f"{len(book.worksheets)}-{at}.jpg")
            page.append(cells_of(page, names, items, row))
        book.save(part)


def begun(book: Any, names: Sequence[str]) -> Any:
    """A new sheet with the names of the columns in its first row, which stays in sight."""
    from openpyxl.styles import Font
    from openpyxl.utils import get_column_letter

    number = len(book.worksheets) + 1
    page = book.create_sheet("qvl" if number == 1 else f"qvl {number}")
    for place, name in enumerate(names, 1):
        column = page.column_dimensions[get_column_letter(place)]
        column.width = WIDTHS.get(name, WIDTH)
        column.hidden = name == keys.COLUMN
    page.freeze_panes = "A2"
    letter = get_column_letter(names.index("qvl_status") + 1)
    offered = sheet.statuses()
    offered.add(f"{letter}2:{letter}{sheet.ROWS}")
    page.data_validations.append(offered)
    head = [sheet.made(page, name) for name in names]
    for cell in head:
        cell.font = Font(bold=True)
    page.append(head)
    return page


def cells_of(page: Any, names: Sequence[str], items: Table, row: Row) -> Iterator[Any]:
    told = {name: row.cells.get(name) for name in items.columns}
    texts = {name: sheet.fitting(v) for name, v in told.items() if isinstance(v, str)}
    edited = {name: texts.get(name, "") for name in items.edited}
    key = keys.key(row.cells["qvl_id"], row.cells["qvl_attempt"], edited)
    ours = {sheet.CUT: sheet.cut_names(told, texts), keys.COLUMN: sheet.fitting(key)}
    for name in names:
        yield sheet.made(page, (told | texts | ours).get(name))


def add_picture(page: Any, row: Row, at: int, path: Path) -> None:
    """Kept in a file: openpyxl reads it when it packs the workbook."""
    from openpyxl.drawing.image import Image

    small = thumbnail(row.sources, SIDE_PX)
    page.row_dimensions[at].height = ROW_POINTS
    if small is not None:
        path.write_bytes(small)
        page.add_image(Image(str(path)), f"A{at}")
