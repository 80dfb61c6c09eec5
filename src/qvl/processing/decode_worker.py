"""The process that decodes pictures, so that a hostile file can only kill this process.

Started by image.py as `python -I decode_worker.py FOLDER_OF_PILLOW LIMITS`. It imports Pillow and the standard
library only: no qvl, no numpy, no torch. Main path: main -> answer -> decode -> to_rgb_bytes.

On stdin: 8 bytes of length and the encoded picture, again and again. On stdout: one READY byte once,
then per picture 4 bytes of length and a JSON object, {"width", "height", "notes", "as_stored"}, and
width * height * 3 bytes of upright sRGB, or {"error", "message", "hint"}. A message is the predicate
of a sentence whose subject, the picture's name, this process does not know. With HEAD_ALONE added to
the length come the first bytes of a picture, and back goes {"width", "height"} alone.
"""

from __future__ import annotations

import codecs
import io
import json
import math
import os
import re
import resource
import signal
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

if __name__ == "__main__":
    # -I hides PYTHONPATH and the user's site folder, where Pillow may be installed.
    sys.path.append(sys.argv[1])

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

READY = b"R"
HEAD_ALONE = 1 << 63
# A side shorter than this is less than one visual token of any generation.
TINY_PX = 28
# Colours are converted in strips, so that 50 Mpx fit the memory limit in every mode.
STRIP_PIXELS = 4_000_000

FORMATS = [
    str(plugin.format)
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
        AvifImagePlugin.AvifImageFile,
    )
]
try:
    import pillow_heif
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener()
    FORMATS.append("HEIF")

# What parsers of foreign bytes raise. MemoryError is apart; anything else is a crash of the worker.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

ANOTHER_COPY = "download or copy it again, or open it in an image editor and save it anew"
READABLE = "give a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF picture"
CONVERT = "convert it to PNG or JPEG first"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    pixels: int
    aspect: int
    memory_bytes: int
    wall_s: int


@dataclass
class Refusal(Exception):
    """The picture cannot be used; `code` is that of a class in qvl.errors."""

    code: str
    message: str
    hint: str | None = None


def check_size(width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise Refusal("image_decode", f"has no pixels: it is {width}x{height}", ANOTHER_COPY)
    if width * height > limits.pixels:
        raise too_many_pixels(width * height, f" ({width}x{height})", limits)
    if max(width, height) > limits.aspect * min(width, height):
        ratio = max(width, height) / min(width, height)
        raise Refusal(
            "image_aspect",
            f"is {width}x{height} px: one side is {ratio:.4g} times the other, "
            f"the limit is {limits.aspect}",
            "cut it into several pictures",
        )


def too_many_pixels(pixels: int, size: str, limits: Limits) -> Refusal:
    return Refusal(
        "image_too_large",
        f"has {pixels / 1e6:.1f} megapixels{size}, the limit is {limits.pixels / 1e6:g}",
        "make it smaller or cut it into several pictures",
    )


def declared_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) in the header of a PNG or a WebP, else None.

    Needed before Pillow: it wants more of a PNG than its header, and allocates a WebP's canvas when
    it opens it. Layouts: the PNG specification 11.2.1, RFC 9649 sections 2.5 to 2.7 and RFC 6386 9.1.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR" and len(data) >= 24:
        return struct.unpack_from(">II", data, 16)
    if not data.startswith(b"RIFF") or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return width, height
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def decode(data: bytes, limits: Limits) -> tuple[dict[str, object], bytearray]:
    """(header, RGB bytes) of the upright picture; raises Refusal."""
    notes: list[str] = []
    if (size := declared_size(data)) is not None:
        check_size(*size, limits)
    image = open_allowed(data)
    check_size(*image.size, limits)
    try:
        if image.format == "PNG":
            # load() skips the checksums of the pixel data.
            Image.open(io.BytesIO(data), formats=["PNG"]).verify()
        note_frames(image, notes)
        image.load()
        is_plain = image.mode in ("1", "L", "P", "RGB") and not image.has_transparency_data
        stored, image = image, turn_upright(image, notes)
        as_stored = is_plain and image is stored
        del stored  # may be large
        pixels = to_rgb_bytes(image, notes)
    except DAMAGE as err:
        raise unreadable(data, err) from err
    check_size(*image.size, limits)
    width, height = image.size
    if min(width, height) < TINY_PX:
        notes.append(f"tiny, {width}x{height} px")
    return {"width": width, "height": height, "notes": notes, "as_stored": as_stored}, pixels


