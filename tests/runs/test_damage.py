"""A flipped bit is found, named, and repaired; nothing is passed over in silence."""

from __future__ import annotations

import base64
import json
import random
import shutil
from pathlib import Path

import pytest

from faulty_disk import QuickDisk
from null_run import IDENTITY, SEED, answers, begun, outcome, work
from qvl.errors import RunChangedError, StoreCorruptError
from qvl.runs.items import INDEX, ITEMS
from qvl.runs.journal import decode, encode, line
from qvl.runs.record import Review
from qvl.runs.repair import repair
from qvl.runs.run import Run

COUNT = 70
RESULTS = "results-000001.jsonl"


@pytest.fixture
def done(tmp_path: Path) -> Path:
    with begun(tmp_path / "done", COUNT, disk=QuickDisk()) as run:
        for _ in range(3):
            work(run, most=25)
            run.flush()
        run.review(
            [Review(id="cup-3.jpg", state="approved"), Review(id="cup-4.jpg", state="rejected")]
        )
    return tmp_path / "done"


def flipped(done: Path, name: str, at: int, bit: int = 0) -> Path:
    folder = done.with_name("flipped")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(done, folder)
    data = bytearray((folder / name).read_bytes())
    data[at] ^= 1 << bit
    (folder / name).write_bytes(data)
    return folder


def test_a_flipped_bit_is_named_by_line_and_byte(done: Path) -> None:
    data = (done / RESULTS).read_bytes()
    lines = data.splitlines(keepends=True)
    at = sum(map(len, lines[:10]))
    folder = flipped(done, RESULTS, at + 30)
    for opened in (Run.open, Run.read):
        with pytest.raises(StoreCorruptError, match=f"{RESULTS} .*line 11, at byte {at}") as caught:
            opened(folder)
    assert caught.value.exit_code == 6
    assert "qvl batch repair" in (caught.value.hint or "")
    assert (folder / RESULTS).stat().st_size == len(data)  # nothing was cut


def test_any_flipped_bit_is_found_or_its_items_are_done_again(done: Path) -> None:
    data, expected = (done / RESULTS).read_bytes(), answers(done)
    draw = random.Random(SEED)
    corrupt = 0
    for _ in range(60):
        folder = flipped(done, RESULTS, draw.randrange(len(data)), draw.randrange(8))
        try:
            run = Run.open(folder, disk=QuickDisk())
        except StoreCorruptError:
            corrupt += 1
            repaired = repair(folder, disk=QuickDisk())
            assert 1 <= repaired.lines <= 2
            run = Run.open(folder, disk=QuickDisk())
        with run:
            assert 1 <= run.counts().pending <= 2, f"QVL_SEED={SEED}"
            work(run)
        again = answers(folder)
        for new, old in zip(again, expected, strict=True):
            assert new.outcome is not None
            assert old.outcome is not None
            assert new.outcome.out == old.outcome.out
            assert new.review == old.review
    assert corrupt > 50  # the others hit the last line, which a cut tail looks like


def test_repair_keeps_the_bad_lines(done: Path) -> None:
    data = (done / RESULTS).read_bytes().splitlines(keepends=True)
    at = sum(map(len, data[:4]))
    folder = flipped(done, RESULTS, at + 60)
    repaired = repair(folder)
    assert (repaired.lines, repaired.requeued, repaired.lost) == (1, (4,), ())
    quarantine = [json.loads((folder / "quarantine-000001.jsonl").read_bytes())]
    kept = base64.b64decode(quarantine[0]["base64"])
    assert (quarantine[0]["file"], quarantine[0]["line"], quarantine[0]["byte"]) == (RESULTS, 5, at)
    assert len(kept) == len(data[4])
    assert decode(kept) is None
    assert repair(folder).lines == 0
    assert [e["event"] for e in Run.read(folder).events()].count("repair") == 2


