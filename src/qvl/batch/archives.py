"""Pictures in zip and tar archives, read one by one into memory: nothing is ever unpacked into a folder.

Main path: rows -> _zip_members or _tar_members, within limits; later read, once for each picture.
Of an archive in an archive nothing is read.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, BinaryIO

from qvl.batch.row import Refused, Row
from qvl.errors import ArchiveError, InputNotFoundError, InputUnreadableError, QvlError
from qvl.processing.source import quoted
from qvl.runs.record import Source
from qvl.types import PICTURE_SUFFIXES, VIDEO_SUFFIXES

MAX_MEMBERS = 100_000
MAX_TOTAL_BYTES = 8 << 30
MAX_RATIO = 100
# what is smaller may be of any ratio: a white page is
RATIO_COUNTS_FROM = 1 << 20
TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
OPENED = 4  # archives whose lists of members are kept
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a way to compress, or to encrypt, that nobody uses
    RuntimeError,  # a password
    ValueError,
    OSError,
)
_END = struct.Struct("<4s4H2LH")  # of a zip's list: PKWARE's APPNOTE 4.3.16
_END64 = struct.Struct("<4sQ2H2L4Q")  # and 4.3.14
LOCATOR_BYTES = 20  # 4.3.15
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")  # and 4.3.12


@dataclass(frozen=True, slots=True)
class Member:
    """`size_bytes` are those that come out; `start` is where they are in an uncompressed tar."""

    name: str
    size_bytes: int
    start: int = 0


def is_archive(path: str) -> bool:
    return path.lower().endswith((".zip", *TAR))


def rows(path: Path, name: str, prefix: str) -> Iterator[Row | Refused]:
    """A row for each picture in an archive; a member whose name leads out of it is refused, as is what
    is no plain file. Raises ArchiveError for an archive that is damaged or over a limit.
    """
    members = _zip_members if path.suffix.lower() == ".zip" else _tar_members
    taken: set[str] = set()
    for member in members(path, name):
        if isinstance(member, Refused):
            yield member
        elif member.name in taken:
            error = ArchiveError(f"{quoted(name)} has {quoted(member.name)} more than once")
            yield Refused(f"{name}/{member.name}", error)
        elif _is_shown(member.name):
            taken.add(member.name)
            source = Source(str(path), f"member={member.name}")
            row_id = f"{prefix}/{member.name}" if prefix else member.name
            yield from _pages(Row(table=f"{name}/{member.name}", id=row_id, sources=(source,)))


def _pages(row: Row) -> Iterator[Row | Refused]:
    source = row.sources[0]
    if not source.part.lower().endswith(".pdf"):
        yield row
        return
    from qvl.processing.pdf import pages
    from qvl.processing.source import MAX_PDF_BYTES
    from qvl.types import Image

    try:
        data = read(Path(source.where), source.part.removeprefix("member="), MAX_PDF_BYTES)
        numbers = [page.page for page in pages(Image(data, row.table))]
    except QvlError as err:
        yield Refused(row.table, err)
        return
    for number in numbers:
        part = f"{source.part}#page={number}"
        yield replace(row, id=f"{row.id}#page={number}", sources=(Source(source.where, part),))


def _is_shown(name: str) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
    suffix = os.path.splitext(name)[1].lower()
    return not hidden and suffix in PICTURE_SUFFIXES | VIDEO_SUFFIXES


def read(path: Path, member: str, max_bytes: int) -> bytes:
    """A member's bytes. Safe to call from several threads.

    Raises ArchiveError where it is not there, is damaged or larger, InputNotFoundError and
    InputUnreadableError for the archive.
    """
    with _of_archive(path, member) as opened:
        return opened.read(member, max_bytes)


def size_of(path: Path, member: str) -> int:
    """A member's size in bytes, once it is read. Raises as `read`."""
    with _of_archive(path, member) as opened:
        return opened.size(member)


@contextmanager
def _of_archive(path: Path, member: str) -> Iterator[_Zip | _Tar]:
    name = f"{path.name}/{member}"
    try:
        found = os.stat(path)
        yield _opened(str(path), found.st_mtime_ns, found.st_size)
    except FileNotFoundError as err:
        raise InputNotFoundError(f"{quoted(path.name)} does not exist") from err
    except PermissionError as err:
        raise InputUnreadableError(f"{quoted(path.name)} cannot be read") from err
    except KeyError as err:
        raise ArchiveError(f"{quoted(name)} is not there any more") from err
    except _DAMAGE as err:
        raise ArchiveError(
            f"{quoted(name)} is damaged in the archive", hint="make the archive anew"
        ) from err


