"""Values out of a picture, by a JSON schema, a list of fields or a profile; checked, with their places."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import pydantic
from pydantic.json_schema import SkipJsonSchema

from qvl.errors import AnswerFormError, CheckError, InvalidParamError
from qvl.tasks.boxes import boxes_of
from qvl.tasks.checks import Check, checked
from qvl.tasks.guards import answered
from qvl.tasks.leaves import Leaf, leaves, probability
from qvl.tasks.prompts import instruction
from qvl.tasks.task import Flag, Result, Seen, Task, check_known, greedy, question
from qvl.tasks.wanted import PROFILES, Wanted, of_profile, wanted
from qvl.types import Box, Completion, ResponseFormat, Sampling, Video
from qvl.vlm.chat_model import ChatModel

EVIDENCE_SAMPLING = Sampling(max_new_tokens=64, temperature=0.0)


@dataclass(frozen=True, slots=True)
class Field:
    """A single value: "total", or "lines[0].price"; None where the picture has none.

    `confidence` is how likely the model was to write this value (`leaves.probability`), None if it
    tells no probabilities; `box` is where it stands, if asked for and found.
    """

    name: str
    value: str | int | float | bool | None
    confidence: float | None
    box: Box | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction(Result):
    """`data` is the answer, valid against the schema; `fields` are its single values, in order."""

    data: Mapping[str, Any]
    fields: tuple[Field, ...]
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Extract(Task[Extraction]):
    """Read values from a picture: by a JSON schema, a list of fields, or a profile.

    A schema of one's own is kept as it is given: what may be absent in the picture should be nullable
    in it, and "additionalProperties": false ends a small model's answer.
    """

    name: ClassVar[str] = "extract"
    new_tokens: ClassVar[int] = 2048

    schema: Annotated[
        str | Mapping[str, Any] | SkipJsonSchema[type[pydantic.BaseModel]] | None,
        Flag(("--schema", "--fields"), is_file=True),
        pydantic.Field(
            description="A JSON schema, or fields such as 'name, price float, on date'."
        ),
    ] = None
    profile: Annotated[
        str | None,
        pydantic.Field(description="receipt, invoice, passport, business-card or label."),
    ] = None
    evidence: Annotated[bool, pydantic.Field(description="Find where each value stands.")] = False
    strict: Annotated[bool, pydantic.Field(description="A failed check is an error.")] = False

    def __post_init__(self) -> None:
        Task.__post_init__(self)
        if (self.schema is None) == (self.profile is None):
            raise InvalidParamError(
                "a schema or a profile says what to extract", hint="give one of the two"
            )
        if self.profile is not None:
            check_known("profile", self.profile, PROFILES)
        self.wanted()

    def run(self, model: ChatModel, seen: Sequence[Seen]) -> Extraction:
        (shown,) = seen
        if self.evidence and isinstance(shown, Video):
            raise InvalidParamError("where a value stands can be asked of a picture, not a video")
        sought = self.wanted()
        words = instruction("extract", "fields", self.language, fields=sought.named)
        sampling = greedy(replace(self.sampling, logprobs=max(1, self.sampling.logprobs)))
        form = ResponseFormat("json_schema", sought.text)
        told = answered(model, self.request(seen, words, sampling, form=form))
        answer, data = told.completions[0], told.fields()
        try:
            found, text = leaves(answer.text), "\n".join(_lines(data))
        except RecursionError as err:
            raise AnswerFormError("the answer is nested too deep to be read") from err
        located = self._located(model, seen, answer.text, found) if self.evidence else {}
        fields = tuple(
            Field(leaf.name, leaf.value, _sure(answer, leaf), _box(located.get(leaf), leaf))
            for leaf in found
        )
        checks = checked(data, sought.rules)
        failed = [check for check in checks if not check.ok]
        if failed and self.strict:
            raise CheckError(
                "; ".join(f"{check.field}: {check.message}" for check in failed),
                hint="compare with the picture; without strict such values are flagged",
            )
        return Extraction(
            text=text,
            language=self.language,
            completions=(*told.completions, *located.values()),
            flags=(*told.flags, *dict.fromkeys(f"check:{check.field}" for check in failed)),
            boxes=tuple(field.box for field in fields if field.box is not None),
            data=data,
            fields=fields,
            checks=checks,
        )

    def wanted(self) -> Wanted:
        """Raises InvalidParamError for what cannot be read as what is wanted."""
        return of_profile(self.profile or "") if self.schema is None else wanted(self.schema)

    def _located(
        self, model: ChatModel, seen: Sequence[Seen], text: str, found: Sequence[Leaf]
    ) -> dict[Leaf, Completion]:
        """An answer about the place of each value that is printed; a bool is not.

        Asked one by one: it is clear whose place an answer tells, they run together, and the picture
        is computed once. Eight values took 212 tokens of prompts and 231 of answers so, all in one
        answer 62 and 285, in three times the time (`sprout`, two cores).
        """
        printed = [leaf for leaf in found if not isinstance(leaf.value, bool | None)]
        asked = []
        for leaf in printed:  # numbers as they are written: 40.00, not 40.0
            value = leaf.value if isinstance(leaf.value, str) else text[leaf.start : leaf.end]
            words = instruction("extract", "evidence", self.language, value=value)
            asked.append(question(seen, words, EVIDENCE_SAMPLING))
        return dict(zip(printed, model.generate(asked), strict=True))


def _sure(answer: Completion, leaf: Leaf) -> float | None:
    """To four digits: in fp32, unlike bf16, and on a GPU later ones depend on what else was computed in
    the same batch.
    """
    found = probability(answer, leaf)
    return None if found is None else round(found, 4)


def _box(located: Completion | None, leaf: Leaf) -> Box | None:
    found = boxes_of(located) if located is not None else ()
    return replace(found[0], label=leaf.name) if found else None


def _lines(data: Mapping[str, Any]) -> Iterator[str]:
    for name, value in data.items():
        if isinstance(value, list) and value:
            yield f"{name}:"
            yield from (f"- {_short(one)}" for one in value)
        else:
            yield f"{name}: {_short(value)}"


def _short(value: Any) -> str:
    match value:
        case str():
            return value
        case list():
            return ", ".join(map(_short, value)) or "-"
        case dict():
            return ", ".join(f"{name}: {_short(one)}" for name, one in value.items()) or "-"
    return "-" if value is None else json.dumps(value)
