"""Whether a picture breaks a policy: verdict, rule, severity, reason, and where."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Any, ClassVar

from pydantic import Field

from qvl.errors import InvalidParamError
from qvl.tasks.boxes import boxes_of
from qvl.tasks.choice import odds
from qvl.tasks.guards import answered
from qvl.tasks.prompts import instruction, wording
from qvl.tasks.task import Flag, Result, Seen, Task, check_known, question
from qvl.types import Box, Completion, Sampling, Video
from qvl.vlm.chat_model import ChatModel

SEVERITIES = ("low", "medium", "high")
NONE = {"en": "none", "ru": "нет", "zh": "无"}
BROKEN_FROM, REVIEW_FROM = 0.5, 0.25  # of the probability that some rule is broken
BOXES_SAMPLING = Sampling(max_new_tokens=256, temperature=0.0)


@dataclass(frozen=True, slots=True)
class PolicyRule:
    name: str
    severity: str
    description: str

    @property
    def said(self) -> str:
        return f"{self.name} ({self.description})" if self.description else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Moderation(Result):
    """`verdict` is "block" for a broken rule of high severity, "review" for another one and where the
    model is not sure (flagged so), else "allow", and then there is no category. `score` is the
    probability (`choice.odds`) that any rule is broken; `boxes` are what breaks it, if asked for.
    """

    verdict: str
    score: float
    category: str | None = None
    severity: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moderate(Task[Moderation]):
    """Check a picture or video against a policy: allow, review or block, and why."""

    name: ClassVar[str] = "moderate"

    policy: Annotated[
        str | None,
        Flag(is_file=True),
        Field(
            description="Rules, one a line, or TOML with a table for each; a default one exists."
        ),
    ] = None
    boxes: Annotated[bool, Field(description="Find what breaks the policy too.")] = False
    fail_on: Annotated[
        str | None,
        Field(description="low, medium or high: from which severity the command ends with 7."),
    ] = None

    def __post_init__(self) -> None:
        Task.__post_init__(self)
        if self.fail_on is not None:
            check_known("severity", self.fail_on, SEVERITIES)
        self._rules()

    def run(self, model: ChatModel, seen: Sequence[Seen]) -> Moderation:
        rules = {rule.name: rule for rule in self._rules()}
        none = NONE.get(self.language, NONE["en"])
        said = "; ".join(rule.said for rule in rules.values())
        words = instruction("moderate", "rule", self.language, rules=said)
        found = odds(model, self.request(seen, words), [*rules, none])
        score = 1 - found.probabilities[none]
        if score < REVIEW_FROM:
            return Moderation(
                text="allow",
                language=self.language,
                completions=found.completions,
                verdict="allow",
                score=score,
            )
        broken = rules[next(name for name in found.probabilities if name != none)]
        is_sure = score >= BROKEN_FROM
        verdict = "block" if is_sure and broken.severity == "high" else "review"
        words = wording("moderate", "reason", self.language, rule=broken.said)
        told = answered(model, self.request(seen, words), language=self.language)
        located, boxes = self._located(model, seen, broken)
        flags = [] if is_sure else ["unsure"]
        if self.fail_on and SEVERITIES.index(broken.severity) >= SEVERITIES.index(self.fail_on):
            flags.append("fail_on")
        return Moderation(
            text=f"{verdict}: {broken.name} ({broken.severity}): {told.text}",
            language=self.language,
            completions=(*told.completions, *found.completions, *located),
            flags=(*told.flags, *flags),
            verdict=verdict,
            score=score,
            category=broken.name,
            severity=broken.severity,
            reason=told.text,
            boxes=boxes,
        )

    def _located(
        self, model: ChatModel, seen: Sequence[Seen], broken: PolicyRule
    ) -> tuple[Sequence[Completion], tuple[Box, ...]]:
        if not self.boxes or isinstance(seen[0], Video):
            return (), ()
        words = instruction("moderate", "locate", self.language, rule=broken.said)
        located = model.generate([question(seen, words, BOXES_SAMPLING)])
        return located, boxes_of(located[0])

    def _rules(self) -> list[PolicyRule]:
        """Raises InvalidParamError for a policy that cannot be read."""
        shipped = files("qvl.tasks").joinpath("policy.toml").read_text("utf-8")
        rules = parse_policy(shipped if self.policy is None else self.policy, self.language)
        names = [rule.name for rule in rules]
        if len(set(names)) < len(names) or set(names) & {"", *NONE.values()}:
            raise InvalidParamError("two rules of the policy have the same name, or one has none")
        if not rules:
            raise InvalidParamError("the policy has no rules")
        return rules


def parse_policy(text: str, language: str) -> list[PolicyRule]:
    """A rule for each TOML table, with a severity (medium) and a description, which may be one for
    each language; or for each line, "alcohol: bottles and glasses" or just "No alcohol", of medium
    severity.
    """
    if re.search(r"^\s*\[", text, re.MULTILINE):
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as err:
            raise InvalidParamError(f"the policy is no TOML: {err}") from err
        tables.pop("version", None)
        return [_of_table(name, table, language) for name, table in tables.items()]
    if re.fullmatch(r"\s*\S+\.(toml|txt|md)\s*", text):
        raise InvalidParamError("the policy is a name and no rules", hint="is there such a file?")
    lines = (line.strip().lstrip("-*•").strip() for line in text.splitlines())
    parted = (re.split(r":\s+|：", line, maxsplit=1) for line in lines if line)
    return [PolicyRule(name.strip(), "medium", "".join(rest).strip()) for name, *rest in parted]


def _of_table(name: str, table: Any, language: str) -> PolicyRule:
    if not isinstance(table, dict) or not set(table) <= {"severity", "description"}:
        raise InvalidParamError(
            f"the rule {name!r} of the policy holds more than a severity and a description",
            hint="write [name], and below it severity = 'high' and description = '...'",
        )
    severity, said = str(table.get("severity", "medium")), table.get("description", "")
    check_known("severity", severity, SEVERITIES)
    if isinstance(said, dict):
        said = said.get(language, said.get("en", ""))
    if not isinstance(said, str):
        raise InvalidParamError(f"the description of the rule {name!r} is no text")
    return PolicyRule(name, severity, said)
