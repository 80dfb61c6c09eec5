"""The parts of a message as clients send them: models that check their form, and what they become.

Main path: parts_of -> Text, Image, Video. Bytes are never looked at here: what a data URL says of
its type is not believed, the decoder sees what they are. A picture is named by its place, as in
`messages[0].content[1]`, so that an error about it says which one is meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from qvl.data_url import from_base64, from_data_url
from qvl.errors import ImageDecodeError, VideoDecodeError
from qvl.processing.pdf import with_pages
from qvl.serve.errors import Refusal
from qvl.serve.limits import PARTS, PICTURES
from qvl.types import Detail, Image, Message, Part, Text, Url, Video, is_address, page_apart


class Nested(BaseModel):
    """A part of a body, in which nothing unknown is taken."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ImageUrl(Nested):
    url: str
    detail: Detail | None = None


class VideoUrl(Nested):
    url: str


class FileData(Nested):
    file_data: str
    filename: str | None = None


class TextPart(Nested):
    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: list[object] | None = None  # of an answer that is sent back
    logprobs: list[object] | None = None


class RefusalPart(Nested):
    type: Literal["refusal"]
    refusal: str


class ThinkingPart(Nested):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ImagePart(Nested):
    type: Literal["image_url"]
    image_url: ImageUrl | str


class InputImagePart(Nested):
    type: Literal["input_image"]
    image_url: ImageUrl | str
    detail: Detail | None = None


class VideoPart(Nested):
    type: Literal["video_url"]
    video_url: VideoUrl | str


class FilePart(Nested):
    type: Literal["file"]
    file: FileData


class InputFilePart(Nested):
    type: Literal["input_file"]
    file_data: str
    filename: str | None = None


ContentPart = Annotated[
    TextPart
    | RefusalPart
    | ThinkingPart
    | ImagePart
    | InputImagePart
    | VideoPart
    | FilePart
    | InputFilePart,
    Field(discriminator="type"),
]
# a list ends with its first error here and below: a body has room for very many
Content = str | Annotated[list[ContentPart], Field(max_length=PARTS, fail_fast=True)]


def parts_of(content: Content | None, place: str) -> tuple[Part, ...]:
    """What a model is shown. Raises QvlError."""
    if content is None:
        return ()
    if isinstance(content, str):
        return (Text(content),)
    parts: list[Part] = []
    for number, part in enumerate(content):
        parts += _parts(part, f"{place}[{number}]")
    return tuple(parts)


def thoughts_of(content: Content | None) -> str:
    """The reasoning that stands among the parts."""
    if content is None or isinstance(content, str):
        return ""
    return "".join(part.thinking for part in content if isinstance(part, ThinkingPart))


def check_parts(contents: Sequence[Content | None], place: str) -> None:
    """Raises Refusal where there are too many, before the first is decoded or fetched."""
    parts = [p for content in contents if isinstance(content, list) for p in content]
    if len(parts) > PARTS:
        raise Refusal(400, "too_many_parts", f"{place} has {len(parts)} parts, over {PARTS}")
    _check_count(
        sum(not isinstance(p, TextPart | RefusalPart | ThinkingPart) for p in parts), place
    )


def check_pictures(messages: Sequence[Message], place: str) -> None:
    """The same, with each page of a document counted."""
    shown = [p for message in messages for p in message.content if not isinstance(p, Text)]
    _check_count(len(shown), place)


def _check_count(pictures: int, place: str) -> None:
    if pictures > PICTURES:
        raise Refusal(
            400,
            "too_many_images",
            f"{place} has {pictures} pictures, videos and pages, the limit is {PICTURES}",
            hint="send fewer; #page=2 behind a document's address is that page alone",
            param=place,
        )


def _parts(part: ContentPart, place: str) -> Iterator[Part]:
    match part:
        case TextPart():
            yield Text(part.text)
        case RefusalPart():
            yield Text(part.refusal)
        case ThinkingPart():
            return
        case ImagePart() | InputImagePart():
            asked = part.image_url
            asked = ImageUrl(url=asked) if isinstance(asked, str) else asked
            detail = part.detail if isinstance(part, InputImagePart) else None
            yield from _pictures(asked.url, place, asked.detail or detail or "auto")
        case VideoPart():
            asked = part.video_url
            yield _video(asked if isinstance(asked, str) else asked.url, place)
        case FilePart():
            yield from _file(part.file.file_data, place)
        case InputFilePart():
            yield from _file(part.file_data, place)


def _pictures(url: str, place: str, detail: Detail = "auto") -> list[Image | Video]:
    """A picture, or a page or all pages of a document: as `with_pages` finds."""
    url, page = page_apart(url)
    if is_address(url):
        return with_pages([Image(Url(url), place, page, detail)])
    if not url.startswith("data:"):
        raise ImageDecodeError(
            f"{place} is neither a data: URL nor an http(s) address",
            hint="send data:image/png;base64,... or an address",
        )
    return with_pages([Image(from_data_url(url, place), place, page, detail)])


def _video(url: str, place: str) -> Video:
    if is_address(url):
        return Video(source=Url(url), name=place)
    if not url.startswith("data:"):
        raise VideoDecodeError(f"{place} is neither a data: URL nor an http(s) address")
    return Video(source=from_data_url(url, place), name=place)


def _file(data: str, place: str) -> list[Image | Video]:
    """As `_pictures`, and base64 alone."""
    if is_address(data) or data.startswith("data:"):
        return _pictures(data, place)
    return with_pages([Image(from_base64(data, place), place)])
