"""A table that a person went through -> reviews of exactly the cells that were changed in it.

Main path: import_review -> rows_of (XLSX or CSV) -> edits (cells without their digest in `qvl_key`) ->
what holds now, which has to be what the table showed -> Review.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

from qvl.batch.exports import keys, sheet
from qvl.batch.exports.table import AFTER, BEFORE, OURS, STATUSES, cell_of, shown
from qvl.batch.workbook import check
from qvl.cells import from_text
from qvl.errors import InputError, InputUnreadableError, UnsupportedMediaError
from qvl.runs.record import Finished, Review, ReviewState

log = logging.getLogger(__name__)
SHOWN_PROBLEMS = 20
STATUS, NOTE = "qvl_status", "qvl_note"
# columns of ours that are not a person's to change
OTHERS = frozenset((*BEFORE, *AFTER, keys.COLUMN, sheet.CUT, sheet.PICTURE)) - {STATUS, NOTE}
MOST_CELL = 2**24  # characters of a CSV's


@dataclass(frozen=True, slots=True)
class Edit:
    """What was changed in the cells of one item: `cells` by the names that its columns have."""

    where: str
    key: keys.Key
    cells: Mapping[str, str]


def import_review(
    path: Path,
    finished: Iterable[Finished],
    *,
    by: str = "",
    at: str = "",
    stale: Literal["refuse", "skip"] = "refuse",
) -> Iterator[Review]:
    """A review of each item of which a cell was changed, in the items' order; others have none.

    `finished` are the run's items as they are now. A row is stale where its answer or its review is
    not the one any more that the table showed. Raises InputError that names such rows, and those whose
    status, key or column is none, before the first review; with "skip" they are left out, and told in
    the log.
    """
    found, problems = edits_of(path)
    reviews: list[Review] = []
    for one in finished:
        digest = keys.item_digest(one.item.id)
        edit = found.pop(digest, None)
        if edit is None:
            continue
        try:
            made = review_of(one, edit, by=by, at=at)
            reviews += [made] if made is not None else []
        except InputError as err:
            problems.append(err.message)
    problems += [f"{edit.where}: the run has no such item" for edit in found.values()]
    if problems and stale == "refuse":
        left = len(problems) - SHOWN_PROBLEMS
        more = f"\n... and {left} more" if left > 0 else ""
        raise InputError(
            f"{path.name!r} has rows that cannot be taken, so none was:\n"
            + "\n".join(problems[:SHOWN_PROBLEMS])
            + more,
            hint="export anew and change those rows there, or leave them out",
        )
    for problem in problems:
        log.warning("left out: %s", problem)
    yield from reviews


def edits_of(path: Path) -> tuple[dict[str, Edit], list[str]]:
    """The changed cells by the digests of their items, and what is wrong with rows."""
    found: dict[str, Edit] = {}
    problems: list[str] = []
    for where, row in rows_of(path):
        if not row.get(keys.COLUMN) and any(
            text for name, text in row.items() if name.startswith(OURS)
        ):
            problems.append(f"{where}: it has no {keys.COLUMN!r}, so nobody knows whose row it is")
        try:
            parts = keys.keys_of(row.get(keys.COLUMN, ""), where)
        except InputError as err:
            problems.append(err.message)
            continue
        for key in parts:
            cells = changed(row, key)
            if not cells:
                continue
            known = found.setdefault(key.item, Edit(where, key, cells))
            if known.cells != cells or known.key.attempt != key.attempt:
                problems.append(f"{where}: {known.where} says something else of the same item")
    return found, problems


def changed(row: Mapping[str, str], key: keys.Key) -> dict[str, str]:
    """The cells of one item without their digests in its key."""
    ending = f"_{key.ending}" if key.ending else ""
    told = {}
    for column, text in row.items():
        name = column.removesuffix(ending)
        if not name.startswith(OURS) or (ending and not column.endswith(ending)) or name in OTHERS:
            continue
        told_as = {text, sheet.decoded(text)}  # whether it was written as Excel writes it or not
        if not key.digests & {keys.digest(column, one) for one in told_as}:
            told[name] = sheet.decoded(text)
    return told


def review_of(one: Finished, edit: Edit, *, by: str, at: str) -> Review | None:
    """What the person made of the item; None where only columns that are not of this export differ.

    Raises InputError where that was about another answer.
    """
    before = one.review
    told = {name: text for name, text in edit.cells.items() if was_exported(one, edit.key, name)}
    if not told:
        return None
    edit = replace(edit, cells=told)
    attempt = one.outcome.attempt if one.outcome is not None else 0
    if attempt != edit.key.attempt:
        raise InputError(
            f"{edit.where}: it shows attempt {edit.key.attempt} of {one.item.id!r}, and there is"
            f" attempt {attempt} by now"
        )
    for name in edit.cells:
        check_unchanged(one, edit, name)
    state: str = before.state if before is not None else STATUSES[0]
    if STATUS in edit.cells:
        state = edit.cells[STATUS].strip().casefold()
        if state not in get_args(ReviewState):
            raise InputError(
                f"{edit.where}: the status {edit.cells[STATUS]!r:.40} is none of"
                f" {', '.join(get_args(ReviewState))}"
            )
    elif state == STATUSES[0]:
        state = "edited"
    words = {
        name.removeprefix(OURS): text
        for name, text in edit.cells.items()
        if name not in (STATUS, NOTE)
    }
    return Review(
        id=one.item.id,
        state=cast(ReviewState, state),
        fields={**(before.fields if before is not None else {}), **words},
        of=attempt,
        by=by,
        note=edit.cells.get(NOTE, before.note if before is not None else ""),
        at=at,
    )


def was_exported(one: Finished, key: keys.Key, name: str) -> bool:
    """Whether the table had that column when it was made: a person may have added one, or an older
    export left it.
    """
    ending = f"_{key.ending}" if key.ending else ""
    out = one.outcome.out if one.outcome is not None else {}
    said = one.review.fields if one.review is not None else {}
    field = name.removeprefix(OURS)
    known = name in (STATUS, NOTE) or field in out or field in said
    return known or keys.digest(name + ending, "") in key.digests


def check_unchanged(one: Finished, edit: Edit, name: str) -> None:
    """What holds now is what the table showed in that cell. Raises InputError."""
    now = current(one, name)
    ending = f"_{edit.key.ending}" if edit.key.ending else ""
    digests = [keys.digest(name + ending, told) for told in (shown(now), sheet.fitting(now))]
    if not edit.key.digests & set(digests):
        raise InputError(
            f"{edit.where}: {name!r} of {one.item.id!r} is not any more what this table was made of"
        )
    if digests[0] not in edit.key.digests:
        raise InputError(
            f"{edit.where}: {name!r} of {one.item.id!r} was cut at {sheet.CELL_UNITS} characters, so a"
            " change of it would lose the rest"
        )


def current(one: Finished, name: str) -> str:
    match name:
        case "qvl_status":
            return one.review.state if one.review is not None else STATUSES[0]
        case "qvl_note":
            return one.review.note if one.review is not None else ""
    return cell_of(one.told(name.removeprefix(OURS)))


def rows_of(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row stands, and its cells as text by the names in the first row.

    Raises InputError where there is no column of keys, InputUnreadableError, UnsupportedMediaError.
    """
    match path.suffix.lower():
        case ".xlsx" | ".xlsm":
            tables = sheets_of(path)
        case ".csv" | ".tsv":
            tables = iter([("row", csv_rows(path))])
        case _:
            raise UnsupportedMediaError(
                f"{path.name!r} is no table for review", hint="give .xlsx or .csv"
            )
    is_ours = False
    for where, lines in tables:
        names: list[str] | None = None
        for number, line in lines:
            if names is None:
                names = line if any(line) else None
                if names is not None and keys.COLUMN not in names:
                    break
                is_ours = names is not None or is_ours
                continue
            yield f"{where} {number}", dict(zip(names, line, strict=False))
    if not is_ours:
        raise InputError(
            f"{path.name!r} has no column {keys.COLUMN!r}",
            hint="give the file that `qvl batch export` wrote, with that column (hidden in a workbook)",
        )


