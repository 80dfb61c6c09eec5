"""Describing pictures: the requests, and their results with boxes when asked for.

Main path: describe -> description_request, boxes_request -> ChatModel.results -> read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, tee

from qvl.errors import InvalidParamError, QvlError, nearest
from qvl.tasks.boxes import parse_boxes
from qvl.tasks.prompts import DESCRIBE, LANGUAGES, LOCATE_ALL, describe_prompt
from qvl.types import Box, Completion, Image, Message, Request, Sampling
from qvl.vlm.chat_model import ChatModel

BOXES_SAMPLING = Sampling(max_new_tokens=512, temperature=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    text: str
    language: str
    boxes: tuple[Box, ...]
    completion: Completion


def check_style(style: str) -> str:
    """The style itself; raises InvalidParamError with the nearest names for an unknown one."""
    if style not in DESCRIBE:
        raise InvalidParamError(
            f"there is no style {style!r}",
            hint=nearest(style, DESCRIBE) or f"the styles are {', '.join(DESCRIBE)}",
        )
    return style


def check_language(language: str) -> str:
    """The language code itself; raises InvalidParamError for one that we have no name for."""
    if language not in LANGUAGES:
        raise InvalidParamError(
            f"there is no language {language!r}",
            hint=nearest(language, LANGUAGES) or f"the languages are {', '.join(LANGUAGES)}",
        )
    return language


def description_request(
    image: Image,
    *,
    language: str,
    style: str = "plain",
    prompt: str | None = None,
    sampling: Sampling | None = None,
) -> Request:
    """The request for one picture; `prompt`, where given, replaces the style's own wording."""
    words = prompt or describe_prompt(check_style(style), check_language(language))
    message = Message.user(image, words)
    return Request(messages=(message,), sampling=sampling or Sampling(), id=image.name)


def boxes_request(image: Image, language: str) -> Request:
    words = LOCATE_ALL.get(language, LOCATE_ALL["en"])
    return Request(messages=(Message.user(image, words),), sampling=BOXES_SAMPLING, id=image.name)


def describe(
    model: ChatModel,
    images: Iterable[Image],
    *,
    languages: Sequence[str],
    style: str = "plain",
    prompt: str | None = None,
    sampling: Sampling | None = None,
    boxes: bool = False,
) -> Iterator[dict[str, Description] | QvlError]:
    """For each picture, in order: its description in each language, or its error; the rest go on.

    With `boxes` every picture is also asked, in each language, for its objects' boxes.
    Raises InvalidParamError for an unknown language or style before the first picture is read.
    """
    check_style(style)
    for language in languages:
        check_language(language)
    return _results(
        model,
        images,
        languages=languages,
        style=style,
        prompt=prompt,
        sampling=sampling,
        boxes=boxes,
    )


def _results(
    model: ChatModel,
    images: Iterable[Image],
    *,
    languages: Sequence[str],
    style: str,
    prompt: str | None,
    sampling: Sampling | None,
    boxes: bool,
) -> Iterator[dict[str, Description] | QvlError]:
    def of_picture(image: Image) -> Iterator[Request]:
        for language in languages:
            yield description_request(
                image, language=language, style=style, prompt=prompt, sampling=sampling
            )
            if boxes:
                yield boxes_request(image, language)

    asked, told = tee(images)
    results = model.results(request for image in asked for request in of_picture(image))
    for _ in told:
        answers = list(islice(results, len(languages) * (2 if boxes else 1)))
        errors = [answer for answer in answers if isinstance(answer, QvlError)]
        completions = [answer for answer in answers if isinstance(answer, Completion)]
        yield errors[0] if errors else read(completions, languages, boxes=boxes)


def read(
    completions: Sequence[Completion], languages: Sequence[str], *, boxes: bool
) -> dict[str, Description]:
    """The completions of one picture as its descriptions."""
    step = 2 if boxes else 1
    descriptions = {}
    for number, language in enumerate(languages):
        told, *located = completions[number * step : (number + 1) * step]
        found = [parse_boxes(c.text, c.provenance.images[0]) for c in located]
        descriptions[language] = Description(
            text=told.text, language=language, boxes=found[0] if found else (), completion=told
        )
    return descriptions
