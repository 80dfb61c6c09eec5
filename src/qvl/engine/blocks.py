"""Which blocks of the KV cache are free, held, or free but still worth finding again.

A block has room for the keys and values of BLOCK_TOKENS neighbouring tokens of one sequence. Its
key names everything that its content depends on, so blocks of equal keys are interchangeable: a
request whose prompt begins like an earlier one shares the earlier blocks instead of computing them.
Chained keys as in vLLM V1 (vllm/v1/core/kv_cache_utils.py), with whole digests.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

BLOCK_TOKENS = 16


def block_key(
    before: bytes, tokens: Sequence[int], pictures: Iterable[tuple[str, int]] = ()
) -> bytes:
    """The key of a block: that of the block before it, its own tokens and its pictures.

    `pictures` are those that reach into the block: what names the content, and how many of its
    visual tokens lie before the block (negative: the block's tokens before the picture).
    """
    digest = hashlib.sha256(before)
    digest.update(np.asarray(tokens, np.int64).tobytes())
    for content, offset in pictures:
        digest.update(f"|{content}|{offset}".encode())
    return digest.digest()


class BlockPool:
    """Blocks 0 .. total - 1, each held by any number of requests or free.

    A free block keeps its key, and with it its content, until it is taken for something else; those
    without a key go first, then those that were free longest.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._holders = [0] * total
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(total))
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Free blocks for new content; there must be as many."""
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._holders[block] = 1
            key = self._key_of.pop(block, None)
            if key is not None:
                del self._block_of[key]
        return taken

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the longest beginning of `keys` that is here; not held yet."""
        found = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def hold(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._free.pop(block, None)
            self._holders[block] += 1

    def name(self, block: int, key: bytes) -> None:
        """The held block has the content `key` now; of two with the same content one is known."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """Give up blocks of one sequence; its end will be taken before its beginning."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free[block] = None
                if block not in self._key_of:
                    self._free.move_to_end(block, last=False)

    def recover(self, tables: Iterable[Sequence[int]], spoilt: Iterable[int]) -> None:
        """Count anew after a fault, maybe one amid the counting: just these tables hold blocks.

        Blocks whose content may be `spoilt` are not found again.
        """
        for block in spoilt:
            self._key_of.pop(block, None)
        self._block_of = {key: block for block, key in self._key_of.items()}
        held = Counter(block for table in tables for block in table)
        self._holders = [held[block] for block in range(self.total)]
        free = [b for b in range(self.total) if not held[b] and b not in self._free]
        self._free = OrderedDict.fromkeys(b for b in (*self._free, *free) if not held[b])
        for block in [b for b in self._free if b not in self._key_of]:
            self._free.move_to_end(block, last=False)
