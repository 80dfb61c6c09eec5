"""One HTML page of what was found: picture, boxes, texts; nothing on it comes from outside."""

from __future__ import annotations

from html import escape
from pathlib import Path

from qvl.cli.output import Outcome
from qvl.errors import QvlError
from qvl.page import ENDING, beginning, data_address, figure
from qvl.tasks.task import Result
from qvl.types import Image


def page(outcomes: list[Outcome]) -> str:
    """The whole page."""
    body = "\n".join(article(outcome) for outcome in outcomes)
    return beginning("qvl: what was found", "What was found") + body + ENDING


def article(outcome: Outcome) -> str:
    title = f"<h2>{escape(outcome.name)}</h2>"
    if isinstance(outcome.found, QvlError):
        message = escape(outcome.found.message)
        return f'<article><div class="text">{title}<p class="error">{message}</p></div></article>'
    texts = "".join(
        f'<dt>{result.language}</dt><dd lang="{result.language}">{escape(result.text)}</dd>'
        for result in outcome.found
    )
    first = outcome.found[0]
    sure = min(result.completion.confidence for result in outcome.found)
    provenance = first.completion.provenance
    info = (*provenance.images, *provenance.videos)[0]
    notes = "; ".join(
        (f"{info.width_px}x{info.height_px} px", f"confidence {sure:.2f}", *info.notes)
    )
    return (
        f"<article>{picture(outcome, first)}"
        f'<div class="text">{title}<dl>{texts}</dl><small>{escape(notes)}</small></div></article>'
    )


def picture(outcome: Outcome, result: Result) -> str:
    source = picture_source(outcome)
    if source is None:
        return ""
    info = result.completion.provenance.images[0]
    found = [*result.boxes, *result.points]
    return figure(source, result.text, (info.width_px, info.height_px), found)


def picture_source(outcome: Outcome) -> str | None:
    """The picture as a data address; None where it cannot stand in the page."""
    shown = outcome.seen[0]
    if not isinstance(shown, Image) or shown.page is not None:
        return None
    if not isinstance(shown.source, bytes | Path):  # at its address may lie another by now
        return None
    source = shown.source
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError:  # it was there when it was described; the text stays
        return None
    return data_address(data)
