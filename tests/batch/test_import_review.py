"""What a person changed in a table comes back as reviews: exactly those cells, and nothing that is stale."""

from __future__ import annotations

import csv
import io
import itertools
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl.comments import Comment
from openpyxl.formatting.rule import CellIsRule
from openpyxl.styles import Font, PatternFill
from openpyxl.worksheet.datavalidation import DataValidation
from openpyxl.worksheet.table import Table

from made_up import CHINESE, PAYLOADS, RUSSIAN, failed, finished, picture, review, waiting
from qvl.batch.exports import csv_table, own_workbook, parquet, sheet, workbook
from qvl.batch.import_review import import_review
from qvl.cells import BYTE_ORDER_MARK, csv_row, from_text
from qvl.errors import (
    ArchiveError,
    InputError,
    InputUnreadableError,
    InvalidParamError,
    UnsupportedMediaError,
    UsageError,
)
from qvl.runs.record import Finished, Review, Source

OFFICE = shutil.which("soffice") or shutil.which("libreoffice")
needs_office = pytest.mark.skipif(
    OFFICE is None,
    reason="LibreOffice (soffice) is not installed: apt-get install libreoffice-calc",
)
ITEMS = (
    finished(0, title="Кружка", keywords=["белая", "кружка"]),
    review(finished(1), "approved", "хорошо", text="Белая кружка."),
    finished(2, CHINESE, language="zh"),
    failed(3),
    waiting(4),
    finished(5, "'=1+1\n  конец "),
)
Cells = dict[str, str]


class Book:
    """A workbook's sheet by the names in its first row."""

    def __init__(self, path: Path, title: str | None = None, **how: Any) -> None:
        self.path = path
        self.book: Any = openpyxl.load_workbook(path, **how)
        self.page: Any = self.book[title] if title else self.book.worksheets[0]
        self.head: dict[Any, Any] = {cell.value: cell.column for cell in self.page[1]}

    def cell(self, row: int, name: str) -> Any:
        return self.page.cell(row, self.head[name])

    def save(self) -> None:
        self.book.save(self.path)


def change_csv(path: Path, change: Callable[[list[Cells]], None], delimiter: str = ",") -> None:
    text = path.read_bytes().decode("utf-8-sig")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows = list(reader)
    change(rows)
    names = list(reader.fieldnames or ())
    lines = [names, *([row[name] for name in names] for row in rows)]
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(lines)
    path.write_bytes((BYTE_ORDER_MARK + file.getvalue()).encode())


@pytest.fixture(params=["csv", "xlsx"])
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"a.{request.param}"
    write(path, ITEMS)
    return path


def write(path: Path, items: tuple[Finished, ...]) -> None:
    if path.suffix == ".csv":
        csv_table.write(items, path)
    else:
        workbook.write(items, path, pictures=False)


def change(path: Path, cells: dict[tuple[int, str], str]) -> None:
    """Change cells by the index of their item and their column."""
    if path.suffix == ".csv":

        def apply(rows: list[Cells]) -> None:
            for (at, name), text in cells.items():
                rows[at][name] = text

        change_csv(path, apply)
        return
    book = Book(path)
    for (at, name), text in cells.items():
        book.cell(at + 2, name).value = text
    book.save()


def test_an_unchanged_table_has_no_reviews(exported: Path) -> None:
    assert list(import_review(exported, ITEMS)) == []


