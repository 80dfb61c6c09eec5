"""Any file becomes right pixels or a typed error, and no file harms the process; Pillow is the oracle."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pil
from PIL import ImageCms, ImageOps

from qvl.errors import (
    EngineError,
    ImageAspectError,
    ImageDecodeError,
    ImageTooLargeError,
    InputError,
    InputNotFoundError,
    InputUnreadableError,
    InvalidParamError,
    UnsupportedMediaError,
)
from qvl.processing import image as image_module
from qvl.processing.image import Picture, read_image
from qvl.types import Image

NOBODY = 65534


def encode(picture: Pil.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def read(data: bytes, name: str = "a.png") -> Picture:
    return read_image(Image(data, name))


def photo(width: int = 60, height: int = 44) -> Pil.Image:
    """Smooth and different in every direction, so that JPEG keeps it and a flip shows."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = [x * 255 // (width - 1), y * 255 // (height - 1), 255 * (x + y < 40)]
    return Pil.fromarray(np.stack(rgb, axis=2).astype(np.uint8))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, bits: int = 8, colour_type: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)


def png(width: int, height: int, rows: bytes, **kind: int) -> bytes:
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return png_header(width, height, **kind) + body


@pytest.fixture(scope="module", autouse=True)
def no_workers_of_other_tests() -> None:
    """Threads of other tests may have started several; here one picture at a time is read."""
    image_module._POOL.close()


def workers() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if any("decode_worker" in part for part in child.cmdline())
    ]


# ---------------------------------------------------------------- right pixels


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_each_format_gives_the_pixels_that_pillow_gives(kind: str):
    data = encode(photo(), kind)
    picture = read(data, "photo")
    assert np.array_equal(picture.pixels, np.asarray(Pil.open(io.BytesIO(data)).convert("RGB")))
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.flags.c_contiguous
    assert (picture.name, picture.notes) == ("photo", ())
    assert picture.sha256 == hashlib.sha256(data).hexdigest()


