"""Files that are whole or absent, whenever the program or the machine stops.

A file is made under another name in the same folder, brought to the disk, and takes its name then; the
folder is brought to the disk too. What a killed program left is overwritten by the next one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qvl.errors import StorageError


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """An empty file in the target's folder, which is made; it becomes the target when the block ends.

    Where the block raises, the target stays as it was. An OSError becomes StorageError, and so does a
    second program that writes the same target now.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _own(part)
    except BlockingIOError as err:
        raise StorageError(
            f"{target.name!r} is being written by another program", hint="wait until it is done"
        ) from err
    except OSError as err:
        raise _not_written(target, err) from err
    try:
        yield part
        sync(part)
        os.replace(part, target)
        sync(target.parent)
    except BaseException as err:
        with suppress(OSError):
            part.unlink()
        if isinstance(err, OSError):
            raise _not_written(target, err) from err
        raise
    finally:
        os.close(descriptor)


def write_whole(target: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises StorageError."""
    with whole_file(target) as part:
        part.write_bytes(data)


def sync(path: Path) -> None:
    """Bring a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _own(part: Path) -> int:
    """The empty file, open and locked. Raises BlockingIOError where another program has it."""
    while True:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                # its maker may have renamed it between the two calls: then it is the target now
                if os.path.samestat(os.fstat(descriptor), os.stat(part)):
                    os.ftruncate(descriptor, 0)
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _not_written(target: Path, err: OSError) -> StorageError:
    return StorageError(
        f"{target.name!r} cannot be written: {err.strerror or 'the disk refuses it'}",
        hint="choose another place, or free some space",
    )
