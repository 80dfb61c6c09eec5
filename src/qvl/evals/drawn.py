"""Jobs of drawn scenes, asked through any ChatModel and scored against the truth.

Main path: asked_of(job, scene) -> Asked; scored(model, asked) -> Scored, one for each. What is asked and
how an answer is read is the task's own (`scenes.asked`).
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import tee
from typing import Any

from PIL import Image

from qvl.errors import AnswerFormError, QvlError
from qvl.evals import scores
from qvl.evals.named import invented, named
from qvl.scenes.asked import answered, request_of, value
from qvl.scenes.scene import Job, Scene
from qvl.tasks.task import Seen
from qvl.types import Completion, Request, ResponseFormat
from qvl.vlm.chat_model import ChatModel
from qvl.vlm.form_check import fits

SPARE_TOKENS = 16
LEAST_IOU = 0.5


@dataclass(frozen=True, slots=True)
class Asked:
    """A job and its request; `scene` is the job's with blank pictures: none is needed to score it."""

    job: Job
    scene: Scene
    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """How right one answer is, from 0 to 1; `told` and `true` are what was compared.

    `is_refused`: the task could not read the answer, or the model gave none; then `told` is None. `kind`
    is the scene's. `is_short`: a value or a few words, right or wrong, so that `confidence`, the model's own, can
    be held against it. `measures` are, of a text about objects, "named" (F1 over objects), "facts" (the
    share that is said) and "free" (1 if nothing is invented), and of events "order".
    """

    skill: str
    kind: str
    task: str
    language: str
    right: float
    confidence: float
    told: Any
    true: Any
    is_refused: bool = False
    is_short: bool = False
    measures: dict[str, float] = field(default_factory=dict)


def asked_of(job: Job, scene: Scene, seen: Sequence[Seen]) -> Asked:
    """The job's own request, greedy, with room for an answer of twice the true one's length.

    A true answer has at most as many tokens as bytes, and usually a third of that.
    """
    request = request_of(job, scene, seen)
    room = SPARE_TOKENS + len(job.answer.encode())
    sampling = replace(request.sampling, temperature=0.0, max_new_tokens=room)
    blank = tuple(Image.new("L", picture.size) for picture in scene.pictures)
    return Asked(job, replace(scene, pictures=blank), replace(request, sampling=sampling))


def scored(model: ChatModel, asked: Iterable[Asked]) -> Generator[Scored, None, None]:
    """One for each, in order; as many are computed at once as the model takes."""
    ahead, behind = tee(asked)
    results = model.results(one.request for one in ahead)
    for one, result in zip(behind, results, strict=True):
        yield score(one, result)


def score(asked: Asked, result: Completion | QvlError) -> Scored:
    job, scene = asked.job, asked.scene
    confidence = 0.0 if isinstance(result, QvlError) else result.confidence
    right, told, measures, is_refused = 0.0, None, dict.fromkeys(_measured(job, scene), 0.0), False
    try:
        if isinstance(result, QvlError):
            raise result
        _check_form(result.text, asked.request.response_format)
        read = answered(job, scene, result.text)
        told = value(job, read)
        measures = _measures(job, scene, told)
        right = _right(job, scene, told)
    except QvlError:
        is_refused = True
    return Scored(
        skill=job.skill,
        kind=scene.kind,
        task=job.task,
        language=job.options["language"],
        right=right,
        confidence=confidence,
        told=told,
        true=job.truth,
        is_refused=is_refused,
        is_short=_is_exact(job) and job.task != "solve",
        measures=measures,
    )


def _check_form(text: str, form: ResponseFormat | None) -> None:
    """Raises AnswerFormError: not every model keeps to forms, and not every task looks again."""
    ok = bool(text.strip())
    if ok and form is not None:
        match form.kind:
            case "choice":
                ok = text in json.loads(form.value)
            case "regex":
                ok = bool(fits("regex", form.value, text))
            case "json_schema":
                ok = bool(fits("json_schema", json.loads(form.value), text))
    if not ok:
        raise AnswerFormError("the answer is empty, or has not the form that was asked for")


