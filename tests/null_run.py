"""Runs whose answers are known beforehand, and processes that work on one until they are killed.

`python null_run.py kill FOLDER KILLS SEED begin|plain` prints what so many kills left, as JSON: workers
are forked here, where nothing else runs, so that a kill costs no start of an interpreter.
`python null_run.py plan FOLDER COUNT` and `... work FOLDER COUNT` print what that costs.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qvl.errors import InputNotFoundError
from qvl.runs.disk import DISK, Disk
from qvl.runs.items import WHOLE, Shard
from qvl.runs.record import Finished, Item, Outcome, Source
from qvl.runs.run import CRASHES, Run

IDENTITY = {"task": "describe", "model": {"sha256": "00"}, "sampling": {"seed": 1, "top_p": 0.9}}
SEED = int(os.environ.get("QVL_SEED", "1"))
KILLED_ITEMS = 300  # of a run that is killed again and again


def item(number: int) -> Item:
    return Item(
        id=f"cup-{number}.jpg",
        row=str(number),
        sources=(Source(f"/pictures/cup-{number}.jpg"),),
        columns={"title": f"Чашка {number}", "sku": f"{number:05}"},
        options={"seed": number * 7},
    )


def items(count: int) -> Iterator[Item]:
    return map(item, range(count))


def outcome(ordinal: int, *, attempt: int = 1, ok: bool = True, letters: int = 200) -> Outcome:
    """What comes of the item with that ordinal: always the same."""
    draw = random.Random(ordinal)
    text = "".join(draw.choice('чашка 杯 cup\u2028\x85\n"\\') for _ in range(letters))
    out: dict[str, Any] = {"id": item(ordinal).id, "text": text}
    if ordinal % 5 == 0:
        out["flags"] = ["cut"]
    if not ok:
        error = {"code": "image_decode", "message": "it is damaged", "hint": None}
        out = {"id": item(ordinal).id, "error": error}
    return Outcome(ordinal=ordinal, id=item(ordinal).id, ok=ok, out=out, attempt=attempt)


def begun(folder: Path, count: int, *, shard: Shard = WHOLE, disk: Disk = DISK, **more: Any) -> Run:
    """The run, made where there is none yet."""
    try:
        return Run.open(folder, IDENTITY, disk=disk, **more)
    except InputNotFoundError:
        return Run.create(folder, IDENTITY, items(count), shard=shard, disk=disk, **more)


def work(run: Run, *, most: int | None = None) -> None:
    """Answer what is pending, or that many of it."""
    for number, (ordinal, _) in enumerate(run.pending()):
        if number == most:
            break
        run.record(outcome(ordinal, attempt=run.attempts(ordinal) + 1))


def answers(folder: Path) -> list[Finished]:
    return list(Run.read(folder).finished())


class LateDisk(Disk):
    """Waits before it writes: a kill finds it there more often."""

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        time.sleep(0.002)
        return super().write(descriptor, data, offset)


def _worker(folder: Path, acks: Path, *, begins: bool, delay_s: float) -> None:
    """Works on a run until it is done or killed; what counts is in `acks`, one ordinal a line."""
    told = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(one: Outcome) -> None:
        os.write(told, b"%d\n" % one.ordinal)

    with begun(folder, KILLED_ITEMS, acknowledged=note, disk=LateDisk()) as run:
        for ordinal, _ in run.pending():
            if begins:
                run.begin([ordinal])
            time.sleep(delay_s * random.Random(ordinal).random())
            run.record(outcome(ordinal))
            if run.crashes(ordinal):
                run.flush()


def kill(folder: Path, kills: int, seed: int, *, begins: bool) -> dict[str, int]:
    """Kill workers at random moments; count what was lost, doubled or is different at the end of each
    run from one that was never killed.
    """
    draw = random.Random(seed)
    calm = folder / "calm"
    with begun(calm, KILLED_ITEMS) as run:
        work(run)
    expected = [finished.outcome for finished in answers(calm)]
    found: Counter[str] = Counter(kills=0, runs=0, lost=0, doubled=0, different=0, crashed=0)
    while found["kills"] < kills:
        found["runs"] += 1
        target, acks = folder / f"run-{found['runs']}", folder / f"acks-{found['runs']}"
        delay_s = draw.choice([0, 0.0002, 0.001])
        status = -1
        while status:
            worker = os.fork()
            if not worker:
                try:
                    _worker(target, acks, begins=begins, delay_s=delay_s)
                finally:
                    sys.stdout.flush()
                    os._exit(0)
            time.sleep(draw.uniform(0, 0.12))
            os.kill(worker, signal.SIGKILL)
            status = os.waitpid(worker, 0)[1]
            found["kills"] += status != 0
        told = Counter(map(int, acks.read_text("ascii").split()))
        got = [finished.outcome for finished in answers(target)]
        found["doubled"] += sum(times - 1 for times in told.values())
        for ordinal, (one, other) in enumerate(zip(got, expected, strict=True)):
            if one is not None and one.out.get("error", {}).get("code") == "crashed":
                enough = Run.read(target).crashes(ordinal) >= CRASHES
                found["crashed" if begins and enough else "different"] += 1
            elif one is None or one != other:
                found["lost" if ordinal in told else "different"] += 1
    return dict(found)


def cost(folder: Path, count: int, *, works: bool) -> dict[str, float]:
    """Seconds and peak memory of making a run, and of answering its items with nothing."""
    began_s = time.perf_counter()
    with Run.create(folder, IDENTITY, items(count)) as run:
        found = {"plan_s": time.perf_counter() - began_s, "plan_mib": _peak_mib()}
        if not works:
            return found
        one = outcome(0, letters=1000).out
        halves = []
        for ordinal, made in run.pending():
            run.begin([ordinal])
            out = {**one, "id": made.id}
            run.record(Outcome(ordinal=ordinal, id=made.id, ok=True, out=out))
            if ordinal in (count // 2, count - 1):
                halves.append(_peak_mib())
        run.flush()
    work_s = time.perf_counter() - began_s - found["plan_s"]
    found |= {"work_ms_an_item": 1000 * work_s / count, "half_mib": halves[0], "mib": halves[1]}
    began_s = time.perf_counter()
    Run.open(folder).close()
    return found | {"open_s": time.perf_counter() - began_s}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def told_by(*args: str | Path) -> dict[str, Any]:
    """What this file prints as a program."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(f"QVL_SEED={SEED}: {' '.join(map(str, args))}: {done.stdout}")  # noqa: T201 - the figures
    return json.loads(done.stdout)


def _main(what: str, folder: str, count: str, seed: str = "1", how: str = "") -> None:
    if what == "kill":
        found = kill(Path(folder), int(count), int(seed), begins=how == "begin")
    else:
        found = cost(Path(folder), int(count), works=what == "work")
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    _main(*sys.argv[1:])
