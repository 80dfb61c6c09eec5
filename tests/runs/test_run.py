"""A run from its creation to its end: what was recorded is there when it is opened again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qvl.runs.record import Finished, Item, Outcome, Source
from qvl.runs.run import Run

IDENTITY = {"task": "describe", "model": {"sha256": "00"}, "sampling": {"seed": 1}}


def items(count: int) -> Iterator[Item]:
    for number in range(count):
        yield Item(
            id=f"cup-{number}.jpg",
            row=str(number),
            sources=(Source(f"/pictures/cup-{number}.jpg"),),
            columns={"title": f"Чашка {number}"},
        )


def outcome(run: Run, ordinal: int, item: Item, *, ok: bool = True) -> Outcome:
    out = {"id": item.id, "text": f"a cup, {ordinal}", "flags": ["cut"] if ordinal % 3 == 0 else []}
    if not ok:
        out = {"id": item.id, "error": {"code": "image_decode", "message": "no", "hint": None}}
    return Outcome(
        ordinal=ordinal,
        id=item.id,
        ok=ok,
        out=out,
        attempt=run.attempts(ordinal) + 1,
        duration_s=0.5,
    )


def test_a_run_goes_on_where_it_was_left(tmp_path: Path) -> None:
    told = []
    with Run.create(tmp_path / "a", IDENTITY, items(10), acknowledged=told.append) as run:
        for ordinal, item in run.pending():
            if ordinal < 4:
                run.begin([ordinal])
                run.record(outcome(run, ordinal, item, ok=ordinal != 2))
    assert [o.ordinal for o in told] == [0, 1, 2, 3]
    with Run.open(tmp_path / "a", IDENTITY, items(10)) as run:
        assert [ordinal for ordinal, _ in run.pending()] == [4, 5, 6, 7, 8, 9]
        for ordinal, item in run.pending():
            run.record(outcome(run, ordinal, item))
        run.flush()
        assert list(run.pending()) == []
    run = Run.read(tmp_path / "a")
    found = list(run.finished())
    assert [f.item for f in found] == list(items(10))
    assert [f.outcome.ok for f in found if f.outcome] == [n != 2 for n in range(10)]
    assert found[5] == run.at(5) == Finished(
        ordinal=5, item=[*items(10)][5], outcome=Outcome(
            ordinal=5, id="cup-5.jpg", ok=True,
            out={"id": "cup-5.jpg", "text": "a cup, 5", "flags": []}, attempt=1, duration_s=0.5,
        ),
    )  # fmt: skip
    counts = run.counts()
    assert (counts.total, counts.done, counts.failed, counts.pending) == (10, 9, 1, 0)
    assert (counts.flags, counts.errors) == ({"cut": 4}, {"image_decode": 1})
    assert counts.duration_s == 5.0
    assert [e["event"] for e in run.events()] == ["start", "stop", "start", "stop"]
