"""Which ids are taken, and by whom: 16 bytes for a place, so that 10^7 ids fit into 400 MB while it grows."""

from __future__ import annotations

from array import array

_START = 1 << 12
_FULL = 0.75
_NUMBER_BITS = 40


class Taken:
    """A table of 64-bit hashes with open addressing; a set of 10^7 numbers would take 900 MB.

    That two different ids of 10^7 have one hash is a chance of one in 400,000.
    """

    def __init__(self) -> None:
        self._mask, self._count = _START - 1, 0
        self._hashes, self._who = array("Q", bytes(8 * _START)), array("Q", bytes(8 * _START))
        self._tables: dict[str, int] = {}

    def take(self, item: str, table: str, number: int) -> tuple[str, int] | None:
        """The table and row that have the id already; None where it was free, and is theirs now."""
        wanted = (hash(item) & 0xFFFF_FFFF_FFFF_FFFF) or 1  # 0 is a free place
        place = self._place(wanted)
        if self._hashes[place]:
            index, row = divmod(self._who[place], 1 << _NUMBER_BITS)
            return next(name for name, at in self._tables.items() if at == index), row
        index = self._tables.setdefault(table if number else "", len(self._tables))
        self._hashes[place], self._who[place] = wanted, index << _NUMBER_BITS | number
        self._count += 1
        if self._count > _FULL * (self._mask + 1):
            self._grow()
        return None

    def _place(self, wanted: int) -> int:
        hashes, place = self._hashes, wanted & self._mask
        while hashes[place] and hashes[place] != wanted:
            place = place + 1 & self._mask
        return place

    def _grow(self) -> None:
        old = zip(self._hashes, self._who, strict=True)
        self._mask = 2 * self._mask + 1
        empty = bytes(8 * (self._mask + 1))
        self._hashes, self._who = array("Q", empty), array("Q", empty)
        for wanted, by in old:
            if wanted:
                place = self._place(wanted)
                self._hashes[place], self._who[place] = wanted, by
