"""Training data: files of conversations -> rows, and everything that is wrong with them.

Main path: read_rows -> one reader for each form -> Row, or a Problem that says where and what.
Forms of a .jsonl line: OpenAI's messages with parts; ShareGPT's and LLaVA's `conversations` with
`<image>` in the text; either with `image` or `images` beside. A .csv has the columns image and text,
and may have prompt. Paths are relative to the file. Pictures are not opened here.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from qvl.data_url import from_data_url
from qvl.errors import InputNotFoundError, InputUnreadableError, InvalidParamError, QvlError
from qvl.tasks.language import language_of
from qvl.tasks.prompts import wording
from qvl.types import Image, Message, Part, Role, Text, Tool, Url, Video, is_address

ROLES: dict[str, Role] = {
    **{role: role for role in get_args(Role)},
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
}
IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"
MAX_LINE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """A conversation whose last message is an answer; `name` is its file and line."""

    name: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


def read_rows(files: Sequence[Path]) -> tuple[list[Row], list[Problem]]:
    """All rows of the files, in order, and those that cannot be used.

    Raises InputNotFoundError, InputUnreadableError for a file, InvalidParamError for its kind.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    for file in files:
        reader = READERS.get(file.suffix.lower())
        if reader is None:
            raise InvalidParamError(
                f"{str(file)!r} is not training data", hint=f"give {' or '.join(READERS)} files"
            )
        for number, found in reader(file):
            name = f"{file.name}:{number}"
            try:
                if isinstance(found, str):
                    raise InvalidParamError(found)
                rows.append(checked(Row(name, *conversation(found, file.parent))))
            except QvlError as err:
                problems.append(Problem(name, err.message))
    return rows, problems


def opened_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with file.open("rb") as lines:
            yield from enumerate(lines, 1)
    except FileNotFoundError as err:
        raise InputNotFoundError(f"there is no file {str(file)!r}") from err
    except OSError as err:
        raise InputUnreadableError(f"{str(file)!r} cannot be read: {err.strerror}") from err


