"""Describing pictures and videos: what is asked about each, and what the answers become.

Main path: describe -> Describe.requests -> ChatModel.results -> Describe.read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, tee

from qvl.errors import InvalidParamError, QvlError, nearest
from qvl.tasks.boxes import parse_boxes
from qvl.tasks.prompts import DESCRIBE, LANGUAGES, LOCATE_ALL, describe_prompt
from qvl.types import Box, Completion, Image, Message, Request, Sampling, Video
from qvl.vlm.chat_model import ChatModel

BOXES_SAMPLING = Sampling(max_new_tokens=512, temperature=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    text: str
    language: str
    boxes: tuple[Box, ...]
    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Describe:
    """The task: every picture or video is described in each language, in one style.

    `prompt`, where given, replaces the style's own wording. With `boxes` each picture, but no video,
    is also asked, in each language, for its objects' boxes.
    Raises InvalidParamError, with the nearest names, for an unknown language or style.
    """

    languages: tuple[str, ...] = ("en",)
    style: str = "plain"
    prompt: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    boxes: bool = False

    def __post_init__(self) -> None:
        check_known("style", self.style, DESCRIBE)
        for language in self.languages:
            check_known("language", language, LANGUAGES)

    def requests(self, image: Image | Video) -> Iterator[Request]:
        """All requests about one picture or video, language by language."""
        is_video = isinstance(image, Video)
        for language in self.languages:
            words = self.prompt or describe_prompt(self.style, language, video=is_video)
            yield _request(image, words, self.sampling)
            if self.boxes and not is_video:
                yield _request(image, LOCATE_ALL.get(language, LOCATE_ALL["en"]), BOXES_SAMPLING)

    def read(self, completions: Sequence[Completion]) -> dict[str, Description]:
        """The completions of `requests`, in their order, as a description for each language."""
        step = len(completions) // len(self.languages)
        descriptions = {}
        for number, language in enumerate(self.languages):
            told, *located = completions[number * step : (number + 1) * step]
            boxes = [box for c in located for box in _boxes(c)]
            descriptions[language] = Description(
                text=told.text, language=language, boxes=tuple(boxes), completion=told
            )
        return descriptions


def describe(
    model: ChatModel, images: Iterable[Image | Video], task: Describe
) -> Iterator[dict[str, Description] | QvlError]:
    """For each picture or video, in order: its description by language, or its error; the rest go on."""
    asked, told = tee(images)
    results = model.results(request for image in asked for request in task.requests(image))
    for image in told:
        answers = list(islice(results, len(list(task.requests(image)))))
        errors = [answer for answer in answers if isinstance(answer, QvlError)]
        completions = [answer for answer in answers if isinstance(answer, Completion)]
        yield errors[0] if errors else task.read(completions)


def _boxes(completion: Completion) -> tuple[Box, ...]:
    how = completion.provenance
    return parse_boxes(completion.text, how.images[0], generation=how.generation)


def check_known(what: str, name: str, known: Iterable[str]) -> None:
    names = tuple(known)
    if name not in names:
        raise InvalidParamError(
            f"there is no {what} {name!r}",
            hint=nearest(name, names) or f"there are {', '.join(names)}",
        )


def _request(image: Image | Video, words: str, sampling: Sampling) -> Request:
    return Request(messages=(Message.user(image, words),), sampling=sampling, id=image.name)
