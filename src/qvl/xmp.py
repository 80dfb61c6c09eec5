"""XMP in copies of pictures: alt text, descriptions and keywords, without touching a pixel.

Main path: with_xmp -> the format's chunks -> packet (RDF/XML, beside what the file has already) -> the
file with that packet alone changed or added.
Sources: XMP Specification Part 1 (packets) and Part 3 (JPEG APP1, PNG iTXt, WebP "XMP "), the WebP
container specification (VP8X), IPTC Photo Metadata Standard 2021.1 (AltTextAccessibility,
ExtDescrAccessibility).
"""

from __future__ import annotations

import io
import logging
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from xml.etree import ElementTree

from qvl.errors import ImageDecodeError, ImageTooLargeError, UnsupportedMediaError

log = logging.getLogger(__name__)
LONGEST_ALT_TEXT = 250  # characters; screen readers say it in one breath
DC = "{http://purl.org/dc/elements/1.1/}"
IPTC = "{http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
META = "{adobe:ns:meta/}"
XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
PREFIXES = {"dc": DC, "Iptc4xmpCore": IPTC, "rdf": RDF, "x": META}
ALT_TEXT, EXTENDED = f"{IPTC}AltTextAccessibility", f"{IPTC}ExtDescrAccessibility"
DESCRIPTION, SUBJECT = f"{DC}description", f"{DC}subject"
OURS = (ALT_TEXT, EXTENDED, DESCRIPTION, SUBJECT)
HEAD = b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
TAIL = b'\n<?xpacket end="w"?>'
NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
JPEG_EXIF = b"Exif\0\0"
JPEG_ROOM = 0xFFFF - 2 - len(JPEG_XMP)
APP0, APP1, START_OF_SCAN, END_OF_IMAGE = 0xE0, 0xE1, 0xDA, 0xD9
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_XMP = b"XML:com.adobe.xmp\0"
MOST_INFLATED = 4 * 2**20
WEBP_HAS_XMP, WEBP_HAS_ALPHA = 0x04, 0x10


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What is said of a picture, by language, of which the first is the default one."""

    description: Mapping[str, str]
    alt_text: Mapping[str, str] = field(default_factory=dict)
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What is said of a picture in one language; without `alt_text` the text is one, if short."""

    language: str
    text: str
    alt_text: str = ""
    keywords: tuple[str, ...] = ()


def words_of(name: str, said: Iterable[Said]) -> Words:
    """The words of all languages; one that is too long for alt text is a description alone."""
    described = [one for one in said if one.text]
    alt = {one.language: one.alt_text or one.text for one in described}
    for language, text in alt.items():
        if len(text) > LONGEST_ALT_TEXT:
            log.warning(
                "%s: no alt text (%s): %d characters, over %d; --style alt-text writes short ones",
                name,
                language,
                len(text),
                LONGEST_ALT_TEXT,
            )
    return Words(
        description={one.language: one.text for one in described},
        alt_text={code: text for code, text in alt.items() if len(text) <= LONGEST_ALT_TEXT},
        keywords=tuple(dict.fromkeys(word for one in described for word in one.keywords)),
    )


def with_xmp(picture: bytes, words: Words, *, name: str) -> bytes:
    """The file of a JPEG, PNG or WebP picture with the words in it, and all else as it was.

    XMP that the file has stays, but for the properties that are written here. Raises
    UnsupportedMediaError for another format and for XMP that cannot be read, ImageDecodeError for a
    damaged file, ImageTooLargeError for more words than the format has room for.
    """
    if picture.startswith(b"\xff\xd8\xff"):
        embed = _jpeg
    elif picture.startswith(PNG_SIGNATURE):
        embed = _png
    elif picture[:4] == b"RIFF" and picture[8:12] == b"WEBP":
        embed = _webp
    else:
        raise UnsupportedMediaError(
            f"{name!r} cannot hold XMP here", hint="JPEG, PNG and WebP can; convert it first"
        )
    try:
        return embed(picture, words, name)
    except (IndexError, EOFError, RecursionError, zlib.error) as err:
        raise ImageDecodeError(f"{name!r} is damaged", hint="save it anew") from err


