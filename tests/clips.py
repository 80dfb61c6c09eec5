"""Small videos that the tests make: every frame tells its own number, whatever the codec does to it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

WIDTH, HEIGHT, SQUARE = 96, 64, 16
MS = Fraction(1, 1000)


def frame(number: int, *, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """The number's bits as black and white squares, uint8 [H, W, 3]; the last one is always red."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for bit in range(12):
        y, x = divmod(bit, WIDTH // SQUARE)
        if number >> bit & 1:
            pixels[y * SQUARE : (y + 1) * SQUARE, x * SQUARE : (x + 1) * SQUARE] = 255
    pixels[-SQUARE:, -SQUARE:] = (255, 0, 0)
    return pixels


def number_of(pixels: np.ndarray) -> int:
    """Which frame this is; fails for one that is turned or torn."""
    red = pixels[-SQUARE // 2, -SQUARE // 2].astype(int)
    assert red[0] > 180, red
    assert max(red[1:]) < 90, red
    middles = [divmod(bit, WIDTH // SQUARE) for bit in range(12)]
    light = [pixels[y * SQUARE + SQUARE // 2, x * SQUARE + SQUARE // 2].mean() for y, x in middles]
    assert all(value < 60 or value > 190 for value in light), light
    return sum((value > 128) << bit for bit, value in enumerate(light))


def clip(
    times_ms: Sequence[int],
    *,
    container: str = "mp4",
    codec: str = "libx264",
    key_every: int = 12,
    rotation: int = 0,
    rate: int = 30,
    width: int = WIDTH,
    height: int = HEIGHT,
    options: dict[str, str] | None = None,
) -> bytes:
    """A video whose frames 0, 1, ... are shown at these times."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # MPEG-2 has a list of rates, and no other clock
        unit = Fraction(1, rate) if codec == "mpeg2video" else MS
        stream.codec_context.time_base = unit
        stream.codec_context.gop_size = key_every
        stream.options = options or ({"crf": "10"} if codec == "libx264" else {"q": "2"})
        if rotation:
            stream.set_display_rotation(rotation)
        for number, time_ms in enumerate(times_ms):
            picture = av.VideoFrame.from_ndarray(frame(number, width=width, height=height))
            picture.pts, picture.time_base = round(time_ms * MS / unit), unit
            out.mux(stream.encode(picture))
        out.mux(stream.encode())
    return file.getvalue()


def steady(count: int, fps: int, **how: Any) -> bytes:
    """`count` frames at a constant rate that divides 1000."""
    return clip([number * 1000 // fps for number in range(count)], rate=fps, **how)


def container_times_s(data: bytes) -> list[float]:
    """When PyAV shows each frame, decoding all of them."""
    with av.open(io.BytesIO(data), "r") as video:
        frames: Any = video.decode(video=0)
        return [float(f.pts * f.time_base) for f in frames]


def sound_only() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream: Any = out.add_stream("aac", rate=8000)
        samples = av.AudioFrame.from_ndarray(
            np.zeros((1, 8000), np.float32), format="fltp", layout="mono"
        )
        samples.sample_rate = 8000
        out.mux(stream.encode(samples))
        out.mux(stream.encode())
    return file.getvalue()
