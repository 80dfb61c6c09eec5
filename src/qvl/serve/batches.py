"""/v1/batches: files of requests, carried out as runs beside what is asked live, and before it in nothing.

    lock             one server at a time has the folder
    files/           see `files`
    ID/batch.json    what clients are told, written whole at each change of state
    ID/run/          the run of its requests (see `runs.run`), gone once the answers are files

Main path: create -> _carry, in a thread -> validated -> Run.create -> carry_out -> _ended. A server that
was killed goes on where it was: `open` takes up what has not ended.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from qvl.batch import json_lines
from qvl.batch.asked import REQUESTS
from qvl.batch.asked import Asked as TaskAsked
from qvl.batch.carry_out import carry_out
from qvl.batch.exports import openai_batch
from qvl.batch.job import Job
from qvl.errors import EngineClosedError, QvlError, RunChangedError, StorageError, TableError
from qvl.runs.identity import FILE as RUN_FILE
from qvl.runs.lock import Lock
from qvl.runs.record import Finished, Item, Outcome
from qvl.runs.run import Run
from qvl.runs.whole import write_whole
from qvl.serve.admission import draining
from qvl.serve.errors import Refusal, shown
from qvl.serve.files import Files, new_file_id
from qvl.serve.requested import Requested
from qvl.serve.serving import Serving
from qvl.types import BACKGROUND, Completion, Delta, Request
from qvl.vlm.chat_model import ChatModel, ModelInfo

log = logging.getLogger(__name__)
BESIDE = 1  # requests of batches at a time while others are asked live
QUIET_S = (
    1.0  # after the last live request there may be another: one of a conversation, or of a program
)
AGAIN_S = 60.0  # after which a batch that could not go on is tried once more
ERRORS = 100  # of a file's lines that are told
LAST = ("failed", "completed", "expired", "cancelled")
Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling",
    "cancelled",
]  # fmt: skip
UNASKED: Mapping[str, Mapping[str, str]] = {
    "expired": {"code": "batch_expired", "message": "the batch's time was over before its turn"},
    "cancelled": {"code": "batch_cancelled", "message": "the batch was cancelled before its turn"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Times are seconds since 1970, `moments` those of each state by its name with _at behind it."""

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    completion_window: str
    seed: int
    expires_at: int
    metadata: Mapping[str, str] | None = None
    status: Status = "validating"
    moments: Mapping[str, int] = field(default_factory=dict)
    errors: tuple[Mapping[str, Any], ...] = ()
    # drawn at once, so that what a killed server wrote is written over
    output_id: str = field(default_factory=new_file_id)
    error_id: str = field(default_factory=new_file_id)
    output_file_id: str | None = None
    error_file_id: str | None = None
    counts: Mapping[str, int] = field(
        default_factory=lambda: {"total": 0, "completed": 0, "failed": 0}
    )

    def told(self, counts: Mapping[str, int]) -> dict[str, Any]:
        """OpenAI's batch object."""
        states = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling",
                  "cancelled")  # fmt: skip
        moments = {f"{state}_at": self.moments.get(f"{state}_at") for state in states}
        errors = {"object": "list", "data": list(self.errors)} if self.errors else None
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": errors,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.moments["created_at"],
            **moments,
            "expires_at": self.expires_at,
            "request_counts": dict(counts),
            "metadata": self.metadata,
            "seed": self.seed,
        }


