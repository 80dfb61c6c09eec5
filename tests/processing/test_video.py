"""Videos: the right frames at the container's own times, of any format, and no file harms the process."""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pil

import clips
from qvl.errors import (
    ImageAspectError,
    InputError,
    InputNotFoundError,
    InputUnreadableError,
    InvalidParamError,
    UsageError,
    VideoDecodeError,
    VideoTooLargeError,
)
from qvl.processing import video as video_module
from qvl.processing import worker as worker_module
from qvl.processing.patches import PixelRules
from qvl.processing.video import CutVideo, VideoRules, frame_size, read_video, sampled
from qvl.processing.video_worker import Limits, Movie
from qvl.types import Image, Video

# of a size that the clips have already, so that frames can be told from their patches
PIXELS = PixelRules(
    patch_px=16,
    merge=2,
    temporal_patch=2,
    min_px=1024,
    max_px=10**6,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
)
STAMPS = VideoRules(stamps=True, min_px=4096, max_px=25_165_824)
RUN = VideoRules(stamps=False, min_px=1024, max_px=10**6, total_px=10**9)
Q2 = VideoRules(stamps=False, min_px=128 * 784, max_px=768 * 784, total_px=24576 * 784)
TIGHT = Limits(pixels=10**6, frames=10**5, memory_bytes=2**30)


