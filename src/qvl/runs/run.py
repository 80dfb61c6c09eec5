"""The store of one run: a folder that holds its items, what came of each, and what people made of it.

    run.json              what the answers depend on (see `identity`), and where it was begun
    items.jsonl           the items, written once; items.idx is made of it and may be deleted
    results-000001.jsonl  outcomes, in the order in which they came (see `journal`)
    reviews-000001.jsonl  reviews (see `reviews`)
    events-000001.jsonl   start, stop, requeue, cut, repair
    inflight              the items that are worked on at this moment
    lock, export/

One process writes results, any number reads meanwhile:

    Run.create(folder, identity, items, environment=, shard=, acknowledged=)    a new run, to be written
    Run.open(folder, identity, items, environment=, acknowledged=)              goes on with one
    Run.read(folder)                                                            only looks; refresh()

    for ordinal, item in run.pending():    # items that crashed a process come first
        run.begin([ordinal])               # one write, no fsync
        run.record(Outcome(ordinal=ordinal, id=item.id, attempt=run.attempts(ordinal) + 1, ...))
    run.flush()                            # else within 0.2 s; `acknowledged` is told of each
    run.finished(), run.at(ordinal), run.find(id), run.counts(), run.review([Review(...)])
    run.requeue([ordinal, ...])            # pending once more
    run.close()                            # or `with Run.open(...) as run:`

What is recorded counts once it is synced: until then a kill means that the item is done again.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from qvl.errors import EngineError, InputError, InvalidParamError, StorageError
from qvl.runs import identity as identities
from qvl.runs.disk import DISK, Disk
from qvl.runs.identity import Identity, Json
from qvl.runs.in_flight import InFlight
from qvl.runs.items import WHOLE, Items, Shard, write_items
from qvl.runs.journal import FULL_HINT, Journal, encode
from qvl.runs.lock import Lock, is_held
from qvl.runs.record import Finished, Item, Outcome, Review
from qvl.runs.reviews import Reviews
from qvl.runs.state import PENDING, Counts, State, as_outcome, as_record
from qvl.runs.writer import Writer

log = logging.getLogger(__name__)
CRASHES = 3  # of processes that worked on an item, after which it is given up
REQUEUED = 1000  # items of one event
Acknowledged = Callable[[Outcome], None]


class Run:
    """Made by `create`, `open` or `read`; see the module's docstring."""

    def __init__(self, folder: Path, identity: Identity, disk: Disk) -> None:
        self.folder, self.identity = folder, identity
        self._disk = disk
        self._items = Items(folder, identity.manifest, disk)
        self._state = State(identity.manifest.count, identity.shard)
        self._results = Journal(folder, "results", disk=disk)
        self._events = Journal(folder, "events", disk=disk)
        self._reviews = Reviews(folder, self._items, identity.shard, disk)
        self._writer: Writer[Outcome] | None = None  # None: only to be read
        self._acknowledged: Acknowledged | None = None
        self._in_flight = InFlight(folder, disk)
        self._noting = threading.Lock()  # of state and of what is in flight
        self._telling = threading.Lock()  # of the events
        self._held = ExitStack()  # what `close` gives back

    @classmethod
    def create(
        cls,
        folder: Path,
        identity: Json,
        items: Iterable[Item],
        *,
        environment: Json | None = None,
        shard: Shard = WHOLE,
        acknowledged: Acknowledged | None = None,
        disk: Disk = DISK,
    ) -> Run:
        """A new run, to be written; its folder is made, and holds a run only once it is whole.

        `items` are those of all shards. `acknowledged` is called in another thread.

        Raises InputError where a run is already, and for two items with one id; RunLockedError;
        RunChangedError where only run.json is missing; StorageError; and what `items` raises.
        """
        folder = folder.absolute()  # "." has no name to tell
        values = identities.as_json(identity, "the identity")
        recorded = identities.as_json(environment or {}, "the environment")
        try:
            disk.make_folder(folder, mode=0o700)
            disk.sync_folder(folder.parent)
        except OSError as err:
            raise StorageError(
                f"{folder.name!r} cannot be made: {err.strerror}", hint=FULL_HINT
            ) from err
        with ExitStack() as held:
            held.callback(Lock(folder / "lock", f"run {folder.name!r}").close)
            if (folder / identities.FILE).exists():
                raise InputError(
                    f"there is a run in {folder.name!r} already",
                    hint="resume it, or give another name",
                )
            identities.check_absent(folder)
            manifest = write_items(folder, items, shard, disk)
            whole = Identity(
                values=values,
                environment=recorded,
                manifest=manifest,
                shard=shard,
                begun=disk.now(),
            )
            identities.write(folder, whole, disk)
            return cls(folder, whole, disk)._begin(held.pop_all(), recorded, acknowledged)

    @classmethod
    def open(
        cls,
        folder: Path,
        identity: Json | None = None,
        items: Iterable[Item] | None = None,
        *,
        environment: Json | None = None,
        acknowledged: Acknowledged | None = None,
        disk: Disk = DISK,
    ) -> Run:
        """Go on with a run; with the given identity and items (of all shards), if these are given.

        Raises InputNotFoundError where none is, RunLockedError while another process writes to it,
        RunChangedError naming what is different, StoreCorruptError, StorageError.
        """
        folder = folder.absolute()
        identities.read(folder)  # a folder that is none gets no lock file
        with ExitStack() as held:
            held.callback(Lock(folder / "lock", f"run {folder.name!r}").close)
            kept = identities.read(folder)
            if identity is not None:
                given = identities.as_json(identity, "the identity")
                identities.check(folder, kept.values, given)
            recorded = identities.as_json(environment or {}, "the environment")
            if environment is not None:
                for name, old, new in identities.changes(kept.environment, recorded):
                    log.warning("%s of run %r was %s, is %s", name, folder.name, old, new)
            run = cls(folder, kept, disk)
            if items is not None:
                run._items.check_same(items, kept.shard)
            return run._begin(held.pop_all(), recorded, acknowledged)

    @classmethod
    def read(cls, folder: Path) -> Run:
        """The run as it is on the disk now, also while another process writes to it.

        Raises InputNotFoundError where none is, RunChangedError for a run.json that is damaged,
        StoreCorruptError, StorageError.
        """
        folder = folder.absolute()
        run = cls(folder, identities.read(folder), DISK)
        run.refresh()
        return run

    def refresh(self) -> None:
        """Read what came since. Raises StoreCorruptError, StorageError."""
        if self._writer is not None:
            self._reviews.refresh()
            return
        for _, event in self._events.read():
            self._note_event(event)
        self._results.safe = self._state.ended
        for at, record in self._results.read():
            self._note_outcome(record, at)
        self._reviews.refresh()

    def _begin(self, held: ExitStack, environment: Json, acknowledged: Acknowledged | None) -> Run:
        with held:
            held.callback(self._close_files)
            self.refresh()
            self._results.open()
            self._events.open()
            if self._results.torn_bytes:
                log.warning(
                    "the last %d bytes of the results of run %r were not whole: they are cut, and"
                    " their items are done again",
                    self._results.torn_bytes,
                    self.folder.name,
                )
                self.tell("cut", cut_bytes=self._results.torn_bytes)
            left = self._in_flight.left(self._state.sessions) if self._state.is_in_session else {}
            crashed = [o for o, attempts in left.items() if self.attempts(o) == attempts]
            self.tell(
                "start",
                crashed=crashed,
                environment=environment,
                pid=os.getpid(),
                host=socket.gethostname(),
            )
            self._writer = Writer(self._results, self._committed)
            self._acknowledged = acknowledged
            self._held = held.pop_all()
        self._give_up([o for o in crashed if self._state.crashes[o] >= CRASHES])
        return self

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def shard(self) -> Shard:
        return self.identity.shard

    def __len__(self) -> int:
        """How many items are in this shard."""
        return len(self._items)

    def is_running(self) -> bool:
        """Whether a process writes results now."""
        return is_held(self.folder / "lock")

    def pending(self) -> Iterator[tuple[int, Item]]:
        """The items that are to be done, with their ordinals: what no outcome was recorded of yet.

        First those that were worked on when a process crashed: done one by one, with a `flush` after
        each, they do not take others with them. Raises StoreCorruptError, StorageError.
        """
        suspects = {self.shard.place(ordinal) for ordinal in self._state.crashes}
        for place in sorted(suspects):
            if self._state.status[place] == PENDING:
                yield self.shard.ordinal(place), self._items.at(place)
        for place, data in enumerate(self._items.lines()):
            if self._state.status[place] == PENDING and place not in suspects:
                yield self.shard.ordinal(place), self._items.item(place, data)

    def attempts(self, ordinal: int) -> int:
        """How many outcomes the item had."""
        return self._state.attempts[self._place(ordinal)]

    def crashes(self, ordinal: int) -> int:
        """How many processes crashed while they worked on the item, since it was requeued last."""
        return self._state.crashes[ordinal]

    def begin(self, ordinals: Iterable[int]) -> None:
        """Say that these items are worked on from now on, so that a crash is put down to them.

        Raises StorageError.
        """
        with self._noting:
            self._in_flight.add({o: self.attempts(o) for o in ordinals}, self._state.sessions)

    def record(self, outcome: Outcome) -> None:
        """Keep an outcome; it counts once it is on the disk, which `acknowledged` is told.

        Any thread may call. Raises InvalidParamError for an outcome of another item than its ordinal
        says, or that JSON does not have; StorageError once an earlier one could not be written.
        """
        if not self._items.has_id(self._place(outcome.ordinal), outcome.id):
            raise InvalidParamError(f"item {outcome.ordinal} has not the id {outcome.id!r}")
        record = as_record(outcome)
        self._open_writer().add(encode(record, f"the outcome of {outcome.id!r}"), outcome)

    def flush(self) -> None:
        """Return when all that was recorded is on the disk. Raises StorageError."""
        self._open_writer().flush()

    def requeue(self, ordinals: Iterable[int]) -> None:
        """Make items pending once more; their outcomes stay until others come. Raises StorageError."""
        self.flush()
        rest = iter(ordinals)
        while group := list(itertools.islice(rest, REQUEUED)):
            self.tell("requeue", i=[(ordinal, self.attempts(ordinal)) for ordinal in group])

    def review(self, reviews: Sequence[Review]) -> None:
        """Add reviews, also while another process writes results; they are on the disk then.

        Raises InputError for an id that no item has, RunLockedError, StorageError.
        """
        self._reviews.add(reviews)

    def find(self, item_id: str) -> int | None:
        """The ordinal of the item with that id; None where there is none."""
        place = self._items.find(item_id)
        return None if place is None else self.shard.ordinal(place)

    def at(self, ordinal: int) -> Finished:
        """One item with its last outcome and review. Raises StoreCorruptError, StorageError."""
        place = self._place(ordinal)
        return self._finished(place, self._items.at(place))

    def finished(self) -> Iterator[Finished]:
        """Every item, in the order of the inputs, with its last outcome and review if it has any.

        Raises StoreCorruptError, StorageError.
        """
        for place, data in enumerate(self._items.lines()):
            yield self._finished(place, self._items.item(place, data))

    def counts(self) -> Counts:
        with self._noting:
            return self._state.counts(dict(Counter(self._reviews.states.values())))

    def events(self) -> Iterator[Mapping[str, Any]]:
        """What happened to the run: records with "event", "at" and more, see the module's docstring."""
        for _, event in Journal(self.folder, "events").read():
            yield event

    def close(self) -> None:
        """End in order: what was recorded is on the disk. Raises StorageError where it is not."""
        writer, self._writer = self._writer, None
        with self._held:
            if writer is not None:
                writer.close()
                self.tell("stop", counts=asdict(self.counts()))
        if writer is None:
            self._close_files()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except StorageError:
            if not isinstance(err, StorageError):
                raise

    def _finished(self, place: int, item: Item) -> Finished:
        at = self._state.at[place]
        outcome = as_outcome(self._results.at(at)) if at else None
        return Finished(
            ordinal=self.shard.ordinal(place),
            item=item,
            outcome=outcome,
            review=self._reviews.of(place),
        )

    def _open_writer(self) -> Writer[Outcome]:
        if self._writer is None:
            raise InvalidParamError(f"run {self.folder.name!r} is open only to be read")
        return self._writer

    def _committed(self, outcomes: Sequence[Outcome], places: list[int]) -> None:
        for outcome, at in zip(outcomes, places, strict=True):
            self._note_outcome(as_record(outcome), at)
            if self._acknowledged is not None:
                self._acknowledged(outcome)

    def _note_outcome(self, record: Mapping[str, Any], at: int) -> None:
        with self._noting:
            self._state.note_outcome(record, at, self._results.at)
            self._in_flight.drop(record["i"])

    def tell(self, event: str, **more: object) -> None:
        """Add to the events. Raises StorageError."""
        end = self._results.end
        record = {"event": event, "at": self._disk.now(), **more}
        record |= {"segment": end.segment, "bytes": end.size_bytes}
        with self._telling:
            self._events.commit([encode(record, "an event")])
        self._note_event(record)

    def _note_event(self, record: Mapping[str, Any]) -> None:
        with self._noting:
            self._state.note_event(record)

    def _give_up(self, ordinals: Sequence[int]) -> None:
        for ordinal in ordinals:
            item = self._items.at(self._place(ordinal))
            error = EngineError(
                f"the process ended {self.crashes(ordinal)} times while it worked on {item.id!r}",
                hint="`qvl batch retry` tries it again",
            )
            self.record(
                Outcome(
                    ordinal=ordinal,
                    id=item.id,
                    ok=False,
                    out={"id": item.id, "error": {**error.as_json(), "code": "crashed"}},
                    attempt=self.attempts(ordinal) + 1,
                )
            )
        if ordinals:
            self.flush()

    def has(self, ordinal: int) -> bool:
        """Whether the item is of this run, and of this shard of it."""
        with suppress(InvalidParamError):
            return self._place(ordinal) < len(self)
        return False

    def _place(self, ordinal: int) -> int:
        place = self.shard.place(ordinal)
        if place >= len(self):
            raise InvalidParamError(f"run {self.folder.name!r} has no item {ordinal}")
        return place

    def _close_files(self) -> None:
        for part in (self._results, self._events, self._reviews, self._in_flight):
            part.close()
