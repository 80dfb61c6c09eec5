"""Where results go: on stdout or into a file, whole; progress and errors on stderr."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

from qvl.errors import CheckError, PartialFailure, QvlError, StorageError
from qvl.runs import whole
from qvl.tasks.task import Result, Seen
from qvl.types import Usage

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
    "unsure": "the model is not sure of this answer",
    "forbidden": "the text has words that were forbidden",
    "profile": "the text breaks the rules of the marketplace",
    "fail_on": "this is as severe as --fail-on says, or more",
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


def write_whole(path: Path, data: bytes, flag: str) -> None:
    """Write a file whole or not at all; its folder is made. Raises StorageError, naming the flag."""
    whole.write_whole(path, data, hint=f"choose another place for {flag}, or free some space")


def tell_of(outcome: Outcome, *, alone: bool) -> None:
    """What a person should know about an item, on stderr; an error that ends the command ends it."""
    if not isinstance(outcome.found, QvlError):
        for result in outcome.found:
            tell(outcome.name, result)
    elif not alone:
        hint = f" ({outcome.found.hint})" if outcome.found.hint else ""
        log.error("%s%s", outcome.found.message, hint)


def tell(name: str, result: Result) -> None:
    """What a person should know about a result, on stderr."""
    provenance = result.completion.provenance
    for seen in (*provenance.images, *provenance.videos):
        for note in seen.notes:
            log.info("%s: %s", name, note)
    for flag in result.flags:
        said = FLAGS.get(flag, flag).format(tokens=result.completion.usage.completion_tokens)
        log.warning("%s: %s", name, said)


def with_progress(rows: Iterable[T], total: int, doing: str = "answering") -> Iterator[T]:
    """The rows, counted on stderr: a bar on a terminal, otherwise a line every ten seconds."""
    if total > 1 and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        # lines for a terminal go above the bar; lines for a file or a pipe must stay on stdout
        console, shared = Console(stderr=True), sys.stdout.isatty()
        with Progress(console=console, redirect_stdout=shared) as bar:
            yield from bar.track(rows, total=total, description=doing)
        return
    shown_s = time.monotonic()
    for number, row in enumerate(rows, start=1):
        yield row
        if time.monotonic() - shown_s >= PROGRESS_EVERY_S and number < total:
            shown_s = time.monotonic()
            print(f"{number} of {total}", file=sys.stderr)


def tell_cost(usages: Iterable[Usage]) -> None:
    """What the answers cost together, on stderr; nothing where no cost is known."""
    costs = [usage.cost for usage in usages]
    known = [cost for cost in costs if cost is not None]
    if known:
        left = f", that of {len(costs) - len(known)} unknown" if len(known) < len(costs) else ""
        print(f"cost of {len(known)} answers: {sum(known):.6g}{left}", file=sys.stderr)


def finish(outcomes: Sequence[Outcome]) -> None:
    """Say how many were done; raise what the exit code is made of."""
    failed = [o for o in outcomes if isinstance(o.found, QvlError)]
    if len(outcomes) == 1 and isinstance(outcomes[0].found, QvlError):
        raise outcomes[0].found
    if len(outcomes) > 1:
        print(f"{len(outcomes) - len(failed)} done, {len(failed)} failed", file=sys.stderr)
    if failed:
        names = "\n".join(f"  {o.name}" for o in failed)
        kind = (
            CheckError if all(isinstance(o.found, CheckError) for o in failed) else PartialFailure
        )
        raise kind(f"{len(failed)} of {len(outcomes)} items failed:\n{names}")
    severe = [o for o in outcomes if any("fail_on" in one.flags for one in results_of(o))]
    if severe:
        names = "\n".join(f"  {o.name}" for o in severe)
        raise CheckError(f"too severe are {len(severe)} of {len(outcomes)} items:\n{names}")


def results_of(outcome: Outcome) -> Sequence[Result]:
    return () if isinstance(outcome.found, QvlError) else outcome.found
