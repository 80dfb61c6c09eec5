"""Reading: the text of a picture or of a PDF's page, as text, as Markdown, or line by line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from qvl.tasks.boxes import parse_lines, places_form
from qvl.tasks.guards import flags
from qvl.tasks.prompts import instruction
from qvl.tasks.task import Flag, Result, Seen, Task, check_known, greedy
from qvl.types import Box
from qvl.vlm.chat_model import ChatModel

FORMS = ("text", "markdown", "lines")
KINDS = ("scan", "sign", "handwriting")
TEXT = "text_content"  # the family's own key for a printed line
FENCED = re.compile(r"\A```\w*\n(.*?)\n?```\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text and where it stands; None where the model's corners span nothing."""

    text: str
    box: Box | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading(Result):
    """`lines`, in reading order, and their `boxes` are there if lines were asked for."""

    lines: tuple[Line, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ocr(Task[Reading]):
    """Read the text in a picture: a page, a scan, a sign, handwriting."""

    name: ClassVar[str] = "ocr"
    videos: ClassVar[bool] = False
    new_tokens: ClassVar[int] = 4096  # a dense page

    answer_as: Annotated[
        str,
        Flag(("--as",)),
        Field(description="text, markdown (with tables), or lines (with boxes)."),
    ] = "text"
    kind: Annotated[
        str | None, Field(description="What it is, if known: scan, sign or handwriting.")
    ] = None

    def __post_init__(self) -> None:
        Task.__post_init__(self)
        check_known("answer form", self.answer_as, FORMS)
        if self.kind is not None:
            check_known("kind of text", self.kind, KINDS)

    def run(self, model: ChatModel, seen: Sequence[Seen]) -> Reading:
        form = None
        if self.answer_as == "lines":
            form = places_form(model.info.generation, "bbox_2d", {TEXT: {"type": "string"}})
        asked = self.request(seen, self.words(), greedy(self.sampling), form=form)
        (told,) = model.generate([asked])
        text, lines = told.text.strip(), ()
        if self.answer_as == "lines":
            how = told.provenance
            found = parse_lines(told.text, how.images[0], generation=how.generation)
            lines = tuple(Line(label, box) for label, box in found)
            if lines or form is not None:  # tags may be missing from an answer that is free
                text = "\n".join(line.text for line in lines)
        elif fenced := FENCED.match(text):
            text = fenced[1]
        return Reading(
            text=text,
            language=self.language,
            completions=(told,),
            # a picture without a text on it is no reason to ask again, but one to look
            flags=flags(told, None if text else "empty"),
            lines=lines,
            boxes=tuple(line.box for line in lines if line.box is not None),
        )

    def words(self) -> str:
        """What is asked about it."""
        names = [name for name in (self.answer_as, self.kind) if name is not None]
        return " ".join(instruction("ocr", name, self.language) for name in names)
