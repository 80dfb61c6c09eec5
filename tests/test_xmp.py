"""XMP in pictures: what is written is read back by Pillow, and nothing else of the file changes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from qvl.errors import ImageDecodeError, ImageTooLargeError, QvlError, UnsupportedMediaError
from qvl.xmp import (
    ALT_TEXT,
    DESCRIPTION,
    EXTENDED,
    JPEG_XMP,
    META,
    RDF,
    SUBJECT,
    XML_LANG,
    Words,
    with_xmp,
)

WORDS = Words(
    description={"ru": "Красный круг <на> белом & «сером»", "en": "A red circle"},
    alt_text={"ru": "Круг", "en": "A circle"},
    keywords=("круг", "red"),
)
PLAIN = Words(description={"en": "A"}, alt_text={"en": "A"})
OTHERS = (
    f'<x:xmpmeta xmlns:x="{META.strip("{}")}"><rdf:RDF xmlns:rdf="{RDF.strip("{}")}">'
    '<rdf:Description rdf:about="uuid:1" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:description><rdf:Alt><rdf:li xml:lang="x-default">'
    "old</rdf:li></rdf:Alt></dc:description><dc:creator><rdf:Seq><rdf:li>Ann</rdf:li></rdf:Seq>"
    "</dc:creator></rdf:Description></rdf:RDF></x:xmpmeta>"
).encode()


def saved(
    kind: str, mode: str = "RGB", size: tuple[int, int] = (31, 20), **options: object
) -> bytes:
    file = io.BytesIO()
    picture = Pillow.linear_gradient("L").resize(size).convert(mode)
    picture.save(file, kind, **options)
    return file.getvalue()


EXIF = Pillow.Exif()
EXIF[0x0112] = 6
FILES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved("JPEG"),
    "jpeg with Exif": lambda: saved("JPEG", exif=EXIF, icc_profile=b"icc" * 30),
    "progressive jpeg": lambda: saved("JPEG", progressive=True, comment=b"said"),
    "grey jpeg": lambda: saved("JPEG", "L"),
    "png": lambda: saved("PNG"),
    "palette png": lambda: saved("PNG", "P"),
    "png with alpha": lambda: saved("PNG", "RGBA", exif=EXIF),
    "webp": lambda: saved("WEBP"),
    "webp of odd length": lambda: saved("WEBP", quality=31),
    "lossless webp": lambda: saved("WEBP", lossless=True),
    "lossless webp with alpha": lambda: saved("WEBP", "RGBA", lossless=True),
    "webp with Exif": lambda: saved("WEBP", "RGBA", exif=EXIF),
    "jpeg with XMP": lambda: saved("JPEG", xmp=OTHERS),
    "webp with XMP": lambda: saved("WEBP", xmp=OTHERS),
}


def xmp_of(picture: bytes) -> bytes:
    """As Pillow finds it."""
    info = Pillow.open(io.BytesIO(picture)).info
    found = info.get("xmp") or info["XML:com.adobe.xmp"]
    return found if isinstance(found, bytes) else found.encode()


def texts(picture: bytes, tag: str) -> dict[str | None, str | None]:
    root = ElementTree.fromstring(xmp_of(picture))
    return {item.get(XML_LANG, item.text): item.text for item in root.findall(f".//{tag}//{RDF}li")}


@pytest.mark.parametrize("name", FILES)
def test_the_words_are_read_back_and_the_pixels_are_the_same(name: str) -> None:
    picture = FILES[name]()
    written = with_xmp(picture, WORDS, name="a")
    default = WORDS.description["ru"]
    assert texts(written, DESCRIPTION) == {"x-default": default, **WORDS.description}
    assert texts(written, ALT_TEXT) == {"x-default": "Круг", **WORDS.alt_text}
    assert texts(written, EXTENDED) == {"x-default": default, **WORDS.description}
    assert set(texts(written, SUBJECT)) == set(WORDS.keywords)
    before, after = (Pillow.open(io.BytesIO(data)) for data in (picture, written))
    assert (before.mode, before.size) == (after.mode, after.size)
    assert before.tobytes() == after.tobytes()
    assert before.getexif() == after.getexif()
    assert before.info.get("icc_profile") == after.info.get("icc_profile")


@pytest.mark.parametrize("name", FILES)
def test_writing_again_changes_the_words_alone(name: str) -> None:
    """So every byte outside of the packet is where it was: the second file is made of the first."""
    first = with_xmp(FILES[name](), PLAIN, name="a")
    second = with_xmp(first, WORDS, name="a")
    assert with_xmp(second, PLAIN, name="a") == first
    assert texts(second, DESCRIPTION)["en"] == "A red circle"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_all_other_bytes_stay(kind: str) -> None:
    picture = saved(kind)
    written = with_xmp(picture, PLAIN, name="a")
    added = len(written) - len(picture)
    start = next(i for i, (a, b) in enumerate(zip(picture, written, strict=False)) if a != b)
    for begin in range(start - 16, start + 1):  # the marker may look like what followed it
        if written[:begin] + written[begin + added :] == picture:
            return
    pytest.fail("more than an insertion")


@pytest.mark.parametrize("name", ["jpeg with XMP", "webp with XMP"])
def test_what_others_wrote_stays(name: str) -> None:
    written = with_xmp(FILES[name](), PLAIN, name="a")
    assert b'xmp:Rating="4"' in xmp_of(written)
    assert b"Ann" in xmp_of(written)
    assert b"old" not in xmp_of(written)
    assert xmp_of(written).count(b"uuid:1") == 2


def test_a_png_with_xmp_of_others_keeps_it() -> None:
    from PIL.PngImagePlugin import PngInfo

    for squeezed in (False, True):
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", OTHERS.decode(), zip=squeezed)
        written = with_xmp(saved("PNG", pnginfo=info), PLAIN, name="a")
        assert written.count(b"XML:com.adobe.xmp") == 1
        assert b'xmp:Rating="4"' in xmp_of(written)
        assert texts(written, DESCRIPTION) == {"x-default": "A", "en": "A"}


def test_alt_text_that_is_the_description_is_said_once() -> None:
    assert texts(with_xmp(saved("PNG"), PLAIN, name="a"), EXTENDED) == {}


def test_characters_that_xml_has_not_become_blanks() -> None:
    words = Words(description={"en": "a\0b\x1bc\ud800d"})
    assert texts(with_xmp(saved("PNG"), words, name="a"), DESCRIPTION)["en"] == "a b c d"


@pytest.mark.parametrize(
    ("picture", "words", "error"),
    [
        (saved("GIF"), PLAIN, UnsupportedMediaError),
        (b"", PLAIN, UnsupportedMediaError),
        (saved("JPEG", xmp=b"<no"), PLAIN, UnsupportedMediaError),
        (
            saved("JPEG", xmp=b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"),
            PLAIN,
            UnsupportedMediaError,
        ),
        (saved("JPEG"), Words(description={"en": "a" * 70_000}), ImageTooLargeError),
        (b"RIFF\xff\xff\xff\x7fWEBPVP8 ", PLAIN, ImageDecodeError),
        (b"RIFF\x04\0\0\0WEBP", PLAIN, ImageDecodeError),
    ],
)
def test_what_cannot_hold_the_words_is_refused(
    picture: bytes, words: Words, error: type[QvlError]
) -> None:
    with pytest.raises(error, match="'cup'"):
        with_xmp(picture, words, name="cup")


@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_damaged_file_is_an_error_of_ours_or_stays_as_damaged(
    name: str, data: st.DataObject
) -> None:
    picture = bytearray(FILES[name]())
    for _ in range(3):
        picture[data.draw(st.integers(0, len(picture) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(picture)))
    with contextlib.suppress(QvlError):
        with_xmp(bytes(picture[:cut]), PLAIN, name="a")


def test_in_a_jpeg_jfif_and_exif_stay_first() -> None:
    written = with_xmp(FILES["jpeg with Exif"](), PLAIN, name="a")
    assert written.index(b"JFIF") < written.index(b"Exif\0\0") < written.index(JPEG_XMP)
    assert written.index(JPEG_XMP) < written.index(b"ICC_PROFILE")