def test_a_damaged_second_answer_does_not_bring_back_the_first(tmp_path: Path) -> None:
    with begun(tmp_path / "run", 3) as run:
        run.record(outcome(1, ok=False))
        run.flush()  # tried again at once, as for an answer in another language
        run.record(outcome(1, attempt=2))
        run.flush()
        work(run)
    data = (tmp_path / "run" / RESULTS).read_bytes()
    folder = flipped(tmp_path / "run", RESULTS, data.index(b'"attempt":2') + 40)
    assert repair(folder).requeued == (1,)
    with Run.open(folder) as run:
        assert [ordinal for ordinal, _ in run.pending()] == [1]


def test_a_damaged_item_is_lost_unless_it_was_done(done: Path, tmp_path: Path) -> None:
    def damaged(folder: Path, number: int) -> None:
        data = bytearray((folder / ITEMS).read_bytes())
        data[data.index(f'"sku":"{number:05}"'.encode()) + 7] ^= 1
        (folder / ITEMS).write_bytes(data)

    damaged(done, 4)
    with pytest.raises(StoreCorruptError, match=f"{ITEMS} .*line 5"):
        answers(done)
    assert repair(done).lost == (4,)
    found = answers(done)[4]
    assert (found.item.id, found.item.columns) == ("cup-4.jpg", {})
    assert found.outcome is not None
    assert found.outcome.ok
    assert found.review is not None

    begun(tmp_path / "new", COUNT).close()
    damaged(tmp_path / "new", 4)
    repair(tmp_path / "new")
    with Run.open(tmp_path / "new", IDENTITY) as run:
        work(run)
    counts = Run.read(tmp_path / "new").counts()
    assert (counts.done, counts.failed, counts.errors) == (COUNT - 1, 1, {"item_lost": 1})


def test_a_sealed_segment_is_repaired_too(done: Path) -> None:
    counted = (done / RESULTS).stat().st_size
    (done / "results-000001.sum").write_text(json.dumps({"bytes": counted, "records": COUNT}))
    with Run.open(done) as run:
        run.requeue([0])
        work(run)
    assert (done / "results-000002.jsonl").exists()
    folder = flipped(done, RESULTS, counted - 30)
    with pytest.raises(StoreCorruptError, match="line 70"):
        Run.open(folder)
    repair(folder)
    assert Run.read(folder).counts().pending == 1
    (folder / "results-000001.sum").write_text("{")
    with pytest.raises(StoreCorruptError, match=r"results-000001\.sum"):
        Run.open(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: None, "is missing"),
        (lambda text: "", "is not as it was written"),
        (lambda text: text[:-20], "is not as it was written"),
        (lambda text: "[]", "is not as it was written"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "has the format 2"),
        (lambda text: text.replace("describe", "ask"), "was edited"),
    ],
)
def test_a_run_json_that_is_not_ours_ends_with_7(done: Path, change, says: str) -> None:
    text = change((done / "run.json").read_text("utf-8"))
    (done / "run.json").unlink()
    if text is not None:
        (done / "run.json").write_text(text, "utf-8")
    for opened in (Run.open, Run.read, repair):
        with pytest.raises(RunChangedError, match=says) as caught:
            opened(done)
        assert caught.value.exit_code == 7
    with pytest.raises((RunChangedError, Exception), match=r"is missing|already"):
        begun_anew(done)


def begun_anew(folder: Path) -> None:
    Run.create(folder, IDENTITY, [])


def test_indexes_are_made_again(done: Path) -> None:
    expected = answers(done)[5]
    for change in (bytes(3), b"", bytes((done / INDEX).stat().st_size), None):
        (done / INDEX).unlink()
        if change is not None:
            (done / INDEX).write_bytes(change)
        run = Run.read(done)
        assert run.at(run.find("cup-5.jpg") or 0) == expected
        assert (done / INDEX).stat().st_size == 16 + 16 * COUNT


def test_a_line_says_itself_whether_it_is_whole() -> None:
    whole = line(7, encode({"i": 3, "text": "чай\u2028\x85\ud800 \U0001f375"}, "it"))
    record = json.loads(whole)
    assert decode(whole) == record
    assert list(record) == ["v", "b", "i", "text", "crc"]
    assert record["text"] == "чай\u2028\x85\ud800 \U0001f375"
    assert whole.count(b"\n") == 1
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        assert decode(bytes(damaged)) is None
        assert decode(whole[:at]) is None