class Batches:
    """Of one server. `folder` None: it keeps nothing, and its routes say so."""

    def __init__(self, folder: Path | None, serving: Serving) -> None:
        self._folder, self.serving = folder, serving
        self._opening, self._changing = threading.Lock(), threading.RLock()
        self._files: Files | None = None
        self._lock: Lock | None = None
        self._known: dict[str, Batch] = {}
        self._at_work: dict[str, Run | None] = {}  # in the order in which they began
        self._closing = threading.Event()
        self._threads = ThreadPoolExecutor(serving.limits.batches, "qvl-batch")

    @property
    def files(self) -> Files:
        """Raises Refusal where nothing is kept, StorageError."""
        self.open()
        assert self._files is not None  # else `open` has raised
        return self._files

    def begin(self) -> None:
        """Go on with what an earlier server left, if there was one."""
        if self._folder is not None and self._folder.is_dir():
            try:
                self.open()
            except (QvlError, Refusal) as err:
                log.warning("files and batches are not served: %s", err)

    def open(self) -> None:
        """Take the folder, and up what has not ended. Raises as `files`."""
        if self._folder is None:
            raise Refusal(404, "not_kept", "this server keeps no files and batches")
        with self._opening:
            if self._files is not None:
                return
            try:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as err:
                raise StorageError(f"files cannot be kept: {err.strerror}") from err
            try:
                lock = Lock(self._folder / "lock", "the folder of files and batches")
            except QvlError as err:
                raise Refusal(
                    503,
                    "kept_elsewhere",
                    "another server keeps its files and batches in the same place",
                    hint="give each server a folder of runs of its own: QVL_RUNS",
                ) from err
            self._lock = lock
            files = Files(self._folder / "files", self.serving.limits)
            for path in sorted(self._folder.glob("batch_*/batch.json")):
                self._take_up(path)
            self._files = files
        left = [one for one in self._known.values() if one.status not in LAST]
        for one in sorted(left, key=lambda one: one.moments["created_at"]):
            self._go_on(one.id)

    def _take_up(self, path: Path) -> None:
        try:
            batch = Batch(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            log.error("batch %s cannot be read, and is left as it is", path.parent.name)
            return
        folder = path.parent / "run"
        if batch.status not in LAST and (folder / RUN_FILE).exists():
            with (
                suppress(QvlError),
                Run.read(folder) as run,
            ):  # what is wrong is told when it goes on
                batch = replace(batch, counts=counted(run))
        self._known[batch.id] = batch
        if batch.status in LAST:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self, *, wait: bool) -> None:
        """What is being asked is given up, and asked again by the next server."""
        self._closing.set()
        self._threads.shutdown(wait=wait, cancel_futures=True)
        if self._lock is not None and wait:
            self._lock.close()

    def create(
        self,
        owner: str,
        *,
        input_file_id: str,
        endpoint: str,
        hours: int,
        metadata: Mapping[str, str] | None,
        seed: int | None,
    ) -> dict[str, Any]:
        """Raises Refusal for a file that is not the owner's, or for too many batches; StorageError."""
        kept = self.files.find(owner, input_file_id)
        if kept.purpose != "batch":
            raise Refusal(
                400,
                "invalid_request",
                f"file {input_file_id} has the purpose {shown(kept.purpose)}, not 'batch'",
                param="input_file_id",
            )
        if sum(one.status not in LAST for one in self.of(owner)) >= self.serving.limits.key_batches:
            most = self.serving.limits.key_batches
            raise Refusal(
                429, "too_many_batches", f"{most} batches have not ended", retry_after_s=60
            )
        now = int(time.time())
        batch = Batch(
            id=f"batch_{secrets.token_hex(12)}",
            owner=owner,
            endpoint=endpoint,
            input_file_id=input_file_id,
            completion_window=f"{hours}h",
            seed=secrets.randbits(32) if seed is None else seed,
            expires_at=now + 3600 * hours,
            metadata=metadata,
            moments={"created_at": now},
        )
        self._keep(batch)
        self._go_on(batch.id)
        return self.told(batch)

    def of(self, owner: str) -> list[Batch]:
        """The owner's own, the newest first."""
        self.open()
        own = [one for one in list(self._known.values()) if one.owner == owner]
        return sorted(own, key=lambda one: (one.moments["created_at"], one.id), reverse=True)

    def find(self, owner: str, batch_id: str) -> Batch:
        """Raises Refusal where the owner has none of that id."""
        self.open()
        batch = self._known.get(batch_id)
        if batch is None or batch.owner != owner:
            raise Refusal(
                404, "not_found", f"there is no batch {shown(batch_id)}", param="batch_id"
            )
        if batch.status not in LAST and time.time() >= batch.expires_at:
            self._go_on(batch.id)  # where it is not at work: it waits for another model
        return batch

    def cancel(self, owner: str, batch_id: str) -> dict[str, Any]:
        """Raises Refusal where there is none, or it has ended."""
        self.find(owner, batch_id)
        with self._changing:
            batch = self._known[batch_id]
            if batch.status in LAST or batch.status == "finalizing":
                raise Refusal(
                    409,
                    "batch_ended",
                    f"batch {batch_id} is {batch.status}: it cannot be cancelled",
                )
            if batch.status != "cancelling":
                batch = self._enter(batch, "cancelling")
        self._go_on(batch_id)
        return self.told(batch)

    def told(self, batch: Batch) -> dict[str, Any]:
        """The batch object, with how far it is now."""
        run = self._at_work.get(batch.id)
        return batch.told(counted(run) if run is not None else batch.counts)

    def _keep(self, batch: Batch) -> None:
        assert self._folder is not None  # nothing was opened without one
        data = json.dumps(asdict(batch)).encode()
        path = self._folder / batch.id / "batch.json"
        with self._changing:
            write_whole(path, data, shown=f"batch {batch.id}", mode=0o600)
            self._known[batch.id] = batch

    def _enter(self, batch: Batch, status: Status, **changed: Any) -> Batch:
        moments = {**batch.moments, f"{status}_at": int(time.time())}
        batch = replace(batch, status=status, moments=moments, **changed)
        self._keep(batch)
        return batch

    def _go_on(self, batch_id: str) -> None:
        with self._changing:
            if batch_id in self._at_work or self._closing.is_set():
                return
            self._at_work[batch_id] = None
        self._threads.submit(self._carry, batch_id)

    def _carry(self, batch_id: str) -> None:
        """In a thread: the batch to its end, however often it has to be tried."""
        try:
            while not self._closing.is_set():
                try:
                    self._work(batch_id)
                    return
                except RunChangedError:
                    log.warning("batch %s waits for the model that it was begun with", batch_id)
                    return
                except QvlError as err:
                    log.error("batch %s cannot go on now: %s", batch_id, err.code)
                except Exception as err:
                    log.error("batch %s: a fault, %s", batch_id, type(err).__name__)
                    log.debug("batch %s", batch_id, exc_info=err)
                self._closing.wait(AGAIN_S)
        finally:
            with self._changing:
                self._at_work.pop(batch_id, None)
                is_cancelled = self._known[batch_id].status == "cancelling"
            if is_cancelled:  # just when it stopped to wait
                self._go_on(batch_id)

    def _work(self, batch_id: str) -> None:
        """Raises QvlError for what may be better later, RunChangedError."""
        assert self._folder is not None
        batch, folder = self._known[batch_id], self._folder / batch_id / "run"
        if batch.status == "validating" and not self._begun(batch, folder):
            return
        if not (folder / RUN_FILE).exists():  # cancelled before it was begun
            self._enter(self._known[batch_id], "cancelled")
            return
        with self._changing:
            batch = self._known[batch_id]
            if batch.status == "validating":
                batch = self._enter(batch, "in_progress")
        asks = batch.status == "in_progress" and time.time() < batch.expires_at
        with Run.open(folder, self._identity(batch) if asks else None) as run:
            self._at_work[batch_id] = run
            if asks:
                self._ask(batch, run)
            is_cancelled = self._known[batch_id].status == "cancelling"
            if run.counts().pending and not is_cancelled and time.time() < batch.expires_at:
                self._keep(replace(self._known[batch_id], counts=counted(run)))
                return  # the server stops: the next one goes on
            self._end(batch_id, run)
            self._at_work[batch_id] = None
        shutil.rmtree(folder, ignore_errors=True)

    def _begun(self, batch: Batch, folder: Path) -> bool:
        """Whether its requests are a run now; else it has failed."""
        if (folder / RUN_FILE).exists():  # a server was killed just then
            return True
        try:
            path = self.files.path(self.files.find(batch.owner, batch.input_file_id))
            errors = list(wrong_lines(path, batch.endpoint))
        except Refusal as err:
            path, errors = None, [wrong("file_not_found", str(err), "input_file_id", None)]
        if path is None or errors:
            self._enter(batch, "failed", errors=tuple(errors))
            return False
        shutil.rmtree(folder, ignore_errors=True)  # of one that was killed before it was whole
        with Run.create(folder, self._identity(batch), items_of(path)) as run:
            counts = counted(run)
        with self._changing:
            self._keep(replace(self._known[batch.id], counts=counts))
        return True

    def _identity(self, batch: Batch) -> dict[str, Any]:
        said = {"task": REQUESTS, "seed": batch.seed}
        return {**self._model_identity, **said}

    @cached_property
    def _model_identity(self) -> dict[str, Any]:
        """Of the served model: SHA-256 of its files, which takes a while."""
        info = self.serving.model.info
        job = Job(asked=TaskAsked(task=REQUESTS, seed=0), model=info.name, revision=info.revision)
        return job.identity(info)

    def _ask(self, batch: Batch, run: Run) -> None:
        serving = self.serving

        def stops() -> int:
            if self._closing.is_set():
                return 2
            is_over = time.time() >= batch.expires_at
            is_cancelled = self._known[batch.id].status == "cancelling"
            return int(is_over or is_cancelled or serving.admission.closed is draining)

        asks = Requested(
            seed=batch.seed,
            name=serving.names[0],
            adapter_of=serving.adapter_of,
            tenant=batch.owner,
            priority=BACKGROUND,
            is_strict=serving.is_strict,
        )
        model = Beside(serving.model, self._closing.is_set)
        carry_out(
            run, model, partial(asks.row, model), stops=stops, at_once=partial(self._room, batch.id)
        )

    def _room(self, batch_id: str) -> int:
        """How many requests of the batch may be asked now: those of all batches together give way."""
        admission, limits = self.serving.admission, self.serving.limits
        if admission.closed is not None:
            return 0
        total = limits.batch_running if admission.is_quiet(QUIET_S) else BESIDE
        working = [one for one, run in list(self._at_work.items()) if run is not None]
        share, rest = divmod(total, len(working))
        return share + (working.index(batch_id) < rest)

    def _end(self, batch_id: str, run: Run) -> None:
        """Its answers as files, and its last state."""
        last: Status = "expired" if run.counts().pending else "completed"
        with self._changing:
            batch = self._known[batch_id]
            if batch.status == "cancelling":
                last = "cancelled"
            elif batch.status != "finalizing":
                batch = self._enter(batch, "finalizing")
        created = batch.moments["created_at"]
        ids: dict[str, str | None] = {}
        for name, file_id, is_good in (
            ("output", batch.output_id, True),
            ("error", batch.error_id, False),
        ):
            found = (one for one in ended(run, last) if is_answered(one) == is_good)
            kept = self.files.add(
                batch.owner,
                f"{batch.id}_{name}.jsonl",
                "batch_output",
                partial(openai_batch.write, found, created=created),
                file_id=file_id,
            )
            if not kept.bytes:
                self.files.delete(batch.owner, file_id)
            ids[f"{name}_file_id"] = file_id if kept.bytes else None
        self._enter(batch, last, counts=counted(run), **ids)


