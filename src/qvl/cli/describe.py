"""`qvl describe`: pictures and videos in, descriptions out, on stdout, as JSON lines, in a file, as a page."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TextIO, TypeVar

import typer

from qvl.cli.inputs import Unusable, pictures
from qvl.cli.page import Outcome, write_page
from qvl.errors import PartialFailure, QvlError, StorageError
from qvl.settings import load_settings
from qvl.tasks.describe import Describe, Description
from qvl.tasks.describe import describe as run_task
from qvl.types import Sampling
from qvl.vlm.chat_model import EMBEDDED

log = logging.getLogger(__name__)
T = TypeVar("T")
EMBEDDED_NOTICE = (
    "answered by sprout, the embedded demonstration model: it knows drawn scenes, not photographs; "
    "--model takes another"
)

PROGRESS_EVERY_S = 10.0


def describe(
    sources: Annotated[
        list[str],
        typer.Argument(help="Pictures, videos, folders, globs, or - for a picture on stdin."),
    ],
    *,
    prompt: Annotated[str | None, typer.Option(help="Ask this instead.")] = None,
    language: Annotated[
        str | None, typer.Option(help="ru, zh, en, ... or several: ru,en,zh.")
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(help="plain, product, catalogue, marketplace, seo, menu, alt-text."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="A hub id, a folder, or sprout.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never download.")] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, fp32, bf16, fp8, int8, int4.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="1 to 4096.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0.1 to 2.0; 0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="0.05 to 1.0.")] = None,
    top_k: Annotated[int | None, typer.Option(help="1 to 1000.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same words.")] = None,
    boxes: Annotated[bool, typer.Option("--boxes", help="Find the objects too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with pictures, texts and boxes.")
    ] = None,
) -> None:
    """Describe pictures and videos. A picture that fails is reported and the others go on."""
    chosen = load_settings(
        model=model,
        language=language,
        device=device,
        dtype=dtype,
        style=style,
        max_new_tokens=max_new_tokens,
    )
    sampling = Sampling(
        max_new_tokens=chosen.max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
    )
    task = Describe(
        languages=tuple(chosen.language.split(",")),
        style=chosen.style,
        prompt=prompt,
        sampling=sampling.checked(),
        boxes=boxes or html is not None,
    )
    items = pictures(sources)
    images = [item for item in items if not isinstance(item, Unusable)]
    outcomes = [Outcome(item.name, item.error) for item in items if isinstance(item, Unusable)]
    if not images and len(outcomes) == 1 and isinstance(outcomes[0].found, QvlError):
        raise outcomes[0].found

    from qvl.vlm.local import LocalModel  # brings torch: not before the flags are known to be good

    if chosen.model == EMBEDDED:
        log.warning(EMBEDDED_NOTICE)
    vlm = LocalModel(
        chosen.model,
        device=chosen.device,
        dtype=chosen.dtype,
        revision=revision,
        offline=offline or None,
    )
    results = run_task(vlm, images, task)
    with output(out) as stream:
        for outcome in outcomes:
            show(outcome, stream, as_json=as_json, alone=False)
        try:
            for image, found in with_progress(zip(images, results, strict=True), len(images)):
                outcomes.append(Outcome(image.name, found, image))
                show(outcomes[-1], stream, as_json=as_json, alone=len(items) == 1)
        except KeyboardInterrupt:
            left = len(items) - len(outcomes)
            log.error("interrupted: %d done and kept, %d left", len(outcomes), left)
            raise
        finally:
            if html is not None:
                write_page(html, outcomes)
    finish(outcomes)


@contextmanager
def output(path: Path | None) -> Iterator[TextIO | None]:
    """A file that takes its name only when it is whole or work was interrupted; None is stdout."""
    if path is None:
        yield None
        return
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            try:
                yield stream
            finally:
                stream.flush()
                os.replace(partial, path)
    except OSError as err:
        raise StorageError(
            f"{str(path)!r} cannot be written: {err.strerror}",
            hint="choose another place with --out, or free some space",
        ) from err


def show(outcome: Outcome, stream: TextIO | None, *, as_json: bool, alone: bool) -> None:
    """One picture's lines: plain text, or a JSON object for each language; errors on stderr too."""
    if isinstance(outcome.found, QvlError):
        if as_json:
            row = {"id": outcome.name, "error": outcome.found.as_json()}
            print(json.dumps(row, ensure_ascii=False), file=stream, flush=True)
        if not alone:
            hint = f" ({outcome.found.hint})" if outcome.found.hint else ""
            log.error("%s%s", outcome.found.message, hint)
        return
    several = len(outcome.found) > 1
    for language, description in outcome.found.items():
        provenance = description.completion.provenance
        for note in (*provenance.images, *provenance.videos)[0].notes:
            log.info("%s: %s", outcome.name, note)
        if description.completion.finish_reason == "length":
            limit = description.completion.usage.completion_tokens
            log.warning(
                "%s: the text is cut at %d tokens; --max-new-tokens raises that",
                outcome.name,
                limit,
            )
        if description.completion.finish_reason == "reasoning":
            log.warning(
                "%s: the tokens ended before the model had reasoned to its answer; "
                "--max-new-tokens raises that",
                outcome.name,
            )
        if as_json:
            print(json_line(outcome.name, description), file=stream, flush=True)
        else:
            prefix = "" if alone else f"{outcome.name}: "
            tag = f"[{language}] " if several else ""
            print(f"{prefix}{tag}{description.text}", file=stream, flush=True)


def json_line(name: str, description: Description) -> str:
    completion = description.completion
    row = {
        "id": name,
        "text": description.text,
        **({"reasoning": completion.reasoning} if completion.reasoning else {}),
        "language": description.language,
        "boxes": [asdict(box) for box in description.boxes],
        "finish_reason": completion.finish_reason,
        "usage": asdict(completion.usage),
        "meta": {
            "confidence": round(completion.confidence, 4),
            **asdict(completion.provenance),
            "timings": asdict(completion.timings),
        },
    }
    return json.dumps(row, ensure_ascii=False)


def with_progress(rows: Iterable[T], total: int) -> Iterator[T]:
    """The rows, counted on stderr: a bar on a terminal, otherwise a line every ten seconds."""
    if total > 1 and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        # lines for a terminal go above the bar; lines for a file or a pipe must stay on stdout
        console, shared = Console(stderr=True), sys.stdout.isatty()
        with Progress(console=console, redirect_stdout=shared) as bar:
            yield from bar.track(rows, total=total, description="describing")
        return
    shown_s = time.monotonic()
    for number, row in enumerate(rows, start=1):
        yield row
        if time.monotonic() - shown_s >= PROGRESS_EVERY_S and number < total:
            shown_s = time.monotonic()
            print(f"{number} of {total}", file=sys.stderr)


def finish(outcomes: Sequence[Outcome]) -> None:
    """Say how many were done; raise what the exit code is made of."""
    failed = [o for o in outcomes if isinstance(o.found, QvlError)]
    if len(outcomes) == 1 and isinstance(outcomes[0].found, QvlError):
        raise outcomes[0].found
    if len(outcomes) > 1:
        print(f"{len(outcomes) - len(failed)} described, {len(failed)} failed", file=sys.stderr)
    if failed:
        names = "\n".join(f"  {o.name}" for o in failed)
        raise PartialFailure(f"{len(failed)} of {len(outcomes)} pictures failed:\n{names}")
