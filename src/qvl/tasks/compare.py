"""Comparing two to eight pictures: what is the same, what differs, and how in each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from qvl.tasks.guards import answered
from qvl.tasks.prompts import wording
from qvl.tasks.task import Result, Seen, Task, check_known
from qvl.types import ResponseFormat
from qvl.vlm.chat_model import ChatModel

KINDS = ("pair", "sequence", "views")
MOST_ROWS = 30


@dataclass(frozen=True, slots=True)
class Difference:
    """In what the pictures differ, and what it is in each of them, in their order."""

    aspect: str
    each: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Result):
    """`text` is the summary and, in Markdown, a table of the differences."""

    summary: str
    same: tuple[str, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare(Task[Comparison]):
    """Compare two to eight pictures: what is the same, what is different."""

    name: ClassVar[str] = "compare"
    least: ClassVar[int] = 2
    most: ClassVar[int] = 8
    new_tokens: ClassVar[int] = 1024
    videos: ClassVar[bool] = False

    kind: Annotated[
        str,
        Field(description="pair, sequence (one after another), or views (of one thing)."),
    ] = "pair"
    aspect: Annotated[str | None, Field(description="What to look at above all.")] = None

    def __post_init__(self) -> None:
        Task.__post_init__(self)
        check_known("kind of comparison", self.kind, KINDS)

    def run(self, model: ChatModel, seen: Sequence[Seen]) -> Comparison:
        form = ResponseFormat("json_schema", json.dumps(schema(len(seen))))
        asked = self.request(seen, self.words(), form=form)
        told = answered(model, asked, language=self.language)
        fields = told.fields()
        differences = tuple(
            Difference(row["aspect"], tuple(row[f"in_{n}"] for n in range(1, len(seen) + 1)))
            for row in fields["different"]
        )
        return Comparison(
            text="\n".join([fields["summary"], *table(differences, len(seen))]),
            language=self.language,
            completions=told.completions,
            flags=told.flags,
            summary=fields["summary"],
            same=tuple(fields["same"]),
            differences=differences,
        )

    def words(self) -> str:
        """What is asked about them."""
        words = wording("compare", self.kind, self.language)
        if not self.aspect:
            return words
        return f"{words} {wording('compare', 'aspect', self.language, aspect=self.aspect)}"


def schema(pictures: int) -> dict[str, Any]:
    """Of an answer about so many pictures."""
    text = {"type": "string", "minLength": 1}
    row = {"aspect": text, **{f"in_{number}": text for number in range(1, pictures + 1)}}
    properties = {
        "summary": text,
        "same": {"type": "array", "items": text, "maxItems": MOST_ROWS},
        "different": {"type": "array", "items": exactly(row), "maxItems": MOST_ROWS},
    }
    return exactly(properties)


def exactly(properties: dict[str, Any]) -> dict[str, Any]:
    """An object of all these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def table(differences: Sequence[Difference], pictures: int) -> Iterator[str]:
    """Lines of Markdown: an aspect a row, a picture a column; none without differences."""
    if not differences:
        return
    yield ""
    yield f"| | {' | '.join(str(number) for number in range(1, pictures + 1))} |"
    yield "|---" * (pictures + 1) + "|"
    for difference in differences:
        cells = (in_a_cell(text) for text in (difference.aspect, *difference.each))
        yield f"| {' | '.join(cells)} |"


def in_a_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
