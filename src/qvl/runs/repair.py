"""Damaged lines of a run are put aside, and the items that they were about are done again."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from qvl.errors import StorageError, StoreCorruptError
from qvl.runs import identity
from qvl.runs.disk import DISK, Disk
from qvl.runs.items import INDEX, ITEMS, Shard, body
from qvl.runs.journal import FULL_HINT, Journal, decode, encode, line, seal, sealed_bytes
from qvl.runs.lock import Lock
from qvl.runs.record import Item, Outcome
from qvl.runs.run import Run
from qvl.runs.whole import whole

LOST = "item_lost"
_ORDINAL = re.compile(rb'\{"v":1,"b":\d+,"i":(\d{1,15}),')


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """How many lines were put aside, the ordinals that are pending again because of that, and those of
    items of which nothing is known any more.
    """

    lines: int
    requeued: tuple[int, ...]
    lost: tuple[int, ...]


def repair(folder: Path, *, disk: Disk = DISK) -> Repaired:
    """Move the bad lines of a run to its quarantine-....jsonl, as base64 with file, line and byte.

    An item whose own line is bad cannot be done again: it fails with the code "item_lost", unless an
    outcome of it is kept, which also tells its id. Raises InputNotFoundError, RunLockedError,
    RunChangedError for a run.json that is damaged (which is not repaired), StorageError.
    """
    identity.read(folder)
    with closing(Lock(folder / "lock", f"run {folder.name!r}")):
        aside = Journal(folder, "quarantine", disk=disk)
        with closing(aside):
            for _ in aside.read():
                pass
            aside.open()
            touched: set[int] = set()
            lines = 0
            for name in ("results", "reviews", "events"):
                for path in sorted(folder.glob(f"{name}-*.jsonl")):
                    bad = _repair_segment(path, aside, disk)
                    lines += len(bad)
                    if name == "results":
                        touched.update(int(o) for data in bad for o in _ORDINAL.findall(data))
            lost, more = _repair_items(folder, aside, disk)
            lines += more
    with Run.open(folder, disk=disk) as run:
        again = sorted(o for o in touched if run.has(o) and o not in lost)
        run.requeue(again)
        for ordinal in lost:
            if not run.attempts(ordinal):
                run.record(_lost(ordinal, run.at(ordinal).item.id))
        run.tell("repair", lines=lines, lost=lost)
    return Repaired(lines=lines, requeued=tuple(again), lost=tuple(lost))


def _repair_segment(path: Path, aside: Journal, disk: Disk) -> list[bytes]:
    """The lines that were taken out."""
    counted = _counted(path)
    bad = [(number, at, data) for number, at, data, good in _lines(path, counted) if not good]
    is_short = counted is not None and counted > path.stat().st_size
    if not bad and not is_short:
        return []
    _put_aside(path.name, bad, aside)
    records = 0
    with whole(
        path, hint=FULL_HINT, shown=f"{path.name} of {path.parent.name!r}", mode=0o600, disk=disk
    ) as stream:
        for _, _, data, good in _lines(path, counted):
            if good:
                stream.write(data)
                records += 1
        size_bytes = stream.tell()
    if counted is not None:
        seal(path, size_bytes, records, disk)
    return [data for _, _, data in bad]


def _counted(path: Path) -> int | None:
    try:
        return sealed_bytes(path)
    except StoreCorruptError:
        return path.stat().st_size


def _lines(path: Path, counted: int | None = None) -> Iterator[tuple[int, int, bytes, bool]]:
    """Number from 1, offset, bytes and whether it is good, of each line that counts."""
    at = 0
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            if counted is not None and at >= counted:
                return
            yield number, at, data, decode(data) is not None
            at += len(data)


def _put_aside(name: str, bad: list[tuple[int, int, bytes]], aside: Journal) -> None:
    for number, at, data in bad:
        kept = {"file": name, "line": number, "byte": at, "base64": base64.b64encode(data).decode()}
        aside.commit([encode(kept, "a bad line")])


def _repair_items(folder: Path, aside: Journal, disk: Disk) -> tuple[list[int], int]:
    """The ordinals of the items that were lost, and how many lines were taken out."""
    kept = identity.read(folder)
    path, shard, count = folder / ITEMS, kept.shard, kept.manifest.count
    bad = [(number, at, data) for number, at, data, good in _lines(path) if not good]
    if not bad and path.stat().st_size == kept.manifest.size_bytes:
        return [], 0
    _put_aside(path.name, bad, aside)
    lost = [shard.ordinal(place) for place, data in _with_gaps(path, shard, count) if not data]
    ids = {o: f"lost:{o}" for o in lost}
    results = Journal(folder, "results", disk=disk)
    for _, record in results.read():
        if record["i"] in ids:
            ids[record["i"]] = record["id"]
    with whole(
        path, hint=FULL_HINT, shown=f"{path.name} of {folder.name!r}", mode=0o600, disk=disk
    ) as stream:
        for place, data in _with_gaps(path, shard, count):
            ordinal = shard.ordinal(place)
            lost_item = Item(id=ids.get(ordinal, ""), row="", sources=())
            stream.write(data or line(0, b'"i":%d,%s' % (ordinal, body(lost_item))))
        size_bytes = stream.tell()
    disk.unlink(folder / INDEX)
    manifest = replace(kept.manifest, size_bytes=size_bytes)
    identity.write(folder, replace(kept, manifest=manifest), disk)
    return lost, len(bad)


def _with_gaps(path: Path, shard: Shard, count: int) -> Iterator[tuple[int, bytes]]:
    """Each place with its line, which is empty where there is no good one."""
    place = 0
    for _, _, data, _ in _lines(path):
        record = decode(data)
        if record is not None:
            end = shard.place(record["i"])
            yield from ((lost, b"") for lost in range(place, end))
            yield end, data
            place = end + 1
    yield from ((lost, b"") for lost in range(place, count))


def _lost(ordinal: int, item_id: str) -> Outcome:
    error = StorageError(
        f"item {ordinal + 1} of the inputs was damaged on the disk and is lost",
        hint="give its input to a new run",
    )
    out = {"id": item_id, "error": {**error.as_json(), "code": LOST}}
    return Outcome(ordinal=ordinal, id=item_id, ok=False, out=out)