def test_exactly_the_changed_cells_are_found(exported: Path) -> None:
    change(
        exported,
        {
            (0, "qvl_text"): "Белая кружка с ручкой.",
            (1, "qvl_note"): "очень хорошо",
            (2, "qvl_status"): "Approved ",
            (3, "qvl_text"): "Написано рукой",
            (5, "qvl_status"): "rejected",
            (5, "qvl_text"): "=1+1",
            (0, "sku"): "their own",
            (2, "qvl_flags"): "nobody reads this",
        },
    )
    assert list(import_review(exported, iter(ITEMS), by="Анна", at="2026-11-30")) == [
        Review(id="row 0/ru", state="edited", fields={"text": "Белая кружка с ручкой."}, by="Анна", at="2026-11-30"),
        Review(id="row 1/ru", state="approved", fields={"text": "Белая кружка."}, note="очень хорошо", by="Анна", at="2026-11-30"),
        Review(id="row 2/zh", state="approved", by="Анна", at="2026-11-30"),
        Review(id="row 3/ru", state="edited", fields={"text": "Написано рукой"}, by="Анна", at="2026-11-30"),
        Review(id="row 5/ru", state="rejected", fields={"text": "=1+1"}, by="Анна", at="2026-11-30"),
    ]  # fmt: skip


def test_rows_and_columns_may_be_moved(exported: Path) -> None:
    change(exported, {(1, "qvl_text"): "Изменено"})
    if exported.suffix == ".csv":
        text = exported.read_bytes().decode("utf-8-sig")
        lines = [[*map(from_text, row)] for row in csv.reader(io.StringIO(text, newline=""))]
    else:
        lines = [[str(cell.value or "") for cell in row] for row in Book(exported).page.iter_rows()]
    lines = [line[::-1] for line in (lines[0], *lines[:0:-1])]
    exported.with_suffix(".csv").write_text("".join(map(csv_row, lines)), "utf-8")
    (found,) = import_review(exported.with_suffix(".csv"), ITEMS)
    assert (found.id, found.fields) == ("row 1/ru", {"text": "Изменено"})


def test_a_stale_row_is_refused_by_name(exported: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(
        exported, {(0, "qvl_text"): "Изменено", (1, "qvl_text"): "Изменено", (2, "qvl_text"): "好"}
    )
    assert ITEMS[0].outcome is not None
    later = (
        replace(ITEMS[0], outcome=replace(ITEMS[0].outcome, attempt=2)),
        review(ITEMS[1], "edited", text="Другой человек изменил это"),
        *ITEMS[2:],
    )
    with pytest.raises(InputError) as caught:
        list(import_review(exported, later))
    first, second = caught.value.message.splitlines()[1:]
    assert "2: it shows attempt 1 of 'row 0/ru', and there is attempt 2" in first
    assert "3: 'qvl_text' of 'row 1/ru' is not any more" in second
    with pytest.raises(InputError, match="2: the run has no such item"):
        list(import_review(exported, ITEMS[1:]))
    with caplog.at_level(logging.WARNING):
        (found,) = import_review(exported, later, stale="skip")
    assert found.id == "row 2/zh"
    assert caplog.text.count("left out: ") == 2


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({(0, "qvl_status"): "good"}, "2: the status 'good' is none of approved, edited, rejected"),
        ({(1, "qvl_status"): "new"}, "3: the status 'new' is none of"),
        ({(0, "qvl_key"): "", (0, "qvl_text"): "x"}, "2: it has no 'qvl_key'"),
        ({(0, "qvl_key"): "q1:zz"}, "2: the cell of 'qvl_key' was changed"),
        ({(0, "qvl_key"): "q9:0123456789abcdef:1::"}, "2: the cell of 'qvl_key' was changed"),
    ],
)
def test_what_cannot_be_taken_is_told(
    exported: Path, cells: dict[tuple[int, str], str], said: str
) -> None:
    change(exported, cells)
    with pytest.raises(InputError, match=said):
        list(import_review(exported, ITEMS))


def test_a_row_that_was_copied_and_changed_twice_is_refused(tmp_path: Path) -> None:
    csv_table.write(ITEMS, tmp_path / "a.csv")

    def twice(rows: list[Cells]) -> None:
        rows.append(rows[0] | {"qvl_text": "Два"})
        rows[0]["qvl_text"] = "Раз"

    change_csv(tmp_path / "a.csv", twice)
    with pytest.raises(InputError, match="row 8: row 2 says something else of the same item"):
        list(import_review(tmp_path / "a.csv", ITEMS))


