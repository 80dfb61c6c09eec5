"""Where results go: text or JSON lines on stdout or in a file, progress and errors on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

from qvl.errors import PartialFailure, QvlError, StorageError
from qvl.tasks.task import Result, Seen, as_row

log = logging.getLogger(__name__)
T = TypeVar("T")
PROGRESS_EVERY_S = 10.0
FLAGS = {
    "cut": "the text is cut at {tokens} tokens; --max-new-tokens raises that",
    "reasoning_exhausted": "the tokens ended before the model had reasoned to its answer; "
    "--max-new-tokens raises that",
    "loop": "the model repeated itself without end, and was stopped",
    "language": "the text does not seem to be in the language that was asked for",
    "empty": "the model gave no answer",
    "unsupported": "not all that the text states was found at a second look",
    "contradicts": "the text contradicts what was given as known",
    "wrong_step": "the arithmetic of a step does not hold",
    "underived_answer": "no step comes to the answer",
    "hand_over": "the customer is to be handed over to a person",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item: its results (in each language, to each question), or its error."""

    name: str
    found: Sequence[Result] | QvlError
    seen: Sequence[Seen] = ()


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
    """One item's lines: plain text, or a JSON object for each result; errors on stderr too."""
    if isinstance(outcome.found, QvlError):
        if as_json:
            row = {"id": outcome.name, "error": outcome.found.as_json()}
            print(json.dumps(row, ensure_ascii=False), file=stream, flush=True)
        if not alone:
            hint = f" ({outcome.found.hint})" if outcome.found.hint else ""
            log.error("%s%s", outcome.found.message, hint)
        return
    several = len({result.language for result in outcome.found}) > 1
    for result in outcome.found:
        tell(outcome.name, result)
        if as_json:
            row = as_row(outcome.name, result)
            print(json.dumps(row, ensure_ascii=False), file=stream, flush=True)
        else:
            prefix = "" if alone else f"{outcome.name}: "
            tag = f"[{result.language}] " if several else ""
            print(f"{prefix}{tag}{result.text}", file=stream, flush=True)


def tell(name: str, result: Result) -> None:
    """What a person should know about a result, on stderr."""
    provenance = result.completion.provenance
    for seen in (*provenance.images, *provenance.videos):
        for note in seen.notes:
            log.info("%s: %s", name, note)
    for flag in result.flags:
        said = FLAGS.get(flag, flag).format(tokens=result.completion.usage.completion_tokens)
        log.warning("%s: %s", name, said)


def with_progress(rows: Iterable[T], total: int) -> Iterator[T]:
    """The rows, counted on stderr: a bar on a terminal, otherwise a line every ten seconds."""
    if total > 1 and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        # lines for a terminal go above the bar; lines for a file or a pipe must stay on stdout
        console, shared = Console(stderr=True), sys.stdout.isatty()
        with Progress(console=console, redirect_stdout=shared) as bar:
            yield from bar.track(rows, total=total, description="answering")
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
        print(f"{len(outcomes) - len(failed)} done, {len(failed)} failed", file=sys.stderr)
    if failed:
        names = "\n".join(f"  {o.name}" for o in failed)
        raise PartialFailure(f"{len(failed)} of {len(outcomes)} items failed:\n{names}")