def packet(words: Words, present: bytes | None, name: str) -> bytes:
    """The XMP packet: the present one's properties, and the words in place of those of ours."""
    for prefix, space in PREFIXES.items():
        ElementTree.register_namespace(prefix, space.strip("{}"))
    if present is None:
        root = ElementTree.Element(f"{META}xmpmeta")
        rdf = ElementTree.SubElement(root, f"{RDF}RDF")
    else:
        root = _parsed(present, name)
        found = root if root.tag == f"{RDF}RDF" else root.find(f"{RDF}RDF")
        if found is None:
            raise _unreadable(name)
        rdf = found
    about = ""
    for described in rdf.findall(f"{RDF}Description"):
        about = about or described.get(f"{RDF}about", "")
        for tag in OURS:
            described.attrib.pop(tag, None)
            for old in described.findall(tag):
                described.remove(old)
        if not len(described) and set(described.keys()) <= {f"{RDF}about"}:
            rdf.remove(described)
    added = ElementTree.SubElement(rdf, f"{RDF}Description", {f"{RDF}about": about})
    _add_alternatives(added, DESCRIPTION, words.description)
    _add_alternatives(added, ALT_TEXT, words.alt_text)
    if words.alt_text and words.alt_text != words.description:
        _add_alternatives(added, EXTENDED, words.description)
    if words.keywords:
        bag = ElementTree.SubElement(ElementTree.SubElement(added, SUBJECT), f"{RDF}Bag")
        for keyword in words.keywords:
            ElementTree.SubElement(bag, f"{RDF}li").text = _sayable(keyword)
    return HEAD + ElementTree.tostring(root, encoding="utf-8") + TAIL


def _add_alternatives(parent: ElementTree.Element, tag: str, texts: Mapping[str, str]) -> None:
    if not texts:
        return
    among = ElementTree.SubElement(ElementTree.SubElement(parent, tag), f"{RDF}Alt")
    default = next(iter(texts.values()))
    for language, text in {"x-default": default, **texts}.items():
        item = ElementTree.SubElement(among, f"{RDF}li", {XML_LANG: language})
        item.text = _sayable(text)


def _sayable(text: str) -> str:
    return NO_XML.sub(" ", text)


def _parsed(present: bytes, name: str) -> ElementTree.Element:
    """The root of the packet's XML; without a document type, so no entity can be made in it."""
    try:
        text = present.decode("utf-8-sig").strip("\0 \r\n\t")
        if "<!DOCTYPE" in text:
            raise _unreadable(name)
        declared = ElementTree.iterparse(io.StringIO(text), ["start-ns"])
        for _, (prefix, space) in declared:
            if not prefix:
                continue
            with suppress(ValueError):  # "ns0" and the like, which ElementTree gives anew
                ElementTree.register_namespace(prefix, space)
        return ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError) as err:
        raise _unreadable(name) from err


def _unreadable(name: str) -> UnsupportedMediaError:
    return UnsupportedMediaError(
        f"{name!r} holds XMP that cannot be read, so nothing can be added to it",
        hint="remove that XMP from the picture first",
    )


def _jpeg(picture: bytes, words: Words, name: str) -> bytes:
    """In an APP1 segment of its own, after those of JFIF and Exif, which readers expect first."""
    start = end = 2
    present = None
    is_leading = True
    for marker, begin, data, stop in _segments(picture):
        if marker == APP1 and picture.startswith(JPEG_XMP, data):
            start, end, present = begin, stop, picture[data + len(JPEG_XMP) : stop]
            break
        is_exif = marker == APP1 and picture.startswith(JPEG_EXIF, data)
        is_leading = is_leading and (marker == APP0 or is_exif)
        if is_leading:
            start = end = stop
    made = packet(words, present, name)
    if len(made) > JPEG_ROOM:
        raise ImageTooLargeError(
            f"the XMP of {name!r} would have {len(made)} bytes, a JPEG has room for {JPEG_ROOM}",
            hint="save the picture as PNG, or write shorter texts",
        )
    size = 2 + len(JPEG_XMP) + len(made)
    segment = b"\xff\xe1" + size.to_bytes(2) + JPEG_XMP + made
    return picture[:start] + segment + picture[end:]


