"""A run from its creation to its end: what was recorded is there when it is opened again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from faulty_disk import QuickDisk
from null_run import IDENTITY, answers, begun, item, items, outcome, work
from qvl.errors import InputError, InputNotFoundError, InvalidParamError, RunChangedError
from qvl.runs import journal, writer
from qvl.runs.items import ITEMS
from qvl.runs.record import Finished, Item, Outcome, Review, Source
from qvl.runs.run import CRASHES, Run


def test_a_run_goes_on_where_it_was_left(tmp_path: Path) -> None:
    told = []
    with Run.create(tmp_path / "a", IDENTITY, items(10), acknowledged=told.append) as run:
        for ordinal, _ in run.pending():
            if ordinal < 4:
                run.begin([ordinal])
                run.record(replace(outcome(ordinal, ok=ordinal != 2), duration_s=0.5))
    assert [one.ordinal for one in told] == [0, 1, 2, 3]
    with Run.open(tmp_path / "a", IDENTITY, items(10)) as run:
        assert list(run.pending()) == [(number, item(number)) for number in range(4, 10)]
        work(run)
        run.flush()
        assert list(run.pending()) == []
    run = Run.read(tmp_path / "a")
    found = list(run.finished())
    assert [one.item for one in found] == list(items(10))
    assert found[5] == run.at(5) == Finished(ordinal=5, item=item(5), outcome=outcome(5))
    counts = run.counts()
    assert (counts.total, counts.done, counts.failed, counts.pending) == (10, 9, 1, 0)
    assert (counts.flags, counts.errors) == ({"cut": 2}, {"image_decode": 1})
    assert counts.duration_s == 2.0
    assert [event["event"] for event in run.events()] == ["start", "stop", "start", "stop"]


def test_a_run_of_nothing(tmp_path: Path) -> None:
    with Run.create(tmp_path / "a", {}, []) as run:
        assert list(run.pending()) == []
    run = Run.read(tmp_path / "a")
    assert (list(run.finished()), run.counts().total, run.find("x")) == ([], 0, None)


def test_what_was_recorded_counts_soon_without_a_flush(tmp_path: Path) -> None:
    told = threading.Event()
    with begun(tmp_path / "a", 3, acknowledged=lambda one: told.set()) as run:
        run.record(outcome(0))
        assert told.wait(5)
        assert Run.read(tmp_path / "a").counts().done == 1


def test_records_are_synced_in_groups(tmp_path: Path) -> None:
    syncs = []

    class CountingDisk(QuickDisk):
        def fsync(self, descriptor: int) -> None:
            syncs.append(os.fstat(descriptor).st_ino)

    with begun(tmp_path / "a", 640, disk=CountingDisk()) as run:
        work(run)
        run.flush()
        results = (tmp_path / "a" / "results-000001.jsonl").stat().st_ino
        assert 640 / writer.WAITING <= syncs.count(results) <= 640 / writer.GROUP + 1


def test_it_is_told_only_after_the_sync(tmp_path: Path) -> None:
    said: list[str] = []

    class SlowDisk(QuickDisk):
        def fsync(self, descriptor: int) -> None:
            time.sleep(0.01)
            said.append("synced")

    with begun(
        tmp_path / "a", 3, disk=SlowDisk(), acknowledged=lambda one: said.append("told")
    ) as run:
        said.clear()
        run.record(outcome(1))
        run.flush()
        assert said == ["synced", "told"]


def test_threads_may_record_at_once(tmp_path: Path) -> None:
    with begun(tmp_path / "a", 400, disk=QuickDisk()) as run:

        def record(start: int) -> None:
            for ordinal in range(start, 400, 4):
                run.record(outcome(ordinal))

        threads = [threading.Thread(target=record, args=[start]) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [one.outcome for one in answers(tmp_path / "a")] == [outcome(n) for n in range(400)]


def test_what_json_does_not_have_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with begun(tmp_path / "a", 3) as run:
        for value in (float("nan"), float("inf"), {1, 2}, b"bytes", object()):
            with pytest.raises(InvalidParamError, match=r"cup-1\.jpg"):
                run.record(replace(outcome(1), out={"text": value}))
        with pytest.raises(InvalidParamError, match=r"item 1 has not the id 'cup-2\.jpg'"):
            run.record(replace(outcome(2), ordinal=1))
        for ordinal in (-1, 3, 10**12):
            with pytest.raises(InvalidParamError):
                run.record(replace(outcome(2), ordinal=ordinal))
        work(run)
    assert [one.outcome for one in answers(tmp_path / "a")] == [outcome(n) for n in range(3)]


STRANGE = "a\u2028b\x85c\r\nd\te \U0001f375 \udc80\ud800 чай \x00"


def test_any_text_comes_back(tmp_path: Path) -> None:
    odd = Item(
        id=STRANGE, row=STRANGE, sources=(Source(STRANGE, STRANGE),), columns={STRANGE: STRANGE},
        options={"deep": {"er": [1, 2.5, None, True, STRANGE]}},
    )  # fmt: skip
    one = Outcome(ordinal=0, id=STRANGE, ok=True, out={STRANGE: [STRANGE]})
    review = Review(id=STRANGE, state="edited", fields={"text": STRANGE}, at="now", by=STRANGE)
    with Run.create(tmp_path / "a", {"prompt": STRANGE}, [odd, item(1)]) as run:
        run.record(one)
        run.record(outcome(1))
        run.review([review])
    with Run.open(tmp_path / "a", {"prompt": STRANGE}, [odd, item(1)]):
        pass
    assert answers(tmp_path / "a")[0] == Finished(ordinal=0, item=odd, outcome=one, review=review)
    for name in (ITEMS, "results-000001.jsonl"):
        assert (tmp_path / "a" / name).read_bytes().count(b"\n") == 2


def test_a_reader_sees_what_came_since_and_no_half_lines(tmp_path: Path) -> None:
    done = threading.Event()
    with begun(tmp_path / "a", 500) as run:

        def record() -> None:
            for ordinal in range(500):
                run.record(outcome(ordinal, letters=2000))
            run.flush()
            done.set()

        thread = threading.Thread(target=record)
        thread.start()
        reader, seen = Run.read(tmp_path / "a"), []
        while not done.is_set():
            reader.refresh()
            seen.append(reader.counts().done)
            assert Run.read(tmp_path / "a").counts().done >= seen[-1]
        thread.join()
        reader.refresh()
        assert reader.counts().done == 500
    assert seen == sorted(seen)


def test_full_segments_are_sealed_and_read_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal.Journal.__init__, "__kwdefaults__", {
        **(journal.Journal.__init__.__kwdefaults__ or {}), "segment_bytes": 5000,
    })  # fmt: skip
    with begun(tmp_path / "a", 200, disk=QuickDisk()) as run:
        reader = Run.read(tmp_path / "a")
        for ordinal, _ in run.pending():
            run.record(outcome(ordinal))
            if ordinal % 20 == 0:
                run.flush()
                reader.refresh()
                assert reader.counts().done == ordinal + 1
    names = sorted(path.name for path in (tmp_path / "a").glob("results-*"))
    assert len(names) > 10
    assert sum(name.endswith(".sum") for name in names) == len(names) // 2
    with begun(tmp_path / "a", 200) as run:
        run.requeue([3])
        work(run)
    assert [one.outcome for one in answers(tmp_path / "a") if one.ordinal != 3] == [
        outcome(number) for number in range(200) if number != 3
    ]


def test_a_clock_that_is_set_back_changes_nothing(tmp_path: Path) -> None:
    class LateDisk(QuickDisk):
        days = 30

        def now(self) -> str:
            self.days -= 1
            return f"2026-11-{self.days:02}T00:00:00+00:00"

    disk = LateDisk()
    with begun(tmp_path / "a", 5, disk=disk) as run:
        run.record(outcome(1, ok=False))
        run.requeue([1])
        run.review([Review(id="cup-1.jpg", state="approved")])
        run.review([Review(id="cup-1.jpg", state="rejected")])
        run.record(outcome(1, attempt=2))
    with begun(tmp_path / "a", 5, disk=disk) as run:
        found = run.at(1)
        assert found.outcome == outcome(1, attempt=2)
        assert found.review is not None
        assert found.review.state == "rejected"
        times = [event["at"] for event in run.events()]
    assert times == sorted(times, reverse=True)


def crash(folder: Path, in_flight: list[int]) -> None:
    """A process that dies while it works on these."""
    child = os.fork()
    if not child:
        run = Run.open(folder, disk=QuickDisk())
        for ordinal in in_flight:
            run.begin([ordinal])
        os._exit(9)
    os.waitpid(child, 0)


def test_an_item_that_crashes_processes_is_given_up(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    begun(folder, 6).close()
    crash(folder, [2, 4])
    with Run.open(folder) as run:
        assert [run.crashes(ordinal) for ordinal in range(6)] == [0, 0, 1, 0, 1, 0]
        assert [ordinal for ordinal, _ in run.pending()] == [2, 4, 0, 1, 3, 5]
        run.record(outcome(2))
    for _ in range(CRASHES - 1):
        assert Run.read(folder).at(4).outcome is None
        crash(folder, [4])
    with Run.open(folder) as run:
        given_up = run.at(4).outcome
        assert given_up is not None
        assert given_up.out["error"]["code"] == "crashed"
        assert "cup-4.jpg" in given_up.out["error"]["message"]
        assert [ordinal for ordinal, _ in run.pending()] == [0, 1, 3, 5]
        run.requeue([4])
        assert run.crashes(4) == 0
        work(run)
    assert [one.outcome for one in answers(folder) if one.ordinal != 4] == [
        outcome(number) for number in range(6) if number != 4
    ]


def test_a_process_that_ends_in_order_has_crashed_on_nothing(tmp_path: Path) -> None:
    for _ in range(CRASHES + 1):
        with begun(tmp_path / "a", 3) as run:
            run.begin([0, 1])
            assert run.crashes(0) == 0


def test_what_was_requeued_stays_so_until_it_is_done(tmp_path: Path) -> None:
    with begun(tmp_path / "a", 6) as run:
        for ordinal in range(6):
            run.record(outcome(ordinal, ok=ordinal % 2 == 0))
        run.requeue([1, 3])
        assert [ordinal for ordinal, _ in run.pending()] == [1, 3]
    with begun(tmp_path / "a", 6) as run:
        assert [ordinal for ordinal, _ in run.pending()] == [1, 3]
        assert run.at(1).outcome == outcome(1, ok=False)
        run.record(outcome(1, attempt=2, ok=False))
    with begun(tmp_path / "a", 6) as run:
        assert [ordinal for ordinal, _ in run.pending()] == [3]
        assert (run.counts().failed, run.counts().errors) == (2, {"image_decode": 3})


def test_reviews_of_several_processes_stay(tmp_path: Path) -> None:
    edited = Review(id="cup-1.jpg", state="edited", fields={"text": "a mug"}, of=1, at="x")
    with begun(tmp_path / "a", 3) as run:
        work(run)
        run.flush()
        one, other = Run.read(tmp_path / "a"), Run.read(tmp_path / "a")
        one.review([Review(id="cup-0.jpg", state="approved")])
        other.review([Review(id="cup-1.jpg", state="rejected"), edited])
        one.review([Review(id="cup-2.jpg", state="approved")])
        run.requeue([1])
        run.record(outcome(1, attempt=2))
        run.flush()
        run.refresh()
        assert run.counts().reviews == {"approved": 2, "edited": 1}
        found = run.at(1)
        assert (found.review, found.outcome) == (edited, outcome(1, attempt=2))
        assert found.told("text") == "a mug"
    with pytest.raises(InputError, match=r"has the id 'cup-9\.jpg'"):
        one.review([Review(id="cup-9.jpg", state="approved")])


def test_a_run_goes_on_only_as_it_was_begun(tmp_path: Path) -> None:
    begun(tmp_path / "a", 3).close()
    changed = {
        "task": "describe", "model": {"sha256": "ff", "dtype": "bf16"}, "sampling": {"seed": 1},
    }  # fmt: skip
    with pytest.raises(RunChangedError) as caught:
        Run.open(tmp_path / "a", changed)
    assert caught.value.exit_code == 7
    assert caught.value.message.splitlines()[1:] == [
        '  model.dtype: (none) -> "bf16"',
        '  model.sha256: "00" -> "ff"',
        "  sampling.top_p: 0.9 -> (none)",
    ]


def test_of_long_prompts_the_difference_is_shown(tmp_path: Path) -> None:
    long = "Describe the picture for a shop, in simple words. " * 10
    Run.create(tmp_path / "a", {"prompt": long + "No prices." + long}, []).close()
    with pytest.raises(RunChangedError, match=r"No prices.*No links") as caught:
        Run.open(tmp_path / "a", {"prompt": long + "No links." + long})
    assert len(caught.value.message) < 400


def without(number: int) -> Iterator[Item]:
    return (one for one in items(5) if one.id != item(number).id)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda: without(2), "item 3 of the inputs .* 'cup-2.jpg' is now 'cup-3.jpg'"),
        (lambda: without(4), "has 5 items, the inputs now 4"),
        (lambda: items(6), "has 5 items, the inputs now 6"),
        (lambda: (replace(one, columns={}) for one in items(5)), "item 1 .*'cup-0.jpg'"),
    ],
)
def test_other_inputs_are_told(tmp_path: Path, given, says: str) -> None:
    begun(tmp_path / "a", 5).close()
    Run.open(tmp_path / "a", IDENTITY, items(5)).close()
    with pytest.raises(RunChangedError, match=says):
        Run.open(tmp_path / "a", IDENTITY, given())


def test_another_environment_is_only_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Run.create(tmp_path / "a", {}, [], environment={"torch": "2.11"}).close()
    Run.open(tmp_path / "a", {}, environment={"torch": "2.12"}).close()
    assert "torch of run" in caplog.text
    assert '"2.11", is "2.12"' in caplog.text


def test_the_same_id_twice_names_both(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="items 3 and 6 of the inputs have the same id"):
        Run.create(tmp_path / "a", {}, [*items(5), item(2)])
    with pytest.raises(InputNotFoundError):
        Run.read(tmp_path / "a")


def test_there_is_no_such_run(tmp_path: Path) -> None:
    for opened in (Run.open, Run.read):
        with pytest.raises(InputNotFoundError, match="nothing"):
            opened(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    with begun(tmp_path / "a", 3) as run:
        run.begin([0])
        work(run)
        run.review([Review(id="cup-0.jpg", state="approved")])
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "a").iterdir()} == {0o600}