def test_a_column_of_ones_own_is_no_review(exported: Path) -> None:
    """Nor one that an older export left."""
    if exported.suffix == ".xlsx":
        book = Book(exported)
        book.page.cell(1, len(book.head) + 1).value = "qvl_text_de"
        book.page.cell(2, len(book.head) + 1).value = "Eine Tasse"
        book.save()
    else:
        text = exported.read_text("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline="")))
        rows = [[*map(from_text, row), "Eine Tasse"] for row in rows]
        rows[0][-1] = "qvl_text_de"
        exported.write_text("".join(map(csv_row, rows)), "utf-8")
    assert list(import_review(exported, ITEMS)) == []


def test_a_column_may_be_gone(tmp_path: Path) -> None:
    csv_table.write(ITEMS, tmp_path / "a.csv")
    rows = list(csv.reader(io.StringIO((tmp_path / "a.csv").read_text("utf-8-sig"), newline="")))
    gone = rows[0].index("qvl_text")
    text = "".join(csv_row(row[:gone] + row[gone + 1 :], ";") for row in rows)
    (tmp_path / "b.csv").write_text(text, "utf-8")
    assert list(import_review(tmp_path / "b.csv", ITEMS)) == []


@settings(max_examples=30)
@given(texts=st.lists(st.text() | st.sampled_from([*PAYLOADS, "_x0041_", "_x005F_x0041_", " a ", "1", "TRUE", "#N/A", "2024-01-01", "a\r\nb", "\x00\x1f\ufffe", "\ud800", "🎉" * 9])), edited=st.text(min_size=1))  # fmt: skip
def test_any_text_survives_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], edited: str
) -> None:
    folder = tmp_path_factory.mktemp("round")
    items = tuple(finished(n, text, title=text[::-1]) for n, text in enumerate(texts))
    for name in ("a.csv", "a.xlsx"):
        write(folder / name, items)
        if name == "a.xlsx":  # as a program writes it that knows nothing of us
            book = Book(folder / name)
            book.save()
        assert list(import_review(folder / name, items)) == []


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"PK no workbook")
    with pytest.raises(ArchiveError, match=r"'a\.xlsx' is not a zip archive"):
        list(import_review(tmp_path / "a.xlsx", ITEMS))
    (tmp_path / "a.csv").write_bytes("qvl_key\nЖ".encode("cp1251"))
    with pytest.raises(InputUnreadableError, match="is not UTF-8"):
        list(import_review(tmp_path / "a.csv", ITEMS))
    (tmp_path / "b.csv").write_bytes(b"a,b\n1,2\n")
    with pytest.raises(InputError, match="has no column 'qvl_key'"):
        list(import_review(tmp_path / "b.csv", ITEMS))
    with pytest.raises(InputUnreadableError, match="cannot be read"):
        list(import_review(tmp_path / "none.csv", ITEMS))
    with pytest.raises(UnsupportedMediaError, match="no table for review"):
        list(import_review(tmp_path / "a.ods", ITEMS))


def test_a_workbook_that_inflates_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workbook.write(ITEMS, tmp_path / "a.xlsx", pictures=False)
    monkeypatch.setattr("qvl.batch.workbook.MAX_INFLATED_BYTES", 1000)
    with pytest.raises(ArchiveError, match="inflates to"):
        list(import_review(tmp_path / "a.xlsx", ITEMS))


# ---- the new workbook


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_is_a_formula_in_a_workbook(payload: str, tmp_path: Path) -> None:
    """B023."""
    columns = {"sku": payload, payload: "x"}
    items = [finished(0, payload, columns=columns, title=payload), failed(1, payload)]
    workbook.write(items, tmp_path / "a.xlsx", pictures=False)
    for row in Book(tmp_path / "a.xlsx").page.iter_rows():
        assert {cell.data_type for cell in row} <= {"s", "n"}  # "n" of empty cells and numbers
        assert not any(isinstance(c.value, str) and c.data_type != "s" for c in row)


