"""A question about one or several pictures, and its answer as text, a number, yes or no, one of some."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from qvl.errors import InvalidParamError
from qvl.tasks.guards import answered
from qvl.tasks.language import language_of
from qvl.tasks.task import Flag, Result, Seen, Task, check_known
from qvl.types import ResponseFormat
from qvl.vlm.chat_model import ChatModel

YES_NO = {"en": ("yes", "no"), "ru": ("да", "нет"), "zh": ("是", "否")}
FORMS = ("text", "int", "number", "bool", "choice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Result):
    """`value` is the text as what was asked for: an int, a float, a bool, one of the choices."""

    question: str
    value: str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask(Task[Answer]):
    """Ask about one or several pictures or videos: what, how many, where, why."""

    name: ClassVar[str] = "ask"
    most: ClassVar[int] = 32

    question: Annotated[
        str,
        Flag(("--prompt", "-p"), each=True),
        Field(description="What is asked; may come more than once."),
    ]
    answer_as: Annotated[
        str, Flag(("--as",)), Field(description="text, int, number, bool, or choice (of choices).")
    ] = "text"
    choices: Annotated[tuple[str, ...], Field(description="The answers to choose from.")] = ()

    def __post_init__(self) -> None:
        Task.__post_init__(self)
        check_known("answer form", self.answer_as, FORMS)
        if not self.question.strip():
            raise InvalidParamError("the question is empty")
        if (self.answer_as == "choice") != bool(self.choices):
            raise InvalidParamError(
                "answer_as choice and choices go together", hint="give both, or neither"
            )

    def run(self, model: ChatModel, seen: Sequence[Seen]) -> Answer:
        language = self._spoken()
        asked = self.request(seen, self.question, form=self._form())
        told = answered(model, asked, language=language if self._form() is None else None)
        return Answer(
            text=told.text,
            language=language,
            completions=told.completions,
            flags=told.flags,
            question=self.question,
            value=self._value(told.text),
        )

    def _form(self) -> ResponseFormat | None:
        match self.answer_as:
            case "int":
                return ResponseFormat("regex", r"-?(0|[1-9][0-9]{0,8})")
            case "number":
                return ResponseFormat("regex", r"-?(0|[1-9][0-9]{0,8})(\.[0-9]{1,6})?")
            case "bool":
                return ResponseFormat("choice", json.dumps(self._yes_no()))
            case "choice":
                return ResponseFormat("choice", json.dumps(self.choices))
        return None

    def _yes_no(self) -> tuple[str, str]:
        return YES_NO.get(self._spoken(), YES_NO["en"])

    def _spoken(self) -> str:
        """An answer is in the language of its question."""
        return language_of(self.question, self.language)

    def _value(self, text: str) -> str | int | float | bool:
        match self.answer_as:
            case "int":
                return int(text)
            case "number":
                return float(text)
            case "bool":
                return text == self._yes_no()[0]
        return text
