"""Parquet files, read by pyarrow in a process of its own, which a damaged one may crash."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from qvl.batch.cells import Cells, checked
from qvl.batch.row import Tell
from qvl.errors import InputNotFoundError, TableError, UsageError
from qvl.processing.source import quoted
from qvl.processing.worker import folders_of

MEMORY_BYTES = 4 << 30
WALL_S = 60  # for the next rows
MAX_LINE_BYTES = 64 << 20


def cells(path: Path, name: str, tell: Tell) -> Iterator[Cells]:
    """Every row. Raises TableError for a file that is damaged, UsageError without pyarrow, OSError."""
    if not path.is_file():
        raise InputNotFoundError(f"{quoted(name)} does not exist")
    folders = folders_of("pyarrow")
    if folders is None:
        raise UsageError("Parquet needs the package pyarrow", hint="pip install 'qvl[tables]'")
    script = Path(__file__).resolve().with_name("parquet_worker.py")
    task = {"paths": folders, "file": str(path), "memory_bytes": MEMORY_BYTES}
    worker = subprocess.Popen(
        [sys.executable, "-I", "-B", script, json.dumps(task)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"ARROW_DEFAULT_MEMORY_POOL": "system"},
    )
    assert worker.stdout is not None
    number = 1  # a spreadsheet counts the header
    names: list[str] | None = None
    try:
        while True:
            timer = threading.Timer(WALL_S, worker.kill)
            timer.daemon = True
            timer.start()
            try:
                line = worker.stdout.readline(MAX_LINE_BYTES + 1)
            finally:
                timer.cancel()
            told = _told(line, name)
            if told is None:
                return
            if isinstance(told, dict):
                if "error" in told:
                    raise TableError(f"{quoted(name)} {told['error']}", hint=told.get("hint"))
                names = told["columns"]
                if told["left_out"]:
                    left = ", ".join(told["left_out"])
                    tell(
                        f"{quoted(name)}: columns that are no text or numbers are left out: {left}"
                    )
                continue
            if names is None:
                raise _damaged(name)
            number += 1
            yield checked(number, name, names, told)
    finally:
        worker.kill()
        worker.stdout.close()
        worker.wait()


def _told(line: bytes, name: str) -> dict | list | None:
    """What the worker says next; None at the end of the rows."""
    if line == b"END\n":
        return None
    if len(line) > MAX_LINE_BYTES:
        raise TableError(f"{quoted(name)} has a row of over {MAX_LINE_BYTES >> 20} MiB")
    try:
        return json.loads(line)
    except ValueError as err:  # nothing, or half a line: it has ended
        raise _damaged(name) from err


def _damaged(name: str) -> TableError:
    return TableError(
        f"{quoted(name)} made the Parquet reader crash, or took longer than {WALL_S} s",
        hint="write it anew",
    )
