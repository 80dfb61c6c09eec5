"""Where runs lie, and how each of them is doing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qvl.errors import InvalidParamError, QvlError
from qvl.runs import identity
from qvl.runs.journal import Journal
from qvl.runs.lock import is_held
from qvl.runs.run import Run
from qvl.runs.state import Counts

# running: a process writes to it; interrupted: none does, and items are pending; failed: none is
# pending, some failed; broken: it cannot be read, `error` says why
RunState = Literal["running", "interrupted", "done", "failed", "broken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A run as a list of runs shows it."""

    folder: Path
    state: RunState
    counts: Counts | None = None
    error: str = ""


def folder_of(name: str, home: Path) -> Path:
    """The folder of a run: NAME is one of `home`, a path with a separator stands for itself.

    Raises InvalidParamError for a name that is none.
    """
    if "/" in name or os.sep in name:
        return Path(name).expanduser()
    if not name or name.startswith(".") or not name.isprintable():
        raise InvalidParamError(
            f"{name!r} is no name of a run", hint="such as cups, or a folder such as ./cups"
        )
    return home / name


def runs(home: Path) -> Iterator[Known]:
    """Every run of a folder of runs, by name."""
    folders = sorted(path for path in home.iterdir() if path.is_dir()) if home.is_dir() else []
    for folder in folders:
        if (folder / identity.FILE).exists() or any(folder.glob("results-*.jsonl")):
            yield look(folder)


def look(folder: Path) -> Known:
    """How a run is doing. Quick where it ended in order: its last event says how far it came."""
    try:
        is_running = is_held(folder / "lock")
        identity.read(folder)
        last: Mapping[str, Any] = {"event": ""}
        for _, event in Journal(folder, "events").read():
            last = event
        if last["event"] == "stop" and not is_running:
            counts = Counts(**last["counts"])
        else:
            counts = Run.read(folder).counts()
    except QvlError as err:
        return Known(folder=folder, state="broken", error=err.message)
    if is_running:
        return Known(folder=folder, state="running", counts=counts)
    state = "interrupted" if counts.pending else "failed" if counts.failed else "done"
    return Known(folder=folder, state=state, counts=counts)
