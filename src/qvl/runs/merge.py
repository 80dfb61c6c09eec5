"""One run out of the shards of it: complete, each item once, of one identity and the same inputs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

from qvl.errors import InputError, RunChangedError, RunLockedError, StorageError, StoreCorruptError
from qvl.runs import identity
from qvl.runs.disk import DISK, Disk
from qvl.runs.journal import FULL_HINT
from qvl.runs.lock import Lock
from qvl.runs.record import Finished
from qvl.runs.run import Run

REVIEWS = 1000  # that are written at once


def merge(target: Path, shards: Sequence[Path], *, disk: Disk = DISK) -> None:
    """Make the run `target` of the runs of all shards, which stay; it is there whole or not at all.

    Of each item it holds the last outcome and the last review. Raises InputError where a shard is
    missing, there twice or not done, RunChangedError for shards of different runs, RunLockedError while
    one is still written to, StoreCorruptError, StorageError.
    """
    with ExitStack() as held:
        runs = [held.enter_context(closing(Run.read(folder))) for folder in shards]
        _check(runs)
        runs.sort(key=lambda run: run.shard.number)
        if target.exists():
            raise InputError(f"{target.name!r} exists already", hint="give another name")
        part = target.with_name(target.name + ".part")
        _clear(part)
        first = runs[0].identity
        environment = {"shards": [run.identity.environment for run in runs]}
        items = (finished.item for finished in _in_order(runs))
        with Run.create(part, first.values, items, environment=environment, disk=disk) as merged:
            if merged.identity.manifest.sha256 != first.manifest.sha256:
                raise StoreCorruptError(
                    "the items of the shards are not those of the inputs they were made of",
                    hint="repair the shards, or run them again",
                )
            _copy(runs, merged)
        try:
            os.rename(part, target)
            disk.sync_folder(target.parent)
        except OSError as err:
            raise StorageError(
                f"{target.name!r} cannot be written: {err.strerror}", hint=FULL_HINT
            ) from err


def _check(runs: Sequence[Run]) -> None:
    if not runs:
        raise InputError("there are no shards to merge", hint="name the run of each shard")
    first = runs[0]
    places: dict[int, str] = {}
    for run in runs:
        name = run.folder.name
        if run.is_running():
            raise RunLockedError(f"run {name!r} is still written to", hint="wait for it")
        identity.check(run.folder, first.identity.values, run.identity.values)
        same = ("total", "sha256")
        kept, given = (asdict(one.identity.manifest) for one in (first, run))
        if any(kept[key] != given[key] for key in same) or run.shard.of != first.shard.of:
            raise RunChangedError(
                f"run {name!r} is of other inputs than {first.folder.name!r}, or of other shards",
                hint="each shard must be begun with all inputs, as K/N with the same N",
            )
        if run.shard.number in places:
            other = places[run.shard.number]
            raise InputError(f"{name!r} and {other!r} are the same shard {run.shard.number}")
        places[run.shard.number] = name
        if run.counts().pending:
            raise InputError(
                f"run {name!r} has {run.counts().pending} items pending", hint="resume it first"
            )
    missing = [f"{n}/{first.shard.of}" for n in range(1, first.shard.of + 1) if n not in places]
    if missing:
        raise InputError(f"shards are missing: {', '.join(missing)}")


def _in_order(runs: Sequence[Run]) -> Iterator[Finished]:
    """The items of all shards in the order of the inputs: one of each in turn."""
    sources = [run.finished() for run in runs]
    for ordinal in range(runs[0].identity.manifest.total):
        yield next(sources[ordinal % len(sources)])


def _copy(runs: Sequence[Run], merged: Run) -> None:
    reviews = []
    for finished in _in_order(runs):
        if finished.outcome is not None:
            merged.record(finished.outcome)
        if finished.review is not None:
            reviews.append(finished.review)
        if len(reviews) == REVIEWS:
            merged.review(reviews)
            reviews.clear()
    merged.review(reviews)


def _clear(part: Path) -> None:
    """Remove what a merge left that was killed."""
    if part.is_dir():
        with closing(Lock(part / "lock", f"the merge into {part.name!r}")):
            shutil.rmtree(part)