def open_allowed(data: bytes) -> Image.Image:
    """The picture with its header read; raises Refusal, which names what the bytes are instead."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except DAMAGE as err:
        raise sniff(data) or unreadable(data, err) from err


def unreadable(data: bytes, err: BaseException) -> Refusal:
    """Cut off or damaged. Pillow's own words are read, not shown: they can hold addresses."""
    text = str(err).lower()
    riff_is_short = data.startswith(b"RIFF") and len(data) < 8 + int.from_bytes(data[4:8], "little")
    if riff_is_short or isinstance(err, EOFError) or "truncated" in text or "incomplete" in text:
        message = "is cut off: the file ends before the picture does"
    else:
        message = "is damaged: its picture data cannot be read"
    return Refusal("image_decode", message, ANOTHER_COPY)


def note_frames(image: Image.Image, notes: list[str]) -> None:
    # MPO: what phones write; its further frames are previews and depth maps of the same picture.
    if not getattr(image, "is_animated", False) or image.format == "MPO":
        return
    if image.format == "TIFF":  # counting pages means to parse all of them
        notes.append("several pages: the first one is used")
        return
    try:
        frames = getattr(image, "n_frames", 0)
        notes.append(f"animated, {frames} frames: the first one is used")
    except DAMAGE:
        notes.append("animated, with damaged frames: the first one is used")


