"""A fault at any point of a step harms the request whose fault it is, and no other.

Each fault is raised at a named point, before the work of that point or after it, when a part of the
engine's books is written already; a single time, or whenever the one request is at work there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import pytest
import torch

from qvl.engine import engine as engine_module
from qvl.engine.blocks import BlockPool
from qvl.engine.cache import CachedAttention, Span
from qvl.engine.engine import Engine
from qvl.engine.lookup import Lookup
from qvl.engine.loops import LoopDetector
from qvl.engine.request import EngineRequest, Finished, RequestState
from qvl.engine.stream import Detokenizer
from qvl.errors import EngineError, OutOfMemoryError
from qvl.models.features import FeatureCache
from qvl.structured.grammar import Grammar
from qvl.types import ResponseFormat
from tiny_engine import (
    MIX,
    NAMED,
    asking,
    drain,
    end_of,
    error_of,
    ids_of,
    letters,
    new_engine,
    prompt,
    run,
    tiny_model,
)

MODEL = tiny_model("qwen3_vl")
DECODER = MODEL.model.language_model
BAD = "bad"
WORDS = (0, 1, 2, 3, 0, 1, 2, 4)
FORM = ResponseFormat("regex", "a(b|c)d?(a|b|c){10}")
ERRORS = (
    partial(RuntimeError, "a kernel failed"),
    partial(MemoryError),
    partial(KeyError, 7),
    partial(torch.OutOfMemoryError, "CUDA out of memory"),
)


def company() -> list[EngineRequest]:
    """Requests with pictures, common beginnings, grammars, drafts and seeds, the bad one amid.

    Made anew for each run, because a grammar is of one run.
    """
    formed = {"stop_loops": True, "max_new_tokens": 14}
    bad = asking(BAD, WORDS, NAMED[1], temperature=0.7, seed=5, **formed)
    given = prompt("formed", [*WORDS, 9], temperature=1.0, seed=6, **formed)
    return [
        asking("same text", [1, 2, 3], NAMED[0], temperature=0.9, seed=3),
        MIX[2],  # sampled, with a picture of its own
        replace(bad, grammar=letters().compile(FORM)),
        replace(given, grammar=letters().compile(FORM)),
        MIX[4],  # with penalties
        prompt("repeating", [5, 6, 7] * 4, max_new_tokens=12),
        asking("same picture", [8, 9], NAMED[1], temperature=0.6, seed=8),
    ]


@cache
def alone() -> dict[str, list[int]]:
    return {r.id: ids_of(run(MODEL, [r], draft_tokens=0), r.id) for r in company()}


@dataclass(slots=True)
class Fault:
    """Raises from the `skip`th pass on, `once` or always, and counts how often it did."""

    error: Callable[[], Exception]
    once: bool
    skip: int
    raised: int = 0

    def strike(self) -> None:
        self.skip -= 1
        if self.skip < 0 and not (self.once and self.raised):
            self.raised += 1
            raise self.error()

    def strike_any(self, *_args: object, **_kwargs: object) -> None:
        self.strike()


@dataclass(slots=True)
class Work:
    """Which requests the engine is at work on, so that a fault finds the one it belongs to."""

    ids: set[str] = field(default_factory=set)

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        of_one = {name: lambda state, *_: {state.id} for name in ("_chunk", "_finish")}
        self._follow(monkeypatch, "_forward", lambda chunks: {c.state.id for c in chunks})
        self._follow(monkeypatch, "_settle", lambda chunk, *_: {chunk.state.id})
        for name, ids in of_one.items():
            self._follow(monkeypatch, name, ids)

    def _follow(
        self, monkeypatch: pytest.MonkeyPatch, name: str, ids: Callable[..., set[str]]
    ) -> None:
        real = getattr(Engine, name)

        def followed(engine: Engine, *args: Any, **kwargs: Any) -> Any:
            before, self.ids = self.ids, ids(*args)
            try:
                return real(engine, *args, **kwargs)
            finally:
                self.ids = before

        monkeypatch.setattr(Engine, name, followed)


@dataclass(frozen=True, slots=True)
class Point:
    """A function of the step, where a fault may strike: which kinds end the bad request there.

    A single fault in a pass of many ends nobody, because its halves are tried again. `passed` is
    how often the bad request comes by at least.
    """

    owner: object
    name: str
    passed: int = 3
    ends: tuple[str, ...] = ("once", "always")


def within_pass(owner: object, name: str, passed: int = 3) -> Point:
    return Point(owner, name, passed, ends=("always",))


POINTS = {
    "block keys": Point(RequestState, "block_keys"),
    "finding blocks": Point(BlockPool, "find", 1),
    "holding blocks": Point(BlockPool, "hold", 1),
    "taking blocks": Point(BlockPool, "take", 1),
    "drafting": Point(Lookup, "draft"),
    "masks": Point(Grammar, "allowed"),
    "finding features": within_pass(FeatureCache, "get", 1),
    "encoding pictures": within_pass(MODEL, "encode_images", 1),
    "keeping features": Point(FeatureCache, "put", 1, ends=()),  # the request holds them itself
    "packing": within_pass(engine_module, "pack"),
    "embedding": within_pass(DECODER.embed_tokens, "forward"),
    "places in the cache": within_pass(Span, "__init__"),
    "positions": within_pass(RequestState, "positions"),
    "cache write, cache read and attention": within_pass(CachedAttention, "__call__"),
    "a layer's MLP": within_pass(DECODER.layers[1].mlp, "forward"),
    "head": within_pass(MODEL, "head"),
    "counting as computed": Point(RequestState, "advance"),
    "naming blocks": Point(BlockPool, "name", 1),
    "sampling": Point(engine_module, "sample"),
    "grammar accept": Point(Grammar, "accept"),
    "forced tokens": Point(Grammar, "forced"),
    "detokeniser push": Point(Detokenizer, "push"),
    "loop detector": Point(LoopDetector, "push"),
    "judging drafts": Point(Lookup, "judge", 1),
    "releasing blocks": Point(BlockPool, "release", 1),
    "detokeniser finish": Point(Detokenizer, "finish", 1),
}


def with_fault(point: Point, fault: Fault, *, after: bool) -> int:
    """The company with a fault, then the bad request again, in the same engine and well.

    Returns how often the fault was raised.
    """
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(engine_module, "DRAFTING", 99)
        work = Work()
        work.watch(monkeypatch)
        requests = company()
        (bad_grammar,) = (r.grammar for r in requests if r.id == BAD)
        real = getattr(point.owner, point.name)

        def afflicted(*args: Any, **kwargs: Any) -> Any:
            first = args[0] if args else None
            # masks are made in a thread of their own, of which `work` knows nothing
            here = first is bad_grammar if isinstance(first, Grammar) else BAD in work.ids
            if here and not after:
                fault.strike()
            result = real(*args, **kwargs)
            if here and after:
                fault.strike()
            return result

        monkeypatch.setattr(point.owner, point.name, afflicted)
        engine = new_engine(MODEL, token_budget=64)
        for request in requests:
            engine.add(request)
        events = drain(engine)
    assert fault.raised > 0
    for request in requests:
        said = ids_of(events, request.id)
        if request.id != BAD or ("once" if fault.once else "always") not in point.ends:
            assert said == alone()[request.id]
            assert end_of(events, request.id).error is None
        else:
            assert said == alone()[BAD][: len(said)]
            error = error_of(events, BAD)
            assert isinstance(error.__cause__, type(fault.error()))
            ran_out = isinstance(error.__cause__, MemoryError | torch.OutOfMemoryError)
            assert type(error) is (OutOfMemoryError if ran_out else EngineError)
    assert engine.idle
    assert engine._pool.free == engine._pool.total
    assert not any(engine._pool._holders)
    (again,) = (r for r in company() if r.id == BAD)
    engine.add(again)
    events = drain(engine)
    assert ids_of(events, BAD) == alone()[BAD]
    assert end_of(events, BAD).error is None
    return fault.raised


@pytest.mark.parametrize("name", POINTS)
def test_a_fault_at_any_point_ends_one_request_at_most_and_leaves_no_trace(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    point = POINTS[name]
    raised = 0
    late = point.passed - 1
    kinds = ((True, False, 0), (True, True, late), (False, False, late), (False, True, 0))
    for (once, after, skip), error in zip(kinds, ERRORS, strict=True):
        raised += with_fault(point, Fault(error, once, skip), after=after)
    record_property("faults raised", raised)
    print(f"{name}: {raised} faults in {len(kinds)} runs, {len(alone()) - 1} neighbours unharmed")  # noqa: T201


def test_a_deadline_that_cannot_be_read_ends_its_request_alone() -> None:
    class Broken(float):
        def __le__(self, other: float) -> bool:
            raise ArithmeticError

    requests = [replace(r, deadline_s=Broken() if r.id == BAD else None) for r in company()]
    engine = new_engine(MODEL)
    for request in requests:
        engine.add(request)
    events = drain(engine)
    for request in requests:
        assert ids_of(events, request.id) == ([] if request.id == BAD else alone()[request.id])
    assert isinstance(error_of(events, BAD).__cause__, ArithmeticError)
    assert engine._pool.free == engine._pool.total


def test_a_fault_that_is_nobodys_ends_all_with_an_error_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = new_engine(MODEL)
    for request in company():
        engine.add(request)
    events = [event for _ in range(4) for event in engine.step()]
    with monkeypatch.context() as patch:
        patch.setattr(BlockPool, "name", Fault(ERRORS[0], once=False, skip=0).strike_any)
        patch.setattr(BlockPool, "recover", Fault(ERRORS[1], once=False, skip=0).strike_any)
        while not engine.idle:
            events += engine.step()
    ends = [e for e in events if isinstance(e, Finished)]
    assert sorted(e.request_id for e in ends) == sorted(r.id for r in company())
    assert sum(isinstance(e.error, EngineError | OutOfMemoryError) for e in ends) > 3
    assert engine._pool.free == engine._pool.total
    for request in company():
        engine.add(request)
    events = drain(engine)
    assert {r.id: ids_of(events, r.id) for r in company()} == alone()


def test_what_was_spoilt_unnoticed_is_not_found_again() -> None:
    """Numbers that are none, once, in the vision tower or in the cache: nothing raises until
    the logits are looked at, when features and blocks have long been named.
    """
    for owner, name in ((MODEL, "encode_images"), (DECODER.layers[0].mlp, "forward")):
        with pytest.MonkeyPatch.context() as patch:
            real = getattr(owner, name)
            passed = itertools.count()

            def spoilt(*args: Any, real: Any = real, passed: Any = passed) -> Any:
                result = real(*args)
                if next(passed) == 0:
                    tensor = result if isinstance(result, torch.Tensor) else result.rows_vd
                    tensor.fill_(torch.nan)
                return result

            patch.setattr(owner, name, spoilt)
            engine = new_engine(MODEL)
            for expected in (1, 0):
                (request,) = (r for r in company() if r.id == BAD)
                engine.add(request)
                events = drain(engine)
                if expected:
                    assert "not finite" in error_of(events, BAD).message
                else:
                    assert ids_of(events, BAD) == alone()[BAD]
