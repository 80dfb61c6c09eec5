"""The process that decodes videos, so that a hostile file can only kill this process.

Started by video.py as `python -I video_worker.py TASK`, a JSON object: "paths" to look for packages
in, "file", the number of the open video, and the limits "pixels", "frames" and "memory_bytes". It
imports PyAV, Pillow and decode_worker.py: no numpy, no torch. Main path: main -> Movie or Animation ->
scan, then frames.

On stdout: {"width", "height", "rate", "frames", "unit_s", "notes"} of the upright video, and for each
frame in the order of time, when it is shown, as 8 bytes: a whole number of units. Then on stdin 4 bytes
of length and a JSON list of frames by number, rising, and on stdout each of them as decode_worker.py
sends a picture. Refusals are as there, too. A JSON object follows 4 bytes of its length.
"""

from __future__ import annotations

import bisect
import json
import os
import sys
import warnings
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO, Protocol, cast

if __name__ == "__main__":
    # -I hides all but the standard library
    sys.path += json.loads(sys.argv[1])["paths"]

import av
from av.stream import Disposition
from PIL import Image

from qvl.processing.decode_worker import (
    ANOTHER_COPY,
    DAMAGE,
    Refusal,
    declared_size,
    limit_resources,
    read_exactly,
    refusal_header,
    strip_to_rgb,
    write_all,
)

# Containers whose parser opens nothing but the file itself; playlists and the like are not among them.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf"
READABLE = "give an MP4, MOV, MKV, WebM, AVI, MPEG, FLV, WMV, GIF or WebP file"
# To jump over fewer frames costs more than to decode them.
WORTH_A_JUMP = 48
# Each thread of a decoder holds frames of its own in memory.
THREADS = 4
SAME_RATE = 0.02
WORTH_A_NOTE_S = 0.5
# Browsers show a GIF's frame of less than 20 ms for this long.
GIF_DEFAULT_MS = 100
UPRIGHT = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    -90: Image.Transpose.ROTATE_270,
    -180: Image.Transpose.ROTATE_180,
}


@dataclass(frozen=True, slots=True)
class Scan:
    """Times are in units of `unit_s` from the beginning of the file; size in pixels, upright."""

    size: tuple[int, int]
    times: Sequence[int]
    unit_s: Fraction
    rate: Fraction  # frames a second, on average
    notes: tuple[str, ...]