def counted(run: Run) -> dict[str, int]:
    counts = run.counts()
    return {"total": counts.total, "completed": counts.done, "failed": counts.failed}


def is_answered(one: Finished) -> bool:
    return one.outcome is not None and one.outcome.ok


def ended(run: Run, last: Status) -> Iterator[Finished]:
    """All items; those that were not asked have an error that says why."""
    for one in run.finished():
        if one.outcome is None:
            out = {"id": one.item.id, "error": UNASKED[last]}
            missed = Outcome(ordinal=one.ordinal, id=one.item.id, ok=False, out=out)
            one = replace(one, outcome=missed)
        yield one


def items_of(path: Path) -> Iterator[Item]:
    """Of a file without wrong lines."""
    for cells in json_lines.cells(path, "the file", lambda _: None):
        request = cells.request or {}
        name = request["custom_id"]
        yield Item(id=name, row=name, sources=(), options={"request": request})


def wrong_lines(path: Path, endpoint: str) -> Iterator[dict[str, Any]]:
    """What is wrong with a file of requests, as OpenAI's batch object tells it: the first few."""
    number = 0
    for number, error in enumerate(_wrong_lines(path, endpoint), 1):
        yield error
        if number >= ERRORS:
            return


def _wrong_lines(path: Path, endpoint: str) -> Iterator[dict[str, Any]]:
    lines: dict[str, int] = {}
    is_empty = True
    try:
        for cells in json_lines.cells(path, "the file", lambda _: None):
            is_empty = False
            if cells.request is None:
                error = cells.values
                message = error.message if isinstance(error, QvlError) else "it is not a request"
                yield wrong("invalid_json_line", message, None, cells.number)
                continue
            name, url = cells.request["custom_id"], cells.request["url"]
            if name in lines:
                message = f"line {lines[name]} has the custom_id {shown(name)} already"
                yield wrong("duplicate_custom_id", message, "custom_id", cells.number)
            lines.setdefault(name, cells.number)
            if url != endpoint:
                message = f"the url is {shown(url)}, the batch's endpoint {endpoint!r}"
                yield wrong("invalid_url", message, "url", cells.number)
    except (TableError, OSError) as err:
        message = err.message if isinstance(err, TableError) else "the file cannot be read"
        yield wrong("invalid_file", message, None, None)
        return
    if is_empty:
        yield wrong("empty_file", "the file holds no requests", None, None)


def wrong(code: str, message: str, param: str | None, line: int | None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param, "line": line}


@dataclass(frozen=True, slots=True)
class Beside:
    """The served model as a batch sees it: given up as soon as the server stops."""

    model: ChatModel
    is_given_up: Callable[[], bool]

    @property
    def info(self) -> ModelInfo:
        return self.model.info

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        return [self._answer(request) for request in requests]

    def results(self, requests: Iterable[Request]) -> Generator[Completion | QvlError, None, None]:
        for request in requests:
            try:
                yield self._answer(request)
            except QvlError as err:
                yield err

    def stream(self, request: Request) -> Generator[Delta, None, None]:
        """Raises EngineClosedError once it is given up."""
        with closing(self.model.stream(request)) as deltas:
            for delta in deltas:
                if self.is_given_up():
                    raise EngineClosedError("the server stops")
                yield delta

    def _answer(self, request: Request) -> Completion:
        found = [delta.completion for delta in self.stream(request) if delta.completion]
        return found[-1]

    def close(self) -> None:
        """The model is the server's to close."""
