"""What a person names on the command line, as pictures and videos: files, folders, globs, stdin.

Addresses are taken, too. Of a PDF document each page is a picture.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from qvl.errors import InputNotFoundError, InputUnreadableError, QvlError
from qvl.types import PICTURE_SUFFIXES, VIDEO_SUFFIXES, Image, Video, is_address


@dataclass(frozen=True, slots=True)
class Unusable:
    """A source that means no picture, and why."""

    name: str
    error: QvlError


def pictures(sources: Sequence[str]) -> list[Image | Video | Unusable]:
    """Every picture and video that the sources mean, in order."""
    found: list[Image | Video | Unusable] = []
    for source in sources:
        try:
            found += _expand(source)
        except QvlError as err:
            found.append(Unusable(source, err))
        except OSError as err:
            reason = err.strerror or "an input error"
            unreadable = InputUnreadableError(f"{source!r} cannot be read: {reason}")
            found.append(Unusable(source, unreadable))
    return found


def _expand(source: str) -> list[Image | Video | Unusable]:
    if source == "-":
        return _stdin()
    if is_address(source):
        suffix = PurePosixPath(re.split("[?#]", source)[0]).suffix.lower()
        if suffix in VIDEO_SUFFIXES:
            return [Video.of(source)]
        return _pages(Image.of(source)) if suffix == ".pdf" else [Image.of(source)]
    if os.path.isdir(source):
        return [item for file in _folder(Path(source)) for item in _file(str(file))]
    if not os.path.exists(source) and glob.has_magic(source):
        matches = sorted(glob.glob(source, recursive=True))
        if not matches:
            raise InputNotFoundError(
                f"no file matches {source!r}", hint="check the pattern and the folder"
            )
        return [item for match in matches for item in _expand(match)]
    return _file(source)


def _file(path: str) -> list[Image | Video | Unusable]:
    """A missing file is told by the functions that read pictures and videos."""
    suffix = Path(path).suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return [Video.of(path)]
    return _pages(Image.of(path)) if suffix == ".pdf" else [Image.of(path)]


def _stdin() -> list[Image | Video | Unusable]:
    from qvl.processing.source import is_pdf

    data = sys.stdin.buffer.read()
    image = Image(data, "stdin")
    return _pages(image) if is_pdf(data) else [image]


def _pages(document: Image) -> list[Image | Video | Unusable]:
    from qvl.processing.pdf import pages  # brings numpy: not for `qvl --help`

    try:
        return [*pages(document)]
    except QvlError as err:  # of a folder, the other files are read
        return [Unusable(document.name, err)]


def _folder(path: Path) -> list[Path]:
    """The pictures and documents below the folder, by name; hidden files and folders are left alone."""
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in PICTURE_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not found:
        raise InputNotFoundError(
            f"the folder {str(path)!r} holds no pictures",
            hint=f"it is searched for {', '.join(sorted(PICTURE_SUFFIXES))}",
        )
    return found
