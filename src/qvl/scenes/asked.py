"""What the product asks in a job, and what it makes of an answer: the task itself is run.

Main path: request_of(job, scene) -> Request; answered(job, scene, text) -> Result; value(result) ->
what is compared with the job's truth. Prompts and forms are those of `qvl.tasks` by construction.
"""

from __future__ import annotations

import io
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

from PIL import Image

from qvl.errors import QvlError
from qvl.scenes.scene import Job, Scene
from qvl.tasks import TASKS
from qvl.tasks.ask import Answer
from qvl.tasks.classify import Classification
from qvl.tasks.compare import Comparison
from qvl.tasks.describe import Description
from qvl.tasks.extract import Extraction
from qvl.tasks.ground import Found
from qvl.tasks.moderate import Moderation
from qvl.tasks.ocr import Reading
from qvl.tasks.service import Reply
from qvl.tasks.solve import Solution
from qvl.tasks.task import Result, Seen, from_json
from qvl.tasks.video import Watched
from qvl.types import (
    Completion,
    Delta,
    ImageInfo,
    Provenance,
    Request,
    Sampling,
    Timings,
    TokenLogprob,
    Usage,
    Video,
    VideoInfo,
)
from qvl.types import Image as Picture
from qvl.vlm.chat_model import ModelInfo, completed

GENERATION = "qwen3_vl"
UNLIKELY = -20.0  # the natural logarithm of what is as good as never said


def request_of(job: Job, scene: Scene, seen: Sequence[Seen] | None = None) -> Request:
    """The request that the job is about; `seen` is `seen_of(scene)`, for who asks several jobs."""
    model = _Model(scene, job.before)
    try:
        from_json(TASKS[job.task], job.options).run(model, seen or seen_of(scene))
    except _AskedMore as more:
        return more.request
    raise ValueError(f"{job.task} asks no more after {len(job.before)} answers")


def answered(job: Job, scene: Scene, text: str) -> Result:
    """What the task makes of `text` as the answer; whatever it asks after that, the text answers too.

    Raises QvlError, as the task does, for a text of the wrong form.
    """
    model = _Model(scene, (*job.before, text), repeats=True)
    return from_json(TASKS[job.task], job.options).run(model, seen_of(scene))


def seen_of(scene: Scene, pictures: Sequence[Picture] = ()) -> tuple[Seen, ...]:
    """The pictures as PNG bytes, unless they are given; those of a clip are one video of pictures."""
    pictures = tuple(pictures) or tuple(
        Picture(_png(picture), f"picture {number}")
        for number, picture in enumerate(scene.pictures, start=1)
    )
    if not scene.times_s:
        return pictures
    fps = 1.0 if len(scene.times_s) < 2 else 1 / (scene.times_s[1] - scene.times_s[0])
    return (Video(source=pictures, fps=fps, name="clip"),)


def value(job: Job, result: Result) -> Any:
    """What of the result is compared with the job's truth, as JSON has it.

    Boxes and points are lists of pixels, answers of a form are their values, texts are themselves.
    """
    match result:
        case Answer(value=found):
            return found
        case Classification(labels=labels):
            return list(labels)
        case Found():
            return [list(asdict(place).values())[1:] for place in (*result.boxes, *result.points)]
        case Moderation() if len(job.before) > 1:  # after the rule and the reason
            return [list(asdict(box).values())[1:] for box in result.boxes]
        case Moderation():
            return result.reason if job.before else result.category
        case Description() if job.before:
            return [list(asdict(box).values())[1:] for box in result.boxes]
        case Comparison():
            rows = [[row.aspect, *row.each] for row in result.differences]
            return {"summary": result.summary, "same": list(result.same), "different": rows}
        case Watched(events=events) if events:
            return [[event.start_s, event.end_s, event.what] for event in events]
        case Reading(lines=lines) if job.options.get("answer_as") == "lines":
            boxes = [list(astuple(one.box))[1:] if one.box else [0.0] * 4 for one in lines]
            return [[one.text, box] for one, box in zip(lines, boxes, strict=True)]
        case Reply():
            return {"answer": result.text, "hand_over": result.hand_over, "reason": result.reason}
        case Extraction() if job.before:  # where one of the values stands
            boxes = [f.box for f in result.fields if f.box is not None]
            return [list(asdict(box).values())[1:] for box in boxes[:1]]
        case Extraction():
            return dict(result.data)
        case Solution(answer=found):
            return found
        case Description() if result.title:
            return {
                "title": result.title,
                "description": result.text,
                "keywords": list(result.keywords),
                "alt_text": result.alt_text,
            }
    return result.text


