"""Customer service: an answer out of a picture, a product sheet and a policy, or a hand-over.

The sheet, the policy and the question come as quotations, each line behind a mark, so that nothing in
them can look like our own words; what they or the picture order is no instruction.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from qvl.errors import InvalidParamError
from qvl.tasks.guards import answered
from qvl.tasks.language import language_of
from qvl.tasks.prompts import instruction, wording
from qvl.tasks.task import Flag, Result, Seen, Task
from qvl.types import ResponseFormat
from qvl.vlm.chat_model import ChatModel

REPLY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "answer": {"type": "string", "minLength": 1},
        "hand_over": {"type": "boolean"},
        "reason": {"type": "string", "minLength": 1},
    },
    "required": ["answer", "hand_over", "reason"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Result):
    """`text` is what the customer reads; with `hand_over` a person takes over, for that `reason`."""

    question: str
    hand_over: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve(Task[Reply]):
    """Answer a customer by a picture, a product sheet and a policy, or hand over to a person.

    The answer is in the language of the question; `language` holds where that cannot be told.
    """

    name: ClassVar[str] = "service"
    most: ClassVar[int] = 8

    question: Annotated[
        str,
        Flag(("--prompt", "-p"), each=True),
        Field(description="What the customer asks; may come more than once."),
    ]
    sheet: Annotated[
        str, Flag(is_file=True), Field(description="The product sheet: a text, or a file of it.")
    ] = ""
    policy: Annotated[
        str, Flag(is_file=True), Field(description="The shop's policy: a text, or a file of it.")
    ] = ""

    def __post_init__(self) -> None:
        Task.__post_init__(self)
        if not self.question.strip():
            raise InvalidParamError("the question is empty")

    def run(self, model: ChatModel, seen: Sequence[Seen]) -> Reply:
        language = language_of(self.question, self.language)
        form = ResponseFormat("json_schema", json.dumps(REPLY))
        asked = self.request(seen, self.words(language), form=form)
        told = answered(model, asked, language=language)
        fields = told.fields()
        hand_over = fields["hand_over"]
        return Reply(
            text=fields["answer"],
            language=language,
            completions=told.completions,
            flags=(*told.flags, *(["hand_over"] if hand_over else [])),
            question=self.question,
            hand_over=hand_over,
            reason=fields["reason"] if hand_over else "",
        )

    def words(self, language: str) -> str:
        """What is asked; our own words come first and last."""
        given = {"sheet": self.sheet, "policy": self.policy, "question": self.question}
        parts = [instruction("service", "role", language)]
        for name, text in given.items():
            if text.strip():
                parts.append(instruction("service", name, language, text=quoted(text)))
        parts.append(wording("service", "rules", language))
        return "\n\n".join(parts)


def quoted(text: str) -> str:
    """Each line behind a mark."""
    return "\n".join(f"> {line}" for line in text.strip().splitlines())
