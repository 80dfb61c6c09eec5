"""Finding: where in a picture the things stand that a few words name, as boxes or points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from qvl.errors import InvalidParamError
from qvl.tasks.boxes import IN_TAGS, parse_boxes, parse_points, places_form
from qvl.tasks.guards import flags
from qvl.tasks.prompts import instruction
from qvl.tasks.task import Flag, Result, Seen, Task, greedy
from qvl.types import Box, Completion, Point, Request
from qvl.vlm.chat_model import ChatModel

MOST_PHRASES = 64
NOT_FOUND = {"en": "not found", "ru": "не найдено", "zh": "未找到"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found(Result):
    """`boxes` or `points`, each labelled with its phrase; `missing` are the phrases without one."""

    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground(Task[Found]):
    """Find things in a picture: a box or a point for each that fits the phrase."""

    name: ClassVar[str] = "ground"
    videos: ClassVar[bool] = False
    new_tokens: ClassVar[int] = 2048  # of a crowd, some sixty boxes

    phrases: Annotated[
        tuple[str, ...],
        Flag(("--phrase", "-p")),
        Field(description="What to find, in a few words; may come more than once."),
    ]
    points: Annotated[bool, Field(description="Points instead of boxes.")] = False

    def __post_init__(self) -> None:
        Task.__post_init__(self)
        if not self.phrases or not all(phrase.strip() for phrase in self.phrases):
            raise InvalidParamError("a phrase is missing or empty", hint="name what to find")
        if len(self.phrases) > MOST_PHRASES:
            raise InvalidParamError(f"{len(self.phrases)} phrases, more than {MOST_PHRASES}")

    def run(self, model: ChatModel, seen: Sequence[Seen]) -> Found:
        phrases = tuple(dict.fromkeys(self.phrases))
        # a question for each, so that what is found for one does not depend on the others
        told = model.generate([self._question(model, seen, phrase) for phrase in phrases])
        places = {
            phrase: self._places(completion, phrase)
            for phrase, completion in zip(phrases, told, strict=True)
        }
        every = [place for found in places.values() for place in found]
        return Found(
            text="\n".join(self._lines(places)),
            language=self.language,
            completions=tuple(told),
            flags=tuple(dict.fromkeys(flag for c in told for flag in flags(c, None))),
            boxes=tuple(place for place in every if isinstance(place, Box)),
            points=tuple(place for place in every if isinstance(place, Point)),
            missing=tuple(phrase for phrase, found in places.items() if not found),
        )

    def _question(self, model: ChatModel, seen: Sequence[Seen], phrase: str) -> Request:
        generation = model.info.generation
        key = "point_2d" if self.points else "bbox_2d"
        form = places_form(generation, key, {"label": {"enum": [phrase]}})
        name = "points" if self.points else "boxes"
        name += "-in-tags" if generation in IN_TAGS else ""
        words = instruction("ground", name, self.language, phrase=phrase)
        return self.request(seen, words, greedy(self.sampling), form=form)

    def _places(self, told: Completion, phrase: str) -> list[Box | Point]:
        how = told.provenance
        parse = parse_points if self.points else parse_boxes
        found = parse(told.text, how.images[0], generation=how.generation)
        return [replace(place, label=phrase) for place in dict.fromkeys(found)]

    def _lines(self, places: Mapping[str, Sequence[Box | Point]]) -> Iterator[str]:
        for phrase, found in places.items():
            if not found:
                yield f"{phrase}: {NOT_FOUND.get(self.language, NOT_FOUND['en'])}"
            for place in found:
                _, *numbers = astuple(place)
                yield f"{phrase}: {', '.join(f'{number:.0f}' for number in numbers)}"
