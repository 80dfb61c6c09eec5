"""One process at a time works on a run: `flock` on a file that is never removed.

A process that ends, however it ends, frees it. Children do not keep it: a spawned one does not get the
descriptor, a forked one closes it. Where the folder is on a network file system, or flock turns out to
keep nobody out, a second file beside it says which process of which boot of which machine has the lock.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qvl.errors import RunLockedError, StorageError

log = logging.getLogger(__name__)
PATIENCE_S = 0.3  # `is_held` takes a lock for a moment, which is nobody's work
NETWORK = ("nfs", "cifs", "smb", "fuse", "9p", "afs", "ceph", "gluster", "lustre", "virtiofs")
MOUNTS, BOOT = Path("/proc/self/mountinfo"), Path("/proc/sys/kernel/random/boot_id")


class Lock:
    """Held from the moment it is made until `close`."""

    def __init__(self, path: Path, what: str, *, patience_s: float = PATIENCE_S) -> None:
        """Raises RunLockedError naming the process that holds it, StorageError."""
        self._what, self._owner_file = what, path.with_name(path.name + ".owner")
        self._has_file = False
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            _HELD.add(self)
            works = self._wait(path, time.monotonic() + patience_s)
            kind = network_file_system(path)
            if kind is not None:
                log.warning(
                    "%s is on a network file system (%s): a local disk is safer and faster",
                    what,
                    kind,
                )
            if kind is not None or not works:
                self._make_file()
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(_me()).encode() + b"\n", 0)
        except OSError as err:
            self.close()
            raise StorageError(
                f"{what} cannot be locked: {err.strerror}",
                hint="make the folder writable, or choose another place",
            ) from err
        except RunLockedError:
            self.close()
            raise

    def _wait(self, path: Path, end_s: float) -> bool:
        """Take the flock; False where it keeps nobody out."""
        while True:
            try:
                return _flock(self._descriptor) and not _may_take(path)
            except BlockingIOError as err:
                if time.monotonic() >= end_s:
                    raise _locked(self._what, _read(path)) from err
                time.sleep(0.02)

    def _make_file(self) -> None:
        for _ in range(2):
            with suppress(FileExistsError):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                descriptor = os.open(self._owner_file, flags, 0o600)
                with open(descriptor, "wb") as file:
                    file.write(json.dumps(_me()).encode() + b"\n")
                self._has_file = True
                return
            owner = _read(self._owner_file)
            if not _is_gone(owner):
                break
            self._owner_file.unlink(missing_ok=True)
        raise _locked(self._what, owner, f"if that is gone, remove {self._owner_file.name!r}")

    def close(self) -> None:
        if self._has_file:
            self._owner_file.unlink(missing_ok=True)
            self._has_file = False
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _leave_to_parent(self) -> None:
        self._has_file = False
        self.close()


_HELD: weakref.WeakSet[Lock] = weakref.WeakSet()


def _after_fork() -> None:
    for lock in list(_HELD):
        lock._leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock now; it is not disturbed by the question."""
    if not path.exists():
        return False
    owner_file = path.with_name(path.name + ".owner")
    if owner_file.exists() and not _is_gone(_read(owner_file)):
        return True
    try:
        return not _may_take(path)
    except OSError:
        return False


def forget(path: Path) -> None:
    """For who knows that the process has ended which held the lock, on whatever machine that ran."""
    path.with_name(path.name + ".owner").unlink(missing_ok=True)


def network_file_system(path: Path) -> str | None:
    """The kind of the network file system that a path is on; None on a local disk."""
    try:
        lines = MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:  # no Linux
        return None
    place, best, kind = str(path.resolve()), "", ""
    for fields in map(str.split, lines):
        point = fields[4].encode("latin-1", "replace").decode("unicode_escape")
        inside = point == "/" or place == point or place.startswith(point + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[fields.index("-") + 1]
    return kind if kind.startswith(NETWORK) else None


def _flock(descriptor: int) -> bool:
    """Take it or raise BlockingIOError; False where the file system has no such locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        if err.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return False
        raise
    return True


def _may_take(path: Path) -> bool:
    """Whether the lock can be had by another descriptor now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return _flock(descriptor)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _me() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "boot": _boot()}


def _boot() -> str:
    try:
        return BOOT.read_text("ascii").strip()
    except OSError:
        return ""


def _read(path: Path) -> Mapping[str, Any]:
    with suppress(OSError, ValueError):
        owner = json.loads(path.read_bytes())
        if isinstance(owner, dict):
            return owner
    return {}


def _is_gone(owner: Mapping[str, Any]) -> bool:
    """Whether the process that a file names has ended, as far as this machine can know."""
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("pid"), int):
        return False
    if owner.get("boot") != _boot():
        return True
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _locked(what: str, owner: Mapping[str, Any], or_else: str = "") -> RunLockedError:
    by = f"process {owner['pid']}" if "pid" in owner else "another process"
    if owner.get("host", socket.gethostname()) != socket.gethostname():
        by += f" of {owner['host']}"
    return RunLockedError(
        f"{what} is locked by {by}",
        hint="; ".join(filter(None, ["wait for it, or stop it", or_else])),
    )
