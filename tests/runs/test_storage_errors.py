"""Whatever call fails, and however: the command ends with that error, and nothing that counted is lost."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import suppress
from pathlib import Path

import pytest

from faulty_disk import FailingDisk, QuickDisk
from null_run import IDENTITY, answers, begun, items, outcome, work
from qvl.errors import InputError, StorageError
from qvl.runs.disk import Disk
from qvl.runs.record import Outcome, Review
from qvl.runs.run import Run
from qvl.runs.whole import write_whole

COUNT = 12
CODES = [errno.ENOSPC, errno.EIO, errno.EROFS]
CALLS = ["open", "write", "fsync", "truncate", "replace", "make_folder", "sync_folder"]


def session(folder: Path, disk: Disk, told: list[int]) -> None:
    def note(one: Outcome) -> None:
        told.append(one.ordinal)

    with begun(folder, COUNT, acknowledged=note, disk=disk) as run:
        for ordinal, item in list(run.pending()):
            run.begin([ordinal])
            run.record(outcome(ordinal, attempt=run.attempts(ordinal) + 1))
            if ordinal % 3 == 2:
                run.flush()
            if ordinal % 5 == 0:
                run.review([Review(id=item.id, state="approved")])


def calls_of_a_calm_run(folder: Path) -> dict[str, int]:
    disk = FailingDisk("none", 0, 0)
    session(folder, disk, [])
    return {call: [name for name, _ in disk.calls].count(call) for call in CALLS}


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_every_call_fails_in_turn(tmp_path: Path, code: int, persistent: bool) -> None:
    expected = None
    for call, times in calls_of_a_calm_run(tmp_path / "calm").items():
        for at in range(1, times + 1):
            folder, told, repeated = tmp_path / f"{call}-{at}", [], []
            disk = FailingDisk(call, at, code, persistent=persistent)
            failed = None
            try:
                session(folder, disk, told)
            except StorageError as err:
                failed = err
            assert disk.has_failed
            if failed:  # an index that cannot be written is no harm
                assert failed.exit_code == 6
                assert os.strerror(code) in failed.message
                assert folder.name in failed.message
            assert not disk.synced_after, "a file was synced again after that had failed"
            session(folder, QuickDisk(), repeated)
            assert not set(told) & set(repeated), f"{call} {at}: done again although it counted"
            expected = expected or [f.outcome for f in answers(tmp_path / "calm")]
            assert [f.outcome for f in answers(folder)] == expected, f"{call} {at}"


def test_after_a_failed_fsync_the_next_process_begins_a_new_file(tmp_path: Path) -> None:
    sealed = 0
    for at in range(1, 1 + calls_of_a_calm_run(tmp_path / "calm")["fsync"]):
        folder = tmp_path / str(at)
        with suppress(StorageError):
            session(folder, FailingDisk("fsync", at, errno.EIO), [])
        is_sealed = (folder / "results-000001.sum").exists()
        session(folder, QuickDisk(), [])
        assert (folder / "results-000002.jsonl").exists() == is_sealed
        assert Run.read(folder).counts().done == COUNT
        sealed += is_sealed
    assert sealed


def test_an_error_is_raised_to_who_records_next(tmp_path: Path) -> None:
    run = Run.create(
        tmp_path / "run", IDENTITY, items(3), disk=FailingDisk("write", 5, errno.ENOSPC)
    )
    run.record(outcome(0))
    with pytest.raises(StorageError, match="No space left"):
        run.flush()
    with pytest.raises(StorageError, match="No space left"):
        run.record(outcome(1))
    with pytest.raises(StorageError, match="No space left"):
        run.close()
    with Run.open(tmp_path / "run") as again:  # the lock is free all the same
        assert again.counts().pending == 3


def test_events_that_failed_are_not_written_again(tmp_path: Path) -> None:
    disk = FailingDisk("fsync", 10**9, errno.EIO)
    run = begun(tmp_path / "run", 3, disk=disk)
    work(run)
    run.flush()
    disk.fail_next()
    for end in (lambda: run.requeue([1]), run.close):
        with pytest.raises(StorageError, match="events"):
            end()
    assert not disk.synced_after
    with begun(tmp_path / "run", 3) as run:
        assert (run.counts().done, run.counts().pending) == (3, 0)


def test_a_limit_on_the_size_of_files_ends_in_a_whole_store(tmp_path: Path) -> None:
    told = []
    run = Run.create(
        tmp_path / "run", IDENTITY, items(400), acknowledged=lambda one: told.append(one.ordinal)
    )

    def work_and_flush() -> None:
        work(run, most=5)
        run.flush()
        work(run)
        run.flush()

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(StorageError, match="File too large"):
            work_and_flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(StorageError):
        run.close()
    assert 0 < len(told) < 400
    assert Run.read(tmp_path / "run").counts().done == len(told)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_only_can_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o555)
    with pytest.raises(StorageError, match="home"):
        begun(tmp_path / "home" / "run", 3)


def test_a_failed_review_is_not_the_last_word(tmp_path: Path) -> None:
    begun(tmp_path / "run", 3).close()
    run = Run.read(tmp_path / "run")
    run._reviews._disk = FailingDisk("fsync", 1, errno.EIO)
    run._reviews._start()
    approved = Review(id="cup-1.jpg", state="approved", at="2026-11-30T00:00:00+00:00")
    with pytest.raises(StorageError):
        run.review([approved])
    run.review([approved])
    assert run.at(1).review == approved == Run.read(tmp_path / "run").at(1).review


def test_a_file_is_old_or_new(tmp_path: Path) -> None:
    for call in ["open", "write", "fsync", "replace", "sync_folder"]:
        write_whole(tmp_path / "export.csv", b"old")
        with pytest.raises(StorageError, match=r"export.csv.*No space left"):
            write_whole(tmp_path / "export.csv", b"new", disk=FailingDisk(call, 1, errno.ENOSPC))
        assert (tmp_path / "export.csv").read_bytes() in (b"old", b"new")
        assert [path.name for path in tmp_path.iterdir()] == ["export.csv"]


def test_items_that_cannot_be_read_leave_no_run(tmp_path: Path) -> None:
    def broken():
        yield from items(3)
        raise InputError("row 4 names no picture")

    with pytest.raises(InputError, match="row 4"):
        Run.create(tmp_path / "run", IDENTITY, broken())
    with begun(tmp_path / "run", 2) as run:
        work(run)
    assert Run.read(tmp_path / "run").counts().done == 2
