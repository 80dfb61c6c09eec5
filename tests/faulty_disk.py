"""Disks for the store that fail at a chosen call, write short, or lose what was not synced."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

from qvl.runs.disk import Disk


class QuickDisk(Disk):
    """Syncs nothing: for tests in which the machine stays up."""

    def fsync(self, descriptor: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


class FailingDisk(QuickDisk):
    """Fails at the `at`-th call (from 1) of one kind, or of any; and, if asked, at all that follow."""

    def __init__(self, call: str, at: int, code: int, *, persistent: bool = False) -> None:
        self._call, self._at, self._code, self._persistent = call, at, code, persistent
        self.calls: list[tuple[str, int]] = []  # with the descriptor, or 0
        self.has_failed = False
        self.synced_after: set[int] = set()  # files that were synced again after that had failed
        self._broken: set[int] = set()  # inodes whose fsync failed

    def fail_next(self) -> None:
        """Of its kind."""
        self._at = 1 + sum(1 for name, _ in self.calls if name == self._call)

    def _count(self, call: str, descriptor: int = 0) -> None:
        self.calls.append((call, descriptor))
        inode = os.fstat(descriptor).st_ino if descriptor else 0
        if call == "fsync" and inode in self._broken:
            self.synced_after.add(inode)
        number = sum(1 for name, _ in self.calls if self._call in ("any", name))
        due = number == self._at and self._call in ("any", call)
        if due or (self.has_failed and self._persistent):
            self.has_failed = True
            if call == "fsync":
                self._broken.add(inode)
            raise OSError(self._code, os.strerror(self._code))

    def open(self, path: Path, *, mode: int = 0o600) -> int:
        self._count("open")
        return super().open(path, mode=mode)

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        try:
            self._count("write", descriptor)
        except OSError:
            if self._code == errno.ENOSPC:  # as a full disk does: what still fits, then the error
                super().write(descriptor, data[: len(data) // 3], offset)
            raise
        return super().write(descriptor, data, offset)

    def fsync(self, descriptor: int) -> None:
        self._count("fsync", descriptor)
        super().fsync(descriptor)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        self._count("truncate", descriptor)
        super().truncate(descriptor, size_bytes)

    def replace(self, old: Path, new: Path) -> None:
        self._count("replace")
        super().replace(old, new)

    def unlink(self, path: Path) -> None:
        if path.exists():
            self._broken.discard(path.stat().st_ino)  # another file may have that number next
        super().unlink(path)

    def make_folder(self, path: Path, *, mode: int = 0o777) -> None:
        self._count("make_folder")
        super().make_folder(path, mode=mode)

    def sync_folder(self, path: Path) -> None:
        self._count("sync_folder")
        super().sync_folder(path)


class ShortDisk(Disk):
    """Writes at most so many bytes a call."""

    def __init__(self, most: int) -> None:
        self._most = most

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        return super().write(descriptor, data[: self._most], offset)


class LosingDisk(Disk):
    """Knows what was synced, and calls `moment` wherever the power may go: there `after_power_loss` shows
    what the disk may hold then.

    Of what was written since, each sector of 512 bytes may have landed or not, in any order; a file's new
    length may be kept or not; files and new names whose folder was not synced may be gone.
    """

    def __init__(self, moment: Callable[[], None] = lambda: None) -> None:
        self.synced: dict[int, bytearray] = {}  # by inode
        self.named: dict[Path, int] = {}  # path -> inode, as the folders were synced
        self.files: dict[Path, int] = {}  # as they are now
        self._dirty: dict[int, list[tuple[int, bytes]]] = {}  # what the next fsync writes, by inode
        self.moment = moment
        self.fails_to_sync = self.is_broken = False

    def _check(self) -> None:
        if self.is_broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def open(self, path: Path, *, mode: int = 0o600) -> int:
        self._check()
        descriptor = super().open(path, mode=mode)
        self.files[path] = os.fstat(descriptor).st_ino
        return descriptor

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        self._check()
        written = super().write(descriptor, data, offset)
        dirty = self._dirty.setdefault(os.fstat(descriptor).st_ino, [])
        dirty.append((offset, bytes(data[:written])))
        self.moment()
        return written

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        self._check()
        super().truncate(descriptor, size_bytes)
        self.moment()

    def fsync(self, descriptor: int) -> None:
        """One that fails drops what it should have written, as Linux does, and the disk is broken."""
        self._check()
        inode = os.fstat(descriptor).st_ino
        dirty = self._dirty.pop(inode, [])
        if self.fails_to_sync:
            self.fails_to_sync, self.is_broken = False, True
            self._check()
        synced = self.synced.setdefault(inode, bytearray())
        size_bytes = os.fstat(descriptor).st_size
        synced[size_bytes:] = bytes(max(0, size_bytes - len(synced)))
        for offset, data in dirty:
            synced[offset : offset + len(data)] = data
        del synced[size_bytes:]

    def replace(self, old: Path, new: Path) -> None:
        super().replace(old, new)
        self.files[new] = self.files.pop(old)
        self.moment()

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.files.pop(path, None)

    def sync_folder(self, path: Path) -> None:
        mine = {p: i for p, i in self.named.items() if p.parent != path}
        self.named = mine | {p: i for p, i in self.files.items() if p.parent == path}

    def after_power_loss(self, folder: Path, into: Path, draw: random.Random) -> None:
        """Write what the disk may hold of a folder into another one."""
        into.mkdir()
        now = {inode: path for path, inode in self.files.items()}
        for path in {*self.named, *self.files}:
            if path.parent != folder:
                continue
            old, new = self.named.get(path), self.files.get(path)
            inode = draw.choice([old, new])
            if inode is None:
                continue
            kept = bytes(self.synced.get(inode, b""))
            if inode in now and self._dirty.get(inode):
                kept = _landed(kept, now[inode].read_bytes(), draw)
            (into / path.name).write_bytes(kept)


def _landed(synced: bytes, written: bytes, draw: random.Random) -> bytes:
    if len(written) < len(synced):  # cut since
        return draw.choice([synced, written])
    data, chance = bytearray(written), draw.choice([0.05, 0.3, 0.6])
    for start in range(0, len(data), 512):
        sector = slice(start, min(start + 512, len(data)))
        if data[sector] != synced[sector] and draw.random() < chance:
            old = synced[sector]
            data[sector] = old + bytes(len(data[sector]) - len(old))
    size_bytes = draw.choice([len(data), draw.randint(len(synced), len(data))])
    return bytes(data[:size_bytes])