def test_a_new_workbook_is_ready_for_review(tmp_path: Path) -> None:
    file = picture(tmp_path / "red.png", size=(640, 480))
    items = [finished(0, sources=[Source(str(file))]), *ITEMS[1:]]
    workbook.write(iter(items), tmp_path / "a.xlsx")
    book = Book(tmp_path / "a.xlsx")
    assert len(book.page._images) == 1
    assert book.page.freeze_panes == "A2"
    (offered,) = book.page.data_validations.dataValidation
    assert offered.formula1 == '"new,approved,edited,rejected"'
    assert book.cell(2, "qvl_status").coordinate in offered.sqref
    hidden = [name for name, number in book.head.items() if book.page.column_dimensions[openpyxl.utils.get_column_letter(number)].hidden]  # fmt: skip
    assert hidden == ["qvl_key"]
    assert book.cell(2, "qvl_text").value == RUSSIAN
    assert book.cell(2, "qvl_text").number_format == "@"
    assert book.cell(4, "qvl_text").value == CHINESE


def test_a_long_text_is_cut_and_flagged(tmp_path: Path) -> None:
    """B024."""
    items = (finished(0, "ж" * 40_000), finished(1, "🎉" * 20_000), finished(2, "_x0041_" * 4000), finished(3, "ж" * 32_767), finished(4, "\x01a\x0b"))  # fmt: skip
    path = tmp_path / "a.xlsx"
    workbook.write(items, path, pictures=False)
    book = Book(path)
    texts = [book.cell(row, "qvl_text").value for row in range(2, 7)]
    assert texts[0] == "ж" * 32_767
    assert texts[1] == "🎉" * 16_383
    assert len(texts[2]) <= 32_767
    assert texts[2].startswith("_x005F_x0041_")
    assert texts[3] == "ж" * 32_767
    assert texts[4] == "\\x01a\\x0b"
    assert [book.cell(row, "qvl_cut").value or "" for row in range(2, 7)] == ["qvl_text"] * 3 + ["", ""]  # fmt: skip
    assert list(import_review(path, items)) == []
    book.cell(2, "qvl_text").value = "Короче"
    book.save()
    with pytest.raises(InputError, match=r"was cut at 32767 characters, so a change"):
        list(import_review(path, items))


def test_rows_go_on_in_another_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B024: with a smaller sheet than Excel's."""
    assert sheet.ROWS == 1_048_576
    monkeypatch.setattr(sheet, "ROWS", 4)
    items = tuple(finished(n) for n in range(7))
    path = tmp_path / "a.xlsx"
    workbook.write(items, path, pictures=False)
    book = Book(path)
    assert book.book.sheetnames == ["qvl", "qvl 2", "qvl 3"]
    assert [page.max_row for page in book.book] == [4, 4, 2]
    last = Book(path, "qvl 3")
    last.cell(2, "qvl_text").value = "Изменено"
    last.save()
    (found,) = import_review(path, items)
    assert found.id == "row 6/ru"


# ---- a person's own workbook


def own(path: Path) -> Path:
    """A price list with formats, a filter, formulas, a table, a comment and another sheet."""
    book: Any = openpyxl.Workbook()
    page = book.active
    page.title = "Прайс"
    page.append(["sku", "Название", "Цена", "Итого"])
    for n in range(6):
        page.append([f"A-{n:03}", f"Кружка {n}", n * 1.5, f"=C{n + 2}*2"])
    page["A1"].font = Font(bold=True, color="FFAA0000")
    page["C3"].number_format = "0.00"
    page["B4"].fill = PatternFill("solid", fgColor="FFFFEE00")
    page["B5"].comment = Comment("проверить", "Анна")
    page.auto_filter.ref = "A1:D7"
    page.column_dimensions["B"].width = 33
    page.row_dimensions[4].hidden = True
    page.merge_cells("F10:G10")
    page.conditional_formatting.add("C2:C7", CellIsRule("greaterThan", ["5"], font=Font(bold=True)))
    theirs = DataValidation("list", '"да,нет"')
    theirs.add("A2:A7")
    page.add_data_validation(theirs)
    other = book.create_sheet("Другой лист")
    other["A1"], other["A2"] = "=SUM('Прайс'!C2:C7)", "杯子"
    other.add_table(Table(displayName="T", ref="A1:B3"))
    other.append(["x", "y"])
    other["A1"], other["B1"] = "одно", "другое"
    other["C1"] = "=SUM('Прайс'!C2:C7)"
    book.defined_names["Цены"] = openpyxl.workbook.defined_name.DefinedName("Цены", attr_text="'Прайс'!$C$2:$C$7")  # fmt: skip
    book.save(path)
    return path


