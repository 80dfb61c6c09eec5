"""XLSX workbooks: the rows of the first sheet, and the pictures that lie over its cells.

Main path: cells -> checked, before anything is parsed -> openpyxl, row by row; pictures through the
drawing of the sheet. Formulas are not computed (what was computed last counts), macros not run, links
not followed. Layouts: ECMA-376 part 1, 18.3 (sheets) and 20.5 (drawings).
"""

from __future__ import annotations

import os
import posixpath
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from qvl.batch import archives
from qvl.batch.cells import Cells, as_text, checked, unlike
from qvl.batch.row import Tell
from qvl.errors import (
    ArchiveError,
    InputNotFoundError,
    InputUnreadableError,
    TableError,
    UsageError,
)
from qvl.processing.source import MAX_BYTES, quoted
from qvl.runs.record import Source

MAX_INFLATED_BYTES = 512 << 20
HEAD_BYTES = 64 * 1024
_BESIDE = re.compile(rb"<!--.*?-->|<\?.*?\?>", re.DOTALL)
OPENED = 4  # workbooks whose places of pictures are kept
OLD = b"\xd0\xcf\x11\xe0"  # the files of Excel 97, and those with a password
_DRAWING = "{http://schemas.openxmlformats.org/drawingml/2006/spreadsheetDrawing}"
_MAIN = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_LINKED = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_DAMAGE = (zipfile.BadZipFile, ElementTree.ParseError, KeyError, ValueError, TypeError, IndexError)
_DAMAGE += (AttributeError, EOFError, NotImplementedError, RuntimeError, zipfile.zlib.error)  # type: ignore[attr-defined]


def cells(path: Path, name: str, tell: Tell) -> Iterator[Cells]:
    """The rows below the first that says anything, which has the names.

    Raises ArchiveError for a workbook that inflates beyond the limits, TableError for a damaged one,
    UsageError without openpyxl, InputNotFoundError, InputUnreadableError.
    """
    try:
        import openpyxl
    except ImportError as err:
        raise UsageError(
            "workbooks need the package openpyxl", hint="pip install 'qvl[tables]'"
        ) from err
    check(path, name)
    try:
        with closing(
            openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
        ) as book:
            pages = [page for page in book.worksheets if page.sheet_state == "visible"]
            if not pages:
                raise TableError(f"{quoted(name)} has no sheet that is shown")
            page, *others = pages
            if others:
                left = ", ".join(repr(one.title) for one in others)
                tell(f"{quoted(name)}: the sheet {page.title!r} is read, and not {left}")
            shown = _places(str(path), *_stamp(path)).get(page.title, {})
            # what the sheet says of its own size may be wrong: it would cut rows off
            page.reset_dimensions()
            yield from _rows(page, path, name, shown)
    except _DAMAGE as err:
        raise TableError(
            f"{quoted(name)} is damaged, or is no workbook", hint="open and save it anew"
        ) from err


def _rows(page: Any, path: Path, name: str, shown: Mapping[str, str]) -> Iterator[Cells]:
    names: list[str] | None = None
    at: dict[int, list[tuple[int, str]]] = {}
    columns = sorted({_numbers(place)[0] for place in shown})
    for place in shown:
        column, row = _numbers(place)
        at.setdefault(row, []).append((column, place))
    for number, values in enumerate(page.iter_rows(values_only=True), 1):
        here = at.pop(number, [])
        if not here and not any(value not in (None, "") for value in values):
            continue
        if names is None:
            names = unlike([as_text(value) for value in values])
            while (
                names and re.fullmatch(r"column [0-9]+", names[-1]) and not values[len(names) - 1]
            ):
                names.pop()  # cells that are only coloured
            continue
        told = checked(number, name, names, list(values))
        # a picture over a column without a name still has its place
        pictures = {
            _name(names, column): Source(str(path), f"cell={page.title}!{place}")
            for column, place in here
        }
        yield Cells(number, told.values, pictures, tuple(_name(names, one) for one in columns))


def _name(names: Sequence[str], column: int) -> str:
    return names[column - 1] if column <= len(names) else f"column {column}"


def picture(path: Path, place: str) -> bytes:
    """The picture over a cell, as in Sheet1!B2. Raises as `cells`, TableError where there is none."""
    page, _, cell = place.rpartition("!")
    name = path.name
    check(path, name)
    member = _places(str(path), *_stamp(path)).get(page, {}).get(cell)
    if member is None:
        raise TableError(f"{quoted(name)} has no picture in {place!r}")
    return archives.read(path, member, MAX_BYTES)


def check(path: Path, name: str) -> None:
    """Raises ArchiveError for a workbook whose parts inflate beyond the limits, or hold entities."""
    try:
        with path.open("rb") as file:
            if file.read(4) == OLD:
                raise TableError(
                    f"{quoted(name)} has a password, or is of Excel 97",
                    hint="save it as .xlsx, without a password",
                )
            _check(*_stamp(path), str(path), name)
    except FileNotFoundError as err:
        raise InputNotFoundError(f"there is no file {quoted(name)}") from err
    except (IsADirectoryError, PermissionError) as err:
        raise InputUnreadableError(f"{quoted(name)} cannot be read") from err


