"""A run over many machines: shards of it are carried out by engines, which are actors of a Ray cluster.

Main path: spread -> _Crew.work: a free Engine gets the next shard -> Engine.carry_out -> Run.open and
`carry_out`, as on one machine. What an engine that was lost has done of its shard lies in that run's
folder, or in the object store that mirrors it, and another engine goes on from there.

Why plain actors and not Ray Data: docs/batch-scale.md.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from qvl.batch.carry_out import LOOK_S, carry_out
from qvl.batch.job import Job
from qvl.batch.mirror import mirrored
from qvl.errors import EngineError, OfflineError, QvlError, RunLockedError, UsageError, as_fault
from qvl.fetch import is_offline, set_policy
from qvl.runs import lock
from qvl.runs.run import Run
from qvl.runs.state import Counts
from qvl.vlm.chat_model import ChatModel

log = logging.getLogger(__name__)
LOCAL = "local"
LOSSES = 5  # of engines, one after another, while nothing was done of a shard
LOCKED_S = 30.0  # how long the process of a lost engine may take to end
STORE_BYTES = 100 << 20  # of Ray's own memory on this machine: only names and counts go through it
WAITING_S = 60.0  # for a first engine, until it is told
Begun = tuple[Mapping[str, Any], Mapping[str, Any]]  # a run's identity and environment


class Engine:
    """One model in a process of its own. Errors are returned, as Ray would wrap what is raised."""

    def __init__(self, opens: Callable[[], ChatModel], job: Job, *, offline: bool) -> None:
        set_policy(offline=offline)
        self._opens, self._job = opens, job
        self._model: ChatModel | None = None
        self._stops = 0

    def begin(self) -> Begun | QvlError:
        """Open the model; what a run of it is."""
        try:
            self._model = self._opens()
        except Exception as err:  # noqa: BLE001 - the edge of a process
            return as_fault(err, self._job.model)
        info = self._model.info
        return self._job.identity(info), self._job.environment(info)

    def stop(self) -> None:
        """Called while a shard is carried out: as `stops` of `carry_out`."""
        self._stops += 1

    def carry_out(self, folder: Path, where: str | None) -> Counts | QvlError:
        """The shard in the folder; or the one below `where`, in a folder that is removed then."""
        scratch = None if where is None else Path(tempfile.mkdtemp(prefix="qvl-shard-"))
        try:
            return self._carried(folder if scratch is None else scratch / folder.name, where)
        except Exception as err:  # noqa: BLE001 - the edge of a process
            return as_fault(err, folder.name)
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)

    def _carried(self, folder: Path, where: str | None) -> Counts:
        model = self._model
        assert model is not None
        with mirrored(folder, where) as mirror, self._opened(folder, model) as run:
            carry_out(
                run,
                model,
                partial(self._job.asked.row, model),
                stops=lambda: self._stops or int(mirror is not None and mirror.error is not None),
            )
            return run.counts()

    def _opened(self, folder: Path, model: ChatModel) -> Run:
        """Raises RunChangedError where this machine would compute something else."""
        until_s = time.monotonic() + LOCKED_S
        while True:
            try:
                return Run.open(
                    folder,
                    self._job.identity(model.info),
                    environment=self._job.environment(model.info),
                )
            except RunLockedError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(LOOK_S)


def spread(
    address: str,
    opens: Callable[[], ChatModel],
    job: Job,
    shards: Callable[[Begun, int], Sequence[Path]],
    *,
    workers: int | None,
    where: Callable[[Path], str | None],
    stops: Callable[[], int],
    told: Callable[[Path, Counts, int], None],
) -> None:
    """Carry out shards on the cluster at `address`, or on one of this machine alone, "local".

    `shards` is told what the run is and how many engines there are, and gives the folders of what is
    to be done; `where` is the place of each in an object store; `told` hears of each that an engine has
    left, with what came of it and how many others there are. `opens` and `job` go to other machines.
    `workers` None is one engine for each GPU, else for each machine.

    Raises UsageError without Ray or without that cluster, OfflineError, EngineError where engines end
    again and again, and the error that ended a shard.
    """
    with _cluster(address) as ray:
        count, needs = engines(ray.nodes(), workers)
        kind = ray.remote(Engine).options(max_concurrency=2, max_restarts=0, **needs)
        offline = is_offline()
        crew = _Crew(ray, lambda: kind.remote(opens, job, offline=offline), count)
        crew.work(lambda begun: shards(begun, count), where, stops, told)


def engines(
    nodes: Sequence[Mapping[str, Any]], workers: int | None
) -> tuple[int, dict[str, float]]:
    """How many engines there are, and what each needs of its machine.

    An engine on a CPU has all cores of its machine, or a like part of them where there are more
    engines than machines: Ray makes of that number of cores its threads.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in alive))
    if gpus:
        return workers or gpus, {"num_gpus": 1, "num_cpus": 1}
    count = workers or len(alive)
    cores = min((int(node.get("CPU", 1)) for node in alive), default=1)
    return count, {"num_cpus": max(1, cores // -(-count // len(alive)))}


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    is_local = address == LOCAL
    if is_offline() and not is_local:
        raise OfflineError("a cluster is not reached offline", hint="leave out --offline")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if is_local:  # Ray's own switch for all its sockets being on loopback
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
    except ImportError as err:
        raise UsageError("--ray needs the package ray", hint="pip install 'qvl[ray]'") from err
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        ray.init(
            address, logging_level=logging.ERROR, log_to_driver=False, **(own if is_local else {})
        )
    except (ConnectionError, RuntimeError, ValueError) as err:
        raise UsageError(
            f"there is no Ray cluster at {address!r}",
            hint="`ray start --head` begins one; or local",
        ) from err
    try:
        yield ray
    finally:
        ray.shutdown()


class _Crew:
    """Engines that begin, are free or have a shard. An engine is Ray's handle of an actor."""

    def __init__(self, ray: Any, start: Callable[[], Any], count: int) -> None:
        self._ray, self._start = ray, start
        self._beginning: dict[Any, Any] = {}  # by the promise of their answer
        self._going: dict[Any, tuple[Any, Path]] = {}
        self._free: list[Any] = []
        self._todo: deque[Path] | None = None  # None: no engine has said yet what the run is
        self._losses: Counter[str] = Counter()  # by the name of the shard, "" for none
        self._done_bytes: dict[str, int] = {}
        for _ in range(count):
            self._begin()

    def work(
        self,
        shards: Callable[[Begun], Sequence[Path]],
        where: Callable[[Path], str | None],
        stops: Callable[[], int],
        told: Callable[[Path, Counts, int], None],
    ) -> None:
        stopped, told_s = 0, time.monotonic() + WAITING_S
        while True:
            while self._free and self._todo and not stops():
                engine, folder = self._free.pop(), self._todo.popleft()
                self._going[engine.carry_out.remote(folder, where(folder))] = (engine, folder)
            is_over = self._todo is not None and not self._todo
            if not self._going and (is_over or stops()):
                return
            if self._todo is None and time.monotonic() > told_s:
                log.warning("no engine has begun yet: has the cluster room for one?")
                told_s += 10 * WAITING_S
            for _ in range(stops() - stopped):
                stopped += 1
                for engine, _folder in self._going.values():
                    engine.stop.remote()
            promises = [*self._beginning, *self._going]
            ready, _ = self._ray.wait(promises, num_returns=1, timeout=LOOK_S)
            for promise in ready:
                if promise in self._beginning:
                    self._take_begun(promise, shards)
                else:
                    self._take_done(promise, told)

    def _begin(self) -> None:
        engine = self._start()
        self._beginning[engine.begin.remote()] = engine

    def _take_begun(self, promise: Any, shards: Callable[[Begun], Sequence[Path]]) -> None:
        engine = self._beginning.pop(promise)
        begun = self._answer(promise, engine)
        if begun is None:
            self._note_loss("")
            self._begin()
            return
        self._losses[""] = 0
        if self._todo is None:
            self._todo = deque(shards(begun))
        self._free.append(engine)

    def _take_done(self, promise: Any, told: Callable[[Path, Counts, int], None]) -> None:
        engine, folder = self._going.pop(promise)
        counts = self._answer(promise, engine)
        assert self._todo is not None
        if counts is not None:
            told(folder, counts, len(self._todo) + len(self._going))
            self._free.append(engine)
            return
        log.warning("the engine of shard %s was lost: another one goes on with it", folder.name)
        lock.forget(folder / "lock")  # Ray says that its process has ended, on whichever machine
        size_bytes = sum(path.stat().st_size for path in folder.glob("results-*.jsonl"))
        if size_bytes > self._done_bytes.get(folder.name, 0):
            self._losses[folder.name] = 0
        self._done_bytes[folder.name] = size_bytes
        self._note_loss(folder.name)
        self._todo.appendleft(folder)
        self._begin()

    def _note_loss(self, name: str) -> None:
        self._losses[name] += 1
        if self._losses[name] >= LOSSES:
            what = f"they work on shard {name}" if name else "they open the model"
            raise EngineError(
                f"{LOSSES} engines were lost, one after another, while {what}",
                hint="Ray's logs on their machines may say why; memory is the first thing to look at",
            )

    def _answer(self, promise: Any, engine: Any) -> Any:
        """None where the engine was lost. Raises the error that it returned."""
        from ray.exceptions import RayActorError

        try:
            answer = self._ray.get(promise)
        except RayActorError:
            with suppress(Exception):  # one that is only out of reach must not go on
                self._ray.kill(engine, no_restart=True)
            return None
        if isinstance(answer, QvlError):
            raise answer
        return answer
