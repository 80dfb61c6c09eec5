"""Jobs about objects: the options of a task, the answer that is right, and what it is scored by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qvl.scenes.as_json import dumped
from qvl.scenes.phrases import Language
from qvl.scenes.scene import Job, PixelBox, Scene, Thing
from qvl.tasks.ask import YES_NO
from qvl.tasks.moderate import NONE

STEP = 10  # of the grid of thousandths that places are written on: two digits to learn, not three


def ask(
    question: str,
    answer: str | int | bool,  # noqa: FBT001 - a truth value is an answer, not a switch
    language: Language,
    skill: str,
    *,
    choices: Sequence[str] = (),
    about: Sequence[tuple[str, Thing]] = (),
    facts: Sequence[str] = (),
    free: bool = False,
) -> Job:
    """A question; a number and a truth value are asked for as such unless the answer is to be `free`."""
    options: dict[str, Any] = {"question": question, "language": language}
    said = str(answer)
    if isinstance(answer, bool):
        said = YES_NO[language][0 if answer else 1]
    if choices:
        options |= {"answer_as": "choice", "choices": list(choices)}
    elif not isinstance(answer, str) and not free:
        options["answer_as"] = "bool" if isinstance(answer, bool) else "int"
    truth = said if free else answer
    return Job("ask", options, said, truth, skill, tuple(about), tuple(facts) or (said,) * free)


def describe(
    text: str,
    language: Language,
    skill: str,
    *,
    style: str = "plain",
    options: Mapping[str, Any] | None = None,
    facts: Sequence[str] = (),
) -> Job:
    chosen = {"style": style, "language": language, **(options or {})}
    return Job("describe", chosen, text, text, skill, facts=tuple(facts))


def listing(fields: Mapping[str, Any], language: Language, facts: Sequence[str] = ()) -> Job:
    """A description with title, description, keywords and alt_text, in that order."""
    options = {"style": "product", "language": language, "listing": True}
    return Job("describe", options, dumped(fields), dict(fields), "listing", facts=tuple(facts))


def ground(
    phrase: str, found: Sequence[Thing], scene_size: tuple[int, int], language: Language
) -> Job:
    """Where the things are that the phrase names, in reading order; maybe none."""
    things = sorted(found, key=lambda thing: (thing.box[1] // 24, thing.box[0]))
    answer = places([(phrase, thing.box) for thing in things], scene_size)
    options = {"phrases": [phrase], "language": language}
    truth = [list(thing.box) for thing in things]
    about = ((phrase, things[0]),) if len(things) == 1 else ()
    return Job("ground", options, answer, truth, "ground", about)


def point(phrase: str, thing: Thing, size: tuple[int, int], language: Language) -> Job:
    """The middle of the thing that the phrase names."""
    x1, y1, x2, y2 = thing.box
    middle = ((x1 + x2) / 2, (y1 + y2) / 2)
    numbers = [thousandth(v, side) for v, side in zip(middle, size, strict=True)]
    options = {"phrases": [phrase], "points": True, "language": language}
    answer = dumped([{"point_2d": numbers, "label": phrase}])
    return Job("ground", options, answer, [list(middle)], "point", ((phrase, thing),))


def classify(
    labels: Sequence[str], right: str, language: Language, thing: Thing | None = None
) -> Job:
    options = {"labels": list(labels), "language": language}
    about = ((right, thing),) if thing is not None else ()
    return Job("classify", options, right, [right], "classify", about)


def fits(label: str, language: Language, *, does: bool) -> Job:
    """Whether one class of any number fits."""
    options = {"labels": [label], "multi": True, "language": language}
    answer = YES_NO[language][0 if does else 1]
    return Job("classify", options, answer, [label] if does else [], "classify-multi")


def broken_rule(policy: str | None, rule: str | None, language: Language) -> Job:
    options: dict[str, Any] = {"language": language}
    if policy is not None:
        options["policy"] = policy
    return Job("moderate", options, rule or NONE[language], rule, "moderate")


def reason(
    policy: str | None, rule: str, why: str, language: Language, facts: Sequence[str]
) -> Job:
    """Why the rule is broken, which is asked after which one."""
    options: dict[str, Any] = {"language": language}
    if policy is not None:
        options["policy"] = policy
    return Job("moderate", options, why, why, "moderate-reason", facts=tuple(facts), before=(rule,))


def with_form(
    task: str,
    options: Mapping[str, Any],
    fields: Any,
    truth: Any,
    skill: str,
    facts: Sequence[str] = (),
) -> Job:
    """A job whose answer is JSON."""
    return Job(task, options, dumped(fields), truth, skill, facts=tuple(facts))


def places(found: Sequence[tuple[str, PixelBox]], size: tuple[int, int]) -> str:
    """As Qwen3-VL writes boxes."""
    return dumped([{"bbox_2d": box_1000(box, size), "label": label} for label, box in found])


def box_1000(box: PixelBox, size: tuple[int, int]) -> list[int]:
    return [thousandth(v, side) for v, side in zip(box, (*size, *size), strict=True)]


def thousandth(v: float, side: int) -> int:
    return min(1000, max(0, round(v / side * 1000 / STEP) * STEP))


def languages_of(scene: Scene) -> set[str]:
    return {job.options["language"] for job in scene.jobs}
