"""A run that is kept in an object store, too: what is synced here is there some seconds later.

    PREFIX/run.json, PREFIX/results-000001.sum              whole files
    PREFIX/results-000001.jsonl/000000000000000, ...        a file that grows, in parts by their offset

A part is whole lines and is never changed: each is created only where none of that name is. Of two
processes that go on with one run in two places the one that came later has the run, as its event
"start" is in the store: the other finds that before it sends more, and is stopped. What lies in the
store is valid at each moment, as each part fits behind those before it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from qvl.batch import object_store
from qvl.errors import FetchError, QvlError, RunChangedError, StorageError, StoreCorruptError
from qvl.runs import identity
from qvl.runs.items import ITEMS
from qvl.runs.journal import FULL_HINT
from qvl.runs.lock import Lock
from qvl.runs.whole import write_whole, writing

log = logging.getLogger(__name__)
EVERY_S = 10.0
PART_BYTES = 8 << 20
MOST_BYTES = 256 << 20  # of one object that is read
OTHER_HINT = "give another --to; or remove the run's folder here to go on with what is in the store"


class Mirror:
    """Of the run in `folder`, below `where`. Made with what lies in the store already."""

    def __init__(self, folder: Path, where: str) -> None:
        self.folder, self.where = folder.absolute(), where.rstrip("/")
        self.error: QvlError | None = None  # that ends the run: somebody else writes there
        self._sent: dict[str, int] = {}  # bytes of each file that are in the store
        self._has_run = False  # our "start" is there

    def fetch(self) -> None:
        """Bring here what the store has more; nothing where it has no run.

        Raises RunChangedError where the two are of different runs, or both went on; RunLockedError,
        StoreCorruptError, StorageError, and as `object_store.read`.
        """
        kept = object_store.sizes_below(self.where)
        self._sent = _lengths(kept, self.where)
        if identity.FILE not in kept:
            return
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with closing(Lock(self.folder / "lock", f"run {self.folder.name!r}")):
            told, own = self._read(identity.FILE), self.folder / identity.FILE
            if own.exists() and own.read_bytes() != told:
                raise RunChangedError(
                    f"run {self.folder.name!r} is another than the one in {self.where!r}",
                    hint=OTHER_HINT,
                )
            for name in self._sent:
                self._bring(name, kept)
            for name in (*(n for n in kept if n.endswith(".sum") and "/" not in n), identity.FILE):
                if not (self.folder / name).exists():
                    write_whole(self.folder / name, self._read(name), hint=FULL_HINT, mode=0o600)

    def _read(self, name: str) -> bytes:
        return object_store.read(f"{self.where}/{name}", MOST_BYTES)

    def _bring(self, name: str, kept: dict[str, int]) -> None:
        """The rest of a file that grows; all that is here must be the same there."""
        path = self.folder / name
        with writing(f"{name} of {self.folder.name!r}", FULL_HINT), path.open("a+b") as file:
            os.chmod(path, 0o600)
            size_bytes = file.seek(0, os.SEEK_END)
            for part in sorted(one for one in kept if one.startswith(name + "/")):
                data, offset = self._read(part), int(part.rpartition("/")[2])
                file.seek(offset)
                here = file.read(len(data))
                if not data.startswith(here):
                    raise RunChangedError(
                        f"{name} of run {self.folder.name!r} is another than in {self.where!r}",
                        hint=OTHER_HINT,
                    )
                if offset + len(data) > size_bytes:
                    file.write(data[len(here) :])
            file.flush()
            os.fsync(file.fileno())

    def send(self) -> None:
        """Bring there what is here more. Raises StorageError; RunChangedError where another does so."""
        if not (self.folder / identity.FILE).exists():
            return
        self._check_ours()
        grown = {path.name: path.stat().st_size for path in self.folder.glob("events-*.jsonl")}
        # to whom the run belongs is said before anything else, by the first event that is new here
        if not self._has_run and any(grown[name] > self._sent.get(name, 0) for name in grown):
            self._send_events(grown)
            self._has_run = True
        # an event says how far the results were then: these go first
        for pattern in ("results-*.jsonl", "reviews-*.jsonl"):
            for path in sorted(self.folder.glob(pattern)):
                self._send_grown(path, path.stat().st_size)
        self._send_events(grown)
        self._send_grown(self.folder / ITEMS, (self.folder / ITEMS).stat().st_size)
        # a run is in the store when this is
        for path in (*sorted(self.folder.glob("*.sum")), self.folder / identity.FILE):
            if path.name not in self._sent:
                self._put(path.name, path.read_bytes())
                self._sent[path.name] = path.stat().st_size

    def _check_ours(self) -> None:
        """Raises RunChangedError where the store has what was not sent from here."""
        kept = object_store.sizes_below(self.where)
        for name, size_bytes in _lengths(kept, self.where).items():
            if size_bytes > self._sent.get(name, 0):  # or the answer to a part was lost
                path, sent = self.folder / name, self._sent.get(name, 0)
                parts = [n for n in kept if n.startswith(name + "/") and int(n[-15:]) >= sent]
                told = b"".join(self._read(part) for part in sorted(parts))
                with path.open("rb") as file:
                    file.seek(sent)
                    if file.read(len(told)) != told:
                        raise self._taken()
                self._sent[name] = size_bytes

    def _send_events(self, sizes: dict[str, int]) -> None:
        for name, size_bytes in sorted(sizes.items()):
            self._send_grown(self.folder / name, size_bytes)

    def _send_grown(self, path: Path, size_bytes: int) -> None:
        """Whole lines of what the file has more, up to that size."""
        sent = self._sent.get(path.name, 0)
        with path.open("rb") as file:
            while sent < size_bytes:
                file.seek(sent)
                data = file.read(min(PART_BYTES, size_bytes - sent))
                if not data.endswith(b"\n"):
                    end = data.rfind(b"\n") + 1
                    data = data[:end] if end else data + file.readline()
                if not data.endswith(b"\n"):
                    return
                self._put(f"{path.name}/{sent:015}", data)
                self._sent[path.name] = sent = sent + len(data)

    def _put(self, name: str, data: bytes) -> None:
        if not object_store.put_new(f"{self.where}/{name}", data):
            raise self._taken()

    def _taken(self) -> RunChangedError:
        return RunChangedError(
            f"another process has gone on with the run in {self.where!r}", hint=OTHER_HINT
        )

    def keep_sending(self, ended: threading.Event) -> None:
        is_told = False
        while not ended.wait(EVERY_S):
            try:
                self.send()
                is_told = False
            except RunChangedError as err:
                self.error = err
                return
            except (QvlError, OSError) as err:  # tried again
                if not is_told:
                    log.warning("%s", err.message if isinstance(err, QvlError) else err.strerror)
                is_told = True


def _lengths(kept: dict[str, int], where: str) -> dict[str, int]:
    """Bytes of each file that grows. Raises StoreCorruptError where a part of one is missing."""
    lengths: dict[str, int] = {}
    for name in sorted(kept):
        file, slash, offset = name.rpartition("/")
        if not slash or "/" in file or not file.endswith(".jsonl"):
            continue
        if not offset.isdecimal() or int(offset) != lengths.get(file, 0):
            raise StoreCorruptError(f"a part of {file} is missing in {where!r}")
        lengths[file] = lengths.get(file, 0) + kept[name]
    return lengths


@contextmanager
def mirrored(folder: Path, where: str | None) -> Iterator[Mirror | None]:
    """First all that the store has is here; at the end, and every EVERY_S seconds, all that is synced
    here is there. None and nothing without a place.

    Raises as `Mirror.fetch` and `Mirror.send`.
    """
    if where is None:
        yield None
        return
    mirror, ended = Mirror(folder, where), threading.Event()
    mirror.fetch()
    thread = threading.Thread(target=mirror.keep_sending, args=(ended,), daemon=True)
    thread.start()
    try:
        yield mirror
    finally:
        ended.set()
        thread.join()
        try:
            mirror.send()
        except (FetchError, StorageError, OSError) as err:
            raise StorageError(
                f"not all of run {folder.name!r} is in {where!r} yet",
                hint="it is whole here; the same command brings the rest there",
            ) from err
    if mirror.error is not None:
        raise mirror.error
