"""Cameras and live streams: the frames of one, a few a second, for as long as somebody looks.

Main path: live_frames -> a process of its own (live_worker.py), which reads the stream all the time and
keeps the last frames for who is busy.

Whoever calls this vouches for the address: a camera mostly stands in one's own network, so, unlike in
`fetch`, no host is refused. Nothing that comes from elsewhere, as in a request, may lead here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

from qvl.errors import (
    EngineError,
    InputError,
    OfflineError,
    UsageError,
    VideoDecodeError,
    VideoTooLargeError,
)
from qvl.fetch import is_offline
from qvl.processing.source import quoted
from qvl.processing.video import DECODE_MEMORY_BYTES, MAX_FRAME_PIXELS
from qvl.processing.worker import (
    Refused,
    Worker,
    WorkerDiedError,
    WorkerTimedOutError,
    folders_of,
)
from qvl.types import Image, without_password

STREAM = re.compile(r"rtsps?://.+", re.IGNORECASE)
DEVICE = re.compile(r"/dev/video[0-9]+")
FRAME_S = 30  # to the first frame, and from one to the next
MAX_FRAME_BYTES = 64 * 2**20
# over one connection: what else a stream names is not connected to
RTSP = {"rtsp_transport": "tcp", "protocol_whitelist": "rtsp,rtsps,tcp,tls,rtp"}
_REFUSALS = {kind.code: kind for kind in (VideoDecodeError, VideoTooLargeError)}


def is_live(source: str) -> bool:
    """The address of an RTSP stream, or a camera of this machine."""
    return bool(STREAM.fullmatch(source) or DEVICE.fullmatch(source))


def live_frames(source: str, *, fps: float, held: int) -> Generator[Image, None, None]:
    """Frames as they come, at most `fps` a second, named by their second since the first one.

    Of those that nobody asked for, the last `held` are kept. Ends with the stream; closed, it lets the
    camera go. Raises OfflineError for a stream where no connection may be opened, VideoDecodeError
    and VideoTooLargeError for what comes, UsageError without PyAV, EngineError when nothing can be
    started.
    """
    name = quoted(without_password(source))
    is_stream = STREAM.fullmatch(source) is not None
    if is_stream and is_offline():
        raise OfflineError(f"{name} is an address, and no connection may be opened")
    asked = {
        "source": source,
        "format": None if is_stream else "v4l2",
        "options": RTSP if is_stream else {},
    }
    worker = _started(fps, held)
    try:
        question = json.dumps(asked).encode()
        worker.write(len(question).to_bytes(4, "little") + question)
        while (frame := _next(worker, name)) is not None:
            yield frame
    except WorkerTimedOutError as err:
        raise VideoDecodeError(
            f"{name} gave no frame for {FRAME_S} s", hint="check that it is on and not in use"
        ) from err
    except WorkerDiedError as err:
        raise VideoDecodeError(f"{name} made the video decoder crash") from err
    finally:
        worker.stop()


def _next(worker: Worker, name: str) -> Image | None:
    with worker.killed_after(FRAME_S):
        worker.write(b"?")
        header = worker.header()
        if isinstance(header, Refused):
            raise _refusal(header, name)
        if "end" in header:
            return None
        try:
            time_s, size_bytes = float(header["time_s"]), int(header["bytes"])
        except (ValueError, KeyError, TypeError, OverflowError) as err:
            raise WorkerDiedError from err
        if not 0 < size_bytes <= MAX_FRAME_BYTES:
            raise WorkerDiedError
        return Image(bytes(worker.read(size_bytes)), f"{time_s:.1f} s")


def _refusal(refused: Refused, name: str) -> InputError:
    kind = _REFUSALS.get(refused.code, VideoDecodeError)
    return kind(f"{name} {refused.message}", hint=refused.hint)


def _started(fps: float, held: int) -> Worker:
    folders = folders_of("av", "PIL", "qvl")
    if folders is None:
        raise UsageError("videos need the package av (PyAV)", hint="pip install 'qvl[video]'")
    task: dict[str, Any] = {
        "paths": folders,
        "fps": fps,
        "held": held,
        "pixels": MAX_FRAME_PIXELS,
        "memory_bytes": DECODE_MEMORY_BYTES,
    }
    script = Path(__file__).resolve().with_name("live_worker.py")
    try:
        # in a group of its own: Ctrl-C ends the watching, and is no error of the camera
        return Worker(script, json.dumps(task), max_pixels=MAX_FRAME_PIXELS)
    except OSError as err:
        raise EngineError("the video decoder cannot be started") from err
