"""JSON lines: an object a line, its keys the columns; or requests to OpenAI's API, as its batches have them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qvl.batch.cells import MAX_CELL_CHARS, Cells, as_text
from qvl.batch.row import Tell, row_name
from qvl.errors import TableError
from qvl.processing.source import quoted

MAX_LINE_BYTES = 64 << 20
# of OpenAI's own batches
MAX_REQUESTS, MAX_REQUEST_BYTES = 50_000, 200 << 20
REQUEST_KEYS = frozenset(["custom_id", "method", "url", "body"])


def cells(path: Path, name: str, tell: Tell) -> Iterator[Cells]:
    """Each line that is not empty. Raises TableError for too many requests, OSError."""
    requests = 0
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if not line.strip():
                continue
            found = _line(line, row_name(name, number))
            if isinstance(found, dict) and {"custom_id", "body"} <= found.keys():
                requests += 1
                if requests > MAX_REQUESTS or file.tell() > MAX_REQUEST_BYTES:
                    raise TableError(
                        f"{quoted(name)} has more than {MAX_REQUESTS} requests, or "
                        f"{MAX_REQUEST_BYTES >> 20} MiB",
                        hint="cut it into several files",
                    )
                yield _request(found, number, row_name(name, number))
            else:
                yield Cells(number, found)
            if len(line) > MAX_LINE_BYTES:
                return  # where the next line begins is not known
    if requests:
        tell(f"{quoted(name)} holds {requests} requests to OpenAI's API")


def _line(line: bytes, where: str) -> dict[str, Any] | TableError:
    if len(line) > MAX_LINE_BYTES:
        return TableError(f"{where} has over {MAX_LINE_BYTES >> 20} MiB: nothing after it is read")
    try:
        found = json.loads(line.decode("utf-8-sig"), parse_constant=_no_number)
    except (ValueError, RecursionError):  # also what is no UTF-8
        return TableError(f"{where} is not JSON in UTF-8", hint="give one JSON object a line")
    if not isinstance(found, dict):
        return TableError(f"{where} is not a JSON object", hint='as in {"image": "cup.jpg"}')
    if {"custom_id", "body"} <= found.keys():
        return found
    for key, value in found.items():
        if len(as_text(value)) > MAX_CELL_CHARS:
            return TableError(
                f"{where} has over {MAX_CELL_CHARS} characters in {key!r:.80}",
                hint="give long texts in files of their own",
            )
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _request(found: dict[str, Any], number: int, where: str) -> Cells:
    match found:
        case {"custom_id": str(own), "method": "POST", "url": str(), "body": dict()} if own.strip():
            if unknown := found.keys() - REQUEST_KEYS:
                error = TableError(f"{where} has the unknown key {min(unknown)!r:.80}")
                return Cells(number, error)
            return Cells(number, {}, request=found)
    error = TableError(
        f"{where} is not a request",
        hint='it has a "custom_id", the "method" "POST", a "url" and a "body"',
    )
    return Cells(number, error)
