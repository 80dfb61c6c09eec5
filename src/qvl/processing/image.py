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
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import cast

import numpy as np
import PIL

from qvl.errors import (
    EngineError,
    ImageAspectError,
    ImageDecodeError,
    ImageTooLargeError,
    InputError,
    InputNotFoundError,
    InputUnreadableError,
    InvalidParamError,
    UnsupportedMediaError,
)
from qvl.processing.patches import MAX_ASPECT
from qvl.types import Image

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
DECODE_MEMORY_BYTES = 3 * 2**29
DECODE_WALL_S = 10
START_WALL_S = 60
# Memory that decoders leak or fragment is given back this often.
PICTURES_PER_WORKER = 1000
# A worker's answer starts with a JSON object; a longer one is not of our making.
MAX_HEADER_BYTES = 65536
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
    name = _quoted(image.name)
    encoded = _read_encoded(image)
    try:
        answer = _POOL.decode(encoded)
    except _WorkerTimedOutError as err:
        raise ImageDecodeError(
            f"{name} was not decoded within {DECODE_WALL_S} s",
            hint="save it as a plain JPEG or PNG",
        ) from err
    except _WorkerDiedError as err:
        raise ImageDecodeError(
            f"{name} made the picture decoder crash", hint="save it as a plain JPEG or PNG"
        ) from err
    if isinstance(answer, _Refused):
        raise answer.kind(f"{name} {answer.message}", hint=answer.hint)
    return Picture(answer.pixels, hashlib.sha256(encoded).hexdigest(), image.name, answer.notes)


def _quoted(name: str) -> str:
    """A name for a message: in quotes, control characters escaped, the middle of long ones left out."""
    if len(name) > MAX_NAME_SHOWN:
        name = f"{name[: MAX_NAME_SHOWN // 2]}...{name[-MAX_NAME_SHOWN // 2 :]}"
    return repr(name)


def _read_encoded(image: Image) -> bytes:
    """The picture's file, at most MAX_BYTES; raises the errors that read_image names for paths."""
    name = _quoted(image.name)
    encoded = image.source if isinstance(image.source, bytes) else _read_file(image.source, name)
    if len(encoded) > MAX_BYTES:
        raise _too_many_bytes(name, len(encoded))
    if not encoded:
        raise ImageDecodeError(f"{name} is empty: 0 bytes", hint="download or copy it again")
    return encoded


def _read_file(path: Path, name: str) -> bytes:
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
        return _read_regular(fd, name)
    except OSError as err:
        raise _unreadable(name, err) from err
    finally:
        os.close(fd)


def _read_regular(fd: int, name: str) -> bytes:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        is_folder = stat.S_ISDIR(status.st_mode)
        raise InputUnreadableError(
            f"{name} is a folder" if is_folder else f"{name} is not a regular file",
            hint="give the pictures in it" if is_folder else "save the picture to a file first",
        )
    if status.st_size > MAX_BYTES:
        raise _too_many_bytes(name, status.st_size)
    encoded = bytearray()
    # One byte more than allowed: the file may have grown since.
    while piece := os.read(fd, min(1 << 20, MAX_BYTES + 1 - len(encoded))):
        encoded += piece
    return bytes(encoded)


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


class _WorkerDiedError(Exception):
    """The process ended, or said something that is not an answer."""


class _WorkerTimedOutError(Exception):
    """The process was killed at its wall time."""


@dataclass(frozen=True, slots=True)
class _Decoded:
    pixels: np.ndarray
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Refused:
    kind: type[InputError]
    message: str
    hint: str | None


class _Worker:
    """One decoder process, used by one thread at a time. After any exception it must be stopped."""

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
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", script, pillow_folder, json.dumps(limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            env={},
            process_group=0,  # out of reach of the terminal's Ctrl-C
        )
        self.questions = cast(FileIO, self.process.stdin)
        self.answers = cast(FileIO, self.process.stdout)

    def wait_until_ready(self) -> None:
        with self._killed_after(START_WALL_S):
            self._read(1)

    def decode(self, encoded: bytes) -> _Decoded | _Refused:
        self.pictures += 1
        with self._killed_after(DECODE_WALL_S):
            self._write(len(encoded).to_bytes(8, "little"))
            self._write(encoded)
            length = int.from_bytes(self._read(4), "little")
            if length > MAX_HEADER_BYTES:
                raise _WorkerDiedError
            answer = _parse_answer(bytes(self._read(length)))
            if isinstance(answer, _Decoded):
                self._read_into(answer.pixels.data.cast("B"))
            return answer

    def stop(self) -> None:
        self.process.kill()
        self.close_pipes()
        self.process.wait()

    def close_pipes(self) -> None:
        self.questions.close()
        self.answers.close()

    @contextmanager
    def _killed_after(self, wall_s: float) -> Iterator[None]:
        """Kills the process if the block lasts longer; its end then makes the block fail."""
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self.process.kill()

        timer = threading.Timer(wall_s, expire)
        timer.daemon = True
        start = time.monotonic()
        timer.start()
        try:
            yield
        except _WorkerDiedError as err:
            # Much later than it should: this process itself was suspended, the worker was not slow.
            was_suspended = time.monotonic() - start > 2 * wall_s
            if expired.is_set() and not was_suspended:
                raise _WorkerTimedOutError from err
            raise
        finally:
            timer.cancel()
            timer.join()

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[self.questions.write(left) :]
        except BrokenPipeError as err:
            raise _WorkerDiedError from err

    def _read(self, count: int) -> bytearray:
        data = bytearray(count)
        self._read_into(memoryview(data))
        return data

    def _read_into(self, left: memoryview) -> None:
        while left:
            count = self.answers.readinto(left)
            if not count:
                raise _WorkerDiedError
            left = left[count:]


def _parse_answer(header: bytes) -> _Decoded | _Refused:
    """The answer with room for its pixels. The worker is not trusted: it has met a hostile file."""
    try:
        answer = json.loads(header)
        if "error" in answer:
            hint = answer["hint"]
            message = str(answer["message"])
            return _Refused(
                _REFUSALS[answer["error"]], message, None if hint is None else str(hint)
            )
        width, height = int(answer["width"]), int(answer["height"])
        notes = tuple(str(note) for note in answer["notes"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as err:
        raise _WorkerDiedError from err
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise _WorkerDiedError
    return _Decoded(np.empty((height, width, 3), np.uint8), notes)


class _Pool:
    """Workers, started when first needed, at most one for each processor.

    A list and a set without a lock: pop, append, add and discard are atomic.
    """

    def __init__(self) -> None:
        self._slots = threading.BoundedSemaphore(os.cpu_count() or 1)
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()

    def decode(self, encoded: bytes) -> _Decoded | _Refused:
        with self._slots:
            try:
                return self._ask(self._take_idle() or self._start(), encoded)
            except _WorkerDiedError:
                # Somebody else may have killed it (the kernel, when memory is short): the picture is
                # blamed if a new worker dies too.
                return self._ask(self._start(), encoded)

    def _ask(self, worker: _Worker, encoded: bytes) -> _Decoded | _Refused:
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
            if isinstance(err, _WorkerDiedError | _WorkerTimedOutError):
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
