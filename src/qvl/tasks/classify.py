"""Which of given classes a picture belongs to, one or several, with their probabilities."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from qvl.errors import InvalidParamError
from qvl.tasks.ask import YES_NO
from qvl.tasks.choice import odds
from qvl.tasks.prompts import instruction
from qvl.tasks.task import Flag, Result, Seen, Task
from qvl.types import Completion
from qvl.vlm.chat_model import ChatModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification(Result):
    """`labels` are those at or above the threshold, `probabilities` of all, the likeliest first.

    Of one class they are as `choice.odds` says and sum to 1; of several, each is that of yes against
    no. Flagged "unsure" where not even the likeliest reaches the threshold; of one class it is still
    the text.
    """

    labels: tuple[str, ...]
    probabilities: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classify(Task[Classification]):
    """Say which of given classes a picture or video belongs to, and how likely each is."""

    name: ClassVar[str] = "classify"

    labels: Annotated[
        tuple[str, ...],
        Flag(is_file=True),
        Field(
            description="The classes, each maybe as 'cup: a vessel for drinking'; or a file of lines."
        ),
    ]
    multi: Annotated[bool, Field(description="Any number of them may fit, or none.")] = False
    threshold: Annotated[
        float, Field(description="From which probability a class counts, 0 to 1.")
    ] = 0.5

    def __post_init__(self) -> None:
        Task.__post_init__(self)
        names = [name for name, _ in self._classes()]
        if "" in names or len(set(names)) < len(names):
            raise InvalidParamError("a class has no name, or two have the same")
        if len(names) < (1 if self.multi else 2):
            raise InvalidParamError(
                f"too few classes to choose from: {len(names)}",
                hint="write them as cup,plate,bowl, or give the name of a file that is there",
            )
        if not 0 <= self.threshold <= 1:
            raise InvalidParamError(f"threshold is {self.threshold}, outside 0 to 1")

    def run(self, model: ChatModel, seen: Sequence[Seen]) -> Classification:
        probabilities, made = (self._each if self.multi else self._one)(model, seen)
        likeliest = sorted(probabilities, key=lambda label: -probabilities[label])
        above = tuple(label for label in likeliest if probabilities[label] >= self.threshold)
        said = above if self.multi else likeliest[:1]
        return Classification(
            text=", ".join(said) or "-",
            language=self.language,
            completions=made,
            flags=() if above or self.multi else ("unsure",),
            labels=above,
            probabilities={label: probabilities[label] for label in likeliest},
        )

    def _one(
        self, model: ChatModel, seen: Sequence[Seen]
    ) -> tuple[Mapping[str, float], tuple[Completion, ...]]:
        said = ", ".join(_said(*one) for one in self._classes())
        words = instruction("classify", "one", self.language, labels=said)
        names = [name for name, _ in self._classes()]
        found = odds(model, self.request(seen, words), names)
        return found.probabilities, found.completions

    def _each(
        self, model: ChatModel, seen: Sequence[Seen]
    ) -> tuple[Mapping[str, float], tuple[Completion, ...]]:
        yes, no = YES_NO.get(self.language, YES_NO["en"])
        probabilities: dict[str, float] = {}
        made: list[Completion] = []
        for name, description in self._classes():
            words = instruction("classify", "each", self.language, label=_said(name, description))
            found = odds(model, self.request(seen, words), (yes, no))
            probabilities[name] = found.probabilities[yes]
            made += found.completions
        return probabilities, tuple(made)

    def _classes(self) -> list[tuple[str, str]]:
        """Name and description of each."""
        parted = (re.split(r":\s+|：", label, maxsplit=1) for label in self.labels)
        return [(name.strip(), "".join(rest).strip()) for name, *rest in parted]


def _said(name: str, description: str) -> str:
    return f"{name} ({description})" if description else name
