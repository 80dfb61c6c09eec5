"""Watching a video: what happens, when each event happens, an answer to a question about a part of it.

A live stream is watched through `windows`: the last seconds of it, again and again, as short videos.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from qvl.errors import InvalidParamError
from qvl.tasks.guards import answered
from qvl.tasks.prompts import wording
from qvl.tasks.task import Flag, Result, Seen, Task, check_known
from qvl.types import Completion, Image, ResponseFormat, Video
from qvl.vlm.chat_model import ChatModel

FORMS = ("text", "events", "srt")
# they see no time stamps, only a rate: their times count from the first frame that they are shown
FROM_FIRST_FRAME = ("qwen2_vl", "qwen2_5_vl")
SHORTEST_SUBTITLE_S = 1.0
CLOCK = {"type": "string", "pattern": r"^[0-9]{2,3}:[0-5][0-9](\.[0-9]{1,2})?$"}  # as Qwen's own
EVENT = {
    "type": "object",
    "properties": {
        "start_time": CLOCK,
        "end_time": CLOCK,
        "description": {"type": "string", "minLength": 1},
    },
    "required": ["start_time", "end_time", "description"],
    "additionalProperties": False,
}
EVENTS = {
    "type": "object",
    "properties": {"events": {"type": "array", "items": EVENT, "maxItems": 200}},
    "required": ["events"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Event:
    """What happens; times in seconds from the beginning of the file."""

    start_s: float
    end_s: float
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched(Result):
    """`events`, by their start and within the part that was watched, are there if asked for."""

    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch(Task[Watched]):
    """Say what happens in a video, list its events with their times, or ask about it."""

    name: ClassVar[str] = "video"
    new_tokens: ClassVar[int] = 2048

    prompt: Annotated[
        str | None,
        Flag(("--prompt", "-p")),
        Field(description="Ask this, instead of what happens."),
    ] = None
    answer_as: Annotated[
        str,
        Flag(("--as",)),
        Field(description="text, events (with their times), or srt (these as subtitles)."),
    ] = "text"
    start_s: Annotated[
        float | None, Flag(("--start",)), Field(description="Watch from this second on.")
    ] = None
    end_s: Annotated[
        float | None, Flag(("--end",)), Field(description="Watch up to this second.")
    ] = None
    fps: Annotated[float | None, Field(description="Frames a second to look at.")] = None
    frames: Annotated[int | None, Field(description="Frames to look at in all.")] = None

    def __post_init__(self) -> None:
        Task.__post_init__(self)
        check_known("answer form", self.answer_as, FORMS)
        if self.prompt is not None and self.answer_as != "text":
            raise InvalidParamError(
                "a question is answered as text", hint="leave out the prompt, or ask for text"
            )

    def run(self, model: ChatModel, seen: Sequence[Seen]) -> Watched:
        video = self._part(seen[0])
        if self.answer_as == "text":
            words = self.prompt or wording("video", "text", self.language)
            told = answered(model, self.request([video], words), language=self.language)
            text, events = told.text, ()
        else:
            form = ResponseFormat("json_schema", json.dumps(EVENTS))
            words = wording("video", "events", self.language)
            asked = self.request([video], words, form=form)
            told = answered(model, asked, language=self.language)
            events = within(read_events(told.fields()["events"]), video, told.completions[0])
            text = subtitles(events) if self.answer_as == "srt" else listed(events)
        return Watched(
            text=text,
            language=self.language,
            completions=told.completions,
            flags=told.flags,
            events=events,
        )

    def _part(self, seen: Seen) -> Video:
        """What of it is watched; bytes, and files of any name, may be videos too."""
        whole = seen if isinstance(seen, Video) else Video(source=seen.source, name=seen.name)
        chosen = {name: getattr(self, name) for name in ("start_s", "end_s", "fps", "frames")}
        return replace(
            whole, **{name: value for name, value in chosen.items() if value is not None}
        )


def read_events(rows: Iterable[Mapping[str, str]]) -> list[Event]:
    """The events as the answer has them."""
    return [
        Event(seconds(row["start_time"]), seconds(row["end_time"]), row["description"].strip())
        for row in rows
    ]


def seconds(clock: str) -> float:
    """ "01:02.5" is 62.5."""
    minutes, rest = clock.split(":")
    return int(minutes) * 60 + float(rest)


def within(events: Iterable[Event], video: Video, told: Completion) -> tuple[Event, ...]:
    """The events by their start, in the file's own times, clamped to the frames that were seen."""
    how = told.provenance
    first_s, last_s = video.start_s or 0.0, math.inf if video.end_s is None else video.end_s
    if how.videos:
        times_s = how.videos[0].frame_times_s
        first_s, last_s = times_s[0], times_s[-1]
    shift_s = first_s if how.generation in FROM_FIRST_FRAME else 0.0
    found = []
    for event in events:
        ends = sorted((event.start_s + shift_s, event.end_s + shift_s))
        start_s, end_s = (min(max(end, first_s), last_s) for end in ends)
        found.append(Event(start_s, end_s, event.what))
    return tuple(sorted(found, key=lambda event: (event.start_s, event.end_s)))


def listed(events: Iterable[Event]) -> str:
    """A line for each event."""
    return "\n".join(
        f"{short_clock(event.start_s)}–{short_clock(event.end_s)} {event.what}" for event in events
    )


def short_clock(time_s: float) -> str:
    """62.5 is "1:02.5"."""
    minutes, tenths = divmod(round(time_s * 10), 600)
    return f"{minutes}:{tenths // 10:02}" + (f".{tenths % 10}" if tenths % 10 else "")


def subtitles(events: Iterable[Event]) -> str:
    """The events in the SubRip format; one that lasts no time is shown for a second."""
    return "\n".join(
        f"{number}\n{long_clock(event.start_s)} --> "
        f"{long_clock(max(event.end_s, event.start_s + SHORTEST_SUBTITLE_S))}\n"
        f"{' '.join(event.what.split())}\n"
        for number, event in enumerate(events, start=1)
    )


def long_clock(time_s: float) -> str:
    """62.5 is "00:01:02,500"."""
    total_s, ms = divmod(round(time_s * 1000), 1000)
    return f"{total_s // 3600:02}:{total_s // 60 % 60:02}:{total_s % 60:02},{ms:03}"


def windows(
    source: Iterable[Image], seconds: float, *, fps: float = 2.0, every_s: float | None = None
) -> Iterator[Video]:
    """The last `seconds` of a stream of frames, as a video, each `every_s` seconds (None: as long).

    `source` gives `fps` frames a second, as a camera or a decoder delivers them, and is asked for the
    next one only when it is needed: one that waits for nobody should leave out what came meanwhile.
    The end of the stream gives a last window, if any frame is new in it. Raises InvalidParamError.
    """
    spans = [span_s * fps for span_s in (seconds, seconds if every_s is None else every_s)]
    if not all(1 <= frames < math.inf for frames in spans):
        raise InvalidParamError(
            f"a window of {seconds} s at {fps} frames a second has no frame, or no new one"
        )
    length, step = map(round, spans)
    last: deque[Image] = deque(maxlen=length)
    fresh = total = 0
    for total, frame in enumerate(source, start=1):
        last.append(frame)
        fresh += 1
        if fresh == step:
            yield Video(source=tuple(last), name=f"up to {total / fps:g} s", fps=fps)
            fresh = 0
    if fresh:
        yield Video(source=tuple(last), name=f"up to {total / fps:g} s", fps=fps)
