"""Small PDF documents that the tests write, object by object, so that each can be wrong in one place."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

RED_LEFT = b"1 0 0 rg 0 0 50 200 re f"  # of a page of 100 x 200 points


def document(
    *contents: bytes,
    size: tuple[float, float] = (100, 200),
    page: bytes = b"",
    catalog: bytes = b"",
    trailer: bytes = b"",
    more: Sequence[bytes] = (),
) -> bytes:
    """A document of a page for each of the contents; `page`, `catalog` and `trailer` go into those
    dictionaries, `more` are objects from number 3 on.
    """
    first = 3 + len(more)
    kids = b" ".join(b"%d 0 R" % (first + 2 * number) for number in range(len(contents)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R " + catalog + b" >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(contents)),
        *more,
    ]
    box = b"%.10g %.10g" % size
    for number, content in enumerate(contents):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %s] /Contents %d 0 R %s >>"
            % (box, first + 2 * number + 1, page)
        )
        objects.append(stream(content))
    return written(objects, trailer)


def stream(data: bytes, entries: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(data), entries, data)


def written(objects: Sequence[bytes], trailer: bytes = b"") -> bytes:
    """The file of objects 1, 2, ..., the first of which is its catalog."""
    out = bytearray(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n")
    places = []
    for number, entry in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, entry)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer << /Size %d /Root 1 0 R %s >>\n" % (len(objects) + 1, trailer)
    return bytes(out + b"startxref\n%d\n%%%%EOF\n" % start)


def picture(pixels: bytes, size: tuple[int, int]) -> bytes:
    """An RGB picture as an object."""
    entries = b"/Type /XObject /Subtype /Image /Width %d /Height %d " % size
    entries += b"/ColorSpace /DeviceRGB /BitsPerComponent 8 /Filter /FlateDecode"
    return stream(zlib.compress(pixels), entries)


def inflating(mib: int) -> bytes:
    """A deflated stream of so many MiB of spaces, made in no time: one block again and again."""
    deflate = zlib.compressobj(9)
    first, again = (
        deflate.compress(b" " * 2**20) + deflate.flush(zlib.Z_FULL_FLUSH) for _ in range(2)
    )
    return first + again * (mib - 1) + deflate.flush()
