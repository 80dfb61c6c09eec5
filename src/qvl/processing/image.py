"""The one way in for pictures: a path or bytes become upright 8-bit sRGB pixels, or a typed error.

Main path: read_image -> _read_encoded -> _Pool.decode -> _Worker.decode, which asks a process of its
own (decode_worker.py). Nothing here parses a picture: the process that does is limited in time, memory
and files, may crash or hang, and is replaced when it did.
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import json
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL

from qvl.errors import (
    EngineError,
    ImageAspectError,
    ImageDecodeError,
    ImageTooLargeError,
    InputNotFoundError,
    InputUnreadableError,
    InvalidParamError,
    UnsupportedMediaError,
)
from qvl.processing.patches import MAX_ASPECT
from qvl.processing.worker import Decoded, Refused, Worker, WorkerDiedError, WorkerTimedOutError
from qvl.types import Image, Url

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
DECODE_MEMORY_BYTES = 3 * 2**29
DECODE_WALL_S = 10
# Memory that decoders leak or fragment is given back this often.
PICTURES_PER_WORKER = 1000
MAX_NAME_SHOWN = 200

_REFUSALS = {
    kind.code: kind
    for kind in (ImageDecodeError, UnsupportedMediaError, ImageTooLargeError, ImageAspectError)
}


@dataclass(frozen=True, slots=True)
class Picture:
    """pixels: uint8 [H, W, 3], upright sRGB, C-contiguous; sha256: hex, of the encoded bytes."""

    pixels: np.ndarray
    sha256: str
    name: str
    notes: tuple[str, ...]


def read_image(image: Image) -> Picture:
    """The decoded picture. Safe to call from several threads; each waits for a decoder of its own.

    Raises InputNotFoundError, InputUnreadableError and InvalidParamError for the path,
    UnsupportedMediaError, ImageDecodeError, ImageTooLargeError and ImageAspectError for the content,
    EngineError when no decoder can be started.
    """
    name = quoted(image.name)
    encoded = _read_encoded(image)
    try:
        answer = _POOL.decode(encoded)
    except WorkerTimedOutError as err:
        raise ImageDecodeError(
            f"{name} was not decoded within {DECODE_WALL_S} s",
            hint="save it as a plain JPEG or PNG",
        ) from err
    except WorkerDiedError as err:
        raise ImageDecodeError(
            f"{name} made the picture decoder crash", hint="save it as a plain JPEG or PNG"
        ) from err
    if isinstance(answer, Refused):
        raise _REFUSALS[answer.code](f"{name} {answer.message}", hint=answer.hint)
    return Picture(answer.pixels, hashlib.sha256(encoded).hexdigest(), image.name, answer.notes)


def quoted(name: str) -> str:
    """A name for a message: in quotes, control characters escaped, the middle of long ones left out."""
    if len(name) > MAX_NAME_SHOWN:
        name = f"{name[: MAX_NAME_SHOWN // 2]}...{name[-MAX_NAME_SHOWN // 2 :]}"
    return repr(name)


def _read_encoded(image: Image) -> bytes:
    """The picture's file, at most MAX_BYTES; raises the errors that read_image names for paths."""
    name = quoted(image.name)
    match image.source:
        case bytes(encoded):
            pass
        case Path() as path:
            encoded = _read_file(path, name)
        case Url():
            raise UnsupportedMediaError(f"{name} is an address, and only local files are read yet")
    if len(encoded) > MAX_BYTES:
        raise _too_many_bytes(name, len(encoded))
    if not encoded:
        raise ImageDecodeError(f"{name} is empty: 0 bytes", hint="download or copy it again")
    return encoded


def _read_file(path: Path, name: str) -> bytes:
    with opened(path, name) as fd:
        size_bytes = os.fstat(fd).st_size
        if size_bytes > MAX_BYTES:
            raise _too_many_bytes(name, size_bytes)
        encoded = bytearray()
        # One byte more than allowed: the file may have grown since.
        while piece := os.read(fd, min(1 << 20, MAX_BYTES + 1 - len(encoded))):
            encoded += piece
        return bytes(encoded)