# The numbers: TIFF 6.0 / EXIF tag 274. ImageOps.exif_transpose does the same, but also rewrites the
# metadata, which fails on damaged metadata of good pictures.
ORIENTATION_TAG = 274
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turn_upright(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except DAMAGE:
        notes.append("its EXIF data are damaged and were ignored")
        return image
    if orientation == 1:
        return image
    if not isinstance(orientation, int) or orientation not in UPRIGHT:
        notes.append("its EXIF orientation is not a number from 1 to 8 and was ignored")
        return image
    return image.transpose(UPRIGHT[orientation])


def to_rgb_bytes(image: Image.Image, notes: list[str]) -> bytearray:
    """8-bit sRGB rows of a loaded picture: wide grey scaled, profile applied, alpha on white."""
    narrow = narrowing(image, notes) if base_mode(image) == "L" else None
    transform = profile_transform(image, notes)
    rows = max(1, STRIP_PIXELS // image.width)
    pixels = bytearray()
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels += strip_to_rgb(narrow(strip) if narrow else strip, transform).tobytes()
    return pixels


def base_mode(image: Image.Image) -> str:
    """The mode of the picture's colours when alpha, palette and wide numbers are gone."""
    if image.mode in ("CMYK", "LAB"):
        return image.mode
    grey = image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")
    return "L" if grey else "RGB"


def narrowing(image: Image.Image, notes: list[str]) -> Callable[[Image.Image], Image.Image] | None:
    """A function that makes strips of a 16 or 32-bit grey picture L or LA, or None for 8 bits."""
    if image.mode.startswith("I;16"):
        scale, offset = 1 / 257, 0.5
        # Pillow leaves this TIFF kind (PhotometricInterpretation 0, white is zero) as it is.
        if getattr(image, "tag_v2", {}).get(262) == 0:
            scale, offset = -1 / 257, 255.5
    elif image.mode in ("I", "F"):
        low, high = cast(tuple[float, float], image.getextrema())
        scale, offset = scale_of_range(low, high, image.mode, notes)
    else:
        return None
    key = image.info.get("transparency")

    def narrow(strip: Image.Image) -> Image.Image:
        strip.info.pop("transparency", None)
        numbers = strip if strip.mode in ("I", "F") else strip.convert("I")
        grey = numbers.convert("F").point(lambda v: v * scale + offset).convert("L")
        if isinstance(key, int) and numbers.mode == "I":
            opaque = [255] * 65536
            opaque[key & 0xFFFF] = 0
            grey.putalpha(numbers.point(opaque, "L"))
        return grey

    return narrow


def scale_of_range(low: float, high: float, mode: str, notes: list[str]) -> tuple[float, float]:
    """(scale, offset) from a 32-bit grey picture's values to 0..255, rounding included.

    32-bit files do not say what white is: the smallest usual range that holds all values is taken
    (0..1 for fractions, 8 bits, 16 bits), else darkest to brightest is stretched, with a note.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise Refusal("image_decode", "is damaged: it has pixels that are not numbers", CONVERT)
    for white in (1, 255, 65535) if mode == "F" else (255, 65535):
        if low >= 0 and high <= white:
            return 255 / white, 0.5
    notes.append("unusual grey range: its darkest and brightest pixels became black and white")
    scale = 255 / (high - low) if high > low else 0.0
    return scale, 0.5 - low * scale


def profile_transform(image: Image.Image, notes: list[str]) -> ImageCms.ImageCmsTransform | None:
    """From the embedded ICC profile to sRGB; None without one, or when it is sRGB or unusable."""
    mode, embedded = base_mode(image), image.info.get("icc_profile")
    srgb = ImageCms.createProfile("sRGB")
    try:
        if embedded:
            source = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
            if source.profile.xcolor_space.strip() == "RGB" and mode == "L":
                mode = "RGB"  # grey pictures often carry the profile of the colour original
            if mode == "RGB" and "sRGB" in ImageCms.getProfileDescription(source):
                return None
            return ImageCms.buildTransform(source, srgb, mode, "RGB")
    except (ImageCms.PyCMSError, *DAMAGE):
        notes.append("its colour profile is damaged or does not fit and was ignored")
    if mode == "LAB":  # the one mode that convert() does not know
        return ImageCms.buildTransform(ImageCms.createProfile("LAB"), srgb, "LAB", "RGB")
    return None


def strip_to_rgb(strip: Image.Image, transform: ImageCms.ImageCmsTransform | None) -> Image.Image:
    colours, alpha = split_alpha(strip)
    if transform is not None:
        colours = transform.apply(colours.convert(transform.input_mode))
    colours = colours.convert("RGB")
    if alpha is None:
        return colours
    colours.putalpha(alpha)
    white = Image.new("RGBA", colours.size, "white")
    return Image.alpha_composite(white, colours).convert("RGB")


def split_alpha(strip: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """(colours in the base mode, alpha or None)."""
    base = base_mode(strip)
    if base in ("L", "RGB") and strip.has_transparency_data:
        whole = strip.convert({"La": "LA", "RGBa": "RGBA"}.get(strip.mode, strip.mode))
        whole = whole.convert("LA" if base == "L" else "RGBA")
        return whole.convert(base), whole.getchannel("A")
    return strip if strip.mode == base else strip.convert(base), None


# First bytes of what people give instead of a picture: (bytes, what it is, hint).
NOT_READ = (
    (b"%!PS", "a PostScript (EPS) file", CONVERT),
    (b"\xc5\xd0\xd3\xc6", "a PostScript (EPS) file", CONVERT),
    (b"PK\x03\x04", "a ZIP archive or an office document", "unpack it and give its pictures"),
    (b"\x1f\x8b", "a gzip archive", "unpack it and give its pictures"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and give its pictures"),
    (b"Rar!", "a RAR archive", "unpack it and give its pictures"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM)", "give single frames of it as pictures"),
    (b"FLV\x01", "a video (FLV)", "give single frames of it as pictures"),
    (b"\x00\x00\x01\xba", "a video (MPEG)", "give single frames of it as pictures"),
    (b"\x00\x00\x01\xb3", "a video (MPEG)", "give single frames of it as pictures"),
    (b"OggS", "an Ogg sound or video file", "give single frames of it as pictures"),
    (b"8BPS", "a Photoshop (PSD) file", CONVERT),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 picture", CONVERT),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture", CONVERT),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture", CONVERT),
    (b"\xff\x0a", "a JPEG XL picture", CONVERT),
    (b"\x00\x00\x01\x00", "an ICO icon", CONVERT),
    (b"icns", "an ICNS icon", CONVERT),
    (b"qoif", "a QOI picture", CONVERT),
    (b"DDS ", "a DDS texture", CONVERT),
    (b"v/1\x01", "an OpenEXR picture", CONVERT),
    (b"gimp xcf", "a GIMP (XCF) file", CONVERT),
)
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def sniff(data: bytes) -> Refusal | None:
    """What bytes are that no decoder accepts; None for a damaged picture of a known format."""
    kind, hint = unread_kind(data)
    if kind is not None:
        return Refusal("unsupported_media", f"is {kind}, which is not read", hint)
    if looks_like_text(data):
        return text_refusal(data)
    picture = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II", b"MM")
    if data.startswith(picture) or data[4:8] == b"ftyp":
        return None
    return Refusal("image_decode", "is not a picture of a known format", READABLE)


def unread_kind(data: bytes) -> tuple[str | None, str | None]:
    """(what the bytes are, hint) for known formats that are not read, else (None, None)."""
    for start, kind, hint in NOT_READ:
        if data.startswith(start):
            return kind, hint
    if b"%PDF-" in data[:1024]:
        return "a PDF document behind other bytes", "save it as a PDF again"
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return "a video (AVI)", "give single frames of it as pictures"
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:
        return "a HEIC picture", "install the decoder (pip install pillow-heif) or save it as JPEG"
    if data[4:8] == b"ftyp" and data[8:12] not in (b"avif", b"avis"):
        return "a video (MP4 or QuickTime)", "give single frames of it as pictures"
    if re.match(rb"\s*(<\?xml|<!--|<!doctype svg|<svg)", plain(data), re.IGNORECASE) and re.search(
        rb"<svg[\s>:/]", plain(data), re.IGNORECASE
    ):
        return "an SVG drawing", CONVERT
    return None, None


def plain(data: bytes) -> bytes:
    """The first 4 KiB without a byte order mark; UTF-16 becomes UTF-8."""
    head = data[:4096]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return head.decode("utf-16", "replace").encode()
    return head.removeprefix(b"\xef\xbb\xbf")


def looks_like_text(data: bytes) -> bool:
    head = plain(data)
    if re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]", head):
        return False
    try:
        # Not final: the cut at 4 KiB may split a character.
        codecs.getincrementaldecoder("utf-8")().decode(head, final=len(data) <= 4096)
    except UnicodeDecodeError:
        return False
    return True


def text_refusal(data: bytes) -> Refusal:
    head = plain(data).lstrip()[:256].lower()
    if re.match(rb"(<!doctype html|<html|<head|<body|<script|<meta|<title)", head):
        kind = "an HTML page"
        hint = "an error page may have been saved in its place: download the picture itself"
    elif head.startswith(b"version https://git-lfs"):
        kind, hint = "a Git LFS pointer", "fetch the file itself with `git lfs pull`"
    else:
        kind, hint = "text", READABLE
    return Refusal("image_decode", f"is not a picture (it looks like {kind})", hint)


def answer(data: bytes, limits: Limits) -> tuple[dict[str, object], bytes | bytearray]:
    """(header, pixels) to send back for one encoded picture."""
    try:
        return decode(data, limits)
    except Refusal as no:
        return refusal_header(no), b""
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        # Pillow says the number only in its text.
        found = re.search(r"\((\d+) pixels\)", str(err))
        pixel_count = int(found[1]) if found else limits.pixels + 1
        return refusal_header(too_many_pixels(pixel_count, "", limits)), b""
    except MemoryError:
        message = f"needs more than {limits.memory_bytes / 2**30:g} GiB of memory to decode"
        hint = "make it smaller or save it as a plain JPEG or PNG"
        return refusal_header(Refusal("image_too_large", message, hint)), b""


def size_answer(head: bytes, limits: Limits) -> dict[str, object]:
    """The upright size that the first bytes of a picture tell."""
    try:
        size = declared_size(head)
        if size is None:  # of others Pillow reads no more than the header, EXIF included
            image = open_allowed(head)
            size = image.size
            if image.getexif().get(ORIENTATION_TAG) in (5, 6, 7, 8):
                size = size[::-1]
        check_size(*size, limits)
    except Refusal as no:
        return refusal_header(no)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return refusal_header(too_many_pixels(limits.pixels + 1, "", limits))
    except (MemoryError, *DAMAGE):
        return refusal_header(Refusal("image_decode", "has a header that cannot be read"))
    return {"width": size[0], "height": size[1]}


def refusal_header(no: Refusal) -> dict[str, object]:
    return {"error": no.code, "message": no.message, "hint": no.hint}


def read_exactly(fd: int, count: int) -> bytes | None:
    """count bytes, or None when the other side has closed the pipe."""
    data = bytearray()
    while len(data) < count:
        piece = os.read(fd, min(count - len(data), 1 << 20))
        if not piece:
            return None
        data += piece
    return bytes(data)


def write_all(fd: int, data: bytes | bytearray) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def limit_resources(memory_bytes: int) -> None:
    wanted = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_NOFILE: 16,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (limit, limit))
        except ValueError:  # macOS refuses to limit the address space; the wall time still holds
            continue


def main(limits: Limits) -> None:
    # Ctrl-C goes to the whole terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit_resources(limits.memory_bytes)
    Image.MAX_IMAGE_PIXELS = limits.pixels
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    # One thread: each further one reserves address space for its stack and its arena.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # pyrefly: ignore[bad-assignment]
    # A library that prints must not write into the answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    write_all(answers, READY)
    while (prefix := read_exactly(0, 8)) is not None:
        length = int.from_bytes(prefix, "little")
        data = read_exactly(0, length & ~HEAD_ALONE)
        if data is None:
            break
        # The parent kills at wall_s. Should it be gone by then, the alarm ends a stuck decoder.
        signal.alarm(limits.wall_s + 5)
        if length & HEAD_ALONE:
            header, pixels = size_answer(data, limits), b""
        else:
            header, pixels = answer(data, limits)
        signal.alarm(0)
        encoded = json.dumps(header).encode()
        write_all(answers, len(encoded).to_bytes(4, "little") + encoded)
        write_all(answers, pixels)


if __name__ == "__main__":
    main(Limits(**json.loads(sys.argv[2])))
