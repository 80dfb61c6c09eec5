"""What a person names on the command line, as pictures and videos: files, folders, globs, stdin."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qvl.errors import InputNotFoundError, InputUnreadableError, QvlError, UnsupportedMediaError
from qvl.types import Image, Video

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
        ".heic",
        ".heif",
    ]
)  # of pictures in a folder; a file named outright is opened whatever its name
# of files that are videos; of a folder, whose videos may be long, only pictures are taken
VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".mpg",
        ".mpeg",
        ".ts",
        ".flv",
        ".wmv",
    ]
)


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


def _expand(source: str) -> list[Image | Video]:
    if source == "-":
        return [Image(sys.stdin.buffer.read(), "stdin")]
    if source.startswith(("http://", "https://")):
        raise UnsupportedMediaError(
            f"{source!r} is an address, and this version reads only local files",
            hint="download the picture first",
        )
    if os.path.isdir(source):
        return _folder(Path(source))
    if not os.path.exists(source) and glob.has_magic(source):
        matches = sorted(glob.glob(source, recursive=True))
        if not matches:
            raise InputNotFoundError(
                f"no file matches {source!r}", hint="check the pattern and the folder"
            )
        return [image for match in matches for image in _expand(match)]
    # a missing file is told by the functions that read pictures and videos
    if Path(source).suffix.lower() in VIDEO_SUFFIXES:
        return [Video.of(source)]
    return [Image(Path(source), source)]


def _folder(path: Path) -> list[Image | Video]:
    """The pictures below the folder, by name; hidden files and folders are left alone."""
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not found:
        raise InputNotFoundError(
            f"the folder {str(path)!r} holds no pictures",
            hint=f"it is searched for {', '.join(sorted(SUFFIXES))}",
        )
    return [Image(file, str(file)) for file in found]
