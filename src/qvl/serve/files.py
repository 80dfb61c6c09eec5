"""What clients upload and what batches answer, kept in a folder: each file beside a note that says whose.

    ID         the bytes
    ID.json    owner, name, purpose, size, when it came; written last, so what has none is no file

Ids are drawn here: no name of a client's ever becomes a path.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from qvl.errors import StorageError
from qvl.runs.whole import whole_file, write_whole
from qvl.serve.errors import Refusal, shown
from qvl.serve.limits import Limits

NAME = 200  # characters of a file's name that are kept
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """`owner` is the name of a key, "" where there are none; `created_at` in seconds since 1970."""

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created_at: int

    def told(self) -> dict[str, Any]:
        """OpenAI's file object."""
        kept = asdict(self)
        del kept["owner"]
        return {**kept, "object": "file", "status": "processed", "status_details": None}


def new_file_id() -> str:
    return f"file-{secrets.token_hex(12)}"


class Files:
    """One process at a time has such a folder. Any thread may call."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        """Raises StorageError."""
        self._folder, self._limits = folder, limits
        self._changing = threading.Lock()
        self._known: dict[str, Kept] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for note in sorted(folder.glob("file-*.json")):
                with suppress(ValueError, TypeError):  # of another version, or edited
                    kept = Kept(**json.loads(note.read_bytes()))
                    self._known[kept.id] = kept
            for path in folder.iterdir():
                if path.name.removesuffix(".json") not in self._known:
                    path.unlink()  # of an upload that was cut
        except OSError as err:
            raise StorageError(f"the kept files cannot be read: {err.strerror}") from err

    def add(
        self,
        owner: str,
        filename: str,
        purpose: str,
        write: Callable[[Path], object],
        *,
        file_id: str | None = None,
    ) -> Kept:
        """A file that `write` makes at the path that it is given, whole or not at all.

        With `file_id` it may replace a file, and is always taken. Raises Refusal for too many, or too
        much, of one owner; StorageError.
        """
        path = self._folder / (file_id or new_file_id())
        if file_id is None:
            self._check_room(owner, 0)
        write(path)
        size = path.stat().st_size
        try:
            if file_id is None:
                self._check_room(owner, size)
            kept = Kept(
                id=path.name,
                owner=owner,
                filename=filename[:NAME] or "file",
                purpose=purpose,
                bytes=size,
                created_at=int(time.time()),
            )
            note = json.dumps(asdict(kept)).encode()
            write_whole(self._note(path.name), note, shown="a file's note", mode=0o600)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        with self._changing:
            self._known[kept.id] = kept
        return kept

    def _check_room(self, owner: str, size: int) -> None:
        own = self.of(owner)
        if len(own) >= self._limits.key_files:
            raise Refusal(400, "too_many_files", f"{len(own)} files are kept already", hint=DELETE)
        held = sum(one.bytes for one in own)
        if held + size > self._limits.key_file_bytes:
            message = f"{held + size} bytes are over the limit of {self._limits.key_file_bytes}"
            raise Refusal(400, "storage_limit_exceeded", message, hint=DELETE)

    def of(self, owner: str) -> list[Kept]:
        """The owner's own, the oldest first."""
        with self._changing:
            own = [one for one in self._known.values() if one.owner == owner]
        return sorted(own, key=lambda one: (one.created_at, one.id))

    def find(self, owner: str, file_id: str) -> Kept:
        """Raises Refusal where the owner has none of that id."""
        kept = self._known.get(file_id)
        if kept is None or kept.owner != owner:
            raise Refusal(404, "not_found", f"there is no file {shown(file_id)}", param="file_id")
        return kept

    def path(self, kept: Kept) -> Path:
        return self._folder / kept.id

    def delete(self, owner: str, file_id: str) -> Kept:
        """Raises as `find`, and StorageError."""
        kept = self.find(owner, file_id)
        try:
            self._note(kept.id).unlink(missing_ok=True)  # first: without it there is no file
            self.path(kept).unlink(missing_ok=True)
        except OSError as err:
            raise StorageError(f"file {kept.id} cannot be deleted: {err.strerror}") from err
        with self._changing:
            self._known.pop(kept.id, None)
        return kept

    def _note(self, file_id: str) -> Path:
        return self._folder / f"{file_id}.json"


DELETE = "delete what is not needed any more"


def copy_of(source: Any) -> Callable[[Path], None]:
    """Writes what can be read, such as an upload, whole or not at all."""

    def write(path: Path) -> None:
        with (
            whole_file(path, shown="the upload", mode=0o600) as part,
            part.open("wb") as file,
        ):
            while data := source.read(1 << 20):
                file.write(data)

    return write


def page_of(
    found: Sequence[T], named: Callable[[T], str], after: str | None, limit: int
) -> dict[str, Any]:
    """OpenAI's list: at most so many behind the one that is named `after`.

    Raises Refusal where there is none of that name.
    """
    names = [named(one) for one in found]
    if after is not None and after not in names:
        raise Refusal(400, "invalid_request", f"there is no {shown(after)}", param="after")
    start = names.index(after) + 1 if after is not None else 0
    some = found[start : start + limit]
    return {
        "object": "list",
        "data": some,
        "first_id": named(some[0]) if some else None,
        "last_id": named(some[-1]) if some else None,
        "has_more": start + limit < len(found),
    }
