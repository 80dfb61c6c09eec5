"""Small pictures of what items are about, for galleries and workbooks."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence

from qvl.batch.media import seen_in
from qvl.batch.object_store import is_store
from qvl.errors import QvlError
from qvl.processing.image import read_image
from qvl.runs.record import Source
from qvl.types import Image, is_address

log = logging.getLogger(__name__)
SIDE_PX = 256
QUALITY = 80


def thumbnail(sources: Sequence[Source], side_px: int = SIDE_PX) -> bytes | None:
    """The first source as a small JPEG; None where it is no picture, or cannot be shown any more.

    Addresses are not fetched again: by now another picture may lie there.
    """
    try:
        shown = image_of(sources[0]) if sources else None
        if shown is None:
            return None
        pixels = read_image(shown).pixels
    except QvlError as err:
        log.debug("no small picture: %s", err.message)
        return None
    from PIL import Image as Pillow

    small = Pillow.fromarray(pixels)
    small.thumbnail((side_px, side_px))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def image_of(source: Source) -> Image | None:
    """The picture that the source is; None of a video, and of what would have to be fetched again."""
    if is_address(source.where) or is_store(source.where):
        return None
    found = seen_in(source)
    return found if isinstance(found, Image) else None
