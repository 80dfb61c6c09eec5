"""`qvl replay`: one item of a run is asked once more, exactly as it was, and compared with what is kept."""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Annotated, Any

import typer

from qvl.cli.asks import asks_of, opened
from qvl.cli.run_names import run_folder
from qvl.errors import CheckError, InputError, InputNotFoundError
from qvl.log import visible
from qvl.settings import load_settings

log = logging.getLogger(__name__)
# of an answer: what another moment or machine may change, and what repeats the rest
NOT_COMPARED = frozenset(("usage", "meta", "warnings", "response"))


def replay(
    name: Annotated[str, typer.Argument(metavar="RUN", help="The run's name, or its folder.")],
    item: Annotated[str, typer.Argument(help="The item's id.")],
    *,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection.")] = False,
) -> None:
    """Ask about one item of a run again, exactly as recorded; the exit code is 7 for another answer."""
    from qvl.batch.job import Job
    from qvl.fetch import set_policy
    from qvl.runs.identity import changes
    from qvl.runs.run import Run

    with Run.read(run_folder(name)) as run:
        ordinal = run.find(item)
        if ordinal is None:
            raise InputNotFoundError(
                f"run {run.name!r} has no item {item!r:.80}", hint="`qvl batch export` lists them"
            )
        one, kept = run.at(ordinal), run.identity
    if one.outcome is None or not one.outcome.ok:
        why = "was not asked about yet" if one.outcome is None else "failed, so it has no answer"
        raise InputError(f"item {item!r:.80} of run {run.name!r} {why}")
    settings = load_settings(device=device)
    job = Job.of(kept.values, device=settings.device)
    asks = asks_of(job.asked)
    set_policy(offline=offline)
    model = opened(job, settings, offline=offline)
    with closing(model):
        for what, old, new in (
            *changes(kept.values, job.identity(model.info)),
            *changes(kept.environment, job.environment(model.info)),
        ):
            log.warning("%s was %s, is %s", what, old, new)
        row = asks.row(model, one.item)
    if pictures(row) != pictures(one.outcome.out):
        log.warning("the pictures are not those that were looked at then")
    print(row["text"])
    if told := list(differences(one.outcome.out, row)):
        for line in told:
            print(visible(line), file=sys.stderr)
        raise CheckError(f"item {item!r:.80} of run {run.name!r} has another answer now")
    log.warning("the same as kept")


def pictures(row: Mapping[str, Any]) -> list[str]:
    """SHA-256 of what was looked at."""
    meta = row.get("meta") or {}
    return [one["sha256"] for key in ("images", "videos") for one in meta.get(key) or ()]


def differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Lines of a diff, for each part of an answer that is not as it was."""
    from qvl.cells import cell

    for key in dict.fromkeys((*kept, *now)):
        old, new = kept.get(key), now.get(key)
        if key not in NOT_COMPARED and old != new:
            before, after = ("" if value is None else cell(value) for value in (old, new))
            names = (f"{key} (kept)", f"{key} (now)")
            yield from difflib.unified_diff(
                before.splitlines(), after.splitlines(), *names, lineterm=""
            )
