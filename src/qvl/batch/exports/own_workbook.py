"""XLSX: a person's own workbook with our columns beside theirs, as a copy; all else stays as it was.

Main path: write -> Shown (the run's rows, an item for each language) -> places (which row of the sheet
each is) -> fill (cells, the list of statuses, the hidden key) -> lost (what the copy lacks).
A row is found by what its cells say, not by its number: rows may have been sorted or moved meanwhile.
"""

from __future__ import annotations

import logging
import re
import warnings
import zipfile
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvl.batch.cells import unlike
from qvl.batch.exports import keys, sheet
from qvl.batch.exports.table import OURS, answer_cells, fixed_cells, language_of, shown
from qvl.batch.exports.thumbnails import thumbnail
from qvl.batch.workbook import check
from qvl.errors import InputError, InputUnreadableError, InvalidParamError
from qvl.runs.record import Finished, Source
from qvl.runs.whole import whole_file

log = logging.getLogger(__name__)
SHOWN_ROWS = 10
ALWAYS = ("qvl_text", "qvl_status", "qvl_note")
AT_NEED = ("qvl_flags", "qvl_error", "qvl_kept", sheet.CUT)  # only if any row has one
WIDTH, TEXT_WIDTH = 16.0, 60.0
SIDE_PX, ROW_POINTS = 64, 50.0
# elements of sheets and drawings that openpyxl does not keep, and how people call them
ELEMENTS = {
    (
        "worksheets/",
        "extLst",
    ): "newer formats (sparklines, slicers, some conditional formats, lists)",
    ("worksheets/", "oleObject"): "embedded objects",
    ("drawings/", "sp"): "shapes and text boxes",
    ("drawings/", "cxnSp"): "lines and arrows",
    ("drawings/", "pic"): "pictures",
    ("drawings/", "graphicFrame"): "charts",
}
PARTS = {
    "chartsheets/": "sheets of charts",
    "ctrlProps/": "form controls",
    "activeX/": "ActiveX controls",
    "vbaProject.bin": "macros (an .xlsm keeps them)",
    "threadedComments/": "threads of comments",
    "pivotTables/": "pivot tables",
    "slicers/": "slicers",
    "timelines/": "timelines",
    "queryTables/": "queries",
    "connections.xml": "connections",
    "model/": "the data model",
    "diagrams/": "diagrams",
    "richData/": "pictures and other rich data in cells",
}


@dataclass(frozen=True, slots=True)
class ItemCells:
    """Of one item: its part of the key is made of them. Of texts that are longer, what a cell holds."""

    item: str
    attempt: int
    language: str
    cells: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunRow:
    """A row of the run's input with its items, one for each language."""

    name: str
    columns: Mapping[str, str]
    sources: tuple[Source, ...]
    items: list[ItemCells] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Grid:
    """A sheet as text: the row of the names, the columns by name, the rows below by number."""

    head: int
    names: Mapping[str, int]
    rows: Mapping[int, Sequence[str]]


def write(
    finished: Iterable[Finished],
    target: Path,
    workbook: Path,
    *,
    page: str | None = None,
    pictures: bool = False,
) -> tuple[str, ...]:
    """Write the copy; `page` is the sheet that the run's rows come of, else the first one.

    Returns what the copy lacks that the workbook has, such as shapes; the log tells it as well. The
    workbook itself is never written. Raises InvalidParamError where the target is the workbook,
    InputError where rows of the run are not in it, InputUnreadableError, StorageError, UsageError.
    """
    if target.resolve() == workbook.resolve() or (target.exists() and target.samefile(workbook)):
        raise InvalidParamError(
            f"{target.name!r} is the workbook itself", hint="choose another name: a copy is made"
        )
    rows = run_rows(finished)
    with whole_file(target) as part:
        book, title, grid = opened(workbook, page, macros=target.suffix.lower() == ".xlsm")
        fill(book[title], grid, rows, places(rows, grid, workbook.name), pictures=pictures)
        book.calculation.fullCalcOnLoad = True  # what formulas gave is not kept, they are
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it cannot carry over: `lost` says that
            book.save(part)
        missing = lost(workbook, part)
    for what in missing:
        log.warning("%s lacks what is in %s: %s", target.name, workbook.name, what)
    return missing