@lru_cache(OPENED)
def _check(_mtime_ns: int, _size_bytes: int, path: str, name: str) -> None:
    try:
        with open(path, "rb") as file:
            archives.check_list(file, name)
            with zipfile.ZipFile(file) as parts:
                infos = parts.infolist()
                total = sum(info.file_size for info in infos)
                if total > MAX_INFLATED_BYTES:
                    raise ArchiveError(
                        f"{quoted(name)} inflates to {total >> 20} MiB, the limit is "
                        f"{MAX_INFLATED_BYTES >> 20}",
                        hint="take out what is not needed, or save it as CSV",
                    )
                for info in infos:
                    big = info.file_size > archives.RATIO_COUNTS_FROM
                    if big and info.file_size > archives.MAX_RATIO * info.compress_size:
                        raise ArchiveError(
                            f"{quoted(name)}: {quoted(info.filename)} inflates to "
                            f"{info.file_size // max(info.compress_size, 1)} times its size, the "
                            f"limit is {archives.MAX_RATIO}",
                            hint="save it as CSV",
                        )
                for info in infos:
                    if info.filename.endswith((".xml", ".rels")):
                        with parts.open(info) as stream:
                            if _declares(stream.read(HEAD_BYTES)):
                                raise TableError(
                                    f"{quoted(name)} declares entities, which no workbook needs",
                                    hint="open and save it anew",
                                )
    except _DAMAGE as err:
        raise TableError(
            f"{quoted(name)} is damaged, or is no workbook", hint="open and save it anew"
        ) from err


def _declares(head: bytes) -> bool:
    """Whether something stands in front of a part's first element that is neither comment nor instruction:
    a document type, which may hold entities, or a comment without an end, behind which one may hide.
    """
    plain = head.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe")  # of UTF-16, too
    return _BESIDE.sub(b"", plain).lstrip().startswith(b"<!")


def _stamp(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size


@lru_cache(OPENED)
def _places(path: str, _mtime_ns: int, _size_bytes: int) -> Mapping[str, Mapping[str, str]]:
    """Sheet -> cell -> the part of the workbook that is the picture over that cell."""
    with zipfile.ZipFile(path) as parts:
        book = ElementTree.fromstring(parts.read("xl/workbook.xml"))
        links = _links(parts, "xl/workbook.xml")
        found: dict[str, dict[str, str]] = {}
        for page in book.iter():
            if page.tag.rpartition("}")[2] != "sheet":
                continue
            member = links.get(next((v for k, v in page.attrib.items() if k.endswith("}id")), ""))
            drawings = _links(parts, member, kind="/drawing") if member else {}
            pictures: dict[str, str] = {}
            for drawing in drawings.values():
                pictures |= _in_drawing(parts, drawing)
            found[page.attrib["name"]] = pictures
        return found


def _links(parts: zipfile.ZipFile, member: str, kind: str = "") -> dict[str, str]:
    """Id -> part, of the links of a part into the workbook itself."""
    folder, name = posixpath.split(member)
    try:
        listed = ElementTree.fromstring(parts.read(f"{folder}/_rels/{name}.rels"))
    except KeyError:
        return {}
    return {
        one.attrib["Id"]: posixpath.normpath(posixpath.join("/" + folder, one.attrib["Target"]))[1:]
        for one in listed
        if one.attrib.get("TargetMode") != "External" and one.attrib["Type"].endswith(kind)
    }


def _in_drawing(parts: zipfile.ZipFile, member: str) -> dict[str, str]:
    """Cell -> part, of the pictures of a drawing; of several over one cell the first."""
    links = _links(parts, member, kind="/image")
    found: dict[str, str] = {}
    for anchor in ElementTree.fromstring(parts.read(member)):
        corner, picture = anchor.find(f"{_DRAWING}from"), anchor.find(f".//{_MAIN}blip")
        if corner is None or picture is None:
            continue
        column, row = (int(corner.findtext(f"{_DRAWING}{axis}") or 0) for axis in ("col", "row"))
        target = links.get(picture.attrib.get(f"{_LINKED}embed", ""))
        if target is not None and 0 <= column < 16384 and 0 <= row < 1048576:
            found.setdefault(f"{_letters(column + 1)}{row + 1}", target)
    return found


def _letters(column: int) -> str:
    """1 is A, 27 is AA."""
    text = ""
    while column:
        column, rest = divmod(column - 1, 26)
        text = chr(65 + rest) + text
    return text


def _numbers(place: str) -> tuple[int, int]:
    letters, digits = re.fullmatch("([A-Z]+)([0-9]+)", place).groups()  # type: ignore[union-attr]
    column = 0
    for letter in letters:
        column = 26 * column + ord(letter) - 64
    return column, int(digits)
