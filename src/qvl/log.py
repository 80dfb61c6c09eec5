"""Messages of the program itself, on stderr; stdout is for results.

Modules log to `logging.getLogger(__name__)`; only the command line calls `set_up_logging`, so a
program that uses qvl as a library keeps its own handlers. Prompts, pictures and keys are never
logged above DEBUG.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import TextIO

# how many times -v was given; -1 is -q
LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202d\u202e]")
COLOURS = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31"}


class StderrHandler(logging.Handler):
    """Writes to what sys.stderr is at that moment, so that a progress bar can stand in front of it."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


class PlainFormatter(logging.Formatter):
    """`warning: text`, the level coloured where the reader is a terminal that wants colour."""

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        if record.levelno in COLOURS and wants_colour(sys.stderr):
            level = f"\x1b[{COLOURS[record.levelno]}m{level}\x1b[0m"
        return f"{level}: {visible(super().format(record))}"


def visible(text: str) -> str:
    """The text with control characters and overrides of the direction escaped, lines and tabs kept.

    A terminal would obey them, and they may come from a file's name or out of a picture.
    """
    return _CONTROL.sub(lambda sign: sign[0].encode("unicode_escape").decode(), text)


def wants_colour(stream: TextIO) -> bool:
    """Whether colour may be written: a terminal, not a dumb one, and NO_COLOR unset or empty."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def set_up_logging(verbosity: int = 0) -> None:
    """Send qvl's messages to stderr; `verbosity` counts -v (up to 2), -1 is quiet.

    Called again, it only changes the level.
    """
    logger = logging.getLogger("qvl")
    logger.setLevel(LEVELS[max(-1, min(2, verbosity))])
    if not any(isinstance(handler, StderrHandler) for handler in logger.handlers):
        handler = StderrHandler()
        handler.setFormatter(PlainFormatter())
        logger.addHandler(handler)
