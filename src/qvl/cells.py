"""Values as cells of a table that no spreadsheet takes for formulas."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Sequence
from typing import Any

BYTE_ORDER_MARK = "\ufeff"  # without it Excel takes Cyrillic and Chinese for something else


def is_formula(text: str) -> bool:
    """Whether a spreadsheet may compute it: by its first sign, after white space too.

    Full-width and small forms of the sign count, as do a tab and a line break before anything.
    Source: OWASP, CSV Injection.
    """
    first = text.lstrip()[:1]
    return text[:1] in ("\t", "\r", "\n") or unicodedata.normalize("NFKC", first) in (*"=+-@",)


def csv_row(cells: Sequence[str], delimiter: str = ",") -> str:
    """A line of cells none of which a spreadsheet takes for a formula."""
    line = io.StringIO()
    # with an end of two signs it quotes a cell that has either of them
    writer = csv.writer(line, lineterminator="\r\n", delimiter=delimiter)
    writer.writerow([as_text(cell) for cell in cells])
    return line.getvalue().removesuffix("\r\n") + "\n"


def as_text(cell: str) -> str:
    """The cell behind an apostrophe where it would be a formula, or where it looks like one that is.

    The second is what makes `from_text` exact.
    """
    return "'" + cell if is_formula(cell.lstrip("'")) else cell


def from_text(cell: str) -> str:
    """What `as_text` was given."""
    return cell[1:] if cell[:1] == "'" and is_formula(cell.lstrip("'")) else cell


def cell(value: Any) -> str:
    """A value of a row as text; words of a list beside each other, what is deeper as JSON."""
    match value:
        case None:
            return ""
        case str():
            return value
        case list() if all(isinstance(one, str) for one in value):
            return "; ".join(value)
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def storable(text: str) -> str:
    """The text with halves of letters, which UTF-8 does not have, escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
