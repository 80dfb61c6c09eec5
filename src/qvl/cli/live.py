"""A camera or a live stream: what its last seconds show, again and again, until Ctrl-C.

Main path: watch -> processing.live.live_frames -> tasks.video.windows -> one row for each window.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from qvl.cli import formats
from qvl.cli.model import open_chosen
from qvl.cli.output import output, results_of, tell_cost, tell_of
from qvl.cli.tasks import OPENING, WINDOW_S, gathered
from qvl.errors import UsageError
from qvl.processing.live import live_frames
from qvl.processing.video import MAX_SAMPLED, PICTURES_PER_SECOND
from qvl.tasks.task import Task, run_task
from qvl.tasks.video import Watch, windows
from qvl.types import Image, Usage, Video, without_password

log = logging.getLogger(__name__)
# of what has been watched, only the last seconds are there
NOT_LIVE = ("start_s", "end_s", "frames", "html", "draw")


def watch(
    sources: Sequence[str], asked: Sequence[Task[Any]], options: Mapping[str, Any], form: str
) -> None:
    """A row for each window, as soon as it is known; what comes while the model is busy is left out.

    Ends with the stream, or by an interrupt. Raises QvlError.
    """
    if len(sources) > 1 or not isinstance(asked[0], Watch):
        raise UsageError(
            "a camera or a live stream is watched by itself, by `qvl video`",
            hint="give nothing else beside it",
        )
    for name in NOT_LIVE:
        if options.get(name) is not None:
            flag = name.removesuffix("_s")
            raise UsageError(f"--{flag} is of files, not of a camera or a live stream")
    if form == "html":
        raise UsageError("a page is written at the end, and a live stream has none")
    (source,) = sources
    fps: float = options["fps"] or PICTURES_PER_SECOND
    window_s: float = options["window"] or WINDOW_S
    held = round(window_s * fps)
    if not 1 <= held <= MAX_SAMPLED:
        raise UsageError(
            f"{window_s:g} s at {fps:g} frames a second are {held} frames, not 1 to {MAX_SAMPLED}",
            hint="change --window or --fps",
        )
    opening = {name: options[name] for name in OPENING}
    name, kind, done = without_password(source), type(asked[0]), 0
    usages: list[Usage] = []
    with (
        closing(open_chosen(options["model"], **opening)) as model,
        closing(live_frames(source, fps=fps, held=held)) as frames,
        output(options["out"]) as stream,
    ):
        print(formats.beginning(kind, form), end="", file=stream, flush=True)
        try:
            for shown in windows(frames, window_s, fps=fps):
                video = replace(shown, name=f"{name} up to {last_of(shown)}")
                outcome = gathered([video], [run_task(model, task, [video]) for task in asked])
                tell_of(outcome, alone=False)
                usages += [c.usage for found in results_of(outcome) for c in found.completions]
                row = formats.item(outcome, kind, form, alone=False)
                print(row, end="", file=stream, flush=True)
                done += 1
        except KeyboardInterrupt:
            log.error("stopped, with %d done", done)
            raise
        finally:
            tell_cost(usages)


def last_of(window: Video) -> str:
    """The name of its last frame, which is when that was taken."""
    match window.source:
        case (*_, Image(name=name)):
            return name
    return window.name
