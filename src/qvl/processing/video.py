"""The one way in for videos: which frames a checkpoint looks at, decoded, resized, cut into patches.

Main path: read_video -> _from_file, which asks a process of its own (video_worker.py) when the frames
are shown -> sampled, frame_size -> the frames, one after the other -> to_frame_patches. Of a long
video only the frames that are looked at come here, and only their patches are kept.

Rules of Qwen2-VL and Qwen2.5-VL: qwen-vl-utils 0.0.14 vision_process.py (smart_nframes, fetch_video);
of Qwen3-VL: transformers 5.23 models/qwen3_vl/video_processing_qwen3_vl.py.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from qvl.errors import (
    EngineError,
    InputError,
    InvalidParamError,
    UsageError,
    VideoDecodeError,
    VideoTooLargeError,
)
from qvl.fetch import fetch
from qvl.processing.image import Picture, read_image
from qvl.processing.patches import (
    FramePatches,
    PixelRules,
    resize,
    smart_resize,
    to_frame_patches,
    token_count,
)
from qvl.processing.source import opened, quoted
from qvl.processing.worker import (
    Decoded,
    Refused,
    Worker,
    WorkerDiedError,
    WorkerTimedOutError,
    folders_of,
)
from qvl.types import Image, Url, Video, VideoInfo

MAX_BYTES = 512 * 2**20
FETCH_S = 60.0
MAX_FRAME_PIXELS = 7680 * 4320
MAX_FRAMES = 1_000_000  # in the file
MAX_SECONDS = 2 * 3600
DECODE_MEMORY_BYTES = 3 * 2**29
ANSWER_WALL_S = 30  # for what the file holds, and from one frame to the next
DECODE_WALL_S = 600
MIN_SAMPLED, MAX_SAMPLED = 4, 768
PICTURES_PER_SECOND = 2.0
# name -> (smallest, largest), far beyond any video: numbers that times can be computed of
OPTIONS = {
    "fps": (1e-6, 1e6),
    "frames": (1, MAX_FRAMES),
    "start_s": (0, 1e9),
    "end_s": (1e-6, 1e9),
}

_REFUSALS = {kind.code: kind for kind in (VideoDecodeError, VideoTooLargeError)}


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRules:
    """How a checkpoint wants its videos: `fps` frames a second, MIN_SAMPLED to MAX_SAMPLED in all.

    With `stamps` (Qwen3-VL) each temporal patch stands alone after its time as text, and min_px and
    max_px bound the area of all frames together. Otherwise (Qwen2-VL, Qwen2.5-VL) the video is one
    run of tokens of an even number of frames; min_px and max_px bound one frame's area and total_px
    that of all temporal patches. There the time axis goes on by one each temporal patch, or by
    `positions_per_second` where that is given (Qwen2.5-VL's tokens_per_second).
    """

    stamps: bool
    min_px: int
    max_px: int
    total_px: int = 0
    positions_per_second: float | None = None
    fps: float = 2.0


FREE_RULES = VideoRules(stamps=True, min_px=0, max_px=0)  # of frames that are not resized


@dataclass(frozen=True, slots=True, eq=False)
class CutVideo:
    """The temporal patches of a video, what names the content of each, and when it is shown."""

    patches: tuple[FramePatches, ...]
    contents: tuple[str, ...]
    times_s: tuple[float, ...]  # the mean of its frames' times
    step_s: float  # between temporal patches, as the average rate has it
    info: VideoInfo


@dataclass(frozen=True, slots=True, eq=False)
class _Clip:
    """A video whose frames can be asked for, each once and in the order of time."""

    size: tuple[int, int]  # height, width
    times_s: np.ndarray
    rate: float  # frames a second, on average
    sha256: Callable[[], str]  # known when the frames have been read
    notes: tuple[str, ...]
    frames: Callable[[Sequence[int]], Iterator[Picture]]


def read_video(
    video: Video,
    pixels: PixelRules,
    rules: VideoRules,
    read: Callable[[Image], Picture] = read_image,
) -> CutVideo:
    """The frames that a checkpoint looks at, as patches. Safe to call from several threads.

    Memory: 3 bytes for each pixel of the resized frames, and a few whole frames here and there.
    Raises InvalidParamError for options that do not fit, the errors of read_image for paths, addresses
    and pictures, VideoDecodeError and VideoTooLargeError for the content, UsageError without PyAV,
    EngineError when no decoder can be started.
    """
    with _chosen(video, rules, read) as (clip, numbers, rate):
        return _cut(clip, numbers, rate, video, pixels, rules)


def duration_s(video: Video) -> float:
    """When the last frame of a file is shown. Raises as `read_video`."""
    if isinstance(video.source, tuple):
        raise InvalidParamError(f"the video {quoted(video.name)} is given as pictures")
    with _from_file(video.source, quoted(video.name)) as clip:
        return float(clip.times_s[-1])


def read_frames(
    video: Video, encode: Callable[[Picture], bytes], *, most: int
) -> tuple[list[bytes], VideoInfo]:
    """The frames to look at, each through `encode`, at most so many of a file; for who takes no videos.

    Memory: one frame, and what `encode` makes of all. Raises as `read_video`.
    """
    frames = video.frames and min(video.frames, most)
    with _chosen(replace(video, frames=frames), FREE_RULES, read_image) as (clip, numbers, _):
        asked = len(numbers) if video.frames is None else video.frames
        if not isinstance(video.source, tuple) and len(numbers) > most:
            numbers = numbers[np.linspace(0, len(numbers) - 1, most).round().astype(np.int64)]
        encoded = [encode(picture) for picture in clip.frames(numbers.tolist())]
        notes = clip.notes
        if len(numbers) != asked:
            notes += (f"{len(numbers)} frames are looked at instead of {asked}",)
        height_px, width_px = clip.size
        return encoded, VideoInfo(
            name=video.name,
            sha256=clip.sha256(),
            width_px=width_px,
            height_px=height_px,
            resized_width_px=width_px,
            resized_height_px=height_px,
            tokens=0,
            frame_times_s=tuple(clip.times_s[numbers].tolist()),
            notes=notes,
        )


@contextmanager
def _chosen(
    video: Video, rules: VideoRules, read: Callable[[Image], Picture]
) -> Iterator[tuple[_Clip, np.ndarray, float]]:
    """The clip, the numbers of the frames to look at, and how many of those there are a second."""
    name = quoted(video.name)
    check_options(video, name)
    if isinstance(video.source, tuple):
        clip = _from_pictures(video.source, video.fps or PICTURES_PER_SECOND, name, read)
        yield clip, np.arange(len(video.source)), clip.rate
        return
    with _from_file(video.source, name) as clip:
        within = _within(clip.times_s, video, name)
        total = len(within)
        numbers = within[sampled(total, clip.rate, rules, fps=video.fps, frames=video.frames)]
        yield clip, numbers, len(numbers) / total * clip.rate


def check_options(video: Video, name: str) -> None:
    """Raises InvalidParamError for numbers that mean nothing, alone or together."""
    for what, (low, high) in OPTIONS.items():
        number = getattr(video, what)
        if number is not None and not low <= number <= high:
            raise InvalidParamError(
                f"{what} of the video {name} is {number!s:.40}, outside {low:g} to {high:g}"
            )
    if video.fps is not None and video.frames is not None:
        raise InvalidParamError(
            f"the video {name} has both fps and frames", hint="give one of them"
        )
    if video.end_s is not None and video.end_s <= (video.start_s or 0):
        raise InvalidParamError(
            f"the video {name} is to end at {video.end_s} s, before it starts",
            hint="give an end_s after start_s",
        )
    if not isinstance(video.source, tuple):
        return
    if (video.frames, video.start_s, video.end_s) != (None, None, None):
        raise InvalidParamError(
            f"the video {name} is given as pictures, all of which are looked at",
            hint="leave out frames, start_s and end_s, and give fewer pictures",
        )
    if not 1 <= len(video.source) <= MAX_SAMPLED:
        raise InvalidParamError(
            f"the video {name} has {len(video.source)} pictures, not 1 to {MAX_SAMPLED}"
        )


def sampled(
    total: int, rate: float, rules: VideoRules, *, fps: float | None, frames: int | None
) -> np.ndarray:
    """Numbers, int64 and rising, of the frames to look at among `total`, `rate` of them a second."""
    if frames is None:
        count = max(int(total / rate * (fps or rules.fps)), MIN_SAMPLED)
    else:
        count = frames if rules.stamps else round(frames / 2) * 2
    count = min(count, MAX_SAMPLED, total)
    if not rules.stamps:
        count = count // 2 * 2
    return np.linspace(0, total - 1, max(count, 1)).round().astype(np.int64)


def frame_size(
    height_px: int, width_px: int, frames: int, pixels: PixelRules, rules: VideoRules
) -> tuple[int, int]:
    """(height, width) that each of so many frames is resized to. Raises ImageAspectError."""
    factor = pixels.patch_px * pixels.merge
    if not rules.stamps:
        share = rules.total_px / frames * pixels.temporal_patch
        largest = max(min(rules.max_px, share), int(rules.min_px * 1.05))
        return smart_resize(
            height_px, width_px, factor_px=factor, min_px=rules.min_px, max_px=int(largest)
        )
    if min(height_px, width_px) < factor:
        grow = max(factor / height_px, factor / width_px)
        height_px, width_px = int(height_px * grow), int(width_px * grow)
    # without bounds: for its rounding and its refusal
    height, width = smart_resize(
        height_px, width_px, factor_px=factor, min_px=0, max_px=MAX_FRAME_PIXELS * 4
    )
    whole = round(frames / pixels.temporal_patch) * pixels.temporal_patch
    if whole * height * width > rules.max_px:
        shrink = math.sqrt(frames * height_px * width_px / rules.max_px)
        height = max(factor, math.floor(height_px / shrink / factor) * factor)
        width = max(factor, math.floor(width_px / shrink / factor) * factor)
    elif whole * height * width < rules.min_px:
        grow = math.sqrt(rules.min_px / (frames * height_px * width_px))
        height = math.ceil(height_px * grow / factor) * factor
        width = math.ceil(width_px * grow / factor) * factor
    return height, width


def _within(times_s: np.ndarray, video: Video, name: str) -> np.ndarray:
    """Numbers of the frames between start_s and end_s."""
    start_s = video.start_s or 0.0
    end_s = math.inf if video.end_s is None else video.end_s
    # a frame may be shown before the beginning, too
    is_within = (times_s <= end_s) & ((times_s >= start_s) | (start_s == 0))
    numbers = np.flatnonzero(is_within)
    if not len(numbers):
        raise InvalidParamError(
            f"the video {name} has no frame between {start_s:g} and {end_s:g} s",
            hint=f"its frames are shown from {times_s[0]:.3f} to {times_s[-1]:.3f} s",
        )
    if times_s[numbers[-1]] - times_s[numbers[0]] > MAX_SECONDS:
        raise VideoTooLargeError(
            f"the video {name} lasts over {MAX_SECONDS // 3600} hours",
            hint="take a part of it with start_s and end_s",
        )
    return numbers


def _cut(
    clip: _Clip,
    numbers: np.ndarray,
    rate: float,
    video: Video,
    pixels: PixelRules,
    rules: VideoRules,
) -> CutVideo:
    """The frames of these numbers, `rate` of them a second, as temporal patches."""
    size = frame_size(*clip.size, max(len(numbers), pixels.temporal_patch), pixels, rules)
    patches: list[FramePatches] = []
    contents: list[str] = []
    pending: list[np.ndarray] = []
    names: list[str] = []
    for number, picture in enumerate(clip.frames(numbers.tolist()), 1):
        pending.append(resize(picture.pixels, size))
        names.append(picture.sha256)
        if number == len(numbers):  # the last frame fills its temporal patch
            missing = -number % pixels.temporal_patch
            pending += pending[-1:] * missing
            names += names[-1:] * missing
        if len(pending) == pixels.temporal_patch:
            patches.append(to_frame_patches(pending, pixels))
            contents.append(f"{'+'.join(names)}:{size[1]}x{size[0]}")
            pending, names = [], []
    shown_s = clip.times_s[numbers]
    padded_s = np.append(shown_s, [shown_s[-1]] * (-len(numbers) % pixels.temporal_patch))
    notes = clip.notes
    if video.frames is not None and len(numbers) != video.frames:
        notes += (f"{len(numbers)} frames are looked at instead of {video.frames}",)
    height_px, width_px = clip.size
    if size != clip.size:
        notes += (f"resized from {width_px}x{height_px} to {size[1]}x{size[0]} px",)
    return CutVideo(
        patches=tuple(patches),
        contents=tuple(contents),
        times_s=tuple(padded_s.reshape(-1, pixels.temporal_patch).mean(1).tolist()),
        step_s=pixels.temporal_patch / rate,
        info=VideoInfo(
            name=video.name,
            sha256=clip.sha256(),
            width_px=width_px,
            height_px=height_px,
            resized_width_px=size[1],
            resized_height_px=size[0],
            tokens=sum(token_count(part.grid, pixels.merge) for part in patches),
            frame_times_s=tuple(shown_s.tolist()),
            notes=notes,
        ),
    )


def _from_pictures(
    images: Sequence[Image], rate: float, name: str, read: Callable[[Image], Picture]
) -> _Clip:
    first = read(images[0])
    size = first.pixels.shape[:2]
    digest = hashlib.sha256()

    def frames(numbers: Sequence[int]) -> Iterator[Picture]:
        for number in numbers:
            picture = read(images[number]) if number else first
            if picture.pixels.shape[:2] != size:
                height, width = picture.pixels.shape[:2]
                raise InputError(
                    f"picture {number + 1} of the video {name} is {width}x{height} px, "
                    f"the first one {size[1]}x{size[0]}",
                    hint="make them all of one size",
                )
            digest.update(picture.sha256.encode())
            yield picture

    times_s = np.arange(len(images)) / rate
    return _Clip(size, times_s, rate, digest.hexdigest, (), frames)


@contextmanager
def _from_file(source: Path | bytes | Url, name: str) -> Iterator[_Clip]:
    with _file_of(source, name) as fd:
        size_bytes = os.fstat(fd).st_size
        if size_bytes > MAX_BYTES:
            raise VideoTooLargeError(
                f"{name} has {size_bytes / 2**20:.1f} MiB, the limit is {MAX_BYTES // 2**20}",
                hint="cut it, or save it at a lower quality",
            )
        if not size_bytes:
            raise VideoDecodeError(f"{name} is empty: 0 bytes", hint="download or copy it again")
        with open(fd, "rb", closefd=False) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        worker = _start(fd)
        try:
            yield _clip(worker, sha256, name)
        finally:
            worker.stop()


@contextmanager
def _file_of(source: Path | bytes | Url, name: str) -> Iterator[int]:
    if isinstance(source, Path):
        with opened(source, name) as fd:
            yield fd
        return
    with TemporaryFile() as file:
        if isinstance(source, Url):
            fetch(
                source.address,
                file,
                name=name,
                max_bytes=MAX_BYTES,
                deadline_s=FETCH_S,
                too_large=VideoTooLargeError,
            )
        else:
            file.write(source)
        file.seek(0)
        yield file.fileno()


def _start(fd: int) -> Worker:
    """A decoder of the open file."""
    folders = folders_of("av", "PIL", "qvl")
    if folders is None:
        raise UsageError("videos need the package av (PyAV)", hint="pip install 'qvl[video]'")
    task = {
        "paths": folders,
        "file": fd,
        "pixels": MAX_FRAME_PIXELS,
        "frames": MAX_FRAMES,
        "memory_bytes": DECODE_MEMORY_BYTES,
    }
    script = Path(__file__).resolve().with_name("video_worker.py")
    try:
        # in our group, so that Ctrl-C ends a decoder for which nobody will wait any more
        return Worker(
            script, json.dumps(task), max_pixels=MAX_FRAME_PIXELS, files=[fd], own_group=False
        )
    except OSError as err:
        raise EngineError("the video decoder cannot be started") from err


def _clip(worker: Worker, sha256: str, name: str) -> _Clip:
    began_s = time.monotonic()
    with _told(worker, name):
        header = worker.header()
        if isinstance(header, Refused):
            raise _refusal(header, name)
        try:
            size = int(header["height"]), int(header["width"])
            unit_s, rate = Fraction(header["unit_s"]), float(Fraction(header["rate"]))
            count, notes = int(header["frames"]), tuple(str(note) for note in header["notes"])
        except (ValueError, KeyError, TypeError, ArithmeticError) as err:
            raise WorkerDiedError from err
        if not 0 < count <= MAX_FRAMES or not 0 < rate < math.inf or not 0 < unit_s < 10**6:
            raise WorkerDiedError
        units = np.frombuffer(bytes(worker.read(8 * count)), np.int64)

    def frames(numbers: Sequence[int]) -> Iterator[Picture]:
        asked = json.dumps(numbers).encode()
        with _told(worker, name):
            worker.write(len(asked).to_bytes(4, "little") + asked)
        for number in numbers:
            if time.monotonic() - began_s > DECODE_WALL_S:
                raise VideoTooLargeError(
                    f"{name} was not decoded within {DECODE_WALL_S} s",
                    hint="take a part of it with start_s and end_s, or a smaller copy",
                )
            with _told(worker, name):
                answer: Decoded | Refused = worker.picture()
            if isinstance(answer, Refused):
                raise _refusal(answer, name)
            yield Picture(answer.pixels, f"{sha256}#{number}", name, ())

    times_s = units.astype(np.float64) * unit_s.numerator / unit_s.denominator
    return _Clip(size, times_s, rate, lambda: sha256, notes, frames)


@contextmanager
def _told(worker: Worker, name: str) -> Iterator[None]:
    """What the worker does not say in the block, or not in time, as errors of the video."""
    hint = "save it as an MP4 (H.264)"
    try:
        with worker.killed_after(ANSWER_WALL_S):
            yield
    except WorkerTimedOutError as err:
        raise VideoDecodeError(
            f"{name} kept the video decoder busy for {ANSWER_WALL_S} s without a frame", hint=hint
        ) from err
    except WorkerDiedError as err:
        raise VideoDecodeError(f"{name} made the video decoder crash", hint=hint) from err


def _refusal(refused: Refused, name: str) -> InputError:
    kind = _REFUSALS.get(refused.code, VideoDecodeError)
    return kind(f"{name} {refused.message}", hint=refused.hint)
