"""The pool of blocks against a plain model of it, and what makes two blocks the same."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qvl.engine.blocks import BLOCK_TOKENS, BlockPool, block_key

TOTAL = 8


class PoolMachine(RuleBasedStateMachine):
    """Sequences come, share what is there, grow, are cut off in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(TOTAL)
        self.tables: list[list[int]] = []
        self.content: dict[int, bytes] = {}  # what each block was written with last

    @rule(story=st.lists(st.integers(0, 2), min_size=1, max_size=5))
    def begin(self, story: list[int]) -> None:
        keys, before = [], b""
        for word in story:
            before = block_key(before, [word] * BLOCK_TOKENS)
            keys.append(before)
        found = self.pool.find(keys)
        assert [self.content[block] for block in found] == keys[: len(found)]
        self.pool.hold(found)
        missing = len(keys) - len(found)
        if self.pool.free < missing:
            self.pool.release(found)
            return
        table = found + self.pool.take(missing)
        for block, key in list(zip(table, keys, strict=True))[len(found) :]:
            self.content[block] = key
            self.pool.name(block, key)
        self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        if self.pool.free:
            (block,) = self.pool.take(1)
            self.content[block] = b"unfinished"
            table.append(block)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(table)

    @invariant()
    def every_block_is_held_or_free(self) -> None:
        held = {block for table in self.tables for block in table}
        assert self.pool.free == TOTAL - len(held)

    @invariant()
    def only_shared_blocks_are_in_two_tables(self) -> None:
        unfinished = [b for t in self.tables for b in t if self.content[b] == b"unfinished"]
        assert len(unfinished) == len(set(unfinished))


PoolMachine.TestCase.settings = settings(max_examples=60, deadline=None, derandomize=True)
TestPool = PoolMachine.TestCase


def chain(count: int) -> list[bytes]:
    keys = [b""]
    for number in range(count):
        keys.append(block_key(keys[-1], [number] * BLOCK_TOKENS))
    return keys[1:]


def test_what_was_free_longest_goes_first_and_an_end_before_its_beginning() -> None:
    pool, keys = BlockPool(4), chain(3)
    table = pool.take(3)
    for block, key in zip(table, keys, strict=True):
        pool.name(block, key)
    pool.release(table)
    assert pool.find(keys) == table
    pool.take(1)  # the block that never had content
    assert pool.find(keys) == table
    assert pool.take(1) == [table[2]]
    assert pool.find(keys) == table[:2]


def test_a_key_tells_beginnings_tokens_pictures_and_their_offsets_apart() -> None:
    tokens = list(range(BLOCK_TOKENS))
    keys = [
        block_key(b"", tokens),
        block_key(b"salt", tokens),
        block_key(block_key(b"", tokens), tokens),
        block_key(b"", tokens[::-1]),
        block_key(b"", tokens, [("a", 0)]),
        block_key(b"", tokens, [("b", 0)]),
        block_key(b"", tokens, [("a", 3)]),
        block_key(b"", tokens, [("a", 0), ("a", 8)]),
    ]
    assert len(set(keys)) == len(keys)
    assert block_key(b"", tokens, [("a", 0)]) == keys[4]