def test_a_path_and_its_bytes_are_the_same_picture(tmp_path: Path):
    path = tmp_path / "фото \u4e2d.png"
    path.write_bytes(encode(photo(), "PNG"))
    from_path, from_bytes = read_image(Image.of(path)), read(path.read_bytes())
    assert np.array_equal(from_path.pixels, from_bytes.pixels)
    assert from_path.sha256 == from_bytes.sha256


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "PA", "CMYK"])
def test_each_mode_is_converted_as_pillow_does(mode: str):
    """Opaque pictures; PNG, and TIFF for the modes that PNG has not."""
    kind = "TIFF" if mode in ("CMYK", "PA") else "PNG"
    data = encode(
        photo().convert("L").convert(mode) if mode == "PA" else photo().convert(mode), kind
    )
    expected = Pil.open(io.BytesIO(data)).convert("RGB")
    assert np.array_equal(read(data).pixels, np.asarray(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_come_upright(kind: str, orientation: int):
    exif = Pil.Exif()
    exif[274] = orientation
    data = encode(photo(), kind, exif=exif)
    expected = ImageOps.exif_transpose(Pil.open(io.BytesIO(data))).convert("RGB")
    picture = read(data)
    assert np.array_equal(picture.pixels, np.asarray(expected))
    assert picture.pixels.shape[:2] == ((44, 60) if orientation < 5 else (60, 44))
    assert picture.notes == ()


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_impossible_orientation_is_ignored_with_a_note(orientation: int):
    exif = Pil.Exif()
    exif[274] = orientation
    picture = read(encode(photo(), "PNG", exif=exif))
    assert np.array_equal(picture.pixels, np.asarray(photo()))
    assert picture.notes == ("its EXIF orientation is not a number from 1 to 8 and was ignored",)


def test_damaged_exif_does_not_cost_the_picture():
    data = encode(photo(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\x01" * 40)
    assert np.array_equal(read(data).pixels, np.asarray(photo()))


@pytest.mark.parametrize("colour_type", [4, 6], ids=["LA", "RGBA"])
def test_alpha_is_composited_on_white(colour_type: int):
    mode = "LA" if colour_type == 4 else "RGBA"
    see_through = photo().convert(mode)
    see_through.putalpha(photo().getchannel("R"))
    white = Pil.new("RGBA", see_through.size, "white")
    expected = Pil.alpha_composite(white, see_through.convert("RGBA")).convert("RGB")
    pixels = read(encode(see_through, "PNG")).pixels
    assert np.array_equal(pixels, np.asarray(expected))
    assert (pixels[:, 0] == 255).all()  # alpha 0 there


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(kind: str):
    indexes = np.zeros((40, 40), np.uint8)
    indexes[:, 20:] = 1
    picture = Pil.fromarray(indexes, "L").convert("P")
    picture = picture.copy()
    picture.putpalette([255, 0, 0, 0, 0, 255])
    pixels = read(encode(picture, kind, transparency=0)).pixels
    assert (pixels[:, :20] == 255).all()
    assert (pixels[:, 20:] == (0, 0, 255)).all()


def test_a_transparent_grey_level_is_white_in_8_and_in_16_bits():
    eight = np.full((30, 30), 7, np.uint8)
    eight[0] = 200
    rows = b"".join(b"\0" + row.tobytes() for row in (eight.astype(">u2") * 257))
    key = chunk(b"tRNS", struct.pack(">H", 7 * 257))
    body = key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    for data in (
        encode(Pil.fromarray(eight), "PNG", transparency=7),
        png_header(30, 30, bits=16, colour_type=0) + body,
    ):
        pixels = read(data).pixels
        assert (pixels[0] == 200).all()
        assert (pixels[1:] == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_levels(kind: str):
    wide = np.linspace(0, 65535, 40 * 40).astype(np.uint16).reshape(40, 40)
    pixels = read(encode(Pil.fromarray(wide), kind)).pixels
    assert np.array_equal(pixels, np.round(wide / 257).astype(np.uint8)[..., None].repeat(3, 2))


def test_16_bit_grey_where_white_is_zero_is_not_a_negative():
    wide = np.linspace(0, 65535, 40 * 40).astype(np.uint16).reshape(40, 40)
    pixels = read(encode(Pil.fromarray(wide), "TIFF", tiffinfo={262: 0})).pixels
    assert np.array_equal(pixels[..., 0], np.round((65535 - wide) / 257).astype(np.uint8))


@pytest.mark.parametrize(
    ("values", "notes"),
    [
        (np.linspace(0, 1, 1600, dtype=np.float32), 0),
        (np.linspace(0, 255, 1600, dtype=np.float32), 0),
        (np.linspace(0, 65535, 1600, dtype=np.float32), 0),
        (np.linspace(-4, 8, 1600, dtype=np.float32), 1),
        (np.linspace(0, 65535, 1600).astype(np.int32), 0),
        (np.linspace(0, 2**30, 1600).astype(np.int32), 1),
    ],
    ids=["0..1", "0..255", "0..65535", "-4..8", "int 0..65535", "int 0..2**30"],
)
def test_32_bit_grey_is_scaled_not_clipped(values: np.ndarray, notes: int):
    picture = read(encode(Pil.fromarray(values.reshape(40, 40)), "TIFF"))
    ramp = np.linspace(0, 255, 1600).reshape(40, 40)
    assert np.abs(picture.pixels[..., 0] - ramp).max() <= 1
    assert len(picture.notes) == notes


def test_a_cmyk_jpeg_keeps_its_colours():
    """Pillow writes Adobe's inverted CMYK; without the marker the numbers mean the same."""
    cmyk = encode(photo().convert("CMYK"), "JPEG", quality=95, subsampling=0)
    at = cmyk.index(b"\xff\xee")
    length = int.from_bytes(cmyk[at + 2 : at + 4], "big")
    for data in (cmyk, cmyk[:at] + cmyk[at + 2 + length :]):
        pixels = read(data).pixels.astype(int)
        assert np.abs(pixels - np.asarray(photo()).astype(int)).mean() < 4
        assert np.array_equal(pixels, np.asarray(Pil.open(io.BytesIO(data)).convert("RGB")))


def test_lab_tiff_is_converted():
    grey = Pil.new("LAB", (40, 40), (128, 128, 128))  # L* 50, no colour: sRGB 119
    assert np.abs(read(encode(grey, "TIFF")).pixels.astype(int) - 119).max() <= 1


def swapped_profile() -> bytes:
    """An sRGB profile whose red and blue primaries are exchanged, under another name."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for i in range(int.from_bytes(profile[128:132], "big")):
        at = 132 + 12 * i
        tag = bytes(profile[at : at + 4])
        if tag in (b"rXYZ", b"bXYZ"):
            profile[at : at + 4] = b"bXYZ" if tag == b"rXYZ" else b"rXYZ"
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_colour_profile_is_applied(mode: str):
    red = Pil.new("RGB", (40, 40), (255, 0, 0)).convert(mode)
    picture = read(encode(red, "PNG", icc_profile=swapped_profile()))
    assert np.abs(picture.pixels.astype(int) - (0, 0, 255)).max() <= 2
    assert picture.notes == ()


def test_an_srgb_profile_changes_nothing():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = read(encode(photo(), "PNG", icc_profile=profile))
    assert np.array_equal(picture.pixels, np.asarray(photo()))
    assert picture.notes == ()


def test_a_grey_picture_with_a_colour_profile_stays_grey():
    picture = read(encode(photo().convert("L"), "JPEG", icc_profile=swapped_profile()))
    assert np.ptp(picture.pixels.astype(int), axis=2).max() <= 2
    assert picture.notes == ()


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize("profile", [b"no profile" * 30, swapped_profile()[:200]])
def test_a_bad_profile_is_a_note_and_the_picture_stays(mode: str, profile: bytes):
    data = encode(photo().convert(mode), "JPEG", icc_profile=profile)
    picture = read(data)
    assert np.array_equal(picture.pixels, np.asarray(Pil.open(io.BytesIO(data)).convert("RGB")))
    assert picture.notes == ("its colour profile is damaged or does not fit and was ignored",)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_of_an_animation_the_first_frame_is_used_with_a_note(kind: str):
    frames = [Pil.new("RGB", (40, 40), (20 * i, 0, 255 - 20 * i)) for i in range(12)]
    lossless = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
    options = lossless.get(kind, {})
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    picture = read(data)
    assert np.abs(picture.pixels.astype(int) - (0, 0, 255)).max() <= 2
    assert picture.notes == ("animated, 12 frames: the first one is used",)


def test_of_a_document_the_first_page_is_used_with_a_note():
    pages = [Pil.new("RGB", (40, 40), (20 * i, 0, 0)) for i in range(3)]
    picture = read(encode(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert not picture.pixels.any()
    assert picture.notes == ("several pages: the first one is used",)


def test_a_phone_s_multi_picture_jpeg_is_one_picture():
    data = encode(photo(), "MPO", save_all=True, append_images=[photo(30, 30)])
    picture = read(data)
    assert picture.pixels.shape == (44, 60, 3)
    assert picture.notes == ()


@pytest.mark.parametrize(
    ("size", "is_tiny"), [((1, 1), True), ((27, 500), True), ((28, 28), False)]
)
def test_a_tiny_picture_is_read_with_a_note(size: tuple[int, int], is_tiny: bool):
    picture = read(encode(Pil.new("RGB", size, (1, 2, 3)), "PNG"))
    assert (picture.pixels == (1, 2, 3)).all()
    assert picture.pixels.shape == (size[1], size[0], 3)
    assert picture.notes == ((f"tiny, {size[0]}x{size[1]} px",) if is_tiny else ())


def test_strips_join_without_a_seam():
    """More pixels than one strip, alpha included."""
    see_through = photo(3000, 1500).convert("RGBA")
    see_through.putalpha(200)
    white = Pil.new("RGBA", see_through.size, "white")
    expected = np.asarray(Pil.alpha_composite(white, see_through).convert("RGB"))
    assert np.array_equal(read(encode(see_through, "PNG", compress_level=1)).pixels, expected)


# ------------------------------------------------------------------ bad content


HALF_JPEG = encode(photo(200, 200), "JPEG")[: len(encode(photo(200, 200), "JPEG")) // 2]
GOOD_PNG = encode(photo(), "PNG")
IDAT = GOOD_PNG.index(b"IDAT")
IDAT_END = IDAT + 4 + int.from_bytes(GOOD_PNG[IDAT - 4 : IDAT], "big")
BAD_CRC = GOOD_PNG[:IDAT_END] + b"\0\0\0\0" + GOOD_PNG[IDAT_END + 4 :]
GIF_BOMB = bytearray(encode(photo(), "GIF"))
GIF_BOMB[6:10] = struct.pack("<HH", 65535, 65535)
WEBP_BOMB = b"RIFF" + struct.pack("<I", 120) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4)
WEBP_BOMB += (16382).to_bytes(3, "little") * 2 + bytes(90)
JPEG_BOMB = bytearray(encode(photo(), "JPEG"))
SOF = JPEG_BOMB.index(b"\xff\xc0")
JPEG_BOMB[SOF + 5 : SOF + 9] = struct.pack(">HH", 60000, 60000)
SVG = b'<?xml version="1.0"?>\n<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>\n<svg>&x;</svg>'

# name -> (bytes, error, what the message says after the name)
BAD = {
    "text.jpg": (
        b"To be or not to be\n" * 9,
        ImageDecodeError,
        r"is not a picture \(it looks like text",
    ),
    "cut text.jpg": (
        "буквы".encode() * 900,
        ImageDecodeError,
        r"is not a picture \(it looks like text",
    ),
    "bmw.bmp": (
        b"BMW is a car maker\n",
        ImageDecodeError,
        r"is not a picture \(it looks like text",
    ),
    "page.png": (
        b"\n<!DOCTYPE html><html><body>404</body></html>",
        ImageDecodeError,
        r"is not a picture \(it looks like an HTML page",
    ),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\n", ImageDecodeError, ".*Git LFS"),
    "drawing.svg": (SVG, UnsupportedMediaError, "is an SVG drawing"),
    "bare.svg": (b"<svg/>", UnsupportedMediaError, "is an SVG drawing"),
    "utf16.svg": (SVG.decode().encode("utf-16"), UnsupportedMediaError, "is an SVG drawing"),
    "a.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", UnsupportedMediaError, "is a PostScript"),
    "a.pdf": (
        b"HTTP/1.1 200 OK\r\n\r\n%PDF-1.7",
        UnsupportedMediaError,
        "is a PDF document behind",
    ),
    "a.zip": (b"PK\x03\x04" + bytes(60), UnsupportedMediaError, "is a ZIP archive"),
    "a.mp4": (b"\0\0\0\x18ftypisom" + bytes(90), UnsupportedMediaError, "is a video"),
    "a.webm": (b"\x1aE\xdf\xa3" + bytes(90), UnsupportedMediaError, "is a video"),
    "a.avi": (b"RIFF\x10\0\0\0AVI LIST" + bytes(90), UnsupportedMediaError, "is a video"),
    "a.heic": (b"\0\0\0\x18ftypheic" + bytes(90), UnsupportedMediaError, "is a HEIC picture"),
    "a.ico": (encode(photo(), "ICO"), UnsupportedMediaError, "is an ICO icon"),
    "a.jp2": (encode(photo(), "JPEG2000"), UnsupportedMediaError, "is a JPEG 2000 picture"),
    "a.ppm": (encode(photo(), "PPM"), ImageDecodeError, "is not a picture of a known format"),
    "a.tga": (encode(photo(), "TGA"), ImageDecodeError, "is not a picture of a known format"),
    "empty.png": (b"", ImageDecodeError, "is empty: 0 bytes"),
    "zeros.png": (bytes(5000), ImageDecodeError, "is not a picture of a known format"),
    "half.jpg": (HALF_JPEG, ImageDecodeError, "is cut off: the file ends before the picture does"),
    "half.png": (GOOD_PNG[: len(GOOD_PNG) // 2], ImageDecodeError, "is cut off"),
    "half.gif": (encode(photo(), "GIF")[:900], ImageDecodeError, "is cut off"),
    "half.webp": (encode(photo(), "WEBP")[:200], ImageDecodeError, "is cut off"),
    "half.bmp": (encode(photo(), "BMP")[:2000], ImageDecodeError, "is cut off"),
    "half.tif": (encode(photo(), "TIFF")[:2000], ImageDecodeError, "is (cut off|damaged)"),
    "half.avif": (encode(photo(), "AVIF")[:400], ImageDecodeError, "is (cut off|damaged)"),
    "start.jpg": (b"\xff\xd8\xff", ImageDecodeError, "is (cut off|damaged)"),
    "crc.png": (BAD_CRC, ImageDecodeError, "is damaged"),
    "zero.png": (png(0, 10, b""), ImageDecodeError, "has no pixels: it is 0x10"),
    "nan.tif": (
        encode(Pil.fromarray(np.full((40, 40), np.nan, np.float32)), "TIFF"),
        ImageDecodeError,
        "is damaged: it has pixels that are not numbers",
    ),
    "strip.png": (
        encode(Pil.new("L", (20000, 10)), "PNG"),
        ImageAspectError,
        "is 20000x10 px: one side is 2000 times the other, the limit is 200",
    ),
    "201.png": (encode(Pil.new("L", (10, 2010)), "PNG"), ImageAspectError, "is 10x2010 px"),
    "bomb.png": (
        png(13377, 13377, bytes(100), bits=1, colour_type=0),
        ImageTooLargeError,
        r"has 178\.9 megapixels \(13377x13377\), the limit is 50",
    ),
    "header.png": (png_header(60000, 60000), ImageTooLargeError, r"has 3600\.0 megapixels"),
    "max.png": (png_header(2**31 - 1, 2**31 - 1), ImageTooLargeError, "has [0-9.]+ megapixels"),
    "bomb.gif": (bytes(GIF_BOMB), ImageTooLargeError, r"has 4294\.8 megapixels"),
    "bomb.webp": (WEBP_BOMB, ImageTooLargeError, r"has 268\.4 megapixels \(16383x16383\)"),
    "bomb.jpg": (bytes(JPEG_BOMB), ImageTooLargeError, r"has 3600\.0 megapixels"),
    "just over.png": (png_header(7072, 7072), ImageTooLargeError, r"has 50\.0 megapixels"),
    "20 MiB.png": (bytes(20 * 2**20 + 1), ImageTooLargeError, r"has 20\.0 MiB, the limit is 20"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_a_typed_error_and_the_next_picture_is_read(name: str):
    data, error, text = BAD[name]
    with pytest.raises(InputError) as caught:
        read(data, name)
    assert type(caught.value) is error
    assert re.match(f"{name!r} {text}", caught.value.message)
    assert caught.value.hint
    for shown in (caught.value.message, caught.value.hint):
        assert not shown.endswith(".")
        assert not re.search(r"\b0x[0-9a-f]{4,}|<_io|PIL|Traceback|/home|/tmp", shown)
    assert np.array_equal(read(GOOD_PNG).pixels, np.asarray(photo()))


def test_a_text_chunk_that_unpacks_to_64_mib_is_not_unpacked():
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 << 20)))
    with pytest.raises(ImageDecodeError):
        read(GOOD_PNG[: IDAT - 4] + bomb + GOOD_PNG[IDAT - 4 :])


def test_the_parent_s_memory_stays_small_after_bombs():
    read(GOOD_PNG)
    before = psutil.Process().memory_info().rss
    for name in ("bomb.png", "header.png", "bomb.gif", "bomb.webp", "bomb.jpg"):
        with pytest.raises(ImageTooLargeError):
            read(BAD[name][0])
    assert psutil.Process().memory_info().rss - before < 50 * 2**20


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"]),
    at=st.floats(0, 1, exclude_max=True),
    length=st.integers(0, 12),
    noise=st.binary(max_size=12),
)
def test_damage_anywhere_gives_a_picture_or_a_typed_error(kind, at, length, noise):
    data = encode(photo(), kind)
    start = int(at * len(data))
    try:
        picture = read(data[:start] + noise + data[start + length :])
    except InputError:
        return
    assert picture.pixels.ndim == 3


# -------------------------------------------------------------------- bad paths


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputNotFoundError, match=r"^'no/such\.png' does not exist$"):
        read_image(Image.of("no/such.png"))
    (tmp_path / "file").touch()
    with pytest.raises(InputNotFoundError):
        read_image(Image.of(tmp_path / "file" / "a.png"))


def test_a_message_holds_the_name_that_the_caller_gave_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(b"text")
    with pytest.raises(ImageDecodeError, match=r"^'a\.png' is not a picture") as caught:
        read_image(Image.of("a.png"))
    assert str(tmp_path) not in f"{caught.value.message} {caught.value.hint}"


def test_control_characters_and_long_names_are_tamed():
    with pytest.raises(ImageDecodeError) as caught:
        read(b"text", "\x1b[31m" + "a" * 5000)
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 400


def test_a_folder_is_not_read(tmp_path: Path):
    with pytest.raises(InputUnreadableError, match=r"is a folder$"):
        read_image(Image.of(tmp_path))


def test_a_fifo_a_socket_and_a_device_are_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    start = time.monotonic()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "fifo", tmp_path / "socket", Path("/dev/zero"), Path("/dev/null")):
            with pytest.raises(InputUnreadableError):
                read_image(Image(path, "a.png"))
    assert time.monotonic() - start < 1


def test_a_loop_of_links_is_refused(tmp_path: Path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InputUnreadableError, match=r"^'a\.png' cannot be read: too many"):
        read_image(Image(tmp_path / "a", "a.png"))


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    """root may read everything; files made before stay root's."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_without_permission_says_so():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "secret.png")
        path.write_bytes(GOOD_PNG)
        path.chmod(0)
        with (
            as_ordinary_user(),
            pytest.raises(InputUnreadableError, match=r"cannot be read: permission denied$"),
        ):
            read_image(Image(path, "secret.png"))


@pytest.mark.parametrize(
    "path", ["a\0b.png", "a" * 5000, "a\ud800.png"], ids=["NUL", "long", "text"]
)
def test_what_cannot_be_a_path_is_a_wrong_parameter(path: str):
    with pytest.raises(InvalidParamError) as caught:
        read_image(Image.of(path))
    caught.value.message.encode()  # can be printed


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path):
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ImageTooLargeError, match=r"has 1048576\.0 MiB, the limit is 20$"):
        read_image(Image(tmp_path / "sparse.png"))


# -------------------------------------------------------------------- processes


def test_the_worker_is_kept_and_limited_and_knows_nothing():
    read(GOOD_PNG)
    first = workers()
    read(GOOD_PNG)
    assert workers() == first
    worker = first[0]
    assert worker.environ() == {}
    assert worker.rlimit(psutil.RLIMIT_AS)[1] == 3 * 2**29
    assert worker.rlimit(psutil.RLIMIT_NOFILE)[1] == 16
    assert worker.rlimit(psutil.RLIMIT_FSIZE)[1] == 0
    assert worker.rlimit(psutil.RLIMIT_CORE)[1] == 0
    loaded = " ".join(mapped.path for mapped in worker.memory_maps())
    assert not re.search("torch|numpy", loaded)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_dead_worker_is_replaced_unnoticed(sent: signal.Signals):
    read(GOOD_PNG)
    for worker in workers():
        worker.send_signal(sent)
    assert np.array_equal(read(GOOD_PNG).pixels, np.asarray(photo()))
    assert all(worker.status() != psutil.STATUS_ZOMBIE for worker in workers())


def test_ctrl_c_in_the_terminal_does_not_reach_a_worker():
    read(GOOD_PNG)
    before = workers()
    assert all(os.getpgid(worker.pid) != os.getpgrp() for worker in before)
    for worker in before:
        worker.send_signal(signal.SIGINT)
    read(GOOD_PNG)
    assert workers() == before


def test_a_decoder_that_hangs_is_killed_and_replaced(monkeypatch: pytest.MonkeyPatch):
    """A stopped process is a hang: it neither answers nor ends."""
    monkeypatch.setattr(image_module, "DECODE_WALL_S", 1)
    read(GOOD_PNG)
    stopped = workers()
    for worker in stopped:
        worker.suspend()
    with pytest.raises(ImageDecodeError, match=r"^'slow\.png' was not decoded within 1 s$"):
        read(GOOD_PNG, "slow.png")
    assert sum(worker.is_running() for worker in stopped) == len(stopped) - 1
    for worker in workers():
        worker.resume()
    assert np.array_equal(read(GOOD_PNG).pixels, np.asarray(photo()))


@pytest.fixture
def play_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Takes what a worker does with its first picture, in place of the real one."""

    def play(act: str) -> None:
        (tmp_path / "decode_worker.py").write_text(
            "import json, os, signal, struct\n"
            "def say(text, after=b''):\n"
            "    os.write(1, struct.pack('<I', len(text)) + text.encode() + after)\n"
            "os.write(1, b'R')\n"
            "length, = struct.unpack('<Q', os.read(0, 8))\n"
            "while length > 0: length -= len(os.read(0, length))\n" + act
        )
        monkeypatch.setattr(image_module, "__file__", str(tmp_path / "image.py"))
        end_workers()

    yield play
    monkeypatch.undo()
    end_workers()


def end_workers() -> None:
    for worker in workers():
        worker.kill()


@pytest.mark.parametrize(
    "act",
    [
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "os._exit(0)",
        "os.write(1, b'xxxx')",  # a length of 2 GB
        "say('not json')",
        "say('[1, 2]')",
        """say('{"error": "KeyboardInterrupt", "message": "", "hint": null}')""",
        """say('{"width": 10}')""",
        """say('{"width": 1e999, "height": 1, "notes": []}')""",
        "say('[' * 60000)",
        """say('{"width": 1e9, "height": 1e9, "notes": []}')""",
        """say('{"width": -5, "height": -5, "notes": []}')""",
        """say('{"width": 10, "height": 10, "notes": []}', b'too short')""",
    ],
)
def test_a_picture_that_crashes_or_subverts_its_worker_is_an_error(
    act: str, play_worker: Callable[[str], None]
):
    play_worker(act)
    with pytest.raises(
        ImageDecodeError, match=r"^'evil\.png' made the picture decoder crash$"
    ) as caught:
        read(GOOD_PNG, "evil.png")
    assert caught.value.hint


def test_a_picture_that_never_ends_is_an_error(
    play_worker: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(image_module, "DECODE_WALL_S", 0.5)
    play_worker("while True: pass")
    start = time.monotonic()
    with pytest.raises(ImageDecodeError, match=r"^'slow\.png' was not decoded within 0\.5 s$"):
        read(GOOD_PNG, "slow.png")
    assert time.monotonic() - start < 5
    assert workers() == []


def test_an_interrupted_read_leaves_no_half_answer_behind():
    read(GOOD_PNG)
    for worker in workers():
        worker.suspend()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            read(encode(Pil.new("RGB", (50, 50), "red"), "PNG"))
    finally:
        signal.signal(signal.SIGALRM, previous)
        for worker in workers():
            worker.resume()
    assert np.array_equal(read(GOOD_PNG).pixels, np.asarray(photo()))


def test_a_worker_retires_after_its_share(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(image_module, "PICTURES_PER_WORKER", 2)
    pids = set()
    for _ in range(6):
        read(GOOD_PNG)
        pids |= {worker.pid for worker in workers()}
    assert len(pids) >= 2
    assert len(workers()) <= (os.cpu_count() or 1)


def test_threads_get_the_same_as_one_reader():
    files = [encode(photo(40 + i, 44), kind) for i in range(8) for kind in ("PNG", "JPEG")]
    files.insert(3, HALF_JPEG)

    def outcome(data: bytes) -> object:
        try:
            return read(data).pixels.tobytes()
        except ImageDecodeError as err:
            return err.message

    alone = [outcome(data) for data in files]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(outcome, files * 3)) == alone * 3
    assert len(workers()) <= (os.cpu_count() or 1)


def run_python(code: str, warnings: str = "error") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", warnings, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


READ_IN_CHILD = f"""
import os, sys, psutil
from qvl.processing.image import read_image
from qvl.types import Image
data = bytes.fromhex("{GOOD_PNG.hex()}")
"""


def test_workers_end_with_their_parent():
    pids = []
    for end in ("", "os._exit(0)", "os.kill(os.getpid(), 9)"):
        code = "read_image(Image(data)); print(psutil.Process().children()[0].pid, flush=True)\n"
        result = run_python(READ_IN_CHILD + code + end)
        assert result.stderr == ""
        pids.append(int(result.stdout))
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_forked_child_gets_workers_of_its_own():
    """Even when another thread held the only place in the pool at the fork."""
    code = """
import signal, threading, time
first = read_image(Image(data)).sha256
worker = psutil.Process().children()[0]
worker.suspend()
reader = threading.Thread(target=read_image, args=(Image(data),))
reader.start()
time.sleep(0.2)
child = os.fork()
if not child:
    signal.alarm(20)
    same = read_image(Image(data)).sha256 == first
    os._exit(0 if same and len(psutil.Process().children()) == 1 else 1)
status = os.waitpid(child, 0)[1]
worker.resume()
reader.join()
print(status, psutil.Process().children() == [worker])
"""
    # Newer Pythons warn of a fork beside threads, which is the point here.
    result = run_python("import os; os.cpu_count = lambda: 1\n" + READ_IN_CHILD + code, "ignore")
    assert (result.stdout, result.stderr) == ("0 True\n", "")


def test_without_a_python_to_start_the_fault_is_not_the_picture_s(monkeypatch: pytest.MonkeyPatch):
    end_workers()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(EngineError, match="the picture decoder cannot be started"):
        read(GOOD_PNG)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EngineError, match="the picture decoder does not start"):
        read(GOOD_PNG)
    monkeypatch.undo()
    assert np.array_equal(read(GOOD_PNG).pixels, np.asarray(photo()))
