"""A store that was cut, or lost what was not synced, opens; what was told to be kept is kept."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from faulty_disk import LosingDisk, QuickDisk, ShortDisk
from null_run import IDENTITY, SEED, answers, begun, outcome, work
from qvl.errors import InputNotFoundError, RunChangedError, StorageError
from qvl.runs.journal import decode
from qvl.runs.record import Outcome
from qvl.runs.run import Run

COUNT = 80


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A run of two sessions, whose last group was written by the second."""
    folder = tmp_path / "whole"
    with begun(folder, COUNT) as run:
        work(run, most=50)
    with begun(folder, COUNT) as run:
        work(run)
    return folder


def copied(whole: Path, results: bytes) -> Path:
    folder = whole.with_name("cut")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    (folder / "results-000001.jsonl").write_bytes(results)
    return folder


@pytest.mark.parametrize("tail", ["nothing", "zeros", "noise"])
def test_a_store_cut_at_any_byte_opens_and_ends_equal(
    whole: Path, tail: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = (whole / "results-000001.jsonl").read_bytes()
    expected, draw = answers(whole), random.Random(SEED)
    # every byte is cut by the slow test below; here the edges of lines, and some in between
    ends = [at + 1 for at, byte in enumerate(data) if byte == 10 and at > len(data) - 4096]
    cuts = {at + step for at in ends for step in (-20, -2, -1, 0, 1, 9)}
    cuts |= {draw.randint(len(data) - 4096, len(data)) for _ in range(20)}
    for cut in sorted(cut for cut in cuts if cut <= len(data)):
        check_cut(whole, data[:cut], tail, draw)
        assert answers(whole.with_name("cut")) == expected


@pytest.mark.slow
@pytest.mark.parametrize("tail", ["nothing", "zeros", "noise"])
def test_a_store_cut_at_every_byte_of_its_last_4_kb_opens(whole: Path, tail: str) -> None:
    data, draw = (whole / "results-000001.jsonl").read_bytes(), random.Random(SEED)
    for cut in range(len(data) - 4096, len(data) + 1):
        check_cut(whole, data[:cut], tail, draw)
    print(f"QVL_SEED={SEED}: 4097 cuts, tail {tail}: all opened")  # noqa: T201


def check_cut(whole: Path, kept: bytes, tail: str, draw: random.Random) -> None:
    """All whole lines count, the others are done again, and the end is as if nothing had been."""
    added = {"nothing": b"", "zeros": bytes(64), "noise": draw.randbytes(draw.randint(1, 200))}
    folder = copied(whole, kept + added[tail])
    with Run.open(folder, IDENTITY, disk=QuickDisk()) as run:
        done = kept.count(b"\n")
        assert [ordinal for ordinal, _ in run.pending()] == list(range(done, COUNT))
        work(run)
    results = (folder / "results-000001.jsonl").read_bytes()
    assert results.startswith(kept[: kept.rfind(b"\n") + 1])
    assert all(decode(row + b"\n") for row in results.removesuffix(b"\n").split(b"\n"))
    assert Run.read(folder).counts().done == COUNT


def test_what_is_cut_is_told(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = (whole / "results-000001.jsonl").read_bytes()
    with Run.open(copied(whole, data[:-7])) as run:
        assert [event["event"] for event in run.events()][-2:] == ["cut", "start"]
    assert "not whole" in caplog.text


def losses(folder: Path, seed: int) -> list[tuple[int, int]]:
    """Work on a run in three sessions. At many moments look what a power loss would leave: all that was
    told to be kept must be there. For each moment how many were told, and how many were there.
    """
    draw, disk = random.Random(seed), LosingDisk()
    told: list[Outcome] = []
    moments: list[list[int]] = []

    def moment() -> None:
        if draw.random() < 0.5:
            disk.after_power_loss(folder / "run", folder / f"left-{len(moments)}", draw)
            moments.append([one.ordinal for one in told])

    begun(folder / "run", COUNT, disk=disk).close()
    disk.moment = moment
    for _ in range(3):
        with begun(folder / "run", COUNT, disk=disk, acknowledged=told.append) as run:
            for ordinal, _ in list(run.pending())[: COUNT // 3 + 1]:
                run.record(outcome(ordinal, letters=draw.choice([20, 400, 900])))
                if draw.random() < 0.2:
                    run.flush()
    found = []
    for number, kept in enumerate(moments):
        left = folder / f"left-{number}"
        with Run.open(left, IDENTITY, disk=QuickDisk()) as run:
            pending = [ordinal for ordinal, _ in run.pending()]
            assert not set(kept) & set(pending), f"seed {seed}, moment {number}"
            work(run)
        outcomes = [finished.outcome for finished in answers(left)]
        assert [one.ordinal for one in outcomes if one] == list(range(COUNT))
        found.append((len(kept), COUNT - len(pending)))
    return found


def test_unsynced_sectors_may_be_lost_in_any_order(tmp_path: Path) -> None:
    found = []
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        found += losses(tmp_path / str(number), SEED * 10_000 + number)
    assert len(found) > 40
    assert any(there > told for told, there in found)  # something had landed that was not told yet
    assert len({told for told, _ in found}) > 5


@pytest.mark.slow
def test_two_thousand_power_losses(tmp_path: Path) -> None:
    points = 0
    for number in range(1000):
        (tmp_path / str(number)).mkdir()
        points += len(losses(tmp_path / str(number), SEED * 10_000 + number))
        shutil.rmtree(tmp_path / str(number))
        if points >= 2000:
            break
    print(f"QVL_SEED={SEED}: {points} power losses, nothing was lost that was told")  # noqa: T201


def test_a_power_loss_while_a_run_is_made_leaves_a_run_or_none(tmp_path: Path) -> None:
    made = 0
    for number in range(30):
        draw, disk = random.Random(SEED * 10_000 + number), LosingDisk()
        folder = tmp_path / str(number)
        begun(folder, 5, disk=disk).close()
        disk.after_power_loss(folder, tmp_path / f"left-{number}", draw)
        try:
            with begun(tmp_path / f"left-{number}", 5) as run:
                work(run)
                made += 1
        except (InputNotFoundError, RunChangedError):
            pytest.fail(f"seed {SEED * 10_000 + number}")
    assert made == 30


def test_what_a_failed_sync_dropped_is_written_again_by_the_next_process(tmp_path: Path) -> None:
    """The disk fails until the process has ended, so that nothing tells the next one of it: that finds
    the group in memory, takes it for done, and must not rely on what an fsync of it says.
    """
    disk, told = LosingDisk(), []
    run = begun(tmp_path / "run", COUNT, disk=disk)
    work(run, most=10)
    run.flush()
    disk.fails_to_sync = True
    run.record(outcome(10))
    for end in (run.flush, run.close):
        with pytest.raises(StorageError):
            end()
    disk.is_broken = False
    with begun(tmp_path / "run", COUNT, disk=disk, acknowledged=told.append) as run:
        assert run.counts().done == 11
        work(run)
    disk.after_power_loss(tmp_path / "run", tmp_path / "left", random.Random(SEED))
    assert Run.read(tmp_path / "left").counts().done == COUNT
    assert len(told) == COUNT - 11


@pytest.mark.parametrize("most", [1, 7, 100])
def test_short_writes_are_gone_on_with(tmp_path: Path, most: int) -> None:
    with begun(tmp_path / "short", 8, disk=ShortDisk(most)) as run:
        work(run)
    with begun(tmp_path / "plain", 8) as run:
        work(run)
    assert answers(tmp_path / "short") == answers(tmp_path / "plain")
