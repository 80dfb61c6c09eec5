"""The process that watches a camera or a live stream, so that a hostile one can only kill this process.

Started by live.py as `python -I live_worker.py TASK`, a JSON object: "paths" to look for packages in,
"fps", how many frames are "held" for who is busy, and the limits "pixels" and "memory_bytes". It
imports PyAV, Pillow and decode_worker.py: no numpy, no torch.

On stdin: 4 bytes of length and a JSON object of the "source", which is no argument, as it may hold a
password, its "format" (null: as it says itself) and the "options" to open it with; then a byte for
each frame that is asked for. On stdout for each of these {"time_s", "bytes"} and the frame as a JPEG,
{"end": true} where none will come, or a refusal as in decode_worker.py.
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any

if __name__ == "__main__":
    # -I hides all but the standard library
    sys.path += json.loads(sys.argv[1])["paths"]

import av
from PIL import Image

from qvl.processing.decode_worker import (
    DAMAGE,
    Refusal,
    limit_resources,
    read_exactly,
    refusal_header,
)
from qvl.processing.video_worker import Limits, pictures, send, upright, video_stream

QUALITY = 95  # of the JPEG; the stream itself is compressed more
ROUNDING_S = 0.001  # of a frame's time
CHECK = "check that it is on, and that another player shows it"


class Watcher:
    """Reads the stream without waiting for anybody; of what nobody asks for, only the last stays."""

    def __init__(self, fps: float, held: int, limits: Limits) -> None:
        self.fps, self.limits = fps, limits
        self.waiting: deque[tuple[float, bytes]] = deque(maxlen=held)
        self.ended: dict[str, object] | None = None
        self.changed = threading.Condition()

    def watch(self, asked: dict[str, Any]) -> None:
        what = "cannot be watched"
        try:
            source, kind, options = asked["source"], asked["format"], asked["options"]
            with av.open(source, format=kind, options=options) as container:
                for moment in self.chosen(container):
                    what = "broke off"
                    with self.changed:
                        self.waiting.append(moment)
                        self.changed.notify()
            end: dict[str, object] = {"end": True}
        except Refusal as no:
            end = refusal_header(no)
        except MemoryError:
            end = refusal_header(Refusal("video_too_large", "needs too much memory to decode"))
        except (av.error.FFmpegError, *DAMAGE):
            end = refusal_header(Refusal("video_decode", what, CHECK))
        with self.changed:
            self.ended = end
            self.changed.notify()

    def chosen(self, container: Any) -> Iterator[tuple[float, bytes]]:
        """At most `fps` frames a second, each with its time since the first one."""
        stream = video_stream(container)
        shift_s, due_s, between_s = None, 0.0, 1 / self.fps
        for frame in pictures(container, stream):
            if frame.time is None:
                continue
            self.limits.check(frame.width, frame.height)
            # a clock that jumps back was set anew
            if shift_s is None or frame.time + shift_s < due_s - 2 * between_s:
                shift_s = due_s - frame.time
            time_s = frame.time + shift_s
            if time_s > due_s - ROUNDING_S:
                due_s = max(due_s + between_s, time_s)
                yield time_s, as_jpeg(upright(frame))

    def next(self) -> tuple[dict[str, object], bytes]:
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.ended is not None)
            if not self.waiting:
                return self.ended or {}, b""
            time_s, jpeg = self.waiting.popleft()
        return {"time_s": time_s, "bytes": len(jpeg)}, jpeg


def as_jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()


def main(task: dict[str, Any]) -> None:
    limits = Limits(task["pixels"], 0, task["memory_bytes"])
    limit_resources(limits.memory_bytes)
    Image.MAX_IMAGE_PIXELS = limits.pixels
    warnings.simplefilter("ignore")
    # A library that prints must not write into the answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    length = read_exactly(0, 4)
    asked = read_exactly(0, int.from_bytes(length, "little")) if length else None
    if asked is None:
        return
    watcher = Watcher(task["fps"], task["held"], limits)
    threading.Thread(target=watcher.watch, args=[json.loads(asked)], daemon=True).start()
    while read_exactly(0, 1):
        send(answers, *watcher.next())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    os._exit(0)  # the watching thread may hang in a read
