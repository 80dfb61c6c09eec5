"""Live streams: which frames come, what is left out, how one ends."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from PIL import Image as Pillow

import clips
from camera import camera
from qvl.errors import OfflineError, VideoDecodeError
from qvl.fetch import set_policy
from qvl.processing import live
from qvl.processing.live import is_live, live_frames
from qvl.types import Image

FILM = clips.steady(100, 10, container="mpegts", options={"crf": "20"})  # ten seconds


def number_of(frame: Image) -> int:
    assert isinstance(frame.source, bytes)
    return clips.number_of(np.asarray(Pillow.open(io.BytesIO(frame.source))))


@pytest.fixture
def address() -> Iterator[str]:
    with camera(FILM) as port:
        yield f"rtsp://127.0.0.1:{port}/live"


def test_so_many_frames_a_second_come_and_each_says_when(address: str) -> None:
    with closing(live_frames(address, fps=2, held=100)) as frames:
        found = list(frames)
    assert [number_of(frame) for frame in found] == list(range(0, 100, 5))
    assert [frame.name for frame in found] == [f"{number / 2:.1f} s" for number in range(20)]


def test_who_is_busy_finds_the_last_frames_only(address: str) -> None:
    with closing(live_frames(address, fps=2, held=4)) as frames:
        first = number_of(next(frames))
        time.sleep(3)
        assert [first, *map(number_of, frames)] == [0, 80, 85, 90, 95]


def test_a_camera_that_says_nothing_any_more_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FRAME_S", 5)
    with camera(FILM, hangs=True) as port:
        frames = live_frames(f"rtsp://user:secret@127.0.0.1:{port}/", fps=1, held=100)
        with closing(frames), pytest.raises(VideoDecodeError, match="no frame for 5 s") as caught:
            list(frames)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("source", ["/dev/video99", "rtsp://127.0.0.1:1/"])
def test_what_is_no_camera_is_an_error(source: str) -> None:
    frames = live_frames(source, fps=1, held=1)
    with closing(frames), pytest.raises(VideoDecodeError, match="cannot be watched"):
        next(frames)


def test_offline_no_stream_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    set_policy(offline=True)
    try:
        with pytest.raises(OfflineError):
            next(live_frames("rtsp://127.0.0.1:1/", fps=1, held=1))
    finally:
        set_policy()


@pytest.mark.parametrize(
    ("source", "is_one"),
    [
        ("rtsp://camera/1", True),
        ("RTSPS://camera/1", True),
        ("/dev/video0", True),
        ("/dev/video", False),
        ("video0", False),
        ("http://camera/live.mp4", False),
        ("clip.mp4", False),
    ],
)
def test_what_is_live(source: str, is_one: bool) -> None:
    assert is_live(source) is is_one
