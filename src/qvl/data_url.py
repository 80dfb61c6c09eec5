"""The bytes of a data URL, as browsers and programs write them."""

from __future__ import annotations

import base64
import binascii

from qvl.errors import ImageDecodeError

_STANDARD = bytes.maketrans(b"-_", b"+/")  # the letters in which the URL-safe alphabet differs


def from_data_url(url: str, place: str) -> bytes:
    """The bytes of `data:[TYPE][;...];base64,DATA`. Raises ImageDecodeError, which names the place."""
    head, comma, data = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ImageDecodeError(
            f"{place} is a data: URL without base64 data",
            hint="it looks like data:image/png;base64,iVBORw0...",
        )
    return from_base64(data, place)


def from_base64(data: str, place: str) -> bytes:
    """Of either alphabet, with or without padding and line breaks. Raises ImageDecodeError."""
    try:
        letters = data.encode("ascii").translate(_STANDARD, b" \t\r\n=")
        return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error) as err:
        raise ImageDecodeError(
            f"{place} is not base64", hint="encode the file's bytes in base64"
        ) from err
