"""The process that decodes a foreign file, from the side of who asks: its pipes, its time, its end.

A worker is not trusted: it has met a hostile file. It may crash, hang or say anything.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from io import FileIO
from pathlib import Path
from typing import Any, cast

import numpy as np

START_WALL_S = 60
# A worker's answer starts with a JSON object; a longer one is not of our making.
MAX_HEADER_BYTES = 65536


class WorkerDiedError(Exception):
    """The process ended, or said something that is not an answer."""


class WorkerTimedOutError(Exception):
    """The process was killed at its wall time."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """pixels: uint8 [H, W, 3], upright sRGB; `as_stored`: as any decoder shows them."""

    pixels: np.ndarray
    notes: tuple[str, ...]
    as_stored: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """`code` is that of a class in qvl.errors."""

    code: str
    message: str
    hint: str | None


def folders_of(*packages: str) -> list[str] | None:
    """Where a process that knows only the standard library finds them; None if one is not installed."""
    specs = [find_spec(package) for package in packages]
    origins = [spec.origin for spec in specs if spec is not None and spec.origin is not None]
    if len(origins) < len(packages):
        return None
    return [str(Path(origin).resolve().parents[1]) for origin in origins]


class Worker:
    """One decoder process, used by one thread at a time. After any exception it must be stopped.

    `files` are open in the process under the same numbers; with a group of its own the terminal's
    Ctrl-C does not reach it. Raises OSError when nothing starts.
    """

    def __init__(
        self,
        script: Path,
        *args: str | Path,
        max_pixels: int,
        files: Sequence[int] = (),
        own_group: bool = True,
    ) -> None:
        self.max_pixels = max_pixels
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", script, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            env={},
            process_group=0 if own_group else None,
            pass_fds=tuple(files),
        )
        self.questions = cast(FileIO, self.process.stdin)
        self.answers = cast(FileIO, self.process.stdout)

    def wait_until_ready(self) -> None:
        with self.killed_after(START_WALL_S):
            self.read(1)

    def picture(self) -> Decoded | Refused:
        """The next answer: a header, and after one that is no refusal the pixels that it tells of."""
        header = self.header()
        if isinstance(header, Refused):
            return header
        try:
            width, height = int(header["width"]), int(header["height"])
            notes = tuple(str(note) for note in header["notes"])
        except (ValueError, KeyError, TypeError, OverflowError) as err:
            raise WorkerDiedError from err
        if width < 1 or height < 1 or width * height > self.max_pixels:
            raise WorkerDiedError
        pixels = np.empty((height, width, 3), np.uint8)
        self.read_into(pixels.data.cast("B"))
        return Decoded(pixels, notes, header.get("as_stored") is True)

    def header(self) -> dict[str, Any] | Refused:
        length = int.from_bytes(self.read(4), "little")
        if length > MAX_HEADER_BYTES:
            raise WorkerDiedError
        try:
            header = json.loads(bytes(self.read(length)))
            if not isinstance(header, dict):
                raise WorkerDiedError
            if "error" not in header:
                return header
            hint = header["hint"]
            return Refused(
                str(header["error"]), str(header["message"]), None if hint is None else str(hint)
            )
        except (ValueError, KeyError, TypeError, RecursionError) as err:
            raise WorkerDiedError from err

    def stop(self) -> None:
        self.process.kill()
        self.close_pipes()
        self.process.wait()

    def close_pipes(self) -> None:
        self.questions.close()
        self.answers.close()

    @contextmanager
    def killed_after(self, wall_s: float) -> Iterator[None]:
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
        except WorkerDiedError as err:
            # Much later than it should: this process itself was suspended, the worker was not slow.
            was_suspended = time.monotonic() - start > 2 * wall_s
            if expired.is_set() and not was_suspended:
                raise WorkerTimedOutError from err
            raise
        finally:
            timer.cancel()
            timer.join()

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[self.questions.write(left) :]
        except BrokenPipeError as err:
            raise WorkerDiedError from err

    def read(self, count: int) -> bytearray:
        data = bytearray(count)
        self.read_into(memoryview(data))
        return data

    def read_into(self, left: memoryview) -> None:
        while left:
            count = self.answers.readinto(left)
            if not count:
                raise WorkerDiedError
            left = left[count:]
