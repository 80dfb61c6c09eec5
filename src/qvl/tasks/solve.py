"""Solving a problem of mathematics, or a question about a chart: steps, and a final answer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, ClassVar

from pydantic import Field

from qvl.tasks.arithmetic import is_wrong
from qvl.tasks.guards import answered
from qvl.tasks.prompts import wording
from qvl.tasks.task import Flag, Result, Seen, Task
from qvl.types import ResponseFormat
from qvl.vlm.chat_model import ChatModel

SOLUTION: dict[str, Any] = {
    "type": "object",
    "properties": {
        "steps": {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": 30},
        "answer": {"type": "string", "minLength": 1},
    },
    "required": ["steps", "answer"],
    "additionalProperties": False,
}
# a TeX command whose backslash JSON has read as an escape: \frac as a form feed and "rac"
_LOST = {
    r"\f": r"\f(?=[a-z])",
    r"\b": r"\x08(?=[a-z])",
    r"\t": r"\t(?=(?:imes|ext|heta|an|au|frac|o|riangle)(?![a-z]))",
    r"\n": r"\n(?=(?:eq|e|abla|otin|eg|u)(?![a-z]))",
    r"\r": r"\r(?=(?:ight|ho|angle)(?![a-z]))",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution(Result):
    """`text` is the steps and the answer, a line each; formulas stay as TeX.

    `wrong_steps` are the numbers, from 1, of the steps whose arithmetic does not hold. The flag
    "underived_answer" says that no step comes to a number of the answer.
    """

    steps: tuple[str, ...]
    answer: str
    wrong_steps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Solve(Task[Solution]):
    """Solve a problem of mathematics or read a chart, step by step."""

    name: ClassVar[str] = "solve"
    most: ClassVar[int] = 8
    new_tokens: ClassVar[int] = 2048

    question: Annotated[
        str | None,
        Flag(("--prompt", "-p")),
        Field(description="What is asked, where the picture does not say it."),
    ] = None

    def run(self, model: ChatModel, seen: Sequence[Seen]) -> Solution:
        form = ResponseFormat("json_schema", json.dumps(SOLUTION))
        told = answered(model, self.request(seen, self.words(), form=form), language=self.language)
        fields = told.fields()
        steps = tuple(with_tex(step) for step in fields["steps"])
        answer = with_tex(fields["answer"])
        wrong = tuple(number for number, step in enumerate(steps, 1) if is_wrong(step))
        return Solution(
            text="\n".join([*steps, wording("solve", "answer", self.language, answer=answer)]),
            language=self.language,
            completions=told.completions,
            flags=(
                *told.flags,
                *(["wrong_step"] if wrong else []),
                *([] if is_derived(answer, steps) else ["underived_answer"]),
            ),
            steps=steps,
            answer=answer,
            wrong_steps=wrong,
        )

    def words(self) -> str:
        """What is asked."""
        asked = self.question or wording("solve", "problem", self.language)
        return f"{asked} {wording('solve', 'steps', self.language)}"


def is_derived(answer: str, steps: Sequence[str]) -> bool:
    """A number of the answer occurs in a step, or there are no numbers or no steps."""
    said = _numbers(answer)
    return not said or not steps or any(said & _numbers(step) for step in steps)


def _numbers(text: str) -> set[Decimal]:
    joined = re.sub(r"(?<=\d)[ \u00a0\u202f](?=\d{3}(?!\d))", "", text)
    found = re.findall(r"\d+(?:[.,]\d+)*", joined)
    return {
        Decimal(number.replace(",", decimal))
        for number in found
        for decimal in (".", "")
        if number.replace(",", decimal).count(".") < 2
    }


def with_tex(text: str) -> str:
    """The text with the backslashes of TeX commands that JSON took for escapes."""
    for command, pattern in _LOST.items():
        text = re.sub(pattern, lambda _, command=command: command, text)
    return text
