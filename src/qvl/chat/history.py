"""Conversations as files: one JSON file each in the user's state folder, always whole.

Pictures and videos are kept by path or address; what came as bytes is in the file itself.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from qvl.data_url import from_data_url
from qvl.errors import InputError, InputNotFoundError, InvalidParamError, StorageError
from qvl.types import Image, Message, Part, Text, ToolCall, Url, Video, is_address

VERSION = 1
VIDEO_FIELDS = ("fps", "frames", "start_s", "end_s")


def folder() -> Path:
    """Where conversations lie (XDG_STATE_HOME honoured)."""
    return user_state_path("qvl", appauthor=False) / "chats"


def new_file() -> Path:
    """A file for a conversation that begins now, which does not exist yet."""
    return folder() / f"{datetime.now():%Y-%m-%d_%H-%M-%S_%f}.json"


def latest() -> Path:
    """The conversation that was changed last. Raises InputNotFoundError where there is none."""
    files = sorted(folder().glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    if not files:
        raise InputNotFoundError("there is no conversation to continue", hint="begin with qvl chat")
    return files[-1]


def save(path: Path, messages: Sequence[Message], model: str) -> None:
    """Replace the file by one of these messages; readable by its owner alone. Raises StorageError."""
    rows = [_row(message) for message in messages]
    text = json.dumps({"version": VERSION, "model": model, "messages": rows}, ensure_ascii=False)
    partial = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(text.encode("utf-8", "surrogatepass"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as err:
        raise StorageError(
            f"the conversation cannot be saved: {err.strerror}",
            hint=f"it would be {path}; free some space, or set XDG_STATE_HOME",
        ) from err


def load(path: Path) -> list[Message]:
    """Raises InputError for a file that is not as `save` writes them."""
    try:
        whole = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
        if whole["version"] != VERSION:
            raise ValueError
        return [_message(row) for row in whole["messages"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as err:
        raise InputError(
            f"{path.name!r} is not a conversation that this version can read",
            hint=f"move it out of {path.parent}",
        ) from err


def _row(message: Message) -> dict[str, Any]:
    row: dict[str, Any] = {"role": message.role, "content": [_part(p) for p in message.content]}
    if message.reasoning:
        row["reasoning"] = message.reasoning
    if message.tool_calls:
        row["tool_calls"] = [
            {"name": call.name, "arguments": call.arguments} for call in message.tool_calls
        ]
    return row


def _part(part: Part) -> dict[str, Any]:
    match part:
        case Text():
            return {"text": part.text}
        case Image():
            return {
                "image": _place(part.source),
                "name": part.name,
                "page": part.page,
                "detail": part.detail,
            }
        case Video(source=Path() | bytes() | Url() as source):
            given = {name: getattr(part, name) for name in VIDEO_FIELDS}
            return {"video": _place(source), "name": part.name, **given}
    raise InvalidParamError("a video of single pictures cannot be saved", hint="give its file")


def _place(source: Path | bytes | Url) -> str:
    match source:
        case Path():
            return str(source.absolute())
        case Url():
            return source.address
    return f"data:;base64,{base64.b64encode(source).decode()}"


def _message(row: Mapping[str, Any]) -> Message:
    calls = tuple(ToolCall(c["name"], c["arguments"]) for c in row.get("tool_calls", []))
    content = tuple(_part_of(part) for part in row["content"])
    return Message(row["role"], content, row.get("reasoning", ""), calls)


def _part_of(row: Mapping[str, Any]) -> Part:
    if "text" in row:
        return Text(row["text"])
    if "image" in row:
        return Image(_source(row["image"]), row["name"], row["page"], row.get("detail", "auto"))
    given = {name: row[name] for name in VIDEO_FIELDS}
    return Video(source=_source(row["video"]), name=row["name"], **given)


def _source(place: str) -> Path | bytes | Url:
    if place.startswith("data:"):
        return from_data_url(place, "a picture")
    return Url(place) if is_address(place) else Path(place)
