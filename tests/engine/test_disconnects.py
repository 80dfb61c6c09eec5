"""Requests that leave at any moment leave nothing behind: no block, no state, no picture, no thread."""

from __future__ import annotations

import gc
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qvl.engine import engine as engine_module
from qvl.engine.blocks import BlockPool
from qvl.engine.cache import CachedAttention
from qvl.engine.engine import Engine
from qvl.engine.request import EngineRequest, Event, Finished, RequestState, Token
from qvl.engine.stream import Detokenizer
from qvl.errors import EngineError
from qvl.models.batch import VisionFeatures
from qvl.types import BACKGROUND, ResponseFormat
from tiny_engine import (
    MIX,
    NAMED,
    asking,
    ids_of,
    letters,
    new_engine,
    prompt,
    run,
    tiny_model,
)

MODEL = tiny_model("qwen2_vl")
MENU = (
    asking("a", [1, 2, 3], NAMED[0], temperature=0.9, seed=3),
    asking("b", [4, 5], NAMED[0]),
    asking("c", [4, 5], NAMED[1], temperature=0.7, seed=4),
    prompt("d", [5, 6, 7] * 4, max_new_tokens=12),
    prompt("e", [5, 6, 7, 5, 6, 7, 1], temperature=1.0, seed=5, max_new_tokens=20),
    MIX[2],  # with a picture that has no name
    prompt("g", [1, 2], temperature=1.0, seed=6, max_new_tokens=8),  # with a grammar
)
FORM = ResponseFormat("regex", "(a|b){8}")
FEATURE_BYTES = 3 * 16 * 64 * 4 // 2  # room for one picture of the two with a name


POINTS = (  # the books, and one each of the pass and of what follows it
    (BlockPool, "find"),
    (BlockPool, "hold"),
    (BlockPool, "take"),
    (BlockPool, "name"),
    (BlockPool, "release"),
    (RequestState, "restart"),
    (CachedAttention, "__call__"),
    (Detokenizer, "push"),
)


def ordered(index: int) -> EngineRequest:
    """From the menu; a grammar is of one run."""
    request = MENU[index]
    return replace(request, grammar=letters().compile(FORM)) if request.id == "g" else request


@cache
def alone(index: int) -> list[int]:
    return ids_of(run(MODEL, [ordered(index)], draft_tokens=0), MENU[index].id)


def check_books(engine: Engine) -> None:
    """Blocks, holders, keys and features add up, whatever has happened."""
    pool, features = engine._pool, engine._features
    tables = [state.blocks for state in engine._requests.values()]
    assert all(len(table) == len(set(table)) for table in tables)
    held = Counter(block for table in tables for block in table)
    assert pool._holders == [held[block] for block in range(pool.total)]
    assert sorted([*pool._free, *held]) == list(range(pool.total))
    assert pool._block_of == {key: block for block, key in pool._key_of.items()}
    assert len(pool._block_of) == len(pool._key_of)
    sizes = [kept.size_bytes for kept in features._by_content.values()]
    assert features.used_bytes == sum(sizes) <= features.budget_bytes
    if engine.idle:
        assert pool.free == pool.total


