"""`--write-xmp`: copies of described pictures, with the texts in them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qvl.cli.output import Outcome, write_whole
from qvl.errors import InputUnreadableError, QvlError, StorageError, UnsupportedMediaError
from qvl.tasks.describe import Description
from qvl.tasks.task import Result
from qvl.types import Image
from qvl.xmp import Said, Words, with_xmp, words_of

log = logging.getLogger(__name__)


def copied(outcome: Outcome, folder: Path, taken: set[Path], *, alone: bool) -> Outcome:
    """The outcome, or, where no copy could be made, the error of that; `taken` are copies so far."""
    if isinstance(outcome.found, QvlError):
        return outcome
    try:
        picture = read(outcome)
        words = words_in(outcome.name, outcome.found)
        path = free_path(folder, outcome.name, taken)
        write_whole(path, with_xmp(picture, words, name=outcome.name), "--write-xmp")
    except QvlError as err:
        if not alone:  # of one item, the end of the program tells it
            log.error("%s%s", err.message, f" ({err.hint})" if err.hint else "")
        return replace(outcome, found=err)
    return outcome


def words_in(name: str, found: Sequence[Result]) -> Words:
    described = [one for one in found if isinstance(one, Description)]
    return words_of(
        name,
        [
            Said(
                language=one.language,
                text=one.text,
                alt_text=one.alt_text,
                keywords=one.keywords,
            )
            for one in described
        ],
    )


def read(outcome: Outcome) -> bytes:
    shown = outcome.seen[0]
    if not isinstance(shown, Image) or not isinstance(shown.source, Path) or shown.page is not None:
        raise UnsupportedMediaError(
            f"{outcome.name!r} is not a picture's file, so there is no copy of it",
            hint="save it as a file first",
        )
    try:
        return shown.source.read_bytes()
    except OSError as err:
        raise InputUnreadableError(f"{outcome.name!r} cannot be read: {err.strerror}") from err


def free_path(folder: Path, name: str, taken: set[Path]) -> Path:
    """Of two pictures of one name the second gets a number. Raises StorageError for older files."""
    plain = folder / Path(name).name
    numbered = (plain.with_stem(f"{plain.stem}-{n}") for n in itertools.count(2))
    path = next(one for one in itertools.chain([plain], numbered) if one not in taken)
    taken.add(path)
    if path.exists():
        raise StorageError(
            f"{path.name!r} is in the folder of --write-xmp already",
            hint="choose an empty folder: nothing is overwritten",
        )
    return path
