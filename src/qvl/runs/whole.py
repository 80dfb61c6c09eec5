"""Files that are there whole, or not at all: what a reader or a power loss finds is old or new."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from qvl.errors import StorageError
from qvl.runs.disk import DISK, Disk, write_all

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

HINT = "free some space, or choose another place"
BUFFER_BYTES = 2**20


@contextmanager
def whole_file(
    path: Path, *, hint: str = HINT, shown: str = "", disk: Disk = DISK
) -> Iterator[Path]:
    """The path NAME.part, for any library to write to, that becomes `path` when the block ends.

    The folder is made. When the block raises, nothing is left of it. Raises StorageError, whose message
    calls the file by its path, or as `shown` says.
    """
    partial = path.with_name(path.name + ".part")
    shown = shown or repr(str(path))
    try:
        with writing(shown, hint):
            disk.make_folder(path.parent)
            disk.unlink(
                partial
            )  # of a process that was killed: perhaps longer, or not ours to write
        yield partial
        with writing(shown, hint):
            descriptor = disk.open(partial, mode=0o666)
            try:
                disk.fsync(descriptor)
            finally:
                disk.close(descriptor)
            disk.replace(partial, path)
            disk.sync_folder(path.parent)
    finally:
        with suppress(OSError):
            disk.unlink(partial)


@contextmanager
def whole(
    path: Path, *, hint: str = HINT, shown: str = "", mode: int = 0o666, disk: Disk = DISK
) -> Iterator[Appended]:
    """A stream of bytes that become the file when the block ends. Raises StorageError."""
    shown = shown or repr(str(path))
    with whole_file(path, hint=hint, shown=shown, disk=disk) as partial:
        with writing(shown, hint):
            descriptor = disk.open(partial, mode=mode)
        try:
            stream = Appended(shown, descriptor, hint, disk)
            yield stream
            stream.drain()
        finally:
            disk.close(descriptor)


def write_whole(
    path: Path,
    data: bytes,
    *,
    hint: str = HINT,
    shown: str = "",
    mode: int = 0o666,
    disk: Disk = DISK,
) -> None:
    """The file with these bytes, whole or not at all. Raises StorageError."""
    with whole(path, hint=hint, shown=shown, mode=mode, disk=disk) as stream:
        stream.write(data)


@contextmanager
def writing(shown: str, hint: str) -> Iterator[None]:
    """An OSError becomes a StorageError that says what could not be written."""
    try:
        yield
    except OSError as err:
        raise StorageError(f"{shown} cannot be written: {err.strerror or err}", hint=hint) from err


class Appended(io.RawIOBase):
    """A file that only grows, as a stream; what is written waits in a buffer."""

    def __init__(self, shown: str, descriptor: int, hint: str, disk: Disk) -> None:
        self._shown, self._descriptor, self._hint, self._disk = shown, descriptor, hint, disk
        self._waiting = bytearray()
        self._written_bytes = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._written_bytes + len(self._waiting)

    def write(self, data: ReadableBuffer, /) -> int:
        before = len(self._waiting)
        self._waiting += data
        size_bytes = len(self._waiting) - before
        if len(self._waiting) >= BUFFER_BYTES:
            self.drain()
        return size_bytes

    def drain(self) -> None:
        """Write what waits. Raises StorageError."""
        data = bytes(self._waiting)
        with writing(self._shown, self._hint):
            write_all(self._disk, self._descriptor, data, self._written_bytes)
        self._written_bytes += len(data)
        self._waiting.clear()
