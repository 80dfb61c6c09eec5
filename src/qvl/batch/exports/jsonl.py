"""JSONL: an object for each item, nothing left out: what was asked, the answer, the review."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qvl.batch.exports.table import review_object
from qvl.runs.record import Finished
from qvl.runs.whole import whole_file


def write(finished: Iterable[Finished], target: Path) -> None:
    """Raises StorageError."""
    with whole_file(target) as part, part.open("wb") as file:
        for one in finished:
            file.write(json_line(as_object(one)))


def as_object(one: Finished) -> dict[str, Any]:
    """The line that `--json` prints of such an item, with a reviewer's words in it, and the item's own.

    The model's words that the reviewer replaced stand in "review", too. "ok" is None where nobody was
    asked yet.
    """
    answer = dict(one.outcome.out) if one.outcome is not None else {}
    said = dict(one.review.fields) if one.review is not None else {}
    replaced = {"model": {name: answer[name] for name in said if name in answer}}
    return {
        **answer,
        **said,
        "id": one.item.id,
        "row": one.item.row,
        "sources": [asdict(source) for source in one.item.sources],
        "columns": dict(one.item.columns),
        "options": dict(one.item.options),
        "ok": one.outcome.ok if one.outcome is not None else None,
        "attempt": one.outcome.attempt if one.outcome is not None else 0,
        "review": review_object(one.review) | replaced if one.review is not None else None,
    }


def json_line(row: Mapping[str, Any]) -> bytes:
    """One line; letters as they are, but halves of letters, which UTF-8 does not have, escaped."""
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        line = json.dumps(row, allow_nan=False).encode()
    return line + b"\n"
