"""XLSX workbooks as items, and those that somebody has tampered with."""

from __future__ import annotations

import datetime
import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image as Pillow

from qvl.batch import media, workbook
from qvl.batch.inputs import items
from qvl.batch.row import Refused, Wanted
from qvl.errors import ArchiveError, QvlError, TableError
from qvl.processing.image import read_image
from qvl.runs.record import Item, Source
from qvl.types import Image

openpyxl = pytest.importorskip("openpyxl")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(rows: list[list[object]], name: str = "t.xlsx") -> Path:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(name)
    return Path(name)


def rewritten(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    with zipfile.ZipFile(path) as old:
        parts = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in parts.items():
            new.writestr(name, change(name, data))


def error(name: str = "t.xlsx") -> QvlError:
    (bad,) = items([name])
    assert isinstance(bad, Refused)
    return bad.error


def test_cells_are_read_as_a_person_sees_them(here: Path) -> None:
    day = datetime.datetime(2026, 1, 31)
    saved([
        [],
        ["sku", "Фото", "price", "day", "标题", "sum", None],
        [7, "a.png", 12.0, day, "杯子", "=1+1", None],
        [None, None, None, None, None, None, None],
        ["8", "b.png; c.png", 0.5, None, True, None, None],
    ])  # fmt: skip
    first, second = (one for one in items(["t.xlsx"]) if isinstance(one, Item))
    assert first.columns == {
        "sku": "7", "Фото": "a.png", "price": "12", "day": "2026-01-31", "标题": "杯子", "sum": "",
    }  # fmt: skip
    assert first.id == "a.png"
    assert second.sources == (Source(str(here / "b.png")), Source(str(here / "c.png")))
    assert second.columns["标题"] == "true"


def test_rows_are_called_by_the_numbers_that_the_sheet_shows(here: Path) -> None:
    saved([["id", "image"], ["1", "a.png"], [], ["1", "b.png"]])
    told = [one.error.message for one in items(["t.xlsx"]) if isinstance(one, Refused)]
    assert told == ["'t.xlsx', row 4 has the id '1', which 't.xlsx', row 2 has already"]


def test_b026_a_wrong_dimension_cuts_no_row_off(here: Path) -> None:
    path = saved([["id", "image"], *([n, f"{n}.png"] for n in range(10))])

    def lie(name: str, data: bytes) -> bytes:
        return re.sub(rb'<dimension ref="[^"]*"', b'<dimension ref="A1"', data)

    rewritten(path, lie)
    assert b'ref="A1"' in zipfile.ZipFile(path).read("xl/worksheets/sheet1.xml")
    assert [one.id for one in items(["t.xlsx"]) if isinstance(one, Item)] == [
        str(n) for n in range(10)
    ]


def test_b025_what_inflates_too_much_is_refused_unread(here: Path) -> None:
    path = saved([["id", "image"], ["1", "a.png"]])
    rewritten(
        path, lambda name, data: data + b" " * (105 << 20) if name.endswith("sheet1.xml") else data
    )
    assert path.stat().st_size < 300_000
    told = error()
    assert isinstance(told, ArchiveError)
    assert "times its size, the limit is 100" in told.message


def test_b025_what_inflates_beyond_all_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workbook, "MAX_INFLATED_BYTES", 1 << 12)
    saved([["id", "image"], ["1", "a.png"]])
    assert "inflates to" in error().message


LAUGHS = b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize(
    "laughs",
    [
        LAUGHS,
        b"<!-- <x> -->" + LAUGHS,
        b"<?x <y> ?>\n" + LAUGHS,
        b"<!--" + b" " * 70_000 + b"-->" + LAUGHS,
        b"\xff\xfe" + LAUGHS.decode().encode("utf-16-le"),
    ],
)
def test_b028_entities_are_refused(here: Path, laughs: bytes) -> None:
    path = saved([["id", "image"], ["1", "a.png"]])
    rewritten(
        path,
        lambda name, data: laughs + data if name == "xl/workbook.xml" else data,
    )
    told = error()
    assert isinstance(told, TableError)
    assert "entities" in told.message


def test_b028_links_to_elsewhere_and_macros_change_nothing(here: Path) -> None:
    path = saved([["id", "image"], ["1", "a.png"]], "t.xlsm")
    link = (
        b'<Relationship Id="rId99" TargetMode="External" Target="http://127.0.0.1:9/x.xlsx" '
        b'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/externalLink"/>'
    )

    def with_link(name: str, data: bytes) -> bytes:
        if name == "xl/_rels/workbook.xml.rels":
            return data.replace(b"</Relationships>", link + b"</Relationships>")
        return data

    rewritten(path, with_link)
    with zipfile.ZipFile(path, "a") as more:
        more.writestr("xl/vbaProject.bin", b"\xd0\xcf\x11\xe0")
    assert [one.id for one in items(["t.xlsm"]) if isinstance(one, Item)] == ["1"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a zip archive"),
        (b"id,image\n1,a.png\n", "not a zip archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 512, "has a password, or is of Excel 97"),
    ],
)
def test_what_is_no_workbook_is_told(here: Path, data: bytes, why: str) -> None:
    (here / "t.xlsx").write_bytes(data)
    assert why in error().message


def test_a_workbook_cut_at_any_place_is_an_error(here: Path) -> None:
    whole = saved([["id", "image"], ["1", "a.png"]]).read_bytes()
    for length in range(0, len(whole), 97):
        (here / "t.xlsx").write_bytes(whole[:length])
        assert isinstance(error(), QvlError)


def test_a_workbook_with_any_bytes_changed_is_read_or_refused(here: Path) -> None:
    whole = saved([["id", "image"], ["1", "a.png"]]).read_bytes()
    for at in range(0, len(whole), 53):
        (here / "t.xlsx").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        list(items(["t.xlsx"]))


def embedded() -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Goods!"
    rows = [["sku", "art"], ["red", None], ["blue", None], ["path", "a.png"], ["none", None]]
    for row in rows:
        sheet.append(row)
    for place, colour in (("B3", "blue"), ("B2", "red")):
        drawn = io.BytesIO()
        Pillow.new("RGB", (40, 30), colour).save(drawn, "PNG")
        picture = openpyxl.drawing.image.Image(drawn)
        sheet.add_image(picture, place)
    book.create_sheet("second").append(["not", "read"])
    book.save("t.xlsx")


def test_pictures_that_lie_over_cells_are_those_of_their_rows(here: Path) -> None:
    embedded()
    told: list[str] = []
    found = list(items(["t.xlsx"], Wanted(), told.append))
    assert "'t.xlsx': the sheet 'Goods!' is read, and not 'second'" in told
    shown = [one for one in found if isinstance(one, Item)]
    assert [one.sources[0].part for one in shown] == ["cell=Goods!!B2", "cell=Goods!!B3", ""]
    assert [one.id for one in shown] == ["row 2", "row 3", "a.png"]
    assert isinstance(found[3], Refused)
    for item, colour in zip(shown, ((255, 0, 0), (0, 0, 255)), strict=False):
        (image,) = media.seen(item)
        assert isinstance(image, Image)
        assert tuple(read_image(image).pixels[0, 0]) == colour


def test_a_picture_that_is_not_there_is_an_error(here: Path) -> None:
    embedded()
    with pytest.raises(TableError, match="has no picture in 'Goods!!C9'"):
        media.seen_in(Source(str(here / "t.xlsx"), "cell=Goods!!C9"))