def _segments(picture: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Marker, first byte, first byte of the data and end of each segment before the pixels."""
    at = 2
    while True:
        if picture[at] != 0xFF:
            raise EOFError
        begin = at
        while picture[at] == 0xFF:  # any number of them may stand before a marker
            at += 1
        marker = picture[at]
        if marker in (START_OF_SCAN, END_OF_IMAGE):
            return
        stop = at + 1 + int.from_bytes(picture[at + 1 : at + 3])
        if stop > len(picture) or stop < at + 3:
            raise EOFError
        yield marker, begin, at + 3, stop
        at = stop


def _png(picture: bytes, words: Words, name: str) -> bytes:
    """In an iTXt chunk, after IHDR, which has to be the first."""
    start = end = present = None
    for kind, begin, data, stop in _png_chunks(picture):
        if kind == b"IHDR":
            start = end = stop
        elif kind == b"iTXt" and picture.startswith(PNG_XMP, data):
            start, end, present = begin, stop, _itxt(picture[data : stop - 4])
            break
    if start is None or end is None:
        raise EOFError
    text = PNG_XMP + b"\0\0\0\0" + packet(words, present, name)
    checked = b"iTXt" + text
    chunk = len(text).to_bytes(4) + checked + zlib.crc32(checked).to_bytes(4)
    return picture[:start] + chunk + picture[end:]


def _png_chunks(picture: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """Kind, first byte, first byte of the data and end (after the checksum) of each chunk."""
    at = len(PNG_SIGNATURE)
    while at < len(picture):
        kind, size = picture[at + 4 : at + 8], int.from_bytes(picture[at : at + 4])
        stop = at + 12 + size
        if stop > len(picture):
            raise EOFError
        yield kind, at, at + 8, stop
        if kind == b"IEND":
            return
        at = stop


def _itxt(chunk: bytes) -> bytes:
    """The text of an iTXt chunk: after the keyword two flags and two strings that end with NUL."""
    is_compressed, rest = chunk[len(PNG_XMP)], chunk[len(PNG_XMP) + 2 :]
    _, _, rest = rest.partition(b"\0")
    _, _, text = rest.partition(b"\0")
    if not is_compressed:
        return text
    inflating = zlib.decompressobj()
    inflated = inflating.decompress(text, MOST_INFLATED)
    if not inflating.eof:
        raise EOFError
    return inflated


def _webp(picture: bytes, words: Words, name: str) -> bytes:
    """In a chunk "XMP " at the end, which VP8X announces; a file without VP8X gets one."""
    riff_end = 8 + int.from_bytes(picture[4:8], "little")
    if riff_end > len(picture):
        raise EOFError
    chunks = list(_webp_chunks(picture[:riff_end]))
    head = chunks.pop(0)
    present = next((data for kind, data in chunks if kind == b"XMP "), None)
    made = packet(words, present, name)
    if head[0] == b"VP8X":
        flags = head[1][0] | WEBP_HAS_XMP
        extended = bytes([flags]) + head[1][1:]
    else:
        extended = _vp8x(*head)
        chunks = [head, *chunks]
    kept = [(k, made if k == b"XMP " else data) for k, data in chunks]
    if present is None:
        kept.append((b"XMP ", made))
    body = b"".join(_webp_chunk(kind, data) for kind, data in [(b"VP8X", extended), *kept])
    size = (4 + len(body)).to_bytes(4, "little")
    return b"RIFF" + size + b"WEBP" + body + picture[riff_end:]


def _webp_chunks(riff: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at < len(riff):
        size = int.from_bytes(riff[at + 4 : at + 8], "little")
        if at + 8 + size > len(riff):
            raise EOFError
        yield riff[at : at + 4], riff[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _webp_chunk(kind: bytes, data: bytes) -> bytes:
    return kind + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)


def _vp8x(kind: bytes, data: bytes) -> bytes:
    """Flags and size of the canvas, as the one picture of a simple file has it."""
    if kind == b"VP8 " and data[3:6] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(data[i : i + 2], "little") & 0x3FFF for i in (6, 8))
        has_alpha = False
    elif kind == b"VP8L" and data[0] == 0x2F:
        bits = int.from_bytes(data[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        has_alpha = bool(bits >> 28 & 1)
    else:
        raise EOFError
    flags = WEBP_HAS_XMP | has_alpha * WEBP_HAS_ALPHA
    sizes = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    return bytes([flags, 0, 0, 0]) + sizes
