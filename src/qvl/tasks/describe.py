"""Describing a picture or a video: in a style, to a length, for an audience, with known facts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field

from qvl.errors import InvalidParamError
from qvl.tasks.boxes import IN_TAGS, boxes_of, places_form
from qvl.tasks.check import contradicted, disputed, unseen
from qvl.tasks.guards import answered
from qvl.tasks.language import language_of
from qvl.tasks.prompts import LANGUAGES, instruction, presets, wording
from qvl.tasks.task import Flag, Result, Seen, Task, check_known, question
from qvl.types import Completion, ResponseFormat, Sampling, Video
from qvl.vlm.chat_model import ChatModel

LENGTHS = ("short", "medium", "long")
TONES = ("neutral", "friendly", "expert", "persuasive")
BOXES_SAMPLING = Sampling(temperature=0.0)
LISTING: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 1},
        "description": {"type": "string", "minLength": 1},
        "keywords": {"type": "array", "items": {"type": "string"}, "maxItems": 20},
        "alt_text": {"type": "string", "minLength": 1},
    },
    "required": ["title", "description", "keywords", "alt_text"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Description(Result):
    """`title`, `keywords` and `alt_text` are there if a listing was asked for.

    `unsupported` are the statements that a second look did not find in the picture, `contradicted` the
    names of the given facts that the text contradicts.
    """

    title: str = ""
    keywords: tuple[str, ...] = ()
    alt_text: str = ""
    unsupported: tuple[str, ...] = ()
    contradicted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Describe(Task[Description]):
    """Describe a picture or a video: plainly, as a product, for a menu, as alt text."""

    name: ClassVar[str] = "describe"
    new_tokens: ClassVar[int] = 1024

    style: Annotated[
        str,
        Field(
            description="plain, product, catalogue, marketplace, seo, menu, alt-text, or your own."
        ),
    ] = "plain"
    prompt: Annotated[
        str | None,
        Flag(("--prompt", "-p")),
        Field(description="Ask this instead of the style's words."),
    ] = None
    length: Annotated[str | None, Field(description="short, medium or long.")] = None
    tone: Annotated[str | None, Field(description="neutral, friendly, expert, persuasive.")] = None
    audience: Annotated[str | None, Field(description="Whom it is for, in a few words.")] = None
    facts: Annotated[
        Mapping[str, str], Field(description="What is known and never contradicted, as name=value.")
    ] = field(default_factory=dict)
    listing: Annotated[
        bool, Field(description="Title, description, keywords and alt text as fields.")
    ] = False
    boxes: Annotated[bool, Field(description="Find the objects of a picture too.")] = False
    grounded: Annotated[
        bool, Field(description="Find the parts of a picture that the text names.")
    ] = False
    check: Annotated[
        bool, Field(description="Look again for each statement, and mark what is not to be seen.")
    ] = False

    def __post_init__(self) -> None:
        Task.__post_init__(self)
        check_known("style", self.style, presets("describe"))
        if self.length is not None:
            check_known("length", self.length, LENGTHS)
        if self.tone is not None:
            check_known("tone", self.tone, TONES)
        if self.boxes and self.grounded:
            raise InvalidParamError(
                "boxes finds all objects, grounded those that the text names",
                hint="give one of them",
            )

    def run(self, model: ChatModel, seen: Sequence[Seen]) -> Description:
        (shown,) = seen
        form = ResponseFormat("json_schema", json.dumps(LISTING)) if self.listing else None
        asked = self.request(seen, self.words(shown), form=form)
        # words of one's own are answered in their language
        language = language_of(self.prompt, self.language) if self.prompt else self.language
        told = answered(model, asked, language=language)
        fields = told.fields() if self.listing else {"description": told.text}
        text = fields["description"]
        whole = "\n".join(filter(None, (fields.get("title"), text, fields.get("alt_text"))))
        located = self._located(model, shown, text)
        unsupported, looked = (), ()
        wrong, compared = contradicted(whole, self.facts), ()
        if self.check:
            unsupported, looked = unseen(model, seen, whole, self.language)
            wrong, compared = disputed(model, whole, self.facts, self.language)
        found = {"unsupported": unsupported, "contradicts": wrong}
        return Description(
            text=text,
            language=language,
            completions=(*told.completions, *located, *looked, *compared),
            flags=(*told.flags, *(flag for flag, items in found.items() if items)),
            title=fields.get("title", ""),
            keywords=tuple(fields.get("keywords", ())),
            alt_text=fields.get("alt_text", ""),
            boxes=boxes_of(located[0]) if located else (),
            unsupported=unsupported,
            contradicted=wrong,
        )

    def _located(self, model: ChatModel, shown: Seen, text: str) -> tuple[Completion, ...]:
        """The answer that tells where things are, if it was asked for; of a picture alone."""
        if isinstance(shown, Video) or not (self.boxes or self.grounded):
            return ()
        form = None
        words = wording("describe_parts", "locate", self.language)
        if self.grounded:
            generation = model.info.generation
            name = "locate_named" + ("-in-tags" if generation in IN_TAGS else "")
            words = instruction("describe_parts", name, self.language, text=text)
            form = places_form(generation, "bbox_2d", {"label": {"type": "string"}})
        return tuple(model.generate([question([shown], words, BOXES_SAMPLING, form=form)]))

    def words(self, shown: Seen) -> str:
        """What is asked about it."""
        return " ".join([self._main(shown), *self._additions()])

    def _main(self, shown: Seen) -> str:
        if self.prompt:
            return self.prompt
        if not isinstance(shown, Video):
            return wording("describe", self.style, self.language)
        if self.style == "plain":
            return wording("describe_parts", "video", self.language)
        words = wording("describe", self.style, "en").replace("picture", "video")
        return words if self.language == "en" else f"{words} Answer in {LANGUAGES[self.language]}."

    def _additions(self) -> Iterator[str]:
        given = {
            self.length: {},
            self.tone: {},
            "audience" if self.audience else None: {"audience": self.audience or ""},
            "facts" if self.facts else None: {
                "facts": "; ".join(f"{name}: {value}" for name, value in self.facts.items())
            },
            "listing" if self.listing else None: {},
        }
        for name, fields in given.items():
            if name is not None:
                yield wording("describe_parts", name, self.language, **fields)