@contextmanager
def opened(path: Path, name: str) -> Iterator[int]:
    """A file that is open for reading, by its number; what fails in the block while reading, too.

    Raises InputNotFoundError, InputUnreadableError and InvalidParamError, which call it `name`.
    """
    try:
        # O_NONBLOCK: a FIFO opens at once instead of when somebody writes to it.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as err:
        raise InputNotFoundError(
            f"{name} does not exist", hint="check the path and the current folder"
        ) from err
    except ValueError as err:  # a NUL, or a character that no file name can hold
        raise InvalidParamError(f"{name} cannot be a path") from err
    except OSError as err:
        if err.errno == errno.ENAMETOOLONG:
            raise InvalidParamError(f"{name} is too long for a path") from err
        raise _unreadable(name, err) from err
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            is_folder = stat.S_ISDIR(mode)
            raise InputUnreadableError(
                f"{name} is a folder" if is_folder else f"{name} is not a regular file",
                hint="give the files in it" if is_folder else "save it to a regular file first",
            )
        yield fd
    except OSError as err:
        raise _unreadable(name, err) from err
    finally:
        os.close(fd)


def _unreadable(name: str, err: OSError) -> InputUnreadableError:
    reason = os.strerror(err.errno).lower() if err.errno else "input/output error"
    denied = isinstance(err, PermissionError)
    hint = "check who may read the file and its folders" if denied else None
    return InputUnreadableError(f"{name} cannot be read: {reason}", hint=hint)


def _too_many_bytes(name: str, size_bytes: int) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"{name} has {size_bytes / 2**20:.1f} MiB, the limit is {MAX_BYTES // 2**20}",
        hint="make it smaller or save it as JPEG",
    )


class _Worker(Worker):
    """A decoder of pictures, one after the other."""

    def __init__(self) -> None:
        limits = {
            "pixels": MAX_PIXELS,
            "aspect": MAX_ASPECT,
            "memory_bytes": DECODE_MEMORY_BYTES,
            "wall_s": DECODE_WALL_S,
        }
        script = Path(__file__).resolve().with_name("decode_worker.py")
        pillow_folder = Path(PIL.__file__).resolve().parents[1]
        self.pictures = 0
        super().__init__(script, pillow_folder, json.dumps(limits), max_pixels=MAX_PIXELS)

    def decode(self, encoded: bytes) -> Decoded | Refused:
        self.pictures += 1
        with self.killed_after(DECODE_WALL_S):
            self.write(len(encoded).to_bytes(8, "little"))
            self.write(encoded)
            answer = self.picture()
        if isinstance(answer, Refused) and answer.code not in _REFUSALS:
            raise WorkerDiedError
        return answer


class _Pool:
    """Workers, started when first needed, at most one for each processor.

    A list and a set without a lock: pop, append, add and discard are atomic.
    """

    def __init__(self) -> None:
        self._slots = threading.BoundedSemaphore(os.cpu_count() or 1)
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()

    def decode(self, encoded: bytes) -> Decoded | Refused:
        with self._slots:
            try:
                return self._ask(self._take_idle() or self._start(), encoded)
            except WorkerDiedError:
                # Somebody else may have killed it (the kernel, when memory is short): the picture is
                # blamed if a new worker dies too.
                return self._ask(self._start(), encoded)

    def _ask(self, worker: _Worker, encoded: bytes) -> Decoded | Refused:
        try:
            answer = worker.decode(encoded)
        except BaseException:  # Ctrl-C too: the next user would read this picture's answer
            self._drop(worker)
            raise
        if worker.pictures < PICTURES_PER_WORKER:
            self._idle.append(worker)
        else:
            self._drop(worker)
        return answer

    def _take_idle(self) -> _Worker | None:
        while True:
            try:
                worker = self._idle.pop()
            except IndexError:
                return None
            if worker.process.poll() is None:
                return worker
            self._drop(worker)

    def _start(self) -> _Worker:
        try:
            worker = _Worker()
        except OSError as err:
            raise EngineError(
                "the picture decoder cannot be started: " + os.strerror(err.errno or errno.EIO)
            ) from err
        self._all.add(worker)
        try:
            worker.wait_until_ready()
        except BaseException as err:
            self._drop(worker)
            if isinstance(err, WorkerDiedError | WorkerTimedOutError):
                raise EngineError(
                    "the picture decoder does not start",
                    hint="check that `python -c 'import PIL.ImageCms'` works",
                ) from err
            raise
        return worker

    def _drop(self, worker: _Worker) -> None:
        worker.stop()
        self._all.discard(worker)

    def close(self) -> None:
        """At exit: end every process, also those that threads still wait for."""
        self._idle.clear()
        for worker in tuple(self._all):
            self._drop(worker)

    def forget(self) -> None:
        """In a forked child: the workers are the parent's, their answers too."""
        for worker in self._all:
            worker.close_pipes()
            worker.process.returncode = 0  # not a child of this process: nothing to wait for
        self.__init__()


_POOL = _Pool()
atexit.register(_POOL.close)
os.register_at_fork(after_in_child=_POOL.forget)
