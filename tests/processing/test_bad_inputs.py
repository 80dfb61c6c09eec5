"""Bad inputs by the numbers under which they are listed, those that the tests of each kind leave out."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image as Pil

import clips
from qvl.errors import ImageDecodeError, InputError, VideoDecodeError
from qvl.processing.image import read_image
from qvl.processing.patches import PixelRules
from qvl.processing.video import VideoRules, read_video
from qvl.types import Image, Video

PIXELS = PixelRules(
    patch_px=16,
    merge=2,
    temporal_patch=2,
    min_px=1024,
    max_px=10**6,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
)
RULES = VideoRules(stamps=True, min_px=4096, max_px=10**7)


def saved(picture: Pil.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def ramp() -> Pil.Image:
    y, x = np.mgrid[0:48, 0:64]
    return Pil.fromarray(np.stack([x * 4, y * 5, 255 - x * 4], 2).astype(np.uint8))


def orientation_x() -> bytes:
    entry = struct.pack("<HHI4s", 274, 2, 2, b"x")  # text, where a number belongs
    exif = b"Exif\0\0" + struct.pack("<2sHIH", b"II", 42, 8, 1) + entry + bytes(4)
    return saved(ramp(), "PNG", exif=exif)


def ycck() -> bytes:
    """Luma and chroma of what is not printed, and no black: as Adobe's programs write CMYK."""
    luma_chroma = np.asarray(Pil.fromarray(255 - np.asarray(ramp())).convert("YCbCr"))
    stored = np.concatenate([luma_chroma, np.full((48, 64, 1), 255, np.uint8)], 2)
    data = saved(Pil.fromarray(255 - stored, "CMYK"), "JPEG", quality=95, subsampling=0)
    transform = data.index(b"Adobe") + 11
    return data[:transform] + b"\2" + data[transform + 1 :]


def tile_outside() -> bytes:
    tags = {
        256: 16,
        257: 16,
        258: 8,
        259: 1,
        262: 1,
        277: 1,
        322: 16,
        323: 16,
        324: 10**8,
        325: 256,
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4 + 400)


def no_frames() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream: Any = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        out.start_encoding()
        out.mux(stream.encode())
    return file.getvalue()


def patched(data: bytes, mark: bytes, offset: int, value: bytes) -> bytes:
    at = data.index(mark) + len(mark) + offset
    return data[:at] + value + data[at + len(value) :]


def a_million_a_second() -> bytes:
    data = clips.steady(50, 25)
    at = data.index(b"mdhd") + 16  # after version, flags and two times
    scale = int.from_bytes(data[at : at + 4])
    return patched(data, b"mdhd", 12, (scale * 40_000).to_bytes(4))


def a_huge_frame() -> bytes:
    sides = struct.pack("<ii", 32768, 32768)
    return patched(clips.steady(4, 25, container="avi", codec="rawvideo"), b"strf", 8, sides)


def for_ever() -> bytes:
    data = clips.steady(50, 25, container="matroska")
    return patched(data, b"\x44\x89\x88", 0, struct.pack(">d", 2.0**63))


@dataclass(frozen=True)
class Row:
    """Given these bytes: an error, or the picture, nearly; a video of either kind where neither is said."""

    make: Callable[[], bytes]
    error: type[InputError] | None = None
    words: str = ""
    picture: Pil.Image | None = None
    notes: tuple[str, ...] = ()


PICTURES = {
    "A017 orientation x": Row(
        orientation_x,
        picture=ramp(),
        notes=("its EXIF orientation is not a number from 1 to 8 and was ignored",),
    ),
    "A018 YCCK": Row(ycck, picture=ramp()),
    "A022 1,000 pages": Row(
        lambda: saved(ramp(), "TIFF", save_all=True, append_images=[Pil.new("L", (9, 9))] * 1000),
        picture=ramp(),
        notes=("several pages: the first one is used",),
    ),
    "A022 APNG": Row(
        lambda: saved(ramp(), "PNG", save_all=True, append_images=[Pil.new("RGB", (64, 48))] * 9),
        picture=ramp(),
        notes=("animated, 10 frames: the first one is used",),
    ),
    "A023 tile outside": Row(tile_outside, ImageDecodeError, "cut off|damaged"),
}
VIDEOS = {
    "A034 zero frames": Row(no_frames, VideoDecodeError, "not a video|no frames|no pictures"),
    "A034 10^6 a second": Row(a_million_a_second),
    "A034 32768x32768": Row(a_huge_frame, VideoDecodeError, "no frame can be decoded"),
    "A034 2^63 s": Row(for_ever),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_shown_or_refused_in_words(name: str):
    row = PICTURES[name]
    if row.error is not None:
        with pytest.raises(row.error, match=f"^'a' .*({row.words})"):
            read_image(Image(row.make(), "a"))
        return
    seen = read_image(Image(row.make(), "a"))
    assert np.abs(seen.pixels.astype(int) - np.asarray(row.picture).astype(int)).mean() < 3
    assert seen.notes == row.notes


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_is_shown_or_refused_in_words_and_soon(name: str):
    row = VIDEOS[name]
    began_s = time.monotonic()
    if row.error is not None:
        with pytest.raises(row.error, match=f"^'a' .*({row.words})"):
            read_video(Video(source=row.make(), name="a"), PIXELS, RULES)
    else:
        cut = read_video(Video(source=row.make(), name="a"), PIXELS, RULES)
        assert len(cut.info.frame_times_s) >= 4
    assert time.monotonic() - began_s < 10
