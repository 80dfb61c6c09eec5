"""CSV in whatever encoding and with whatever delimiter it was saved; both are found, and told.

Main path: cells -> encoding_of -> _lines -> delimiter_of -> csv.reader. A line that does not fit the
encoding of the others is an error of its row, and so is one whose quotes do not match.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from qvl.batch.cells import Cells, checked, unlike
from qvl.batch.row import Tell, row_name
from qvl.errors import TableError
from qvl.processing.source import quoted

DELIMITERS = ",;\t|"
MAX_ROW_CHARS = 64 << 20
SAMPLE_BYTES = 256 * 1024
SAMPLE_ROWS = 50
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BROKEN = re.compile("[\ud800-\udfff]")  # bytes that do not fit the encoding
# A line of another table's encoding that is UTF-8 by chance has fewer characters of it than these.
_UTF8_CHARS = 4


def cells(path: Path, name: str, tell: Tell) -> Iterator[Cells]:
    """The rows below the header. Raises TableError where there is none, OSError."""
    with path.open("rb") as file:
        encoding = encoding_of(file)
        file.seek(0)
        lines = _lines(file, encoding)
        sample = list(islice(lines, SAMPLE_ROWS))
        if sample and sample[0].lower().startswith("sep=") and len(sample[0].rstrip()) == 5:
            delimiter, sample = sample[0].rstrip()[4], sample[1:]  # as Excel understands it
            first = 2
        else:
            delimiter, first = delimiter_of(sample), 1
        sign = {"\t": "tab"}.get(delimiter, delimiter)
        tell(f"{quoted(name)} is read as {encoding} with {sign} between cells")
        yield from _rows(chain(sample, lines), delimiter, encoding, name, first)


def _rows(
    lines: Iterable[str], delimiter: str, encoding: str, name: str, first: int
) -> Iterator[Cells]:
    # the limit is the module's; without it a cell of 128 KiB would end the table
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_CHARS))
    table = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    number = first - 1
    while True:
        number += 1
        try:
            values = next(table)
        except StopIteration:
            return
        except csv.Error as err:
            ended = "end of data" in str(err)
            what = "opens a quote that is never closed" if ended else "has quotes that do not match"
            error = TableError(
                f"{row_name(name, number)} {what}", hint='write a quote in a cell as ""'
            )
            if names is None:
                raise error from err
            yield Cells(number, error)
            continue
        if not any(values):
            continue
        if names is None:
            if any(map(_BROKEN.search, values)):
                raise TableError(
                    f"{row_name(name, number)} is not {encoding}", hint="save it as CSV UTF-8"
                )
            names = unlike(values)
            continue
        broken = next((n for n, v in zip(names, values, strict=False) if _BROKEN.search(v)), None)
        if broken is not None:
            error = TableError(
                f"{row_name(name, number)} is not {encoding} in {broken!r}, as the other rows are",
                hint="save the whole table as CSV UTF-8",
            )
            yield Cells(number, error)
        else:
            yield checked(number, name, names, values)


def encoding_of(file: BinaryIO) -> str:
    """utf-8, utf-8-sig, utf-16 and its halves, cp1251, cp1252 or gb18030; all of the file is read.

    A table is UTF-8 if most of its lines with other signs than ASCII are. Of tables of three rows of one
    to ten words this names cp1251, gb18030 and cp1252 right in 98 of 100; charset-normalizer 3.5, which
    knows many more encodings, in 64.
    """
    head = file.read(SAMPLE_BYTES)
    for mark, name in BOMS:
        if head.startswith(mark):
            return name
    if (wide := _utf16(head)) is not None:
        return wide
    file.seek(0)
    valid = invalid = 0
    sample = bytearray()
    while line := file.readline(MAX_ROW_CHARS):
        if line.isascii():
            continue
        try:
            line.decode()
            valid += 1
        except UnicodeDecodeError:
            invalid += 1
            if len(sample) < SAMPLE_BYTES:
                sample += line
    return "utf-8" if valid >= invalid else _of_one_or_two_bytes(bytes(sample))


def _utf16(head: bytes) -> str | None:
    """UTF-16 without its mark: delimiters, digits and line ends have a NUL before or behind them."""
    if b"\0" not in head:
        return None
    return "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"


def _of_one_or_two_bytes(sample: bytes) -> str:
    """What lines are that are no UTF-8, by where their bytes over 127 lie.

    In cp1251 Russian letters are 0xC0 to 0xFF, and stand together; in cp1252 letters with accents are,
    and stand between plain ones. Of the pairs of gb18030, in the characters in use, the first byte is
    0xB0 to 0xF7 and the second 0xA1 to 0xFE: a third of them lies below 0xC0.
    """
    letters = sum(byte >= 0xC0 or byte in (0xA8, 0xB8) for byte in sample)
    high = sum(byte > 0x7F for byte in sample)
    lonely = len(re.findall(rb"(?<![\x80-\xff])[\xc0-\xff](?![\x80-\xff])", sample))
    if letters >= 0.85 * high:
        return "cp1252" if lonely > 0.5 * high else "cp1251"
    try:
        sample.decode("gb18030")
    except UnicodeDecodeError:
        return "cp1252" if lonely > 0.5 * high else "cp1251"
    return "gb18030"


def _lines(file: BinaryIO, encoding: str) -> Iterator[str]:
    """Lines with their ends, as text; bytes that do not fit are lone surrogates."""
    if encoding.startswith("utf-16"):
        decoder = codecs.getincrementaldecoder(encoding)("replace")
        left = ""
        while piece := file.read(1 << 20):
            # only \n ends a line: other signs may stand in cells
            *whole, left = (left + decoder.decode(piece)).replace("�", "\ud800").split("\n")
            yield from (line + "\n" for line in whole)
        if left := left + decoder.decode(b"", final=True).replace("�", "\ud800"):
            yield left
        return
    while line := file.readline(MAX_ROW_CHARS):
        if encoding not in ("utf-8", "utf-8-sig") and _is_utf8(line):
            yield line.decode("ascii", "surrogateescape")
        else:
            yield line.decode(encoding, "surrogateescape")
            encoding = encoding.removesuffix("-sig")


def _is_utf8(line: bytes) -> bool:
    if line.isascii():
        return False
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return False
    return sum(not sign.isascii() for sign in text) >= _UTF8_CHARS


def delimiter_of(sample: list[str]) -> str:
    """The sign between cells: that which gives most rows as many cells as the header has, over one."""

    def fit(delimiter: str) -> tuple[float, int]:
        try:
            rows = [row for row in csv.reader(sample, delimiter=delimiter) if row]
        except csv.Error:
            return 0.0, 0
        if not rows or len(rows[0]) < 2:
            return 0.0, 0
        return sum(len(row) == len(rows[0]) for row in rows) / len(rows), len(rows[0])

    best = max(DELIMITERS, key=fit)
    return best if fit(best)[1] else ","
