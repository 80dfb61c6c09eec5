"""The calls of Qwen-VL's own tutorials (its first generation), over any model that `VLM` takes.

    >>> from qvl.compat import load
    >>> model, tokenizer = load("Qwen/Qwen-VL-Chat")  # the two from_pretrained lines of the tutorial
    >>> query = tokenizer.from_list_format([{"image": "cup.jpg"}, {"text": "What is this?"}])
    >>> response, history = model.chat(tokenizer, query=query, history=None)
    >>> response, history = model.chat(tokenizer, "Frame the cup", history=history)
    >>> picture = tokenizer.draw_bbox_on_latest_picture(response, history)

A query, a response and a history look as they do there. Unlike there, a picture is only what came
through `from_list_format`: `<img>` in a plain text opens no file, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image as Pixels

from qvl.api import VLM
from qvl.drawing import drawn
from qvl.errors import InvalidParamError, nearest
from qvl.processing.image import read_image
from qvl.tasks.boxes import boxes_of, parse_boxes
from qvl.types import (
    Completion,
    Image,
    ImageInfo,
    Message,
    Part,
    Request,
    Sampling,
    Text,
    field_names,
)

FIRST = "qwen_vl"  # the generation whose boxes a plain text is read for


class Query(str):
    """A query as the first generation writes it, with the pictures that it shows."""

    parts: tuple[Part, ...]

    def __new__(cls, text: str, parts: Sequence[Part] = ()) -> Query:
        made = super().__new__(cls, text)
        made.parts = tuple(parts)
        return made


class Response(str):
    """An answer's text, with the completion that it is of."""

    completion: Completion | None

    def __new__(cls, text: str, completion: Completion | None = None) -> Response:
        made = super().__new__(cls, text)
        made.completion = completion
        return made


History = list[tuple[str, str]]


class Tokenizer:
    """What the tutorials call the tokenizer for: making queries, drawing boxes."""

    def from_list_format(self, elements: Sequence[Mapping[str, Any]]) -> Query:
        """A query of elements `{"image": path or address}`, `{"text": ...}`, `{"ref": ..., "box": ...}`.

        A box is (x1, y1, x2, y2) in thousandths, or several of them. Raises InvalidParamError for
        any other element.
        """
        text, parts, pictures = "", list[Part](), 0
        for element in elements:
            match element:
                case {"image": str(source), **others} if not others:
                    pictures += 1
                    text += f"Picture {pictures}: <img>{source}</img>\n"
                    parts.append(Image.of(source))
                case {"box": [*corners], **others} if others.keys() <= {"ref"}:
                    said = tagged(others.get("ref"), corners)
                    text += said
                    parts.append(Text(said))
                case {"text": str(said), **others} if not others:
                    text += said
                    parts.append(Text(said))
                case _:
                    raise InvalidParamError(
                        f"an element of the query is {sorted(element)}, not an image, a text or a box",
                        hint="write {'image': path}, {'text': words} or {'ref': words, 'box': corners}",
                    )
        return Query(text, parts)

    def draw_bbox_on_latest_picture(
        self, response: str, history: Sequence[tuple[str, str]] | None = None
    ) -> Pixels.Image | None:
        """The last picture of the history, upright, with the boxes that the response tells of.

        None where there is no picture or no box. Of a response that is plain text, as from a file,
        the boxes are read as thousandths. Raises what reading the picture does.
        """
        shown = [part for query, _ in history or () for part in parts_of(query)]
        pictures = [part for part in shown if isinstance(part, Image)]
        if not pictures:
            return None
        pixels = read_image(pictures[-1]).pixels
        completion = response.completion if isinstance(response, Response) else None
        if completion is not None:
            boxes = boxes_of(completion, len(completion.provenance.images) - 1)
        else:
            size = whole(pictures[-1].name, pixels)
            boxes = parse_boxes(response, size, generation=FIRST)
        return drawn(pixels, boxes)[0] if boxes else None


class Model:
    """What the tutorials call the model for: `chat` and `chat_stream`."""

    def __init__(self, vlm: VLM) -> None:
        self.vlm = vlm

    def chat(
        self,
        tokenizer: Tokenizer,
        query: str,
        history: Sequence[tuple[str, str]] | None = None,
        *,
        system: str | None = None,
        append_history: bool = True,
        **sampling: Any,
    ) -> tuple[Response, History]:
        """The response, and the history with this turn; the one that was given stays as it is.

        `system` None is the model's own; `sampling` are fields of `Sampling`. Raises QvlError.
        """
        told = self.vlm.generate([request(query, history, system, sampling)])[0]
        response = Response(told.text, told)
        kept = [*(history or ())]
        return response, [*kept, (query, response)] if append_history else kept

    def chat_stream(
        self,
        tokenizer: Tokenizer,
        query: str,
        history: Sequence[tuple[str, str]] | None = None,
        *,
        system: str | None = None,
        **sampling: Any,
    ) -> Iterator[Response]:
        """The response so far, again and again; the last one is what `chat` returns."""
        text = ""
        for delta in self.vlm.stream(request(query, history, system, sampling)):
            text += delta.text
            yield Response(text, delta.completion)


def load(model: str, **options: Any) -> tuple[Model, Tokenizer]:
    """A model, by any name that `VLM` takes, with its options, and the tokenizer beside it."""
    return Model(VLM(model, **options)), Tokenizer()


def request(
    query: str,
    history: Sequence[tuple[str, str]] | None,
    system: str | None,
    sampling: Mapping[str, Any],
) -> Request:
    for name in sampling:
        if name not in field_names(Sampling):
            hint = nearest(name, field_names(Sampling)) or "the fields of qvl.Sampling are taken"
            raise InvalidParamError(f"chat has no option {name!r}", hint=hint)
    messages = [] if system is None else [Message("system", (Text(system),))]
    for asked, told in history or ():
        messages.append(Message("user", parts_of(asked)))
        messages.append(Message("assistant", (Text(str(told)),)))
    messages.append(Message("user", parts_of(query)))
    return Request(messages=tuple(messages), sampling=replace(Sampling(), **sampling))


def parts_of(query: str) -> tuple[Part, ...]:
    """Raises InvalidParamError for a picture that is written into a plain text."""
    if isinstance(query, Query):
        return query.parts
    if re.search(r"<img>.*?</img>", query, re.DOTALL):
        raise InvalidParamError(
            "a plain text has <img> in it, and opens no picture",
            hint="make the query with tokenizer.from_list_format",
        )
    return (Text(query),)


def tagged(label: str | None, corners: Sequence[Any]) -> str:
    """Boxes as the first generation writes them."""
    boxes = corners if corners and isinstance(corners[0], Sequence) else [corners]
    if any(len(box) != 4 or not all(isinstance(n, int | float) for n in box) for box in boxes):
        raise InvalidParamError("a box of the query is not (x1, y1, x2, y2)")
    named = "" if label is None else f"<ref>{label}</ref>"
    return named + "".join(
        f"<box>({x1:.0f},{y1:.0f}),({x2:.0f},{y2:.0f})</box>" for x1, y1, x2, y2 in boxes
    )


def whole(name: str, pixels: np.ndarray) -> ImageInfo:
    """A picture that was not resized."""
    height, width, _ = pixels.shape
    return ImageInfo(
        name=name,
        sha256="",
        width_px=width,
        height_px=height,
        resized_width_px=width,
        resized_height_px=height,
        tokens=0,
    )