def sheets_of(path: Path) -> Iterator[tuple[str, Iterator[tuple[int, list[str]]]]]:
    """Each sheet's rows with their numbers; formulas are their own words."""
    openpyxl = sheet.openpyxl()
    check(path, path.name)
    try:
        book = openpyxl.load_workbook(path, read_only=True)
        for page in book.worksheets:
            page.reset_dimensions()  # what a file says of them may be wrong
            rows = enumerate(page.iter_rows(values_only=True), 1)
            yield f"{page.title!r} row", ((n, [*map(sheet.text_in, row)]) for n, row in rows)
        book.close()
    except sheet.UNREADABLE as err:
        raise InputUnreadableError(
            f"{path.name!r} cannot be read as a workbook", hint="save it anew, as .xlsx"
        ) from err


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows with their numbers, as a spreadsheet counts them."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as err:
        raise InputUnreadableError(f"{path.name!r} cannot be read: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise InputUnreadableError(
            f"{path.name!r} is not UTF-8, so letters may be lost in it",
            hint='save it as "CSV UTF-8", or as .xlsx',
        ) from err
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    csv.field_size_limit(MOST_CELL)
    try:
        for number, row in enumerate(
            csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), 1
        ):
            yield number, [shown(from_text(cell)) for cell in row]
    except csv.Error as err:
        raise InputUnreadableError(f"{path.name!r} is no CSV: {err}") from err
