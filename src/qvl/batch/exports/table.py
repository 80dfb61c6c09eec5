"""Finished items as rows of a table: the columns of the input first, then ours, which begin with "qvl_".

Which columns there are is known when all items were seen, so rows wait in a file that has no name.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import fields as fields_of
from typing import IO, Any

from qvl.batch.differences import word_difference
from qvl.cells import cell
from qvl.runs.record import Finished, Review, Source
from qvl.xmp import NO_XML

OURS = "qvl_"
BEFORE = ("qvl_id", "qvl_source", "qvl_language")
AFTER = ("qvl_flags", "qvl_error", "qvl_attempt", "qvl_kept", "qvl_status", "qvl_note")
# of an answer (`tasks.task.as_row`): what has a column of another name, or is for programs
NOT_SHOWN = frozenset(
    [
        "id",
        "language",
        "flags",
        "error",
        "finish_reason",
        "usage",
        "meta",
        "warnings",
        "reasoning",
        "response",
    ]
)
STATUSES = ("new", "approved", "edited", "rejected")
# for programs: the whole answer and the whole review, as JSON
WHOLE = ("qvl_out", "qvl_review")
NUMBERS: Mapping[str, type] = {"qvl_attempt": int, "qvl_kept": float}  # all others are texts


@dataclass(frozen=True, slots=True)
class Row:
    """Cells by the names of their columns: text, numbers, or None; `sources` for pictures of them."""

    cells: Mapping[str, Any]
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """`theirs` are the columns of the input, `fields` those of the answers ("qvl_text", ...)."""

    theirs: tuple[str, ...]
    fields: tuple[str, ...]
    file: IO[str]

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.theirs, *BEFORE, *self.fields, *AFTER)

    @property
    def edited(self) -> tuple[str, ...]:
        """The columns whose cells are a person's to change."""
        return (*self.fields, "qvl_status", "qvl_note")

    def rows(self) -> Iterator[Row]:
        self.file.seek(0)
        for line in self.file:
            cells, sources = json.loads(line)
            yield Row(cells, tuple(Source(*source) for source in sources))


@contextmanager
def table(finished: Iterable[Finished]) -> Iterator[Table]:
    """All items as rows; those of them that nobody was asked about yet have empty cells."""
    theirs: dict[str, None] = {}
    fields: dict[str, None] = {OURS + "text": None}
    with tempfile.TemporaryFile("w+", encoding="ascii") as file:
        for one in finished:
            answer = answer_cells(one)
            # a table that was an export before has ours already
            columns = {k: v for k, v in one.item.columns.items() if not k.startswith(OURS)}
            theirs |= dict.fromkeys(columns)
            fields |= dict.fromkeys(name for name, value in answer.items() if value)
            sources = [[source.where, source.part] for source in one.item.sources]
            cells = columns | fixed_cells(one) | answer | whole_cells(one)
            file.write(json.dumps([cells, sources]) + "\n")
        yield Table(tuple(theirs), tuple(fields), file)


def answer_cells(one: Finished) -> dict[str, str]:
    """The answer's own values, a person's words where there are any."""
    keys = list(one.outcome.out) if one.outcome is not None and one.outcome.ok else []
    said = one.review.fields if one.review is not None else {}
    shown = dict.fromkeys(key for key in (*keys, *said) if key not in NOT_SHOWN)
    return {OURS + key: cell_of(one.told(key)) for key in shown}


def cell_of(value: Any) -> str:
    """As `cell`; nothing where there is nothing in it."""
    return "" if value in ([], {}) else cell(value)


def fixed_cells(one: Finished) -> dict[str, Any]:
    outcome, review = one.outcome, one.review
    error = None if outcome is None or outcome.ok else outcome.out.get("error") or {}
    return {
        "qvl_id": one.item.id,
        "qvl_source": "; ".join(named(source) for source in one.item.sources),
        "qvl_language": language_of(one),
        "qvl_flags": "; ".join(outcome.out.get("flags", ())) if outcome is not None else "",
        "qvl_error": error.get("message", "it failed") if error is not None else "",
        "qvl_attempt": outcome.attempt if outcome is not None else 0,
        "qvl_kept": kept(one),
        "qvl_status": review.state if review is not None else STATUSES[0],
        "qvl_note": review.note if review is not None else "",
    }


def whole_cells(one: Finished) -> dict[str, str | None]:
    out = json_text(dict(one.outcome.out)) if one.outcome is not None else None
    review = json_text(review_object(one.review)) if one.review is not None else None
    return {"qvl_out": out, "qvl_review": review}


def json_text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def review_object(review: Review) -> dict[str, Any]:
    return {f.name: getattr(review, f.name) for f in fields_of(Review)} | {
        "fields": dict(review.fields)
    }


def named(source: Source) -> str:
    return f"{source.where}#{source.part}" if source.part else source.where


def language_of(one: Finished) -> str:
    said = one.outcome.out.get("language") if one.outcome is not None else None
    return str(said or one.item.options.get("language") or "")


def kept(one: Finished) -> float | None:
    """The share of the model's words that a reviewer left; None where nobody changed the text."""
    if one.review is None or one.outcome is None or "text" not in one.review.fields:
        return None
    model = cell_of(one.outcome.out.get("text"))
    return round(word_difference(model, one.review.fields["text"]).kept, 4)


def shown(text: str) -> str:
    """As a cell shows it: one kind of line break, and what no XML has, control signs above all, escaped."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return NO_XML.sub(lambda sign: sign[0].encode("unicode_escape").decode(), lines)