class _AskedMore(Exception):
    def __init__(self, request: Request) -> None:
        self.request = request


@dataclass
class _Model:
    """A ChatModel whose n-th question is answered with the n-th of `says`.

    The same messages once more are the same question: probabilities are asked for piece by piece.
    """

    scene: Scene
    says: tuple[str, ...]
    repeats: bool = False  # the last answer, to all further questions
    asked: list[Any] = field(default_factory=list)
    info: ModelInfo = field(
        default_factory=lambda: ModelInfo(
            name="truth",
            revision=None,
            generation=GENERATION,
            parameters=0,
            token_bytes=0,
            dtype="fp32",
            device="cpu",
            max_positions=0,
            at_once=1,
        )
    )

    def results(self, requests: Iterable[Request]) -> Generator[Completion | QvlError, None, None]:
        for request in requests:
            yield self._completion(request)

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        return completed(self.results(requests))

    def stream(self, request: Request) -> Generator[Delta, None, None]:
        completion = self._completion(request)
        yield Delta(completion.text, completion)

    def close(self) -> None:
        pass

    def _completion(self, request: Request) -> Completion:
        if request.messages not in self.asked:
            self.asked.append(request.messages)
        number = self.asked.index(request.messages)
        if number >= len(self.says) and not self.repeats:
            raise _AskedMore(request)
        text = self.says[min(number, len(self.says) - 1)]
        form = request.response_format
        choices = json.loads(form.value) if form is not None and form.kind == "choice" else []
        if choices and text not in choices:
            text = choices[0]
        logprobs = tuple(_logprobs(text, choices)) if request.sampling.logprobs else ()
        return Completion(
            text=text,
            finish_reason="stop",
            token_ids=(),
            confidence=1.0,
            usage=Usage(prompt_tokens=0, completion_tokens=0, image_tokens=0),
            timings=Timings(first_token_s=0.0, total_s=0.0),
            provenance=_provenance(self.scene, request.sampling),
            logprobs=logprobs,
        )


def _logprobs(text: str, choices: Sequence[str]) -> Iterator[TokenLogprob]:
    """Of a text that is surely said, a byte a token, and then its end, which has none."""
    said = text.encode()
    others = [choice.encode() for choice in choices if choice != text]
    for at in range(len(said) + 1):
        token = said[at : at + 1]
        rivals = {one[at : at + 1] for one in others if one[:at] == said[:at]} - {token}
        best = tuple((rival, UNLIKELY) for rival in sorted(rivals))
        yield TokenLogprob(token, 0.0, ((token, 0.0), *best))


def _provenance(scene: Scene, sampling: Sampling) -> Provenance:
    width, height = scene.pictures[0].size
    size = {"width_px": width, "height_px": height}
    resized = {"resized_width_px": width, "resized_height_px": height}
    infos = [
        ImageInfo(name=f"picture {number}", sha256="", tokens=0, **size, **resized)
        for number in range(1, len(scene.pictures) + 1)
    ]
    clip = VideoInfo(
        name="clip", sha256="", tokens=0, frame_times_s=scene.times_s, **size, **resized
    )
    return Provenance(
        model="truth",
        revision=None,
        generation=GENERATION,
        dtype="fp32",
        device="cpu",
        seed=None,
        sampling=sampling,
        images=() if scene.times_s else tuple(infos),
        version="",
        videos=(clip,) if scene.times_s else (),
    )


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