def languages() -> tuple[Finished, ...]:
    columns = [{"sku": f"A-{n:03}", "Название": f"Кружка {n}", "Цена": f"{n * 1.5:g}"} for n in range(6)]  # fmt: skip
    said = [("ru", RUSSIAN), ("zh", CHINESE)]
    return tuple(
        finished(2 * n + k, f"{text} {n}", row=f"row {n}", language=code, columns=columns[n], title="Кружка" if code == "ru" else "")
        for n in range(6)
        for k, (code, text) in enumerate(said)
    )  # fmt: skip


def everything(page: Any, columns: int) -> Iterator[tuple[Any, ...]]:
    for row in page.iter_rows(max_col=columns):
        for cell in row:
            yield (cell.coordinate, cell.value, cell.data_type, cell.number_format, repr(cell.font),
                repr(cell.fill), cell.comment and cell.comment.text)  # fmt: skip


def same_but_for_ours(before: Path, after: Path) -> None:
    one, two = openpyxl.load_workbook(before), openpyxl.load_workbook(after)
    assert one.sheetnames == two.sheetnames
    assert list(everything(one["Прайс"], 4)) == list(everything(two["Прайс"], 4))
    assert list(everything(one["Другой лист"], 9)) == list(everything(two["Другой лист"], 9))
    first, second = one["Прайс"], two["Прайс"]
    assert first.auto_filter.ref == second.auto_filter.ref == "A1:D7"
    assert second.column_dimensions["B"].width == pytest.approx(33, abs=0.5)
    assert second.row_dimensions[4].hidden
    assert [str(r) for r in first.merged_cells.ranges] == [
        str(r) for r in second.merged_cells.ranges
    ]
    assert "Цены" in two.defined_names
    assert "T" in two["Другой лист"].tables
    lists = [one for one in second.data_validations.dataValidation if one.formula1 == '"да,нет"']
    assert len(lists) == 1
    assert [str(r.sqref) for r in second.conditional_formatting] == ["C2:C7"]