def frames_of(cut: CutVideo) -> list[np.ndarray]:
    """The resized frames again, out of the patches: the documented order, backwards."""
    frames = []
    for part in cut.patches:
        _, down, across = part.grid
        p = part.blocks.reshape(down // 2, across // 2, 2, 2, 3, 2, 16, 16)
        # down, across, y2, x2, channel, time, y, x -> time, down, y2, y, across, x2, x, channel
        frames += list(p.transpose(5, 0, 2, 6, 1, 3, 7, 4).reshape(2, down * 16, across * 16, 3))
    return frames


def numbers_of(cut: CutVideo) -> list[int]:
    return [clips.number_of(frame) for frame in frames_of(cut)]


def read(data: bytes, rules: VideoRules = STAMPS, **options: Any) -> CutVideo:
    return read_video(Video(source=data, name="clip.mp4", **options), PIXELS, rules)


# ---------------------------------------------------------------- which frames, and how large


@given(
    total=st.integers(1, 20_000),
    rate=st.floats(0.5, 240) | st.sampled_from([24.0, 25.0, 30.0, 30000 / 1001, 60.0]),
    fps=st.none() | st.floats(0.1, 60) | st.integers(1, 30),
)
@settings(deadline=None, max_examples=300)
def test_frames_are_those_of_the_published_rules(total: int, rate: float, fps: float | None):
    asked = 2 if fps is None else fps
    even = min(min(max(total / rate * asked, 4), 768), total) // 2 * 2  # qwen-vl-utils
    count = min(max(int(total / rate * asked), 4), 768, total)  # Qwen3-VL's processor
    for rules, wanted in ((RUN, max(int(even), 1)), (STAMPS, count)):
        found = sampled(total, rate, rules, fps=fps, frames=None)
        assert found.tolist() == np.linspace(0, total - 1, wanted).round().astype(int).tolist()
        assert len(set(found.tolist())) == wanted


@given(total=st.integers(1, 2000), frames=st.integers(1, 2000))
@settings(deadline=None)
def test_a_number_of_frames_is_kept_as_far_as_there_are_frames(total: int, frames: int):
    most = min(frames, total, 768)
    assert len(sampled(total, 30.0, STAMPS, fps=None, frames=frames)) == most
    even = len(sampled(total, 30.0, RUN, fps=None, frames=frames))
    assert abs(even - most) <= 1
    assert even == 1 or even % 2 == 0


@given(frames=st.integers(2, 768), height=st.integers(8, 4400), width=st.integers(8, 4400))
@settings(deadline=None, max_examples=300)
def test_sizes_of_stamped_videos_are_the_reference_s(frames: int, height: int, width: int):
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    if max(height, width) > 150 * min(height, width):
        return
    rules = VideoRules(stamps=True, min_px=4096 * 32, max_px=25_165_824)
    wanted = smart_resize(
        frames, height, width, factor=32, min_pixels=rules.min_px, max_pixels=rules.max_px
    )
    assert frame_size(height, width, frames, PIXELS, rules) == wanted


@given(
    frames=st.integers(1, 384).map(lambda n: 2 * n), side=st.sampled_from([480, 720, 1080, 2160])
)
@settings(deadline=None)
def test_a_run_s_frames_keep_to_the_budget_of_one_and_of_all(frames: int, side: int):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    pixels = PixelRules(
        patch_px=14, merge=2, temporal_patch=2, min_px=1, max_px=1, mean=(0,) * 3, std=(1,) * 3
    )
    size = frame_size(side, side * 16 // 9, frames, pixels, Q2)
    largest = max(min(768 * 784, 24576 * 784 * 2 // frames), int(128 * 784 * 1.05))
    assert size == smart_resize(side, side * 16 // 9, 28, 128 * 784, largest)
    assert size[0] * size[1] * frames / 2 <= max(24576 * 784, 1.05 * 128 * 784 * frames / 2)


# ---------------------------------------------------------------- the right frames at their times


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "libx264"),
        ("matroska", "libx264"),
        ("webm", "libvpx-vp9"),
        ("avi", "mpeg4"),
        ("avi", "libx264"),
        ("vob", "mpeg2video"),
        ("mpegts", "libx264"),
        ("flv", "libx264"),
        ("asf", "wmv2"),
    ],
)
def test_each_container_gives_the_frames_that_were_put_in(container: str, codec: str):
    cut = read(clips.steady(50, 25, container=container, codec=codec))
    assert numbers_of(cut) == [0, 16, 33, 49]
    assert cut.info.frame_times_s == pytest.approx([0.0, 0.64, 1.32, 1.96], abs=5e-4)
    assert (cut.info.width_px, cut.info.height_px) == (clips.WIDTH, clips.HEIGHT)
    assert cut.info.notes == ()


def test_times_are_the_container_s_where_the_rate_varies():
    shown_ms = [0, 40, 100, 400, 1000, 1033, 1034, 1100, 2500, 2517, 4000, 4010]
    data = clips.clip(shown_ms)
    own_s = clips.container_times_s(data)
    assert own_s == pytest.approx([ms / 1000 for ms in shown_ms], abs=1e-9)
    cut = read(data, frames=12)
    assert numbers_of(cut) == list(range(12))
    assert cut.info.frame_times_s == pytest.approx(own_s, abs=1e-9)
    pairs = zip(own_s[::2], own_s[1::2], strict=True)
    assert cut.times_s == pytest.approx([(a + b) / 2 for a, b in pairs])


@given(st.lists(st.integers(1, 900), min_size=3, max_size=40))
@settings(deadline=None, max_examples=8)
def test_times_of_any_clip_are_the_container_s(steps: list[int]):
    shown_ms = [sum(steps[:i]) for i in range(len(steps))]
    for container in ("mp4", "matroska"):
        data = clips.clip(shown_ms, container=container)
        cut = read(data, frames=len(steps))
        assert numbers_of(cut)[: len(steps)] == list(range(len(steps)))
        own_s = clips.container_times_s(data)
        assert cut.info.frame_times_s == pytest.approx(own_s, abs=1e-9)
        assert own_s == pytest.approx([ms / 1000 for ms in shown_ms], abs=5e-4)


def test_the_step_between_temporal_patches_is_that_of_the_rate_in_effect():
    """Asked for 2 a second; 9 frames of 4 a second give 4, so a patch of two is 1.125 s."""
    cut = read(clips.steady(9, 4), RUN)
    assert len(cut.patches) == 2
    assert cut.step_s == pytest.approx(2 / (4 / 9 * 4))


def test_a_cut_takes_the_frames_between_its_ends():
    data = clips.steady(100, 10)
    cut = read(data, start_s=3.0, end_s=4.5, fps=10)
    assert numbers_of(cut) == list(range(30, 46))
    assert cut.info.frame_times_s == pytest.approx(np.arange(30, 46) / 10)
    assert numbers_of(read(data, start_s=9.65, fps=10)) == [97, 98, 99, 99]
    with pytest.raises(InvalidParamError, match="no frame between 10 and 11 s") as caught:
        read(data, start_s=10, end_s=11)
    assert caught.value.hint == "its frames are shown from 0.000 to 9.900 s"


def test_an_odd_number_of_frames_ends_with_the_last_one_twice():
    cut = read(clips.steady(50, 25), frames=5)
    assert numbers_of(cut) == [0, 12, 24, 37, 49, 49]
    assert len(cut.info.frame_times_s) == 5
    assert cut.times_s[-1] == pytest.approx(49 / 25)
    assert cut.info.tokens == 3 * 6


def test_a_video_of_one_frame_is_seen():
    for rules in (STAMPS, RUN):
        assert numbers_of(read(clips.steady(1, 25), rules)) == [0, 0]


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_video_that_was_filmed_turned_is_upright(rotation: int):
    upright = frames_of(read(clips.steady(4, 25, width=96, height=96)))[0]
    cut = read(clips.steady(4, 25, width=96, height=96, rotation=rotation))
    turned = np.rot90(upright, rotation // 90)  # counter-clockwise, as the display matrix says
    assert np.abs(frames_of(cut)[0].astype(int) - turned).max() < 40
    tall = read(clips.steady(4, 25, rotation=rotation)).info
    sides = (tall.width_px, tall.height_px)
    assert sides == ((96, 64) if rotation == 180 else (64, 96))


def test_what_lies_far_ahead_is_jumped_to():
    data = clips.steady(1000, 25)
    movie = Movie(io.BytesIO(data), TIGHT)
    movie.scan()
    decoded = []
    check = movie.limits.check

    class Counting:
        def check(self, width: int, height: int) -> None:
            decoded.append(1)
            check(width, height)

    movie.limits = Counting()  # type: ignore[assignment]
    found = [clips.number_of(np.asarray(f)) for f in movie.frames([3, 500, 505, 990])]
    assert found == [3, 500, 505, 990]
    assert len(decoded) < 100
    assert len(list(movie.frames(list(range(0, 1000, 20))))) == 50


def test_a_jump_that_ends_too_far_is_taken_back(monkeypatch: pytest.MonkeyPatch):
    movie = Movie(io.BytesIO(clips.steady(400, 25)), TIGHT)
    movie.scan()
    true_times = list(movie.times)
    opened = movie.open

    class Late:
        """Seeks a second too far."""

        def __init__(self) -> None:
            self.container = opened()

        def __enter__(self):
            return self

        def __exit__(self, *_error):
            self.container.close()

        def __getattr__(self, name):
            return getattr(self.container, name)

        def seek(self, time, **how):
            self.container.seek(true_times[true_times.index(time) + 25], **how)

    monkeypatch.setattr(movie, "open", Late)
    found = [clips.number_of(np.asarray(f)) for f in movie.frames([3, 200, 390 - 30])]
    assert found == [3, 200, 360]


# ---------------------------------------------------------------- animations, pictures


def animation(kind: str, shown_ms: Sequence[int], mode: str = "RGB") -> bytes:
    pictures = [Pil.fromarray(clips.frame(i)).convert(mode) for i in range(len(shown_ms))]
    file = io.BytesIO()
    how = {"lossless": True} if kind == "WEBP" else {}
    pictures[0].save(
        file, kind, save_all=True, append_images=pictures[1:], duration=list(shown_ms), **how
    )
    return file.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_an_animation_is_a_video(kind: str):
    cut = read(animation(kind, [100, 250, 40, 1000, 500, 70]), frames=6)
    assert numbers_of(cut) == list(range(6))
    assert cut.info.frame_times_s == pytest.approx([0, 0.1, 0.35, 0.39, 1.39, 1.89])


def test_a_gif_without_durations_is_shown_as_browsers_do():
    cut = read(animation("GIF", [0, 0, 0]), frames=3)
    assert cut.info.frame_times_s == pytest.approx([0, 0.1, 0.2])


def test_what_is_transparent_in_an_animation_is_white():
    clear = [Pil.new("RGBA", (64, 64), (0, 0, 0, 0)), Pil.new("RGBA", (64, 64), (0, 0, 255, 255))]
    file = io.BytesIO()
    clear[0].save(file, "WEBP", save_all=True, append_images=clear[1:], duration=100, lossless=True)
    first, second = frames_of(read(file.getvalue()))
    assert (first == 255).all()
    assert (second == (0, 0, 255)).all()


def pictures(count: int) -> tuple[Image, ...]:
    out = []
    for number in range(count):
        file = io.BytesIO()
        Pil.fromarray(clips.frame(number)).save(file, "PNG")
        out.append(Image(file.getvalue(), f"{number}.png"))
    return tuple(out)


def test_pictures_are_a_video_of_two_frames_a_second_unless_said_otherwise():
    for fps, rate in ((None, 2.0), (5.0, 5.0)):
        cut = read_video(Video(source=pictures(5), fps=fps), PIXELS, RUN)
        assert numbers_of(cut) == [0, 1, 2, 3, 4, 4]
        assert cut.info.frame_times_s == pytest.approx(np.arange(5) / rate)
        assert cut.step_s == 2 / rate


def test_pictures_of_several_sizes_are_no_video():
    file = io.BytesIO()
    Pil.new("RGB", (64, 64)).save(file, "PNG")
    odd = (*pictures(2), Image(file.getvalue(), "odd.png"))
    with pytest.raises(InputError, match="picture 3 of the video 'video' is 64x64 px, the first"):
        read_video(Video(source=odd), PIXELS, RUN)


# ---------------------------------------------------------------- what features depend on


def test_equal_frames_have_equal_names_and_others_have_others():
    data = clips.steady(50, 25)
    whole, again, part = read(data), read(data), read(data, end_s=1.0)
    other = read(clips.steady(50, 25, key_every=5))
    assert whole.contents == again.contents
    assert len(set(whole.contents)) == 2
    names = {*whole.contents, *part.contents, *other.contents}
    assert len(names) == 6
    small = read_video(Video(source=data), PIXELS, VideoRules(stamps=True, min_px=1, max_px=9000))
    assert small.info.sha256 == whole.info.sha256
    assert not names & set(small.contents)


def test_a_path_and_its_bytes_are_the_same_video(tmp_path: Path):
    path = tmp_path / "клип.mp4"
    path.write_bytes(clips.steady(50, 25))
    from_path, from_bytes = read_video(Video.of(path), PIXELS, RUN), read(path.read_bytes(), RUN)
    assert from_path.contents == from_bytes.contents
    assert from_path.info.name == str(path)
    for a, b in zip(from_path.patches, from_bytes.patches, strict=True):
        assert np.array_equal(a.rows, b.rows)


def test_rows_are_those_of_the_reference_s_reshape():
    """Frames [T, 3, H, W], reshaped and permuted as the video processors do it."""
    cut = read(clips.steady(50, 25))
    frames = np.stack(frames_of(cut)).transpose(0, 3, 1, 2)
    values = (frames.astype(np.float32) / 255 - 0.5) / 0.5
    _, down, across = cut.patches[0].grid
    rows = values.reshape(2, 2, 3, down // 2, 2, 16, across // 2, 2, 16)
    rows = rows.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(2, down * across, -1)
    for part, wanted in zip(cut.patches, rows, strict=True):
        assert part.rows.dtype == np.float32
        assert np.abs(part.rows - wanted).max() < 1e-6


# ---------------------------------------------------------------- what is refused


def damaged() -> bytes:
    data = bytearray(clips.steady(50, 25))
    data[60:-2000] = os.urandom(len(data) - 2060)  # the index at the end stays
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty: 0 bytes"),
        (b"hello, I am no video\n" * 100, "is not a video that can be read"),
        (os.urandom(5000), "is not a video that can be read"),
        (clips.sound_only(), "has no pictures, only sound or text"),
        (clips.steady(50, 25)[:2000], "is not a video that can be read"),
        (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n", "is not a video that can be read"),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "is not a video that can be read"),
        (animation("GIF", [100] * 3)[:200], "is damaged"),
        (animation("WEBP", [100] * 3)[:200], "is damaged"),
    ],
    ids=["empty", "text", "noise", "sound", "no-index", "playlist", "concat", "gif", "webp"],
)
def test_what_is_no_whole_video_is_refused_in_words(data: bytes, message: str):
    with pytest.raises(VideoDecodeError, match=f"^'clip.mp4' {message}") as caught:
        read(data)
    assert caught.value.hint


def test_damaged_pictures_give_an_error_or_a_video_never_a_crash():
    try:
        cut = read(damaged())
    except VideoDecodeError as error:
        assert "decode" in error.message  # noqa: PT017 - either is right
    else:
        assert len(cut.patches) == 2


def test_a_file_that_was_cut_off_is_read_as_far_as_it_goes():
    whole = clips.steady(200, 25, container="matroska")
    cut = read(whole[: len(whole) // 2], fps=25)
    shown = numbers_of(cut)
    assert 40 < len(shown) < 160
    assert shown[:-1] == list(range(len(shown) - 1))


def test_a_file_that_says_that_it_was_longer_says_so_here(tmp_path: Path):
    path = tmp_path / "index first.mp4"
    with av.open(io.BytesIO(clips.steady(200, 25)), "r") as video:
        stream: Any = video.streams.video[0]
        with av.open(path, "w", options={"movflags": "faststart"}) as out:
            copy = out.add_stream_from_template(stream)
            packets: Any = video.demux(stream)
            for packet in packets:
                if packet.size:
                    packet.stream = copy
                    out.mux(packet)
    os.truncate(path, path.stat().st_size * 2 // 3)
    cut = read_video(Video(source=path, fps=25), PIXELS, STAMPS)
    shown = len(cut.info.frame_times_s)
    assert 50 < shown < 150
    assert numbers_of(cut)[:50] == list(range(50))
    assert cut.info.notes == (f"cut off: its last {(200 - shown) / 25:.1f} s are not there",)


def test_what_an_edit_list_hides_is_not_there():
    """As phones write it when a film's beginning was cut off: half a second before zero."""
    file = io.BytesIO()
    with av.open(io.BytesIO(clips.steady(50, 25)), "r") as video:
        stream: Any = video.streams.video[0]
        with av.open(file, "w", format="mp4", options={"avoid_negative_ts": "disabled"}) as out:
            copy = out.add_stream_from_template(stream)
            packets: Any = video.demux(stream)
            for packet in packets:
                if packet.size:
                    packet.pts -= round(0.5 / stream.time_base)
                    packet.dts -= round(0.5 / stream.time_base)
                    packet.stream = copy
                    out.mux(packet)
    cut = read(file.getvalue(), fps=25)
    assert numbers_of(cut)[:37] == list(range(13, 50))
    assert cut.info.frame_times_s == pytest.approx(np.arange(37) / 25)
    assert cut.info.notes == ()


def test_frames_that_are_too_large_are_refused_before_they_are_decoded():
    large = clips.steady(2, 25, width=8192, height=4160, options={"preset": "ultrafast"})
    with pytest.raises(VideoTooLargeError, match="8192x4160 px, the limit is 33"):
        read(large)


@pytest.mark.parametrize(("width", "height"), [(9000, 9000), (65535, 65535)])
def test_an_animation_that_is_too_large_is_refused_by_its_header(width: int, height: int):
    data = animation("GIF", [100] * 2)
    sides = struct.pack("<HH", width, height)
    with pytest.raises(VideoTooLargeError, match=r"(frames|px), the limit is 33"):
        read(data[:6] + sides + data[10:])


def test_bytes_hours_and_frames_have_limits(monkeypatch: pytest.MonkeyPatch):
    data = clips.clip([0, 1000, 8_000_000])
    with pytest.raises(VideoTooLargeError, match="lasts over 2 hours"):
        read(data)
    assert len(read(data, end_s=100).patches) == 1
    monkeypatch.setattr(video_module, "MAX_FRAMES", 2)
    with pytest.raises(VideoTooLargeError, match="more than 2 frames"):
        read(data)
    monkeypatch.setattr(video_module, "MAX_BYTES", 1000)
    with pytest.raises(VideoTooLargeError, match="MiB, the limit is"):
        read(data)


def test_memory_has_a_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(video_module, "DECODE_MEMORY_BYTES", 400 * 2**20)
    large = clips.steady(8, 25, width=4096, height=4096, options={"preset": "ultrafast"})
    with pytest.raises((VideoTooLargeError, VideoDecodeError)):
        read(large)


def test_a_frame_of_one_long_side_is_refused():
    with pytest.raises(ImageAspectError):
        read(clips.steady(2, 25, width=8192, height=32))


def test_paths_that_are_no_files_are_refused(tmp_path: Path):
    for path, kind in (
        (tmp_path / "none.mp4", InputNotFoundError),
        (tmp_path, InputUnreadableError),
    ):
        with pytest.raises(kind):
            read_video(Video.of(path), PIXELS, RUN)


@pytest.mark.parametrize(
    "options",
    [
        {"fps": 0},
        {"fps": -1.0},
        {"fps": math.nan},
        {"frames": 0},
        {"start_s": -1.0},
        {"start_s": math.inf},
        {"end_s": 0.0},
        # a rate that overflows, one by which a time is no number, numbers that are no float
        {"fps": 1e308},
        {"fps": 1e-300},
        *({option: 10**400} for option in ("fps", "frames", "start_s", "end_s")),
        {"start_s": 2.0, "end_s": 1.0},
        {"fps": 1.0, "frames": 3},
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]):
    with pytest.raises(InvalidParamError, match=r"clip\.mp4") as caught:
        read(b"never opened", **options)
    assert len(str(caught.value)) < 150
    with pytest.raises(InvalidParamError):
        read_video(Video(source=pictures(2), frames=1), PIXELS, RUN)
    with pytest.raises(InvalidParamError):
        read_video(Video(source=pictures(2), fps=5e-324), PIXELS, RUN)
    with pytest.raises(InvalidParamError):
        read_video(Video(source=()), PIXELS, RUN)


def play(act: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker does, in place of the real one."""
    (tmp_path / "video_worker.py").write_text(
        "import json, os, signal, struct, time\n"
        "def say(header, after=b''):\n"
        "    text = json.dumps(header).encode()\n"
        "    os.write(1, struct.pack('<I', len(text)) + text + after)\n"
        "good = {'width': 32, 'height': 32, 'rate': '25', 'frames': 1, 'unit_s': '1/25', 'notes': []}\n"
        + act
    )
    monkeypatch.setattr(video_module, "__file__", str(tmp_path / "video.py"))


@pytest.mark.parametrize(
    "act",
    [
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "os._exit(0)",
        "os.write(1, b'xxxx')",
        "say([1])",
        "say(good | {'rate': '0'})",
        "say(good | {'rate': '1/0'})",
        "say(good | {'unit_s': '1e99'}, bytes(8))",
        "say(good | {'frames': 10**9})",
        "say(good, b'1234')",
        "say(good, bytes(8)); say({'width': 10**6, 'height': 10**6, 'notes': []})",
        "say(good, bytes(8)); say({'width': 32, 'height': 32, 'notes': []}, b'few')",
        "say({'error': 'unheard_of', 'message': 'is odd', 'hint': None})",
    ],
)
def test_a_worker_that_lies_or_dies_is_an_error_of_the_video(
    act: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    play(act, tmp_path, monkeypatch)
    with pytest.raises(
        VideoDecodeError, match=r"^'clip\.mp4' (made the video decoder crash|is odd)"
    ):
        read(b"anything")


def test_a_worker_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(video_module, "ANSWER_WALL_S", 0.5)
    play("time.sleep(60)", tmp_path, monkeypatch)
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(VideoDecodeError, match=r"busy for 0\.5 s without a frame"):
        read(b"anything")
    assert {child.pid for child in psutil.Process().children()} <= before


def test_without_pyav_a_video_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_module, "find_spec", lambda _name: None)
    with pytest.raises(UsageError) as caught:
        read(b"anything")
    assert caught.value.hint == "pip install 'qvl[video]'"
