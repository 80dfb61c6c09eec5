"""A marketplace's file: exactly the columns of its profile, each field as the profile wants it.

Beside it is written what was cut, and which items were left out and why: NAME.cuts.csv.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qvl.batch.exports import google_feed, sheet
from qvl.batch.exports.table import shown
from qvl.batch.profiles import Profile, Value, check, fields_of, fit, written
from qvl.cells import BYTE_ORDER_MARK, csv_row
from qvl.errors import InvalidParamError
from qvl.runs.record import Finished, Item
from qvl.runs.whole import whole_file

REPORT = ("id", "field", "rule", "what")


@dataclass(slots=True)
class Counts:
    """Items that were written, of those how many were cut, and how many were left out."""

    written: int = 0
    cut: int = 0
    left_out: int = 0


def report_of(target: Path) -> Path:
    return target.with_name(target.stem + ".cuts.csv")


def write(finished: Iterable[Finished], target: Path, profile: Profile) -> Counts:
    """As CSV, XLSX or, for Google, XML, by the target's ending; items without an answer are left out.

    Raises InvalidParamError for another ending, StorageError, UsageError.
    """
    writers = {".xml": google_feed.write_items} if profile.file == "google" else TABLES
    writer = writers.get(target.suffix.lower())
    if writer is None:
        raise InvalidParamError(
            f"{target.name!r} cannot be a file for {profile.title}",
            hint=f"its name should end with {' or '.join(writers)}",
        )
    counts = Counts()
    with (
        whole_file(target) as part,
        whole_file(report_of(target)) as report,
        report.open("w", encoding="utf-8", newline="") as lines,
    ):
        lines.write(BYTE_ORDER_MARK + csv_row(REPORT))

        def fitting() -> Iterator[tuple[Item, dict[str, Value]]]:
            for one in finished:
                told, cuts, wrong = prepared(one, profile)
                for row in cuts:
                    lines.write(csv_row([shown(cell) for cell in (one.item.id, *row)]))
                if wrong:
                    counts.left_out += 1
                    continue
                counts.written += 1
                counts.cut += bool(cuts)
                yield one.item, told

        writer(fitting(), part, profile)
    return counts


def prepared(
    one: Finished, profile: Profile
) -> tuple[dict[str, Value], list[tuple[str, str, str]], bool]:
    """The fields, what the report says of them, and whether the item has to be left out."""
    if not one.told("text"):
        return {}, [("", "left out", "there is no answer")], True
    # an input without a column for it is named by its id
    columns = {**one.item.columns, "qvl_id": one.item.id}
    told, cuts = fit(profile, fields_of(profile, one.told, columns))
    wrong = [finding for finding in check(profile, told) if not finding.advice]
    rows = [(cut.field, cut.rule, cut.what) for cut in cuts]
    rows += [(found.field, "left out", found.message) for found in wrong]
    return told, rows, bool(wrong)


def write_csv(items: Iterable[tuple[Item, dict[str, Value]]], part: Path, profile: Profile) -> None:
    with part.open("w", encoding="utf-8", newline="") as file:
        file.write(BYTE_ORDER_MARK + csv_row(profile.headings))
        for _, told in items:
            file.write(csv_row([*written(profile, told).values()]))


def write_xlsx(
    items: Iterable[tuple[Item, dict[str, Value]]], part: Path, profile: Profile
) -> None:
    book = sheet.openpyxl().Workbook(write_only=True)
    page = book.create_sheet("Sheet1")
    page.append([sheet.made(page, name) for name in profile.headings])
    for number, (_, told) in enumerate(items, 2):
        if number > sheet.ROWS:
            raise InvalidParamError(
                f"{profile.title} takes one sheet, and there are over {sheet.ROWS} rows",
                hint="export CSV",
            )
        page.append([sheet.made(page, text) for text in written(profile, told).values()])
    book.save(part)


TABLES = {".csv": write_csv, ".xlsx": write_xlsx}