class Source(Protocol):
    def scan(self) -> Scan: ...

    def frames(self, wanted: Sequence[int]) -> Iterator[Image.Image]:
        """The frames of these rising numbers, upright; the next one for one that is damaged."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    pixels: int
    frames: int
    memory_bytes: int

    def check(self, width: int, height: int) -> None:
        if width < 1 or height < 1:
            raise Refusal("video_decode", f"has frames of {width}x{height} px", ANOTHER_COPY)
        if width * height > self.pixels:
            raise self.too_large(f"has frames of {width}x{height} px")

    def too_large(self, what: str) -> Refusal:
        message = f"{what}, the limit is {self.pixels / 1e6:g} megapixels"
        return Refusal("video_too_large", message, "save it with a smaller frame size")

    def check_count(self, frames: int) -> None:
        if frames > self.frames:
            raise Refusal(
                "video_too_large",
                f"has more than {self.frames} frames",
                "cut it into several videos",
            )


class Movie:
    """A video that FFmpeg reads. The packets are listed first, which decodes nothing."""

    def __init__(self, file: BinaryIO, limits: Limits) -> None:
        self.file, self.limits = file, limits
        self.times: list[int] = []  # of all frames that are shown, rising
        self.keys: list[int] = []  # those at which decoding can begin
        self.timed = True
        self.end = 0  # of the last one

    def scan(self) -> Scan:
        with self.open() as container:
            stream = video_stream(container)
            # a declared size, of a decoder that may never come so far
            self.limits.check(stream.codec_context.width or 1, stream.codec_context.height or 1)
            self.list_packets(container, stream)
            unit, said_rate, origin = stream.time_base, stream.average_rate, container.start_time
            declared = (stream.start_time or 0) + (stream.duration or 0)
        if not self.times:
            raise Refusal("video_decode", "has no frames", ANOTHER_COPY)
        if unit is None or unit <= 0:
            raise Refusal("video_decode", "is damaged: it has no clock", ANOTHER_COPY)
        first = round(Fraction(origin, av.time_base) / unit) if origin else 0
        span = self.times[-1] - self.times[0]
        rate = Fraction(len(self.times) - 1) / (span * unit) if span else said_rate or Fraction(1)
        # the file's own word is exact where its times are rounded, and wrong in files of no steady rate
        if said_rate and abs(said_rate / rate - 1) < SAME_RATE:
            rate = said_rate
        size = next(self.frames([0])).size
        notes = ()
        missing_s = float((declared - self.end) * unit)
        if self.timed and missing_s > WORTH_A_NOTE_S:
            notes = (f"cut off: its last {missing_s:.1f} s are not there",)
        return Scan(size, [time - first for time in self.times], unit, rate, notes)

    def open(self) -> Any:
        self.file.seek(0)
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
        try:
            return av.open(self.file, options=options)
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError as err:
            raise Refusal("video_decode", "is not a video that can be read", READABLE) from err

    def list_packets(self, container: Any, stream: Any) -> None:
        decoding_times: list[int] = []
        self.timed = container.format.name != "avi"  # which has no times of showing, only an order
        try:
            for packet in container.demux(stream):
                if not packet.size:  # the end
                    continue
                self.limits.check_count(len(decoding_times) + 1)
                if packet.is_discard:  # an edit list hides it
                    continue
                self.timed = self.timed and packet.pts is not None
                if self.timed:
                    self.times.append(packet.pts)
                    self.end = max(self.end, packet.pts + (packet.duration or 0))
                    if packet.is_keyframe:
                        self.keys.append(packet.pts)
                decoding_times.append(packet.dts or 0)
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError:
            pass  # what came before the damage is there
        if not self.timed:  # frames are counted instead
            self.times, self.keys = decoding_times, []
        self.times.sort()
        self.keys.sort()

    def frames(self, wanted: Sequence[int]) -> Iterator[Image.Image]:
        left = [self.times[number] for number in reversed(wanted)]
        try:
            yield from self.decoded(left, jump=self.timed)
        except TooFarError:
            yield from self.decoded(left, jump=False)

    def decoded(self, left: list[int], *, jump: bool) -> Iterator[Image.Image]:
        """The frames of these times, the last of the list first; they are taken out of it.

        Raises TooFarError where a jump over what is not wanted ended behind what it was for.
        """
        last: Image.Image | None = None
        at = 0  # number of the next frame; unknown after a jump
        with self.open() as container:
            stream = video_stream(container)
            stream.thread_type, stream.thread_count = "AUTO", min(THREADS, os.cpu_count() or 1)
            while left:
                jumped = jump and self.worth_a_jump(at, left[-1])
                if jumped:
                    container.seek(left[-1], stream=stream)
                for frame in pictures(container, stream):
                    self.limits.check(frame.width, frame.height)
                    time = frame.pts if self.timed else self.times[min(at, len(self.times) - 1)]
                    if time is None:
                        continue
                    if jumped and time > left[-1]:
                        raise TooFarError
                    jumped = False
                    at = bisect.bisect_right(self.times, time) if self.timed else at + 1
                    if time < left[-1]:
                        continue
                    last = upright(frame)
                    while left and left[-1] <= time:
                        left.pop()
                        yield last
                    if not left or (jump and self.worth_a_jump(at, left[-1])):
                        break
                else:
                    break
        if left and last is None:
            raise Refusal("video_decode", "is damaged: no frame can be decoded", ANOTHER_COPY)
        while left:  # the end of the video is damaged
            left.pop()
            yield cast(Image.Image, last)

    def worth_a_jump(self, at: int, target: int) -> bool:
        """Whether between the next frame and the wanted one decoding can begin anew, far ahead."""
        key = bisect.bisect_right(self.keys, target) - 1
        return key >= 0 and bisect.bisect_left(self.times, self.keys[key]) - at > WORTH_A_JUMP


class TooFarError(Exception):
    """A jump ended behind the frame that it was for."""


def video_stream(container: Any) -> Any:
    """The first stream of moving pictures; covers of music are none."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise Refusal("video_decode", "has no pictures, only sound or text", READABLE)