def run_rows(finished: Iterable[Finished]) -> list[RunRow]:
    """Raises InputError for two items of a row in one language: they would have the same columns."""
    rows: dict[str, RunRow] = {}
    for one in finished:
        columns = {k: v for k, v in one.item.columns.items() if not k.startswith(OURS)}
        row = rows.setdefault(one.item.row, RunRow(one.item.row, columns, one.item.sources))
        language = language_of(one)
        if any(item.language == language for item in row.items):
            raise InputError(
                f"row {one.item.row!r} has several answers in one language",
                hint="export a new workbook: it has a row for each answer",
            )
        told = fixed_cells(one) | answer_cells(one)
        texts = {name: sheet.fitting(v) for name, v in told.items() if isinstance(v, str)}
        texts[sheet.CUT] = sheet.cut_names(told, texts)
        cells: dict[str, Any] = told | texts
        row.items.append(ItemCells(one.item.id, cells["qvl_attempt"], language, cells))
    return list(rows.values())


def opened(workbook: Path, page: str | None, *, macros: bool) -> tuple[Any, str, Grid]:
    """The workbook to be changed, the sheet's title, and the sheet as its reader sees it."""
    openpyxl = sheet.openpyxl()
    check(workbook, workbook.name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            book = openpyxl.load_workbook(workbook, rich_text=True, keep_vba=macros)
            values = openpyxl.load_workbook(workbook, read_only=True, data_only=True)
            titles = [one.title for one in values.worksheets]
            title = page or titles[0]
            grid = grid_of(values[title], workbook.name) if title in titles else None
            values.close()
    except sheet.UNREADABLE as err:
        raise InputUnreadableError(
            f"{workbook.name!r} cannot be read as a workbook", hint="save it anew, as .xlsx"
        ) from err
    if grid is None:
        raise InvalidParamError(
            f"{workbook.name!r} has no sheet {title!r}", hint=f"it has {', '.join(titles)}"
        )
    return book, title, grid


def grid_of(page: Any, name: str) -> Grid:
    """The first row that says anything has the names. Raises InputError where there is none."""
    page.reset_dimensions()
    rows = (
        (n, [*map(sheet.text_in, r)]) for n, r in enumerate(page.iter_rows(values_only=True), 1)
    )
    filled = ((number, row) for number, row in rows if any(row))
    head, named = next(filled, (0, []))
    if not named:
        raise InputError(f"the sheet {page.title!r} of {name!r} is empty")
    names = {text: place for place, text in enumerate(unlike(named), 1)}
    return Grid(head, names, dict(filled))


def places(rows: Sequence[RunRow], grid: Grid, name: str) -> list[int]:
    """The number of each run's row in the sheet. Raises InputError that names those not found.

    Rows that say the same are alike for the run, too, and are taken in order.
    """
    known = {column for row in rows for column in row.columns}
    common = [column for column in grid.names if column in known and not column.startswith(OURS)]
    if not common:
        raise InputError(
            f"{name!r} has none of the run's columns", hint="give the workbook that was run"
        )
    at = [grid.names[column] - 1 for column in common]
    waiting: defaultdict[tuple[str, ...], deque[int]] = defaultdict(deque)
    for number, texts in grid.rows.items():
        waiting[tuple(plain(texts[i]) if i < len(texts) else "" for i in at)].append(number)
    found, missing = [], []
    for row in rows:
        numbers = waiting.get(tuple(plain(row.columns.get(column, "")) for column in common))
        if numbers:
            found.append(numbers.popleft())
        else:
            missing.append(repr(row.name))
    if missing:
        shown = ", ".join(missing[:SHOWN_ROWS])
        raise InputError(
            f"{name!r} has not the row {shown}"
            + (f" and {len(missing) - SHOWN_ROWS} more" if len(missing) > SHOWN_ROWS else ""),
            hint="it was changed since the run: export a new workbook, or undo that",
        )
    return found


def plain(text: str) -> str:
    return " ".join(shown(text).split())


def fill(
    page: Any, grid: Grid, rows: Sequence[RunRow], numbers: Sequence[int], *, pictures: bool
) -> None:
    columns = our_columns(rows, pictures=pictures)
    last = max(grid.names.values())
    new = [name for name in columns if name not in grid.names]
    taken = {**grid.names, **{name: last + place for place, name in enumerate(new, 1)}}
    make_room(page, last + 1, last + len(new))
    for name in new:
        add_column(page, name, grid.head, taken[name], like=page.cell(grid.head, last))
    bottom = max(numbers, default=grid.head)
    for name in columns:
        if name.startswith("qvl_status") and bottom > grid.head:
            letter = page.cell(1, taken[name]).column_letter
            offered = sheet.statuses()
            offered.add(f"{letter}{grid.head + 1}:{letter}{bottom}")
            page.add_data_validation(offered)
    for row, number in zip(rows, numbers, strict=True):
        for name, value in row_cells(row, columns).items():
            put(page.cell(number, taken[name]), value)
        if pictures:
            add_picture(page, row, number, taken[sheet.PICTURE])


def our_columns(rows: Sequence[RunRow], *, pictures: bool) -> list[str]:
    """The names of all columns of ours, each language's together."""
    items = [item for row in rows for item in row.items]
    filled = {name: None for item in items for name, value in item.cells.items() if value}
    fixed = ("qvl_id", "qvl_source", "qvl_language", "qvl_attempt", *ALWAYS, *AT_NEED)
    own = [name for name in filled if name not in fixed]
    needed = [name for name in AT_NEED if name in filled]
    names = [ALWAYS[0], *own, *needed, *ALWAYS[1:]]
    each = [name + ending for ending in endings(rows) for name in names]
    return [*([sheet.PICTURE] if pictures else []), *each, keys.COLUMN]


def endings(rows: Sequence[RunRow]) -> list[str]:
    """What names of columns end with: nothing, or "_ru" and the like where there are several languages."""
    languages = dict.fromkeys(item.language for row in rows for item in row.items)
    return [*map(ending_of, languages)] if len(languages) > 1 else [""]


def ending_of(language: str) -> str:
    return f"_{language or 'other'}"


def row_cells(row: RunRow, columns: Sequence[str]) -> dict[str, Any]:
    """The values of our columns in one row; None where there is nothing."""
    told: dict[str, Any] = {name: None for name in columns if name != sheet.PICTURE}
    parts = []
    for item in row.items:
        ending = ending_of(item.language) if f"qvl_text{ending_of(item.language)}" in told else ""
        cells = {name: item.cells.get(name.removesuffix(ending)) for name in told_by(told, ending)}
        told |= cells
        edited = {name: cells[name] or "" for name in cells if is_edited(name.removesuffix(ending))}
        parts.append(keys.key(item.item, item.attempt, edited, ending[1:]))
    told[keys.COLUMN] = " ".join(parts)
    return told


def told_by(columns: Iterable[str], ending: str) -> Iterator[str]:
    return (name for name in columns if name.endswith(ending) and name != keys.COLUMN)


def is_edited(name: str) -> bool:
    return name not in AT_NEED


def add_column(page: Any, name: str, head: int, place: int, *, like: Any) -> None:
    """The name in the first row, looking as the one before it."""
    cell = page.cell(head, place)
    sheet.put(cell, sheet.fitting(name))
    if like.has_style:
        cell._style = copy(like._style)
        cell.number_format = sheet.TEXT_FORMAT
    column = page.column_dimensions[cell.column_letter]
    column.width = TEXT_WIDTH if name.startswith("qvl_text") else WIDTH
    column.hidden = name == keys.COLUMN


def make_room(page: Any, first: int, last: int) -> None:
    """Formats of whole columns, of which a file may have one for all to the right, end before ours."""
    for letter, column in list(page.column_dimensions.items()):
        column.reindex()
        if column.max >= first > column.min:
            column.max = first - 1
        elif first <= column.min <= last:
            del page.column_dimensions[letter]


def put(cell: Any, value: Any) -> None:
    from openpyxl.styles import Alignment, Protection

    if isinstance(value, str):
        sheet.put(cell, value)
    else:
        cell.value = value
    cell.alignment = Alignment(wrap_text=True, vertical="top")
    cell.protection = Protection(locked=False)  # in a sheet that is protected, a reviewer can write


def add_picture(page: Any, row: RunRow, number: int, place: int) -> None:
    from io import BytesIO

    from openpyxl.drawing.image import Image

    small = thumbnail(row.sources, SIDE_PX)
    if small is None:
        return
    page.add_image(Image(BytesIO(small)), page.cell(number, place).coordinate)
    page.row_dimensions[number].height = max(page.row_dimensions[number].height or 0, ROW_POINTS)


def lost(workbook: Path, copy: Path) -> tuple[str, ...]:
    """What there is less of in the copy than in the workbook, in words for people."""
    before, after = content(workbook), content(copy)
    told = {what: None for what, number in before.items() if after[what] < number}
    if before["charts"] and "charts" not in told:
        told["parts of the format of charts, perhaps: they are written anew"] = None
    return tuple(told)


def content(workbook: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    with zipfile.ZipFile(workbook) as file:
        for name in file.namelist():
            for start, what in PARTS.items():
                found[what] += name.startswith("xl/" + start)
            folder = name.removeprefix("xl/").partition("/")[0] + "/"
            if name.endswith(".xml") and folder in ("worksheets/", "drawings/"):
                data = file.read(name)
                for (where, element), what in ELEMENTS.items():
                    if where == folder:
                        found[what] += len(
                            re.findall(rb"<(?:\w+:)?%b[\s/>]" % element.encode(), data)
                        )
    return found