def json_lines(file: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Each line's object, or what is wrong with it."""
    for number, line in opened_lines(file):
        if not line.strip():
            continue
        try:
            if len(line) > MAX_LINE_BYTES:
                raise ValueError
            found = json.loads(line)
        except (ValueError, RecursionError):
            yield number, "this line is not JSON"
            continue
        yield number, found if isinstance(found, dict) else "this line is not a JSON object"


def csv_lines(file: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    try:
        text = b"".join(line for _, line in opened_lines(file)).decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise InputUnreadableError(
            f"{str(file)!r} is not UTF-8", hint="save it as CSV UTF-8"
        ) from err
    table = csv.DictReader(text.splitlines(keepends=True))
    names = set(table.fieldnames or ())
    if not {"image", "text"} <= names or not names <= {"image", "text", "prompt"}:
        raise InvalidParamError(
            f"{str(file)!r} has the columns {', '.join(sorted(map(str, names))) or 'none'}",
            hint="give image and text, and prompt if you like",
        )
    for row in table:
        prompt, text = row.get("prompt"), row["text"] or ""
        if not row["image"] or not text.strip():
            yield table.line_num, "image or text is empty"
            continue
        asked = prompt or wording("describe", "plain", language_of(text, "en"))
        parts = [{"type": "image", "image": row["image"]}, {"type": "text", "text": asked}]
        yield (
            table.line_num,
            {
                "messages": [
                    {"role": "user", "content": parts},
                    {"role": "assistant", "content": text},
                ]
            },
        )


READERS = {".jsonl": json_lines, ".csv": csv_lines}
KEYS = {"messages", "conversations", "system", "image", "images", "video", "videos", "tools", "id"}


def conversation(
    row: Mapping[str, Any], folder: Path
) -> tuple[tuple[Message, ...], tuple[Tool, ...]]:
    """The messages and tools of one row. Raises InvalidParamError."""
    if unknown := set(row) - KEYS:
        raise InvalidParamError(f"unknown key {min(unknown)!r}")
    if ("messages" in row) == ("conversations" in row):
        raise InvalidParamError("give messages, or conversations")
    turns = row.get("messages", row.get("conversations"))
    if not isinstance(turns, list) or not turns:
        raise InvalidParamError("there are no messages")
    beside = {
        IMAGE_MARK: [image_of(one, folder) for one in several(row, "image", "images")],
        VIDEO_MARK: [video_of(one, folder) for one in several(row, "video", "videos")],
    }
    messages = []
    if system := row.get("system"):
        messages.append(Message("system", (Text(str(system)),)))
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise InvalidParamError(f"message {number} is not an object")
        messages.append(message_of(turn, number, folder, beside))
    if left := [mark for mark, items in beside.items() if items]:
        raise InvalidParamError(f"there are more pictures or videos than {left[0]} in the texts")
    return tuple(messages), tuple(tool_of(tool) for tool in row.get("tools") or ())


def several(row: Mapping[str, Any], *names: str) -> list[Any]:
    found = [row[name] for name in names if row.get(name) is not None]
    if len(found) > 1:
        raise InvalidParamError(f"give {' or '.join(names)}, not both")
    return list(found[0]) if found and isinstance(found[0], list) else found


def message_of(
    turn: Mapping[str, Any], number: int, folder: Path, beside: Mapping[str, list[Any]]
) -> Message:
    said = turn.get("role", turn.get("from"))
    role = ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise InvalidParamError(f"message {number} has the role {said!r:.40}")
    content = turn.get("content", turn.get("value"))
    parts: list[Part] = []
    if isinstance(content, str):
        parts = list(marked_parts(content, beside) if role == "user" else (Text(content),))
    elif isinstance(content, list):
        parts = [part_of(part, number, folder) for part in content]
    elif content is not None or role != "assistant":
        raise InvalidParamError(f"message {number} has no text and no parts")
    reasoning = turn.get("reasoning_content") or turn.get("reasoning") or ""
    if not isinstance(reasoning, str):
        raise InvalidParamError(f"the reasoning of message {number} is not a text")
    return Message(role, tuple(parts), reasoning)


def marked_parts(text: str, beside: Mapping[str, list[Any]]) -> Iterator[Part]:
    """A text with marks where what lies beside it is shown; the line break next to a mark is its own.

    Without anything beside, the marks are text.
    """
    while True:
        places = [(text.find(mark), mark) for mark, items in beside.items() if items]
        found = min((place for place in places if place[0] >= 0), default=None)
        if found is None:
            break
        at, mark = found
        if before := text[:at].removesuffix("\n"):
            yield Text(before)
        yield beside[mark].pop(0)
        text = text[at + len(mark) :].removeprefix("\n")
    if text:
        yield Text(text)


def part_of(part: Any, number: int, folder: Path) -> Part:
    """A part in OpenAI's form, or in that of Qwen's own examples."""
    match part:
        case {"type": "text", "text": str(text)} | {"text": str(text)}:
            return Text(text)
        case {"type": "image_url", "image_url": {"url": str(source)} | str(source)}:
            return image_of(source, folder)
        case {"type": "image", "image": str(source)} | {"image": str(source)}:
            return image_of(source, folder)
        case {"type": "video_url", "video_url": {"url": str(source)} | str(source)}:
            return video_of(source, folder)
        case {"type": "video", "video": str(source)} | {"video": str(source)}:
            return video_of(source, folder)
    raise InvalidParamError(f"message {number} has a part that is no text, image or video")


def image_of(source: Any, folder: Path) -> Image:
    if not isinstance(source, str) or not source:
        raise InvalidParamError("a picture is not a path, an address or a data: URL")
    if source.startswith("data:"):
        return Image(from_data_url(source, "a picture"))
    if is_address(source):
        return Image(Url(source), source)
    source = source.removeprefix("file://")
    return Image(folder / source, source)


def video_of(source: Any, folder: Path) -> Video:
    if not isinstance(source, str) or not source or source.startswith("data:"):
        raise InvalidParamError("a video is not a path or an address")
    if is_address(source):
        return Video.of(source)
    source = source.removeprefix("file://")
    return Video(source=folder / source, name=source)


def tool_of(tool: Any) -> Tool:
    match tool:
        case {"type": "function", "function": {"name": str(name), **rest}}:
            return Tool(name, str(rest.get("description", "")), rest.get("parameters") or {})
    raise InvalidParamError("a tool is not in OpenAI's form")


def checked(row: Row) -> Row:
    """Raises InvalidParamError for a row that teaches nothing."""
    if row.messages[-1].role != "assistant":
        raise InvalidParamError("the last message is not the assistant's, so nothing is learnt")
    if len(row.messages) < 2:
        raise InvalidParamError("there is an answer without a question")
    said = "".join(part.text for part in row.messages[-1].content if isinstance(part, Text))
    if not said.strip() and not row.messages[-1].tool_calls:
        raise InvalidParamError("the answer is empty")
    return row