def pictures(container: Any, stream: Any) -> Iterator[Any]:
    """The frames from here on; damaged packets are left out."""
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError:
            continue


def upright(frame: Any) -> Image.Image:
    image = frame.to_image()
    turn = UPRIGHT.get(frame.rotation)
    return image if turn is None else image.transpose(turn)


class Animation:
    """A GIF or a WebP; Pillow shows its frames whole."""

    def __init__(self, file: BinaryIO, limits: Limits) -> None:
        self.limits = limits
        file.seek(0)
        if (size := declared_size(file.read(64))) is not None:
            limits.check(*size)
        file.seek(0)
        try:
            self.image = Image.open(file, formats=["GIF", "WEBP"])
        except Image.DecompressionBombError as err:
            raise limits.too_large("has very large frames") from err
        limits.check(*self.image.size)

    def scan(self) -> Scan:
        times = [0]
        for _ in self.shown():
            self.limits.check_count(len(times))
            shown_ms = round(self.image.info.get("duration") or 0)
            if self.image.format == "GIF" and shown_ms < 20:
                shown_ms = GIF_DEFAULT_MS
            times.append(times[-1] + shown_ms)
        end = times.pop()
        rate = Fraction(1000 * len(times), end) if end else Fraction(1)
        return Scan(self.image.size, times, Fraction(1, 1000), rate, ())

    def frames(self, wanted: Sequence[int]) -> Iterator[Image.Image]:
        waiting = set(wanted)
        for number, image in enumerate(self.shown()):
            if number in waiting:
                yield strip_to_rgb(image, None)

    def shown(self) -> Iterator[Image.Image]:
        for number in range(getattr(self.image, "n_frames", 1)):
            self.image.seek(number)
            self.image.load()
            yield self.image


def source(file: BinaryIO, limits: Limits) -> Source:
    file.seek(0)
    start = file.read(12)
    if start[:4] == b"GIF8" or (start[:4] == b"RIFF" and start[8:12] == b"WEBP"):
        return Animation(file, limits)
    return Movie(file, limits)


def send(answers: int, header: dict[str, object], data: bytes = b"") -> None:
    encoded = json.dumps(header).encode()
    write_all(answers, len(encoded).to_bytes(4, "little") + encoded)
    write_all(answers, data)


def serve(file: BinaryIO, limits: Limits, answers: int) -> None:
    video = source(file, limits)
    scan = video.scan()
    header: dict[str, object] = {
        "width": scan.size[0],
        "height": scan.size[1],
        "rate": str(scan.rate),
        "frames": len(scan.times),
        "unit_s": str(scan.unit_s),
        "notes": scan.notes,
    }
    send(answers, header, array("q", scan.times).tobytes())
    length = read_exactly(0, 4)
    asked = read_exactly(0, int.from_bytes(length, "little")) if length else None
    for image in video.frames(json.loads(asked)) if asked else ():
        width, height = image.size
        send(answers, {"width": width, "height": height, "notes": []}, image.tobytes())


def main(task: dict[str, Any]) -> None:
    limits = Limits(task["pixels"], task["frames"], task["memory_bytes"])
    limit_resources(limits.memory_bytes)
    Image.MAX_IMAGE_PIXELS = limits.pixels
    warnings.simplefilter("ignore")
    # A library that prints must not write into the answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    with open(task["file"], "rb") as file:
        try:
            serve(file, limits, answers)
        except Refusal as no:
            send(answers, refusal_header(no))
        except MemoryError:
            message = f"needs more than {limits.memory_bytes / 2**30:g} GiB of memory to decode"
            hint = "save it with a smaller frame size"
            send(answers, refusal_header(Refusal("video_too_large", message, hint)))
        except (av.error.FFmpegError, *DAMAGE):
            message = "is damaged: it cannot be decoded"
            send(answers, refusal_header(Refusal("video_decode", message, ANOTHER_COPY)))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
