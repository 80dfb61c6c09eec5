"""The items of a run: written once, in the order of the inputs, and read one by one.

`items.jsonl` is the truth. `items.idx` is made of it and may be deleted: after 16 bytes that say what it
is of, the offset of each line and then a hash of each id, as 64-bit numbers: 160 MB of 10^7 items.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qvl.errors import (
    InputError,
    InvalidParamError,
    RunChangedError,
    StorageError,
    StoreCorruptError,
)
from qvl.runs.disk import DISK, Disk
from qvl.runs.journal import FULL_HINT, READ_BYTES, decode, encode, line
from qvl.runs.record import Item, Source
from qvl.runs.whole import Appended, whole

ITEMS, INDEX = "items.jsonl", "items.idx"
LOST_HINT = "begin a new run with the same inputs; `qvl batch repair` keeps what can be read"
CHANGED_HINT = "give the inputs that the run was begun with, or begin a new run"
_HEAD = struct.Struct("<QQ")  # bytes of items.jsonl, CRC-32 of the rest of the index


@dataclass(frozen=True, slots=True)
class Shard:
    """The `number`-th (from 1) of `of` parts of a run: each `of`-th item of its inputs."""

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise InvalidParamError(
                f"shard {self.number}/{self.of} is none", hint="of 4 shards they are 1/4 to 4/4"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From K/N. Raises InvalidParamError."""
        number, slash, of = text.partition("/")
        if not (slash and number.isascii() and number.isdigit() and of.isascii() and of.isdigit()):
            raise InvalidParamError(f"shard {text!r} is none", hint="of 4 shards the first is 1/4")
        return cls(int(number[:19]), int(of[:19]))

    def place(self, ordinal: int) -> int:
        """Of an item, among those of this shard. Raises InvalidParamError for one of another."""
        place, rest = divmod(ordinal, self.of)
        if rest != self.number - 1 or ordinal < 0:
            raise InvalidParamError(f"item {ordinal} is none of shard {self.number}/{self.of}")
        return place

    def ordinal(self, place: int) -> int:
        return place * self.of + self.number - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What run.json says of the items: `count` of this shard, `total` and `sha256` of all shards."""

    count: int
    total: int
    size_bytes: int
    sha256: str


WHOLE = Shard()


def body(item: Item) -> bytes:
    """The item as `journal.encode` gives it, without its ordinal."""
    record = {
        "id": item.id,
        "row": item.row,
        "sources": [
            {"where": s.where, "part": s.part} if s.part else {"where": s.where}
            for s in item.sources
        ],
        "columns": item.columns,
        "options": item.options,
    }
    return encode(record, f"item {item.id!r}")


def _own(folder: Path, name: str, disk: Disk) -> AbstractContextManager[Appended]:
    shown = f"{name} of {folder.name!r}"
    return whole(folder / name, hint=FULL_HINT, shown=shown, mode=0o600, disk=disk)


def write_items(
    folder: Path, items: Iterable[Item], shard: Shard = WHOLE, disk: Disk = DISK
) -> Manifest:
    """Write the items of a shard, out of those of the whole run, and their index; both appear whole.

    Raises InputError naming both of two items with one id, StorageError, and what `items` raises.
    """
    return _written({shard.number - 1: folder}, shard.of, items, disk)[0]


def write_shards(
    folders: Sequence[Path], items: Iterable[Item], disk: Disk = DISK
) -> list[Manifest]:
    """As `write_items` for each shard, 1/N in the first folder, with one look at the items."""
    return _written(dict(enumerate(folders)), len(folders), items, disk)


def _written(
    folders: Mapping[int, Path], of: int, items: Iterable[Item], disk: Disk
) -> list[Manifest]:
    """`folders` by the number of their shard, from 0."""
    hashes, digest = array("Q"), hashlib.sha256()
    offsets = {number: array("Q") for number in folders}
    with ExitStack() as kept:
        streams = {n: kept.enter_context(_own(f, ITEMS, disk)) for n, f in folders.items()}
        for ordinal, item in enumerate(items):
            data = body(item)
            digest.update(data + b"\n")
            hashes.append(id_hash(item.id))
            stream = streams.get(ordinal % of)
            if stream is not None:
                offsets[ordinal % of].append(stream.tell())
                stream.write(line(0, b'"i":%d,%s' % (ordinal, data)))
        sizes = {number: stream.tell() for number, stream in streams.items()}
        _check_unique(np.frombuffer(hashes, np.uint64))
    manifests = []
    for number, folder in folders.items():
        index = np.array([offsets[number], hashes[number::of]], np.uint64)
        _write_index(folder, sizes[number], index, disk)
        manifests.append(
            Manifest(
                count=len(offsets[number]),
                total=len(hashes),
                size_bytes=sizes[number],
                sha256=digest.hexdigest(),
            )
        )
    return manifests


def id_hash(item_id: str) -> int:
    """64 bits: that two of 10^7 ids have the same is a chance of one in 400,000."""
    text = item_id.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), sys.byteorder)


def _check_unique(hashes: NDArray[np.uint64]) -> None:
    in_order = np.sort(hashes)
    twice = in_order[1:][in_order[1:] == in_order[:-1]]
    if len(twice):
        first, second, *_ = np.flatnonzero(hashes == twice[0]) + 1
        raise InputError(
            f"items {first} and {second} of the inputs have the same id",
            hint="each item needs an id of its own",
        )


def _write_index(folder: Path, size_bytes: int, index: NDArray[np.uint64], disk: Disk) -> None:
    with (
        suppress(StorageError),  # what cannot be kept is made again
        _own(folder, INDEX, disk) as stream,
    ):
        stream.write(_HEAD.pack(size_bytes, zlib.crc32(index.data)))
        stream.write(index.data)


class Items:
    """The items of a shard, to be read. Places count within the shard, from 0."""

    def __init__(self, folder: Path, manifest: Manifest, disk: Disk = DISK) -> None:
        """Raises StoreCorruptError where the file is not as long as it was written."""
        self._folder, self._manifest, self._disk = folder, manifest, disk
        self._index: NDArray[np.uint64] | None = None  # [2, count]: offsets, hashes of the ids
        self._by_hash: NDArray[np.int64] | None = None  # places, in the order of the hashes
        with self._reading():
            size_bytes = (folder / ITEMS).stat().st_size
        if size_bytes != manifest.size_bytes:
            raise StoreCorruptError(
                f"{ITEMS} of {folder.name!r} has {size_bytes} bytes, not {manifest.size_bytes}",
                hint=LOST_HINT,
            )

    def __len__(self) -> int:
        return self._manifest.count

    def lines(self) -> Iterator[bytes]:
        """Each item as it is in the file, for `item`. Raises StorageError."""
        with self._reading(), (self._folder / ITEMS).open("rb", buffering=READ_BYTES) as file:
            yield from file

    def item(self, place: int, data: bytes) -> Item:
        """The item of a line. Raises StoreCorruptError."""
        record = decode(data)
        if record is None:
            raise StoreCorruptError(
                f"{ITEMS} of {self._folder.name!r} is damaged in line {place + 1}", hint=LOST_HINT
            )
        return Item(
            id=record["id"],
            row=record["row"],
            sources=tuple(Source(s["where"], s.get("part", "")) for s in record["sources"]),
            columns=record["columns"],
            options=record["options"],
        )

    def at(self, place: int) -> Item:
        """Raises StoreCorruptError, StorageError."""
        with self._reading(), (self._folder / ITEMS).open("rb") as file:
            file.seek(int(self._loaded()[0, place]))
            return self.item(place, file.readline())

    def find(self, item_id: str) -> int | None:
        """The place of the item with that id; None where there is none."""
        hashes, wanted = self._loaded()[1], np.uint64(id_hash(item_id))
        if self._by_hash is None:
            self._by_hash = np.argsort(hashes)
        rank = int(np.searchsorted(hashes, wanted, sorter=self._by_hash))
        if rank == len(hashes) or hashes[self._by_hash[rank]] != wanted:
            return None
        return int(self._by_hash[rank])

    def has_id(self, place: int, item_id: str) -> bool:
        return int(self._loaded()[1, place]) == id_hash(item_id)

    def check_same(self, items: Iterable[Item], shard: Shard) -> None:
        """Raises RunChangedError where those of all shards are not the ones that were written, naming
        the first of this shard that is different.
        """
        lines, digest, total = self.lines(), hashlib.sha256(), 0
        for total, item in enumerate(items, start=1):
            data = body(item)
            digest.update(data + b"\n")
            if (total - 1) % shard.of == shard.number - 1:
                kept = next(lines, None)
                if kept is not None and kept != line(0, b'"i":%d,%s' % (total - 1, data)):
                    old = self.item((total - 1) // shard.of, kept)
                    what = f"{old.id!r} is now {item.id!r}" if old.id != item.id else repr(old.id)
                    raise RunChangedError(
                        f"item {total} of the inputs of run {self._folder.name!r} was changed: {what}",
                        hint=CHANGED_HINT,
                    )
        if total != self._manifest.total:
            raise RunChangedError(
                f"run {self._folder.name!r} has {self._manifest.total} items, the inputs now {total}",
                hint=CHANGED_HINT,
            )
        if digest.hexdigest() != self._manifest.sha256:
            raise RunChangedError(
                f"the items of other shards than {shard.number}/{shard.of} were changed",
                hint=CHANGED_HINT,
            )

    def _loaded(self) -> NDArray[np.uint64]:
        if self._index is None:
            self._index = self._read_index()
        if self._index is None:
            offsets, hashes, offset = array("Q"), array("Q"), 0
            for place, data in enumerate(self.lines()):
                offsets.append(offset)
                hashes.append(id_hash(self.item(place, data).id))
                offset += len(data)
            self._index = np.array([offsets, hashes], np.uint64)
            _write_index(self._folder, offset, self._index, self._disk)
        return self._index

    def _read_index(self) -> NDArray[np.uint64] | None:
        """None where there is no index that fits these items."""
        count = self._manifest.count
        with suppress(OSError, ValueError), (self._folder / INDEX).open("rb") as file:
            head = file.read(_HEAD.size)
            index = np.fromfile(file, np.uint64).reshape(2, count)  # not mapped: it may be cut
            if head == _HEAD.pack(self._manifest.size_bytes, zlib.crc32(index.data)):
                return index
        return None

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            raise StorageError(
                f"{ITEMS} of {self._folder.name!r} cannot be read: {err.strerror}"
            ) from err
