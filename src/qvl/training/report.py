"""A run's log as one page: the curve of the loss, the evaluations, the recipe."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qvl.training.run import LOG, RECIPE

WIDTH, HEIGHT, MARGIN = 760, 300, 46
SMOOTH = 20  # steps of which a point of the smooth line is the mean
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 50em; padding: 0 1em;
color: #222; background: #fff }}
svg {{ width: 100%; height: auto }}
text {{ font-size: 12px; fill: #555 }}
td, th {{ padding: .2em .8em .2em 0; text-align: left; vertical-align: top }}
@media (prefers-color-scheme: dark) {{ body {{ color: #ddd; background: #181818 }} text {{ fill: #aaa }} }}
</style></head><body>
<h1>{title}</h1>
<p>{summary}</p>
{curve}
<h2>Evaluations</h2>
{evaluations}
<h2>Recipe</h2>
{recipe}
</body></html>
"""


def read_log(folder: Path) -> list[dict[str, Any]]:
    path = folder / LOG
    return (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    )


def report(folder: Path) -> str:
    """The page of the run in `folder`; it needs no network."""
    lines = read_log(folder)
    recipe = json.loads((folder / RECIPE).read_text("utf-8"))
    evaluated = [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]
    seconds, tokens = (sum(line[name] for line in lines) for name in ("seconds", "tokens"))
    summary = f"{len(lines)} steps, {tokens:,.0f} tokens in {seconds:,.0f} s."
    if evaluated:
        step, loss = min(evaluated, key=lambda pair: pair[1])
        summary += f" Lowest evaluation loss {loss:.4f}, in step {step}."
    return PAGE.format(
        title=html.escape(f"Training of {recipe['model']}"),
        summary=html.escape(summary),
        curve=curve([(line["step"], line["loss"]) for line in lines], evaluated),
        evaluations=table(("step", "loss"), [(s, f"{loss:.4f}") for s, loss in evaluated]),
        recipe=table(
            ("", ""),
            [(k, ", ".join(v) if isinstance(v, list) else v) for k, v in recipe.items()],
        ),
    )


def table(names: tuple[str, str], rows: Sequence[tuple[object, object]]) -> str:
    if not rows:
        return "<p>none</p>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Each point the mean of the SMOOTH steps up to it."""
    values = [value for _, value in points]
    starts = [max(0, index + 1 - SMOOTH) for index in range(len(values))]
    return [
        (step, sum(values[start : index + 1]) / (index + 1 - start))
        for index, ((step, _), start) in enumerate(zip(points, starts, strict=True))
    ]


def curve(losses: Sequence[tuple[int, float]], evaluated: Sequence[tuple[int, float]]) -> str:
    """An SVG of the losses over the steps: all, their running mean, the evaluations as dots."""
    if not losses:
        return "<p>no steps yet</p>"
    steps = [step for step, _ in losses]
    values = [value for _, value in (*losses, *evaluated)]
    low, high = 0.0, max(values) or 1.0

    def place(point: tuple[int, float]) -> str:
        along = (point[0] - steps[0]) / max(1, steps[-1] - steps[0])
        up = (point[1] - low) / (high - low)
        x = MARGIN + along * (WIDTH - 2 * MARGIN)
        return f"{x:.1f},{HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN):.1f}"

    def line(points: Sequence[tuple[int, float]], style: str) -> str:
        return f'<polyline fill="none" {style} points="{" ".join(map(place, points))}"/>'

    dots = "".join(
        '<circle r="3.5" fill="#d95f02" cx="{}" cy="{}"/>'.format(*place(point).split(","))
        for point in evaluated
    )
    marks: list[Mapping[str, Any]] = [
        {"x": MARGIN, "y": HEIGHT - MARGIN + 18, "text": steps[0], "anchor": "start"},
        {
            "x": WIDTH - MARGIN,
            "y": HEIGHT - MARGIN + 18,
            "text": f"step {steps[-1]}",
            "anchor": "end",
        },
        {"x": MARGIN - 6, "y": MARGIN + 4, "text": f"{high:.2f}", "anchor": "end"},
        {"x": MARGIN - 6, "y": HEIGHT - MARGIN + 4, "text": "0", "anchor": "end"},
        {"x": MARGIN, "y": MARGIN - 16, "text": "loss, nats a token", "anchor": "start"},
    ]
    texts = "".join(
        '<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'.format(**mark)
        for mark in marks
    )
    axes = f'<path stroke="#999" fill="none" d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}"/>'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="the loss of every step">'
        + axes
        + line(losses, 'stroke="#7570b3" stroke-opacity=".35"')
        + line(smooth(losses), 'stroke="#7570b3" stroke-width="2"')
        + f"{dots}{texts}</svg>"
    )
