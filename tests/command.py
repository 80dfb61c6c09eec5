"""What a command ended with; the fixture `qvl` in conftest.py runs one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ended]  # (*args, stdin=b"" or a terminal)
