"""What the store asks of the machine: a few calls on files, and the wall clock.

Tests put another one in its place that fails at the k-th call, writes short, or loses what was not
synced. Reading needs no such care and goes through `open` as anywhere.
"""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from pathlib import Path


class Disk:
    """Each call is the system call of that name, and raises OSError as that does."""

    def open(self, path: Path, *, mode: int = 0o600) -> int:
        """A descriptor to write to; the file is made where there is none."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, mode)

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        """How many bytes were written, which may be fewer than given."""
        return os.pwrite(descriptor, data, offset)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        os.ftruncate(descriptor, size_bytes)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def replace(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def make_folder(self, path: Path, *, mode: int = 0o777) -> None:
        path.mkdir(parents=True, exist_ok=True, mode=mode)

    def sync_folder(self, path: Path) -> None:
        """Without this a new or renamed file may be gone after a power loss, whole as it was."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def now(self) -> str:
        """The wall clock in ISO 8601, for people: nothing is ordered or measured by it."""
        return datetime.now(UTC).isoformat(timespec="milliseconds")


DISK = Disk()


def write_all(disk: Disk, descriptor: int, data: bytes, offset: int) -> None:
    """Write all of it, in as many calls as that takes. Raises OSError."""
    rest = memoryview(data)
    while rest:
        written = disk.write(descriptor, rest, offset)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rest, offset = rest[written:], offset + written
