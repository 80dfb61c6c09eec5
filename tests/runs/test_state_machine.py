"""Whatever is done to a run, in whatever order: it holds what a plain dict would hold."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from faulty_disk import QuickDisk
from null_run import IDENTITY, items, outcome
from qvl.runs.record import Finished, Item, Outcome, Review
from qvl.runs.repair import repair
from qvl.runs.run import Run

COUNT = 9
ORDINALS = st.integers(0, COUNT - 1)
STATES = st.sampled_from(["approved", "edited", "rejected"])


class RunMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.folder = self.home / "run"
        self.items: list[Item] = list(items(COUNT))
        self.outcomes: dict[int, Outcome] = {}
        self.reviews: dict[int, Review] = {}
        self.again: set[int] = set()
        self.reader: Run | None = None
        self.run: Run | None = Run.create(self.folder, IDENTITY, self.items, disk=QuickDisk())

    def teardown(self) -> None:
        if self.run:
            self.run.close()
        shutil.rmtree(self.home)

    @precondition(lambda self: self.run)
    @rule(ordinal=ORDINALS, ok=st.booleans())
    def record(self, ordinal: int, ok: bool) -> None:
        assert self.run
        attempt = self.run.attempts(ordinal) + 1
        one = outcome(ordinal, ok=ok, attempt=attempt)
        self.run.record(one)
        self.run.flush()
        self.outcomes[ordinal] = one
        self.again.discard(ordinal)

    @rule(ordinal=ORDINALS, state=STATES, note=st.text(max_size=5))
    def review(self, ordinal: int, state, note: str) -> None:
        one = Review(id=self.items[ordinal].id, state=state, note=note, at="2026-11-30T00:00:00")
        (self.run or Run.read(self.folder)).review([one])
        self.reviews[ordinal] = one

    @precondition(lambda self: self.run)
    @rule(ordinals=st.sets(ORDINALS, max_size=3))
    def requeue(self, ordinals: set[int]) -> None:
        assert self.run
        self.run.requeue(ordinals)
        self.again |= ordinals & set(self.outcomes)

    @precondition(lambda self: self.run)
    @rule()
    def close(self) -> None:
        assert self.run
        self.run.close()
        self.run = None

    @precondition(lambda self: not self.run)
    @rule()
    def open(self) -> None:
        self.run = Run.open(self.folder, IDENTITY, self.items, disk=QuickDisk())

    @precondition(lambda self: not self.run)
    @rule(torn=st.binary(max_size=40))
    def tear(self, torn: bytes) -> None:
        for name in ("results", "events", "reviews"):
            for path in self.folder.glob(f"{name}-*.jsonl"):
                path.write_bytes(path.read_bytes() + torn)
        self.open()

    @precondition(lambda self: not self.run)
    @rule()
    def repair(self) -> None:
        done = repair(self.folder, disk=QuickDisk())  # puts a torn tail of the reviews aside
        assert not done.requeued + done.lost

    @rule()
    def look_anew(self) -> None:
        self.reader = Run.read(self.folder)

    @invariant()
    def all_is_there(self) -> None:
        expected = [
            Finished(
                ordinal=ordinal,
                item=self.items[ordinal],
                outcome=self.outcomes.get(ordinal),
                review=self.reviews.get(ordinal),
            )
            for ordinal in range(COUNT)
        ]
        pending = {o for o in range(COUNT) if o not in self.outcomes or o in self.again}
        if self.reader is None:
            self.reader = Run.read(self.folder)
        self.reader.refresh()
        if self.run:
            self.run.refresh()
        for run in filter(None, [self.run, self.reader]):
            assert list(run.finished()) == expected
            assert {ordinal for ordinal, _ in run.pending()} == pending
            counts = run.counts()
            assert counts.pending == len(pending)
            assert counts.pending + counts.done + counts.failed == counts.total == COUNT
            assert sum(counts.reviews.values()) == len(self.reviews)
            failed = [one for one in self.outcomes.values() if not one.ok]
            assert sum(counts.errors.values()) == len(failed)


TestRuns = RunMachine.TestCase
TestRuns.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