def check_name(name: str, archive: str) -> None:
    """Raises ArchiveError for a name that would lead out of the folder that it is unpacked into."""
    parts = name.replace("\\", "/").split("/")
    drive = len(parts[0]) == 2 and parts[0][1] == ":"
    if ".." in parts or name[:1] in ("/", "\\") or drive or "\0" in name:
        raise ArchiveError(
            f"{quoted(name)} in {quoted(archive)} leads out of it", hint="make the archive anew"
        )


@lru_cache(OPENED)
def _opened(path: str, _mtime_ns: int, _size_bytes: int) -> _Zip | _Tar:
    with open(path, "rb") as file:  # a workbook is a zip, too
        return _Zip(path) if file.read(2) == b"PK" else _Tar(path)


class _Kept:
    """An archive whose file is open while somebody reads it or it is among the last that were read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __del__(self) -> None:
        self._file.close()


class _Zip(_Kept):
    def __init__(self, path: str) -> None:
        super().__init__(open(path, "rb"))  # noqa: SIM115
        check_list(self._file, os.path.basename(path))
        self._zip = zipfile.ZipFile(self._file)

    def size(self, member: str) -> int:
        return self._zip.getinfo(member).file_size

    def read(self, member: str, max_bytes: int) -> bytes:
        info = self._zip.getinfo(member)
        _check_member(info.file_size, info.compress_size, member, max_bytes)
        with self._zip.open(info) as stream:  # which ends at the size that the list says
            return stream.read()


class _Tar(_Kept):
    """An uncompressed tar as it lies; of a compressed one a copy without a name, as it has no index."""

    def __init__(self, path: str) -> None:
        name = os.path.basename(path)
        super().__init__(_plain_tar(path, name))
        self._members = {
            one.name: one for one in _listed_tar(self._file, name) if isinstance(one, Member)
        }

    def size(self, member: str) -> int:
        return self._members[member].size_bytes

    def read(self, member: str, max_bytes: int) -> bytes:
        found = self._members[member]
        _check_member(found.size_bytes, found.size_bytes, member, max_bytes)
        data = os.pread(self._file.fileno(), found.size_bytes, found.start)
        while len(data) < found.size_bytes:
            more = os.pread(
                self._file.fileno(), found.size_bytes - len(data), found.start + len(data)
            )
            if not more:
                raise EOFError
            data += more
        return data


def _check_member(size_bytes: int, packed_bytes: int, name: str, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise ArchiveError(
            f"{quoted(name)} has {size_bytes / 2**20:.1f} MiB, the limit is {max_bytes >> 20}",
            hint="make it smaller",
        )
    if size_bytes > RATIO_COUNTS_FROM and size_bytes > MAX_RATIO * packed_bytes:
        raise ArchiveError(
            f"{quoted(name)} unpacks to {size_bytes // max(packed_bytes, 1)} times its size, "
            f"the limit is {MAX_RATIO}",
            hint="save the picture itself",
        )


def check_list(file: BinaryIO, name: str) -> None:
    """Raises ArchiveError for a zip of too many members, before a list of them is made.

    What the end of the file says of their number is not believed: the list is walked.
    """
    size_bytes = file.seek(0, os.SEEK_END)
    tail_at = max(0, size_bytes - _END.size - 0xFFFF)
    file.seek(tail_at)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise ArchiveError(f"{quoted(name)} is not a zip archive, or is cut off")
    list_bytes = _END.unpack_from(tail, at)[5]
    end = tail_at + at
    file.seek(max(0, end - _END64.size - LOCATOR_BYTES))
    further = file.read(_END64.size + LOCATOR_BYTES)
    # as zipfile reads it: only with both of them it is a zip64, and that counts
    if further[_END64.size :].startswith(b"PK\6\7") and further.startswith(b"PK\6\6"):
        list_bytes = _END64.unpack_from(further)[8]
        end -= len(further)
    if list_bytes > end:
        raise ArchiveError(f"{quoted(name)} is damaged: its list of members is cut off")
    file.seek(end - list_bytes)  # it stands in front of its end, also behind bytes of another file
    listed = file.read(min(list_bytes, (MAX_MEMBERS + 1) * 0x400))
    at = count = 0
    while at + _ENTRY.size <= len(listed) and listed[at : at + 4] == b"PK\1\2":
        lengths = struct.unpack_from("<3H", listed, at + 28)
        at += 46 + sum(lengths)
        count += 1
        if count > MAX_MEMBERS:
            raise ArchiveError(
                f"{quoted(name)} has more than {MAX_MEMBERS} members",
                hint="cut it into several archives",
            )
    if at < list_bytes and len(listed) < list_bytes:
        raise ArchiveError(f"{quoted(name)} has a list of members of {list_bytes >> 20} MiB")


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """What is wrong with the file of an archive, in words."""
    try:
        yield
    except FileNotFoundError as err:
        raise InputNotFoundError(f"{quoted(name)} does not exist") from err
    except PermissionError as err:
        raise InputUnreadableError(f"{quoted(name)} cannot be read") from err
    except _DAMAGE as err:
        raise ArchiveError(f"{quoted(name)} is damaged", hint="make the archive anew") from err


def _zip_members(path: Path, name: str) -> Iterator[Member | Refused]:
    with _reading(name), path.open("rb") as file:
        check_list(file, name)
        infos = zipfile.ZipFile(file).infolist()
    total = sum(info.file_size for info in infos)
    _check_total(total, path.stat().st_size, name)
    for info in infos:
        if info.is_dir():
            continue
        try:
            check_name(info.orig_filename, name)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise _no_file(info.filename, name)
            if info.flag_bits & 1:
                raise ArchiveError(
                    f"{quoted(info.filename)} in {quoted(name)} needs a password",
                    hint="make the archive without one",
                )
        except ArchiveError as err:
            yield Refused(f"{name}/{info.filename}", err)
        else:
            yield Member(info.filename, info.file_size)


def _check_total(total: int, packed_bytes: int, name: str) -> None:
    if total > MAX_TOTAL_BYTES:
        raise ArchiveError(
            f"{quoted(name)} unpacks to {total / 2**30:.1f} GiB, the limit is "
            f"{MAX_TOTAL_BYTES >> 30}",
            hint="cut it into several archives",
        )
    if total > RATIO_COUNTS_FROM and total > MAX_RATIO * packed_bytes:
        raise ArchiveError(
            f"{quoted(name)} unpacks to {total // max(packed_bytes, 1)} times its size, the limit "
            f"is {MAX_RATIO}",
            hint="give the pictures themselves",
        )


def _no_file(member: str, archive: str) -> ArchiveError:
    return ArchiveError(
        f"{quoted(member)} in {quoted(archive)} is a link or a device, not a file",
        hint="make the archive of the files themselves",
    )


def _tar_members(path: Path, name: str) -> Iterator[Member | Refused]:
    with _reading(name), _plain_tar(str(path), name) as file:
        yield from _listed_tar(file, name)


def _listed_tar(file: BinaryIO, name: str) -> Iterator[Member | Refused]:
    """Raises ArchiveError for too many members, and what tarfile raises."""
    file.seek(0)
    count = 0
    size_bytes = os.fstat(file.fileno()).st_size
    with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined] # or all of them are kept
            count += 1
            if count > MAX_MEMBERS:
                raise ArchiveError(
                    f"{quoted(name)} has more than {MAX_MEMBERS} members",
                    hint="cut it into several archives",
                )
            if info.isdir():
                continue
            try:
                check_name(info.name, name)
                if not info.isreg() or info.issparse():
                    raise _no_file(info.name, name)
                if info.offset_data + info.size > size_bytes:
                    raise ArchiveError(f"{quoted(name)} is cut off in {quoted(info.name)}")
            except ArchiveError as err:
                yield Refused(f"{name}/{info.name}", err)
            else:
                yield Member(info.name, info.size, info.offset_data)


def _plain_tar(path: str, name: str) -> BinaryIO:
    """The archive, or a temporary file of what comes out of it. Raises ArchiveError, OSError."""
    openers: dict[bytes, Callable[[str], IO[bytes]]] = {
        b"\x1f\x8b": gzip.open,  # type: ignore[dict-item]
        b"BZh": bz2.open,  # type: ignore[dict-item]
        b"\xfd7zXZ": lzma.open,  # type: ignore[dict-item]
    }
    file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    head = file.read(6)
    opener = next((open_ for mark, open_ in openers.items() if head.startswith(mark)), None)
    if opener is None:
        return file
    file.close()
    packed_bytes = os.stat(path).st_size
    plain = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with opener(path) as stream:
            while piece := stream.read(1 << 20):
                plain.write(piece)
                _check_total(plain.tell(), packed_bytes, name)
    except BaseException:
        plain.close()
        raise
    return plain
