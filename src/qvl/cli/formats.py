"""Results as text, JSON lines, Markdown, CSV or an HTML page, an item at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from qvl.cells import BYTE_ORDER_MARK, cell, csv_row
from qvl.cli.output import Outcome
from qvl.cli.page import page
from qvl.errors import QvlError
from qvl.log import visible
from qvl.tasks.task import Task, as_row

FORMATS = ("text", "json", "md", "csv", "html")


def beginning(task: type[Task[Any]], form: str) -> str:
    """What stands before the first item: of CSV the names of its columns."""
    return BYTE_ORDER_MARK + csv_row(columns(task)) if form == "csv" else ""


def item(outcome: Outcome, task: type[Task[Any]], form: str, *, alone: bool) -> str:
    """One item, ready to be written. Of HTML nothing: a page is written when all is known."""
    if isinstance(outcome.found, QvlError):
        return failure(outcome.name, outcome.found, task, form)
    several = len({result.language for result in outcome.found}) > 1
    said = ""
    for result in outcome.found:
        tag = f"[{result.language}] " if several else ""
        match form:
            case "text":
                name = "" if alone else f"{outcome.name}: "
                said += visible(f"{name}{tag}{result.text}\n")
            case "json":
                said += json_line(as_row(outcome.name, result))
            case "md":
                said += visible(f"## {tag}{outcome.name}\n\n{result.text}\n\n")
            case "csv":
                row = as_row(outcome.name, result)
                said += csv_row([cell(row.get(column)) for column in columns(task)])
    return said


def ending(outcomes: list[Outcome], form: str) -> str:
    return page(outcomes) if form == "html" else ""


def failure(name: str, error: QvlError, task: type[Task[Any]], form: str) -> str:
    """Of text nothing: errors are told on stderr."""
    match form:
        case "json":
            return json_line({"id": name, "error": error.as_json()})
        case "md":
            return visible(f"## {name}\n\n**{error.message}**\n\n")
        case "csv":
            row = {"id": name, "error": error.message}
            return csv_row([row.get(column, "") for column in columns(task)])
    return ""


def json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def columns(task: type[Task[Any]]) -> list[str]:
    """The item, the text, what the task's result has of its own, what a person should look at."""
    kind = get_type_hints(task.run)["return"]
    own = [f.name for f in fields(kind) if f.name not in ("text", "completions", "flags")]
    return ["id", "text", *own, "flags", "error"]
