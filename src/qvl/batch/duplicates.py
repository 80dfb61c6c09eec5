"""Pictures that come more than once: the same bytes, and, on request, nearly the same to look at.

Nearly the same are those whose 64-bit hashes by cosine transform (pHash: which of the 8 x 8 slowest waves
of the grey picture are above their median?) differ in at most NEAR_BITS bits, and whose thumbnails have
nearly the same colours: a white page and a red one have the same hash. Of 40 drawn products saved as JPEG,
smaller or darker, it finds all, and dHash (is a pixel brighter than the next?) 7 of 10.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qvl.batch import archives, object_store
from qvl.batch.check import stamp
from qvl.batch.media import seen_in
from qvl.errors import QvlError
from qvl.processing.image import Picture
from qvl.processing.patches import resize
from qvl.processing.source import opened, quoted
from qvl.runs.record import Item, Source
from qvl.types import Image, is_address

NEAR_BITS = 4
NEAR_COLOUR = 8.0  # of 255, the mean over a thumbnail
SIDE, WAVES = 32, 8  # of the picture that is transformed; slowest waves of each axis
# a hash with NEAR_BITS other bits has one of so many bands of its bits as it was
BANDS = NEAR_BITS + 1


def same_bytes(items: Iterable[Item]) -> list[tuple[str, ...]]:
    """The rows that show the same, each group in the order of the items, which are gone through twice.

    Only files of one size are read, so it costs little where there is nothing to find; memory is 8
    bytes for each row and what the groups take. What cannot be read is left out: `check` tells of it.
    """
    keys = array("Q", (hash(key) & 0xFFFF_FFFF_FFFF_FFFF for _, key in _keyed(items)))
    ordered = np.sort(np.frombuffer(keys, np.uint64)) if keys else np.empty(0, np.uint64)
    again = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for item, key in _keyed(items):
        if hash(key) & 0xFFFF_FFFF_FFFF_FFFF in again:
            try:
                digests = tuple(map(content, item.sources))
            except (QvlError, OSError):
                continue
            groups[digests].append(item.row)
    return [tuple(rows) for rows in groups.values() if len(rows) > 1]


def content(source: Source) -> str:
    """SHA-256 of what a source shows, with its part; of what lies elsewhere its address.

    Raises as `media.seen_in`, and OSError.
    """
    if is_address(source.where) or object_store.is_store(source.where):
        return f"{source.where}#{source.part}"
    if source.part.startswith(("member=", "cell=")):
        one = seen_in(source)
        page = f"#page={one.page}" if isinstance(one, Image) and one.page else ""
        return hashlib.sha256(one.source).hexdigest() + page  # type: ignore[arg-type] # bytes
    with (
        opened(Path(source.where), quoted(source.where)) as fd,
        open(fd, "rb", closefd=False) as file,
    ):
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}#{source.part}"


def _keyed(items: Iterable[Item]) -> Iterator[tuple[Item, tuple[object, ...]]]:
    """The first item of each row, with what tells most pictures apart without reading them."""
    last = None
    for item in items:
        if item.row == last or not item.sources:  # a request shows what lies in itself
            continue
        last = item.row
        try:
            yield item, tuple(map(_outside, item.sources))
        except (QvlError, OSError):
            continue


def _outside(source: Source) -> object:
    if is_address(source.where) or object_store.is_store(source.where):
        return source.where, source.part
    if source.part.startswith("member="):
        member, _, page = source.part.removeprefix("member=").partition("#")
        return archives.size_of(Path(source.where), member), page
    if source.part.startswith("cell="):
        return content(source)
    found = stamp(source)
    return found and found.size_bytes, source.part


@dataclass(frozen=True, slots=True, eq=False)
class Looks:
    """How a picture looks from afar: `bits` is its pHash, `thumbnail` uint8 [8, 8, 3]."""

    bits: int
    thumbnail: NDArray[np.uint8]


def looks(picture: Picture) -> Looks:
    grey = resize(picture.pixels, (SIDE, SIDE)).astype(np.float64).mean(-1)
    # the discrete cosine transform, type II, without its factors
    wave, place = np.arange(WAVES)[:, None], np.arange(SIDE)
    cosines = np.cos(np.pi * (2 * place + 1) * wave / (2 * SIDE))
    strengths = np.round(cosines @ grey @ cosines.T, 6)  # what is less is rounding
    above = strengths > np.median(strengths)
    bits = int.from_bytes(np.packbits(above).tobytes(), "big")
    return Looks(bits, resize(picture.pixels, (WAVES, WAVES)))


def near(pictures: list[Looks]) -> list[tuple[int, int]]:
    """(picture, the first one that it nearly looks like), by number, for each that looks like one.

    Pairs are looked for among pictures that agree in a band of their hashes, so of n that differ n log n
    are compared, and not all n * n / 2; memory is bounded.
    """
    if not pictures:
        return []
    bits = np.array([one.bits for one in pictures], np.uint64)
    thumbnails = np.stack([one.thumbnail for one in pictures]).reshape(len(bits), -1)
    first = np.arange(len(bits))
    for left, right in _candidates(bits):
        close = ones(bits[left] ^ bits[right]) <= NEAR_BITS
        left, right = left[close], right[close]
        apart = np.abs(thumbnails[left].astype(np.int16) - thumbnails[right]).mean(-1)
        same = apart <= NEAR_COLOUR
        np.minimum.at(first, right[same], left[same])
    return [(int(n), int(first[n])) for n in np.flatnonzero(first < np.arange(len(bits)))]


def ones(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """How many bits of each are set; numpy has it from 2.0 on. Source: Hacker's Delight, 5-1."""
    bits = bits - (bits >> np.uint64(1) & np.uint64(0x5555_5555_5555_5555))
    twos = np.uint64(0x3333_3333_3333_3333)
    bits = (bits & twos) + (bits >> np.uint64(2) & twos)
    bits = bits + (bits >> np.uint64(4)) & np.uint64(0x0F0F_0F0F_0F0F_0F0F)
    return bits * np.uint64(0x0101_0101_0101_0101) >> np.uint64(56)


def _candidates(
    bits: NDArray[np.uint64],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs (left < right) that agree in a band, each pair once, as many at a time as there are hashes."""
    edges = np.linspace(0, 64, BANDS + 1).astype(np.int64)
    seen: list[np.uint64] = []
    for start, end in pairwise(edges.tolist()):
        mask = np.uint64(((1 << end - start) - 1) << start)
        band = bits & mask
        order = np.argsort(band, kind="stable")
        ordered = band[order]
        apart = 0
        while True:
            apart += 1
            at = np.flatnonzero(ordered[apart:] == ordered[:-apart])
            if not len(at):
                break
            left, right = order[at], order[at + apart]
            other = bits[left] ^ bits[right]
            fresh = np.ones(len(at), bool)
            for earlier in seen:
                fresh &= other & earlier != 0
            yield left[fresh], right[fresh]
        seen.append(mask)