def test_only_our_columns_are_added(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = own(tmp_path / "own.xlsx")
    old = before.read_bytes()
    after = tmp_path / "copy.xlsx"
    assert own_workbook.write(iter(languages()), after, before) == ()
    assert before.read_bytes() == old
    same_but_for_ours(before, after)
    book = Book(after)
    assert [*book.head][4:] == [
        "qvl_text_ru", "qvl_title_ru", "qvl_status_ru", "qvl_note_ru", "qvl_text_zh", "qvl_title_zh",
        "qvl_status_zh", "qvl_note_zh", "qvl_key",
    ]  # fmt: skip
    assert book.cell(4, "qvl_text_ru").value == f"{RUSSIAN} 2"
    assert book.cell(4, "qvl_text_zh").value == f"{CHINESE} 2"
    assert book.cell(1, "qvl_key").column_letter == "M"
    assert book.page.column_dimensions["M"].hidden
    statuses = [
        one for one in book.page.data_validations.dataValidation if "approved" in one.formula1
    ]
    assert sorted(str(one.sqref) for one in statuses) == ["G2:G7", "K2:K7"]
    assert list(import_review(after, languages())) == []


def test_reviews_come_out_of_ones_own_workbook(tmp_path: Path) -> None:
    after = tmp_path / "copy.xlsx"
    own_workbook.write(languages(), after, own(tmp_path / "own.xlsx"))
    book = Book(after)
    book.cell(4, "qvl_text_zh").value = "改"
    book.cell(4, "qvl_status_zh").value = "approved"
    book.cell(6, "qvl_title_ru").value = "=Кружка"
    book.cell(6, "Цена").value = 100
    book.save()
    assert list(import_review(after, languages())) == [
        Review(id="row 2/zh", state="approved", fields={"text": "改"}),
        Review(id="row 4/ru", state="edited", fields={"title": "=Кружка"}),
    ]


def test_rows_are_found_wherever_they_are_now(tmp_path: Path) -> None:
    before = own(tmp_path / "own.xlsx")
    book: Any = openpyxl.load_workbook(before)
    page = book["Прайс"]
    rows = [[cell.value for cell in row] for row in page.iter_rows(min_row=2, max_row=7, max_col=4)]
    page.delete_rows(1, 7)
    page.insert_rows(1, 3)
    for number, row in enumerate([["sku", "Название", "Цена", "Итого"], *rows[::-1]], 3):
        for column, value in enumerate(row, 1):
            page.cell(number, column).value = value
    book.save(before)
    own_workbook.write(languages(), tmp_path / "copy.xlsx", before)
    page = openpyxl.load_workbook(tmp_path / "copy.xlsx")["Прайс"]
    told = {row[0]: row[4] for row in page.iter_rows(min_row=4, max_row=9, values_only=True)}
    assert told == {f"A-{n:03}": f"{RUSSIAN} {n}" for n in range(6)}


def test_cells_of_every_kind_are_found(tmp_path: Path) -> None:
    """Numbers, dates, truth, what a formula gave last: as text they are as the run was given them."""
    from datetime import datetime

    book: Any = openpyxl.Workbook()
    book.active.append(["a", "b", "c", "d", "e"])
    book.active.append([3.0, 2.5, True, datetime(2026, 1, 31), "  two\r\nlines "])
    book.save(tmp_path / "own.xlsx")
    columns = {"a": "3", "b": "2.5", "c": "true", "d": "2026-01-31", "e": "  two\r\nlines "}
    own_workbook.write([finished(columns=columns)], tmp_path / "a.xlsx", tmp_path / "own.xlsx")
    assert Book(tmp_path / "a.xlsx").cell(2, "qvl_text").value == RUSSIAN


def test_a_row_that_is_gone_is_named(tmp_path: Path) -> None:
    before = own(tmp_path / "own.xlsx")
    book = openpyxl.load_workbook(before)
    book["Прайс"]["B4"].value = "Чашка"
    book.save(before)
    with pytest.raises(InputError, match=r"'own\.xlsx' has not the row 'row 2'"):
        own_workbook.write(languages(), tmp_path / "copy.xlsx", before)
    assert not (tmp_path / "copy.xlsx").exists()
    with pytest.raises(InputError, match="none of the run's columns"):
        own_workbook.write([finished(columns={"x": "1"})], tmp_path / "copy.xlsx", before)
    with pytest.raises(InvalidParamError, match="no sheet 'Нет'"):
        own_workbook.write(languages(), tmp_path / "copy.xlsx", before, page="Нет")
    twice = [finished(0, row="a"), finished(1, row="a")]
    with pytest.raises(InputError, match="row 'a' has several answers in one language"):
        own_workbook.write(twice, tmp_path / "copy.xlsx", before)


def test_the_original_is_never_written(tmp_path: Path) -> None:
    before = own(tmp_path / "own.xlsx")
    (tmp_path / "link.xlsx").symlink_to(before)
    (tmp_path / "hard.xlsx").hardlink_to(before)
    for target in (before, tmp_path / "link.xlsx", tmp_path / "hard.xlsx"):
        with pytest.raises(InvalidParamError, match="is the workbook itself"):
            own_workbook.write(languages(), target, before)


def test_a_second_export_uses_the_same_columns(tmp_path: Path) -> None:
    first, second = tmp_path / "1.xlsx", tmp_path / "2.xlsx"
    own_workbook.write(languages(), first, own(tmp_path / "own.xlsx"))
    items = tuple(review(one, "approved", text="Новое") for one in languages())
    own_workbook.write(items, second, first)
    assert [*Book(first).head] == [name for name in Book(second).head if name not in ("qvl_kept_ru", "qvl_kept_zh")]  # fmt: skip
    assert Book(second).cell(2, "qvl_text_ru").value == "Новое"
    assert list(import_review(second, items)) == []
    assert len(Book(second).page.data_validations.dataValidation) >= 3


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_is_a_formula_in_ones_own_workbook(payload: str, tmp_path: Path) -> None:
    """B023."""
    book: Any = openpyxl.Workbook()
    book.active.append(["sku"])
    book.active.append(["A"])
    book.save(tmp_path / "own.xlsx")
    one = finished(0, payload, columns={"sku": "A"}, title=payload)
    own_workbook.write([one], tmp_path / "a.xlsx", tmp_path / "own.xlsx")
    cells = [c for row in Book(tmp_path / "a.xlsx").page.iter_rows() for c in row]
    assert {cell.data_type for cell in cells} <= {"s", "n"}


def test_formats_of_all_columns_to_the_right_end_before_ours(tmp_path: Path) -> None:
    book = openpyxl.load_workbook(own(tmp_path / "own.xlsx"))
    column = book["Прайс"].column_dimensions["E"]
    column.min, column.max, column.hidden = 5, 16384, True
    book.save(tmp_path / "own.xlsx")
    own_workbook.write(languages(), tmp_path / "copy.xlsx", tmp_path / "own.xlsx")
    page = Book(tmp_path / "copy.xlsx").page
    spans = sorted((c.min, c.max) for c in page.column_dimensions.values() if c.min)
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(spans))
    assert not page.column_dimensions["E"].hidden


