"""`--draw`: pictures with what was found on them, whole files only."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

from qvl.cli.output import Outcome, write_whole
from qvl.errors import InvalidParamError, QvlError
from qvl.types import Image

log = logging.getLogger(__name__)
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def check_target(target: Path, *, alone: bool) -> None:
    """Before any work: one picture goes into a file that names its format, several into a folder."""
    if alone and target.suffix.lower() not in FORMATS:
        raise InvalidParamError(
            f"--draw {str(target)!r} names no format", hint=f"end it in {', '.join(FORMATS)}"
        )
    if not alone and target.is_file():
        raise InvalidParamError(
            f"--draw {str(target)!r} is a file, and there are several pictures",
            hint="name a folder, which is made if need be",
        )


def draw(outcome: Outcome, number: int, target: Path, *, alone: bool) -> None:
    """Draw all that was found in the first picture of an item. Raises StorageError."""
    from qvl.drawing import drawn  # these bring Pillow and numpy: not for `qvl --help`
    from qvl.processing.image import read_image

    if isinstance(outcome.found, QvlError):
        return
    shown = outcome.seen[0]
    if not isinstance(shown, Image):
        log.warning("%s: a video, nothing is drawn", outcome.name)
        return
    boxes = tuple(dict.fromkeys(box for result in outcome.found for box in result.boxes))
    points = tuple(dict.fromkeys(point for result in outcome.found for point in result.points))
    if not boxes and not points:
        log.warning("%s: no boxes and no points to draw", outcome.name)
    try:
        original = read_image(shown)
    except QvlError as err:  # it was there when it was asked about
        log.error("%s: not drawn: %s", outcome.name, err.message)
        return
    if original.sha256 != outcome.found[0].completion.provenance.images[0].sha256:
        log.error("%s: not drawn: it is another picture by now", outcome.name)
        return
    picture, numbered = drawn(original.pixels, boxes, points)
    if numbered:
        log.warning("%s: no font here has %s: drawn as numbers", outcome.name, ", ".join(numbered))
    file = io.BytesIO()
    picture.save(file, FORMATS[target.suffix.lower()] if alone else "PNG")
    write_whole(target if alone else target / file_name(number, shown), file.getvalue(), "--draw")


def file_name(number: int, image: Image) -> str:
    """Of the item's drawing in a folder: its number first, so that no two are alike."""
    stem = re.sub(r"[^\w-]+", "_", Path(image.name).stem)[-80:]
    page = "" if image.page is None else f"-{image.page}"
    return f"{number:04}-{stem}{page}.png"
