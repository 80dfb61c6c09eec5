"""What a person names, as rows: files, folders, globs, lists, tables, archives, stores, addresses.

Main path: rows -> _expanded for each name -> _file for each file, by its suffix -> a Row, or several: of
a table its rows, of an archive its members, of a document its pages, of a video its segments.
"""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from qvl.batch import archives, object_store, tables
from qvl.batch.natural import natural_key
from qvl.batch.places import located, parts, storable
from qvl.batch.row import Refused, Row, Tell, Wanted
from qvl.errors import InputNotFoundError, InputUnreadableError, InvalidParamError, QvlError
from qvl.processing.source import quoted
from qvl.runs.record import Source
from qvl.types import (
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    is_address,
    without_password,
)

LISTS = (".txt", ".lst")
MAX_LINE_BYTES = 64 * 1024  # of a list of paths


def rows(named: Sequence[str], wanted: Wanted, tell: Tell) -> Iterator[Row | Refused]:
    """Every row of what is named, in that order; a folder's files in natural order of their names."""
    root = _root(named)
    for name in named:
        try:
            yield from _expanded(name, root, wanted, tell)
        except QvlError as err:
            yield Refused(name, err)
        except OSError as err:
            yield Refused(name, _unreadable(name, err))


def _root(named: Sequence[str]) -> str:
    """The folder, or the archive, that all that is named lies in: ids are relative to it."""
    tops = []
    for name in named:
        if name == "-" or is_address(name) or object_store.is_store(name):
            continue
        path = os.path.abspath(name)
        if os.path.isdir(path) or archives.is_archive(path):
            tops.append(path)
        elif not os.path.lexists(path) and glob.has_magic(name):
            tops.append(os.path.abspath(_fixed(name)))
        elif not tables.is_table(path):
            tops.append(os.path.dirname(path))
    return os.path.commonpath(tops) if tops else os.getcwd()


def _fixed(pattern: str) -> str:
    """The folder in front of a pattern's first sign."""
    head = pattern
    while glob.has_magic(head):
        head = os.path.dirname(head)
    return head or "."


def _expanded(name: str, root: str, wanted: Wanted, tell: Tell) -> Iterator[Row | Refused]:
    if name == "-":
        yield from _listed(sys.stdin.buffer, "stdin", os.getcwd(), wanted)
    elif is_address(name):
        yield from parts(
            Row(table=name, id=without_password(name), sources=(Source(name),)), wanted
        )
    elif object_store.is_store(name):
        yield from object_store.rows(name, wanted.every_s)
    elif os.path.isdir(name):
        yield from _folder(name, root, wanted, tell)
    elif not os.path.lexists(name) and glob.has_magic(name):
        matches = sorted(glob.iglob(name, recursive=True), key=natural_key)
        if not matches:
            raise InputNotFoundError(
                f"no file matches {name!r}", hint="check the pattern and the folder"
            )
        for match in matches:
            yield from _expanded(match, root, wanted, tell)
    else:
        yield from _file(name, root, wanted, tell)


def _file(name: str, root: str, wanted: Wanted, tell: Tell) -> Iterator[Row | Refused]:
    path = os.path.abspath(name)
    suffix = Path(path).suffix.lower()
    if tables.is_table(path):
        yield from tables.rows(Path(path), name, wanted, tell)
    elif suffix in LISTS:
        with open(path, "rb") as lines:
            yield from _listed(lines, name, os.path.dirname(path), wanted)
    elif archives.is_archive(path):
        yield from archives.rows(Path(path), name, _id_of(path, root))
    else:
        row = Row(table=name, id=_id_of(path, root), sources=(Source(path),))
        yield from parts(row, wanted)


def _id_of(path: str, root: str) -> str:
    """The path below the root; of a name that is no UTF-8 its bytes are written as in an address."""
    relative = os.path.relpath(path, root)
    return storable("" if relative == "." else relative.replace(os.sep, "/"))


def _listed(lines: BinaryIO, table: str, folder: str, wanted: Wanted) -> Iterator[Row | Refused]:
    """A path or an address a line, relative to the list's folder."""
    for number, line in enumerate(_cut_lines(lines), 1):
        text = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
        if not text:
            continue
        name = f"{quoted(table)}, row {number}"
        if len(line) > MAX_LINE_BYTES or "\0" in text:
            error = InvalidParamError(
                f"{name} is not a path or an address",
                hint="give one a line, in a text file of UTF-8",
            )
            yield Refused(name, error)
            continue
        try:
            source = located(text, folder)
        except QvlError as err:
            yield Refused(name, err)
            continue
        row = Row(
            table=table, number=number, id=storable(without_password(text)), sources=(source,)
        )
        yield from parts(row, wanted)


def _cut_lines(file: BinaryIO) -> Iterator[bytes]:
    """Each line; of one that is longer than a path can be the beginning, so that a picture in the place
    of a list is not read into memory.
    """
    while line := file.readline(MAX_LINE_BYTES + 1):
        rest = line
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES + 1)
        yield line


def _folder(name: str, root: str, wanted: Wanted, tell: Tell) -> Iterator[Row | Refused]:
    """The pictures and documents below a folder. Hidden files are left alone, what else is left out is
    told. One folder's names are in memory at a time, for their order.
    """
    top = os.path.realpath(name)
    entered = {_identity(top)}
    left_out: Counter[str] = Counter()
    outside = found = 0
    folders = [os.path.abspath(name)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                listed = [e for e in entries if not e.name.startswith(".")]
        except OSError as err:
            yield Refused(folder, _unreadable(folder, err))
            continue
        listed.sort(key=lambda e: natural_key(e.name))
        below = []
        for entry in listed:
            suffix = os.path.splitext(entry.name)[1].lower()
            is_folder = entry.is_dir()
            if (
                not is_folder
                and suffix not in PICTURE_SUFFIXES
                and not (wanted.every_s is not None and suffix in VIDEO_SUFFIXES)
            ):
                left_out[suffix or "without a suffix"] += 1
                continue
            if entry.is_symlink() and not wanted.follow:
                target = os.path.realpath(entry.path)
                if os.path.commonpath([target, top]) != top:
                    outside += 1
                    continue
                if is_folder:  # its files have their own place in the folder
                    continue
            if not is_folder:
                found += 1
                yield from _file(entry.path, root, wanted, tell)
            elif (identity := _identity(entry.path)) not in entered:  # else a loop
                entered.add(identity)
                below.append(entry.path)
        folders += reversed(below)
    if outside:
        tell(f"{quoted(name)}: {outside} links lead out of it and are not followed (--follow)")
    if left_out:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(left_out.items()))
        tell(f"{quoted(name)}: files that are no pictures are left out: {kinds}")
    if not found:
        yield Refused(
            name,
            InputNotFoundError(
                f"the folder {name!r} holds no pictures",
                hint=f"it is searched for {', '.join(sorted(PICTURE_SUFFIXES))}",
            ),
        )


def _identity(folder: str) -> tuple[int, int]:
    """Of the folder itself, however it was reached; one that is not there any more has none."""
    try:
        found = os.stat(folder)
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def _unreadable(name: str, err: OSError) -> QvlError:
    if isinstance(err, FileNotFoundError):
        return InputNotFoundError(f"there is no file {quoted(name)}")
    reason = (err.strerror or "an input error").lower()
    denied = isinstance(err, PermissionError)
    hint = "check who may read it" if denied else None
    return InputUnreadableError(f"{quoted(name)} cannot be read: {reason}", hint=hint)
