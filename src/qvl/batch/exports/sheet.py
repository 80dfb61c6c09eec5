"""What the sheets of a workbook can hold: texts that stay texts, to Excel's limits.

Source: ECMA-376 (a cell of type "s", `_xHHHH_` for signs that XML has no place for) and Microsoft's page
of Excel's limits.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from qvl.batch.cells import as_text
from qvl.batch.exports.table import STATUSES, shown
from qvl.cells import is_formula
from qvl.errors import UsageError

ROWS = 1_048_576
CELL_UNITS = 32_767  # of UTF-16
PICTURE = "qvl_picture"
CUT = "qvl_cut"  # names the columns of the row whose texts are longer than a cell
TEXT_FORMAT = "@"  # what is typed into such a cell is text, too
# what openpyxl raises for files that are none, or are damaged
UNREADABLE = (
    OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, SyntaxError, EOFError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_ESCAPED = re.compile(r"_(?=x[0-9A-Fa-f]{4}_)")
_ESCAPE = re.compile(r"_x([0-9A-Fa-f]{4})_")


def openpyxl() -> ModuleType:
    """The library. Raises UsageError where it is missing."""
    try:
        import openpyxl
    except ImportError as err:
        raise UsageError(
            "workbooks need the package openpyxl", hint="pip install 'qvl[tables]'"
        ) from err
    return openpyxl


def fitting(text: str) -> str:
    """As much of the text, as it is shown, as a cell holds."""
    told = shown(text)
    if len(told) * 6 <= CELL_UNITS:  # also if each sign were escaped
        return told
    cut = told.encode("utf-16-le")[: 2 * CELL_UNITS].decode("utf-16-le", "ignore")
    while (over := len(encoded(cut)) - CELL_UNITS) > 0:  # openpyxl would cut that without a word
        cut = cut[: -max(1, over // 6)]
    return cut


def encoded(text: str) -> str:
    """As a file has it: what looks like an escape of Excel's stays as it is."""
    return _ESCAPED.sub("_x005F_", text)


def put(cell: Any, text: str) -> None:
    """Write a text into a cell, never a formula, an error or a number."""
    cell.value = encoded(text) or None
    if text:
        cell.data_type = "s"
    cell.number_format = TEXT_FORMAT
    cell.quotePrefix = is_formula(text)  # as if a person had typed ' before it


def cut_names(told: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """The columns whose texts are longer than a cell, of what is told and what fits."""
    long = [name for name, text in texts.items() if len(text) < len(shown(told[name]))]
    return "; ".join(long)


def text_in(value: Any) -> str:
    """What a cell holds as text; of a formula its own words, which nobody computes."""
    return shown(as_text(getattr(value, "text", value)))  # a formula over several cells has a text


def decoded(text: str) -> str:
    """What a text of a file means to Excel. LibreOffice reads it so too, and writes it as it is."""
    return shown(_ESCAPE.sub(lambda found: chr(int(found[1], 16)), text))


def statuses() -> Any:
    """The list that the cells of a status offer."""
    from openpyxl.worksheet.datavalidation import DataValidation

    offered = DataValidation("list", f'"{",".join(STATUSES)}"', allow_blank=True)
    offered.showErrorMessage = True
    offered.error = f"One of {', '.join(STATUSES)}"
    return offered


def made(page: Any, value: Any) -> Any:
    """A cell of a workbook that is only written."""
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.styles import Alignment

    cell = WriteOnlyCell(page)
    if isinstance(value, str):
        put(cell, fitting(value))
        cell.alignment = Alignment(wrap_text=True, vertical="top")
    else:
        cell.value = value
    return cell
