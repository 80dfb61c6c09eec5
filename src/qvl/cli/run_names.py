"""The names of runs on the command line."""

from __future__ import annotations

import itertools
from datetime import date
from pathlib import Path

from qvl.settings import load_settings


def run_folder(name: str) -> Path:
    """The folder of a run: NAME is one of the settings' `runs`, a path stands for itself."""
    from qvl.runs import home

    return home.folder_of(name, Path(load_settings().runs).expanduser())


def new_name(task: str) -> str:
    """As in describe-2026-11-30-2: the first that no run has."""
    names = (f"{task}-{date.today().isoformat()}-{n}" for n in itertools.count(1))
    return next(name for name in names if not run_folder(name).exists())
