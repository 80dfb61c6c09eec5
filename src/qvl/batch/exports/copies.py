"""Copies of the pictures with the texts inside, as XMP; pixels stay as they are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qvl.batch.exports.by_row import by_row, words
from qvl.batch.exports.thumbnails import image_of
from qvl.batch.names import inside, safe_name
from qvl.errors import QvlError, StorageError, UnsupportedMediaError
from qvl.processing.source import read_encoded
from qvl.runs.record import Finished
from qvl.runs.whole import write_whole
from qvl.xmp import Words, with_xmp

Failed = tuple[str, QvlError]


def write(finished: Iterable[Finished], folder: Path) -> tuple[int, list[Failed]]:
    """How many copies were written, and of which rows none could be, and why. Raises StorageError.

    A row's copy has the texts of all its languages, and a name that comes of the row's.
    """
    written, failed = 0, []
    for row in by_row(finished):
        said = words(row)
        if said is None:
            continue
        try:
            copy(row[0], said, folder)
            written += 1
        except StorageError:
            raise
        except QvlError as err:
            failed.append((row[0].item.row, err))
    return written, failed


def copy(one: Finished, said: Words, folder: Path) -> None:
    source = one.item.sources[0] if len(one.item.sources) == 1 else None
    image = image_of(source) if source is not None and not source.part else None
    if source is None or image is None:
        raise UnsupportedMediaError(
            f"{one.item.row!r} is not of one picture's file, so there is no copy of it"
        )
    data = with_xmp(read_encoded(image), said, name=image.name)
    ending = Path(source.where).suffix.lower()
    write_whole(inside(folder, safe_name(one.item.row) + ending), data)