class EngineMachine(RuleBasedStateMachine):
    """Requests come, compute, leave, are too late and fail, in any order, with little room."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.now_s = 0.0
        self.patch.setattr(engine_module, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        self.engine = new_engine(
            MODEL, cache_tokens=16 * 7, token_budget=24, feature_bytes=FEATURE_BYTES
        )
        self.menu: dict[str, int] = {}  # of the requests that have not ended
        self.said: dict[str, list[int]] = {}

    def teardown(self) -> None:
        self.patch.undo()

    @rule(
        index=st.integers(0, len(MENU) - 1),
        priority=st.sampled_from([0, 1, BACKGROUND]),
        wait_s=st.none() | st.integers(1, 3),
    )
    def add(self, index: int, priority: int, wait_s: int | None) -> None:
        deadline_s = None if wait_s is None else self.now_s + wait_s
        name = str(len(self.said))
        self.engine.add(replace(ordered(index), id=name, priority=priority, deadline_s=deadline_s))
        self.menu[name], self.said[name] = index, []

    @precondition(lambda self: self.menu)
    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.take(self.engine.step())
            check_books(self.engine)

    @precondition(lambda self: self.menu)
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        end = self.engine.abort(data.draw(st.sampled_from(sorted(self.menu))))
        assert end is not None
        self.take([end])

    @rule()
    def time_passes(self) -> None:
        self.now_s += 1

    @precondition(lambda self: self.menu)
    @rule(point=st.sampled_from(POINTS), after=st.booleans(), skip=st.integers(0, 1))
    def fail(self, point: tuple[Any, str], after: bool, skip: int) -> None:
        """One fault within some steps, wherever it may be: at most one request ends by it."""
        events: list[Event] = []
        with pytest.MonkeyPatch.context() as patch:
            raise_once(patch, *point, after=after, skip=skip)
            for _ in range(4):
                events += self.engine.step()
                check_books(self.engine)
        ends = [e for e in events if isinstance(e, Finished)]
        assert sum(type(e.error) is EngineError for e in ends) <= 1
        self.take(events)

    def take(self, events: Sequence[Event]) -> None:
        for event in events:
            said = self.said[event.request_id]
            if isinstance(event, Token):
                said.append(event.token_id)
                continue
            expected = alone(self.menu.pop(event.request_id))  # a second end would find none
            assert said == (expected if event.reason == "length" else expected[: len(said)])

    @invariant()
    def the_books_add_up(self) -> None:
        check_books(self.engine)
        assert set(self.menu) == set(self.engine._requests)


EngineMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, derandomize=True
)
TestEngineBooks = EngineMachine.TestCase


def raise_once(patch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool, skip: int) -> None:
    real, passed = getattr(owner, name), itertools.count()

    def faulty(*args: Any, **kwargs: Any) -> Any:
        strikes = next(passed) == skip
        if strikes and not after:
            raise RuntimeError("a fault")
        result = real(*args, **kwargs)
        if strikes:
            raise RuntimeError("a fault")
        return result

    patch.setattr(owner, name, faulty)


def alive(kind: type) -> int:
    gc.collect()
    return sum(type(thing) is kind for thing in gc.get_objects())


def test_a_thousand_disconnects_leave_nothing_behind(
    record_property: Callable[[str, object], None],
) -> None:
    states, features, threads = alive(RequestState), alive(VisionFeatures), threading.active_count()
    engine = new_engine(MODEL, cache_tokens=16 * 9, token_budget=14, feature_bytes=FEATURE_BYTES)
    rng, names = random.Random(1), itertools.count()
    said: dict[str, list[int]] = {}
    menu: dict[str, int] = {}
    left = ended = 0
    phases: Counter[str] = Counter()
    while left < 1000:
        while len(menu) < 4:
            name, index = str(next(names)), rng.randrange(len(MENU))
            engine.add(replace(ordered(index), id=name, priority=rng.choice([0, 1, BACKGROUND])))
            menu[name], said[name] = index, []
        if rng.random() < 0.4:
            for event in engine.step():
                if isinstance(event, Token):
                    said[event.request_id].append(event.token_id)
                else:
                    assert event.error is None
                    assert said[event.request_id] == alone(menu.pop(event.request_id))
                    ended += 1
        if len(menu) > 1 and rng.random() < 0.7:
            name = rng.choice(list(menu)[1:])  # the oldest stays
            has_begun = bool(engine._requests[name].blocks)
            phases[
                "generating" if said[name] else "amid its prompt" if has_begun else "waiting"
            ] += 1
            end = engine.abort(name)
            assert end is not None
            assert end.reason == "cancelled"
            del menu[name]
            left += 1
        check_books(engine)
    for name in menu:
        engine.abort(name)
    assert engine.idle
    assert engine._pool.free == engine._pool.total
    assert alive(RequestState) == states
    assert alive(VisionFeatures) - features == len(engine._features._by_content)
    assert threading.active_count() <= threads + 1  # that of the masks
    assert min(phases.values()) > 50
    assert ended > 50
    measured = {**phases, "neighbours that ended, token for token": ended}
    for what, count in measured.items():
        record_property(what, count)
    print(f"{left} disconnects: {measured}")  # noqa: T201
    del engine
    gc.collect()
    until_s = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < until_s:
        time.sleep(0.01)
    assert threading.active_count() <= threads