def _is_exact(job: Job) -> bool:
    """Whether the answer is a value, a choice or a few words, as opposed to a text, places, fields."""
    if job.task in ("ask", "classify", "solve"):
        return not _is_free(job)
    return job.facts == (job.answer,) or (job.task == "moderate" and not job.before)


def _is_free(job: Job) -> bool:
    """Whether other words may say the same."""
    return bool(job.facts) and job.facts != (job.answer,) and isinstance(job.truth, str)


def _right(job: Job, scene: Scene, told: Any) -> float:
    true = job.truth
    if _is_exact(job):
        return float(_same(told, true))
    match job.options.get("answer_as"):
        case "lines":
            return scores.found(told, true, _same_line)
        case "events":
            return scores.found(told, true, _same_event) if isinstance(told, list) else 0.0
    if job.options.get("points"):
        return scores.found(told, [thing.box for _, thing in job.about], _is_in)
    if isinstance(true, list):
        return scores.boxes_found(told, true, LEAST_IOU)
    if job.task == "service":
        says_all = all(scores.says(told["answer"], fact) for fact in job.facts)
        return float(told["hand_over"] == true["hand_over"] and says_all)
    if isinstance(true, dict):
        return scores.field_f1(told, true)
    if _is_free(job):
        measures = _measures(job, scene, told)
        return float(measures["facts"] == 1.0 and measures.get("free", 1.0) == 1.0)
    return max(0.0, 1.0 - scores.cer([told], [true]))


def _same(told: Any, true: Any) -> bool:
    if isinstance(told, str) and isinstance(true, str):
        return scores.exact(told, true)
    return type(told) is type(true) and told == true


def _same_line(told: Any, true: Any) -> bool:
    return told[0] == true[0] and scores.iou(told[1], true[1]) >= LEAST_IOU


def _same_event(told: Any, true: Any) -> bool:
    return scores.exact(told[2], true[2]) and scores.time_iou(told, true) >= LEAST_IOU


def _is_in(told: Sequence[float], box: Sequence[float]) -> bool:
    """The pointing game of Zhang et al. 2018: anywhere in the box."""
    return box[0] <= told[0] <= box[2] and box[1] <= told[1] <= box[3]


def _measured(job: Job, scene: Scene) -> tuple[str, ...]:
    names: tuple[str, ...] = ()
    if _is_free(job):
        names = ("facts",)
        if job.task in ("describe", "video"):
            names = ("named", "facts", "free")
    return (*names, "order") if len(_events(job, scene)) > 1 else names


def _measures(job: Job, scene: Scene, told: Any) -> dict[str, float]:
    out: dict[str, float] = {}
    names = _measured(job, scene)
    if "facts" in names:
        out["facts"] = sum(scores.says(told, fact) for fact in job.facts) / len(job.facts)
    if "named" in names:
        there = {thing.what for things in scene.things for thing in things}
        out["named"] = scores.set_f1(named(told), named(job.answer))
        out["free"] = float(not invented(told, there, job.answer))
    if "order" in names:
        out["order"] = scores.in_order(_places(_events(job, scene), told))
    return out


def _events(job: Job, scene: Scene) -> tuple[str, ...]:
    """What happens one after the other, in a job that asks for it; only a clip has several."""
    if job.options.get("answer_as") == "events":
        return tuple(what for _, _, what in sorted(job.truth, key=lambda event: event[0]))
    if scene.kind == "clip" and _is_free(job):
        return job.facts
    return ()


def _places(events: Sequence[str], told: Any) -> list[float | None]:
    """Where each event is told: its start, or its place in the text."""
    if not isinstance(told, str):
        starts = {scores.normal(what): start for start, _, what in told}
        return [starts.get(scores.normal(what)) for what in events]
    text = scores.normal(told)
    at = [text.find(scores.normal(what)) for what in events]
    return [float(place) if place >= 0 else None for place in at]