def test_what_the_copy_lacks_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import zipfile

    from openpyxl.chart import BarChart, Reference

    book: Any = openpyxl.load_workbook(own(tmp_path / "own.xlsx"))
    chart = BarChart()
    chart.add_data(Reference(book["Прайс"], min_col=3, min_row=1, max_row=7), titles_from_data=True)
    book["Прайс"].add_chart(chart, "H2")
    book.save(tmp_path / "plain.xlsx")
    with zipfile.ZipFile(tmp_path / "plain.xlsx") as old, zipfile.ZipFile(tmp_path / "rich.xlsx", "w") as new:  # fmt: skip
        for name in old.namelist():
            data = old.read(name)
            if name == "xl/worksheets/sheet1.xml":
                data = data.replace(
                    b"</worksheet>", b'<extLst><ext uri="{x}"/></extLst></worksheet>'
                )
            if name == "xl/drawings/drawing1.xml":
                shape = b'<xdr:sp xmlns:xdr="http://schemas.openxmlformats.org/drawingml/2006/spreadsheetDrawing"></xdr:sp>'  # fmt: skip
                data = data.replace(b"</wsDr>", b"<absoluteAnchor>" + shape + b"</absoluteAnchor></wsDr>")  # fmt: skip
            new.writestr(name, data)
        new.writestr("xl/slicers/slicer1.xml", b"<slicers/>")
    missing = own_workbook.write(languages(), tmp_path / "copy.xlsx", tmp_path / "rich.xlsx")
    assert any("sparklines" in what for what in missing)
    assert "slicers" in missing
    assert any("charts" in what for what in missing)
    assert caplog.text.count("copy.xlsx lacks what is in rich.xlsx") == len(missing)


