"""Files that are there whole, or not at all: what a reader or a power loss finds is old or new."""

from __future__ import annotations

import fcntl
import io
import os
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
    path: Path, *, hint: str = HINT, shown: str = "", mode: int = 0o666, disk: Disk = DISK
) -> Iterator[Path]:
    """An empty file in the same folder, for any library to write to, that becomes `path` when the
    block ends. The folder is made; when the block raises, nothing is left of it.

    Raises StorageError, whose message calls the file by its path, or as `shown` says; also where
    another program writes the same file now.
    """
    partial = path.with_name(f".{path.name}.part")
    shown = shown or repr(str(path))
    with writing(shown, hint):
        disk.make_folder(path.parent)
        descriptor = _own(partial, shown, mode, disk)
    try:
        with writing(shown, hint):
            yield partial
            disk.fsync(descriptor)
            disk.replace(partial, path)
            disk.sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            disk.unlink(partial)
        raise
    finally:
        disk.close(descriptor)


def _own(partial: Path, shown: str, mode: int, disk: Disk) -> int:
    """The empty file, open and locked; what a killed program left of it is gone."""
    while True:
        descriptor = disk.open(partial, mode=mode)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                # its maker may have renamed it between the two calls: then it is the target now
                if os.path.samestat(os.fstat(descriptor), os.stat(partial)):
                    disk.truncate(descriptor, 0)
                    return descriptor
        except BlockingIOError as err:
            disk.close(descriptor)
            raise StorageError(
                f"{shown} is being written by another program", hint="wait until it is done"
            ) from err
        except BaseException:
            disk.close(descriptor)
            raise
        disk.close(descriptor)


@contextmanager
def whole(
    path: Path, *, hint: str = HINT, shown: str = "", mode: int = 0o666, disk: Disk = DISK
) -> Iterator[Appended]:
    """A stream of bytes that become the file when the block ends. Raises StorageError."""
    shown = shown or repr(str(path))
    with whole_file(path, hint=hint, shown=shown, mode=mode, disk=disk) as partial:
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
