"""Names of files for items, whose ids are anybody's text."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path

from qvl.errors import StorageError

MOST_BYTES = 120  # of what is readable; with its digest and an ending a name stays under 255
DIGEST = 12  # hex digits: 48 bits, which also tell ids of one readable name apart
_OTHER = re.compile(r"[^\w-]+")


def safe_name(item: str) -> str:
    """A file's name without an ending: what of the id is readable, and a digest of all of it.

    It has letters, digits, "_" and "-" alone, so it names no folder, no device of Windows, and nothing
    hidden; ids that differ, also in case alone, have names that differ in any file system.
    """
    digest = hashlib.sha256(item.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST]
    plain = storable_letters(unicodedata.normalize("NFC", item))
    readable = _OTHER.sub("_", plain).strip("_-")
    cut = readable.encode()[:MOST_BYTES].decode(errors="ignore")
    return f"{cut}-{digest}" if cut else digest


def storable_letters(text: str) -> str:
    return text.encode("utf-8", "ignore").decode()


def inside(folder: Path, name: str) -> Path:
    """The path of that name in the folder. Raises StorageError where it would lie elsewhere."""
    path = folder / name
    if path.parent.resolve() != folder.resolve() or name in ("", ".", ".."):
        raise StorageError(f"{name!r} would not lie in {folder.name!r}")
    return path