def test_pictures_stand_in_a_column_of_their_own(tmp_path: Path) -> None:
    file = picture(tmp_path / "red.png", size=(640, 480))
    items = [
        replace(one, item=replace(one.item, sources=(Source(str(file)),))) for one in languages()
    ]
    before = own(tmp_path / "own.xlsx")
    own_workbook.write(items, tmp_path / "copy.xlsx", before, pictures=True)
    book = Book(tmp_path / "copy.xlsx")
    assert [*book.head][4] == "qvl_picture"
    places = [(one.anchor._from.row, one.anchor._from.col) for one in book.page._images]
    assert places == [(row, 4) for row in range(1, 7)]
    assert list(import_review(tmp_path / "copy.xlsx", items)) == []


def test_without_the_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UsageError, match="need the package openpyxl") as caught:
        workbook.write(ITEMS, tmp_path / "a.xlsx")
    assert caught.value.hint == "pip install 'qvl[tables]'"
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="needs the package pyarrow"):
        parquet.write(ITEMS, tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []


# ---- LibreOffice


def saved_by_office(path: Path, folder: Path, form: str = "xlsx") -> Path:
    assert OFFICE is not None
    folder.mkdir(exist_ok=True)
    home = f"-env:UserInstallation=file://{folder}/home"
    command = [OFFICE, home, "--headless", "--convert-to", form, "--outdir", str(folder), str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=180)
    return folder / path.with_suffix(f".{form}").name


@needs_office
def test_libreoffice_keeps_what_matters(tmp_path: Path) -> None:
    """Opened and saved by another program: formats kept, exactly the edited cells found, no formula run."""
    texts = [RUSSIAN, CHINESE, *PAYLOADS, "_x0041_", "a & <b>", " края ", "line\nline", "0012", "1e5", "TRUE"]  # fmt: skip
    items = tuple(finished(n, text, title=text) for n, text in enumerate(texts))
    workbook.write(items, tmp_path / "new.xlsx", pictures=False)
    saved = saved_by_office(tmp_path / "new.xlsx", tmp_path / "office")
    assert list(import_review(saved, items)) == []
    values = Book(saved)
    assert values.cell(2, "qvl_text").value == RUSSIAN
    assert values.cell(3, "qvl_text").value == CHINESE
    for row in values.page.iter_rows():
        assert "f" not in {cell.data_type for cell in row}
    before = own(tmp_path / "own.xlsx")
    own_workbook.write(languages(), tmp_path / "copy.xlsx", before)
    book = Book(tmp_path / "copy.xlsx")
    book.cell(3, "qvl_text_ru").value = "Изменено"
    book.cell(5, "qvl_text_zh").value = "改变了"
    book.cell(5, "qvl_status_zh").value = "approved"
    book.save()
    saved = saved_by_office(tmp_path / "copy.xlsx", tmp_path / "office")
    assert list(import_review(saved, languages())) == [
        Review(id="row 1/ru", state="edited", fields={"text": "Изменено"}),
        Review(id="row 3/zh", state="approved", fields={"text": "改变了"}),
    ]
    page = openpyxl.load_workbook(saved)["Прайс"]
    assert page["D3"].value == "=C3*2"
    assert page["C3"].number_format == "0.00"
    assert page["B4"].fill.fgColor.rgb == "FFFFEE00"
    assert page["A1"].font.bold
    assert page.auto_filter.ref is not None
    assert openpyxl.load_workbook(saved, data_only=True)["Прайс"]["D3"].value == 3


@needs_office
def test_libreoffice_computes_nothing_of_a_csv(tmp_path: Path) -> None:
    items = [finished(n, text, columns={"sku": text}) for n, text in enumerate(PAYLOADS)]
    csv_table.write(items, tmp_path / "a.csv")
    page = Book(saved_by_office(tmp_path / "a.csv", tmp_path / "office")).page
    types = {cell.data_type for row in page.iter_rows() for cell in row}
    assert "f" not in types
    assert "e" not in types
