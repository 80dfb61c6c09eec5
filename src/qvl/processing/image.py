"""The one way in for pictures: a file, bytes, an address or a page in, upright 8-bit sRGB pixels out.

Main path: read_image -> source.read_encoded -> _Pool.ask -> _Worker.decode, which asks a process of
its own (decode_worker.py), as read_sizes does of the first bytes alone. Nothing here parses a picture: the
process that does is limited in time, memory and files, may crash or hang, and is replaced when it did.
Pages of documents come from pdf.py.
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL

from qvl.errors import (
    EngineError,
    ImageAspectError,
    ImageDecodeError,
    ImageTooLargeError,
    InvalidParamError,
    QvlError,
    UnsupportedMediaError,
)
from qvl.processing import pdf
from qvl.processing.patches import MAX_ASPECT
from qvl.processing.source import is_pdf, quoted, read_encoded, read_head
from qvl.processing.worker import Decoded, Refused, Worker, WorkerDiedError, WorkerTimedOutError
from qvl.types import Image

MAX_PIXELS = 50_000_000
DECODE_MEMORY_BYTES = 3 * 2**29
DECODE_WALL_S = 10
# Memory that decoders leak or fragment is given back this often.
PICTURES_PER_WORKER = 1000
# The size stands in so many of the first bytes: of most files, of those with a preview, of all.
HEAD_BYTES = (8 * 1024, 256 * 1024, 20 * 2**20)
HEAD_ALONE = 1 << 63  # as decode_worker.py has it, which may not be imported here

_REFUSALS = {
    kind.code: kind
    for kind in (ImageDecodeError, UnsupportedMediaError, ImageTooLargeError, ImageAspectError)
}
A = TypeVar("A")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Picture:
    """pixels: uint8 [H, W, 3], upright sRGB, C-contiguous; sha256: hex, of the encoded bytes, and of a
    document's page "#" and its number after it.

    `as_stored` says that any decoder shows these pixels, but for a colour profile: nothing was turned,
    put on white or converted.
    """

    pixels: np.ndarray
    sha256: str
    name: str
    notes: tuple[str, ...]
    as_stored: bool = False


def read_image(image: Image) -> Picture:
    """The decoded picture. Safe to call from several threads; each waits for a decoder of its own.

    Raises the errors of read_encoded for where it lies, UnsupportedMediaError, ImageDecodeError,
    ImageTooLargeError and ImageAspectError for the content, of a PDF those of pdf.render, EngineError
    when no decoder can be started.
    """
    return read_original(image)[1]


def read_original(image: Image) -> tuple[bytes, Picture]:
    """The encoded bytes as well, read once. Raises as `read_image`."""
    name = quoted(image.name)
    encoded = read_encoded(image)
    sha256 = hashlib.sha256(encoded).hexdigest()
    if is_pdf(encoded):
        page = pdf.render(encoded, image.page, name)
        sha256 = f"{sha256}#{image.page or 1}"
        return encoded, Picture(page.pixels, sha256, image.name, page.notes)
    if image.page is not None:
        raise InvalidParamError(f"{name} is not a PDF document, so it has no page {image.page}")
    try:
        answer = _POOL.ask(_Worker.decode, encoded)
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
        raise _refusal(answer, name)
    return encoded, Picture(answer.pixels, sha256, image.name, answer.notes, answer.as_stored)


def read_sizes(images: Sequence[Image]) -> list[tuple[int, int] | QvlError]:
    """(width, height) of each upright picture, as its first bytes tell, or why it cannot be used.

    Of a PNG or WebP it is as stored. A picture is not known to be sound by that. The errors are those of
    `read_image`; InvalidParamError for an address and for a document, which has no size before it is
    rendered. All are asked for at once, which is several times quicker than one by one.
    """
    told: list[tuple[int, int] | QvlError] = [EngineError("not asked yet")] * len(images)
    left = list(range(len(images)))
    for count in HEAD_BYTES:  # the size may stand behind a preview, or at the very end
        heads: dict[int, bytes] = {}
        wholes: set[int] = set()
        for number in left:
            try:
                heads[number], is_whole = read_head(images[number], count)
                if is_pdf(heads[number]):
                    name = quoted(images[number].name)
                    raise InvalidParamError(f"{name} is a document: its pages have no pixels yet")
                if is_whole:
                    wholes.add(number)
            except QvlError as err:
                told[number] = err
                heads.pop(number, None)
        for number, answer in zip(heads, _sizes(images, heads), strict=True):
            told[number] = answer
        left = [
            number
            for number in heads
            if number not in wholes
            and isinstance(told[number], ImageDecodeError | UnsupportedMediaError)
        ]
    return told


def _sizes(images: Sequence[Image], heads: Mapping[int, bytes]) -> list[tuple[int, int] | QvlError]:
    if not heads:
        return []
    try:
        answers = _POOL.ask(_Worker.sizes, list(heads.values()))
    except (WorkerDiedError, WorkerTimedOutError):  # one of them is to blame
        if len(heads) > 1:
            return [one for n, head in heads.items() for one in _sizes(images, {n: head})]
        name = quoted(images[next(iter(heads))].name)
        return [ImageDecodeError(f"{name} made the picture decoder crash")]
    return [
        _refusal(answer, quoted(images[number].name)) if isinstance(answer, Refused) else answer
        for number, answer in zip(heads, answers, strict=True)
    ]


def _refusal(refused: Refused, name: str) -> QvlError:
    return _REFUSALS[refused.code](f"{name} {refused.message}", hint=refused.hint)


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
        return _known(answer)

    def sizes(self, heads: Sequence[bytes]) -> list[tuple[int, int] | Refused]:
        """Asked all at once: the answers are small, so none waits for another to be read."""
        self.pictures += 1
        with self.killed_after(DECODE_WALL_S):
            self.write(b"".join((len(h) | HEAD_ALONE).to_bytes(8, "little") + h for h in heads))
            return [self._size() for _ in heads]

    def _size(self) -> tuple[int, int] | Refused:
        header = self.header()
        if isinstance(header, Refused):
            return _known(header)
        try:
            return int(header["width"]), int(header["height"])
        except (ValueError, KeyError, TypeError, OverflowError) as err:
            raise WorkerDiedError from err


def _known(answer: T | Refused) -> T | Refused:
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

    def ask(self, question: Callable[[_Worker, A], T], asked: A) -> T:
        with self._slots:
            try:
                return self._ask(question, self._take_idle() or self._start(), asked)
            except WorkerDiedError:
                # Somebody else may have killed it (the kernel, when memory is short): the picture is
                # blamed if a new worker dies too.
                return self._ask(question, self._start(), asked)

    def _ask(self, question: Callable[[_Worker, A], T], worker: _Worker, asked: A) -> T:
        try:
            answer = question(worker, asked)
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
