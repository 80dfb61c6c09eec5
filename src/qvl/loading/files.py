"""The one way to a checkpoint's files: regular files of the folder, strict and bounded JSON.

A checkpoint may come from anybody, so a name in it never leads out of the folder, a pipe or a
device is never opened, and JSON with two values for one key is refused instead of guessed at.
"""

from __future__ import annotations

import json
import stat
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from qvl.errors import ModelError, ModelFormatError, UnsafeCheckpointError

MAX_NESTING = 64
_SHOWN_CHARS = 100


def shown(value: object) -> str:
    """A foreign value for a message: quoted, control characters escaped, cut when long."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."


def regular_file(folder: Path, name: str, *, error: type[ModelError] = ModelFormatError) -> Path:
    """The path behind `name`, links followed, once it is known to be a regular file of the folder.

    Raises `error` for a missing or odd file, UnsafeCheckpointError for a link out of the folder;
    links into the hub cache's blobs, of which a downloaded folder is made, are followed.
    """
    try:
        path = (folder / name).resolve(strict=True)
        mode = path.stat().st_mode
    except FileNotFoundError as err:
        raise error(f"{name} is missing", hint="download the checkpoint again, in full") from err
    except (OSError, RuntimeError, ValueError) as err:  # no rights; a loop of links; a NUL in it
        raise error(f"{name} cannot be opened") from err
    if not stat.S_ISREG(mode):
        raise error(f"{name} is not a regular file")
    if not any(path.is_relative_to(root) for root in _allowed_roots(folder.resolve())):
        raise UnsafeCheckpointError(
            f"{name} is a link that leaves the model folder",
            hint="copy the file that it points to into the folder, if you trust it",
        )
    return path


def _allowed_roots(folder: Path) -> list[Path]:
    """The folder; for CACHE/models--ORG--NAME/snapshots/COMMIT also the blobs of NAME and CACHE."""
    repo = folder.parent.parent
    if folder.parent.name == "snapshots" and repo.name.startswith("models--"):
        return [folder, repo / "blobs", repo.parent / "blobs"]
    return [folder]


def read_json(
    folder: Path, name: str, *, limit_bytes: int, error: type[ModelError]
) -> dict[str, Any]:
    """The JSON object in a file of the folder; raises `error` with the file's name."""
    path = regular_file(folder, name, error=error)
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as err:
        raise error(f"{name} cannot be read") from err
    if len(data) > limit_bytes:
        raise error(f"{name} is too large: {path.stat().st_size} bytes, limit {limit_bytes}")
    return parse_json(data, name, error=error)


def parse_json(data: bytes, name: str, *, error: type[ModelError]) -> dict[str, Any]:
    """The object that `data` spells in strict JSON: UTF-8, each key once, a bounded nesting."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise error(f"{name} has a duplicate key: {shown(twice)}")
        return values

    def not_a_number(text: str) -> NoReturn:
        raise error(f"{name} holds {text}, which is not JSON")

    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=unique, parse_constant=not_a_number
        )
    except RecursionError as err:
        raise error(f"{name} is nested deeper than {MAX_NESTING} levels") from err
    except ValueError as err:  # bad UTF-8, bad JSON, an integer of thousands of digits
        raise error(f"{name} is not valid JSON in UTF-8") from err
    if not isinstance(value, dict):
        raise error(f"{name} holds no JSON object at its top")
    if _nesting(value) > MAX_NESTING:
        raise error(f"{name} is nested deeper than {MAX_NESTING} levels")
    return value


def _nesting(value: object) -> int:
    deepest, level = 0, [value]
    while level and deepest <= MAX_NESTING:
        containers = [v for v in level if isinstance(v, dict | list)]
        level = [x for c in containers for x in (c.values() if isinstance(c, dict) else c)]
        deepest += bool(containers)
    return deepest
