"""Shards of a run, done apart, make one run that is equal to one that was never split."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from faulty_disk import QuickDisk
from null_run import IDENTITY, answers, begun, item, items, outcome, work
from qvl.errors import InputError, InvalidParamError, RunChangedError, RunLockedError
from qvl.runs.items import Shard
from qvl.runs.merge import merge
from qvl.runs.record import Review
from qvl.runs.run import Run

COUNT = 20


def shards(tmp_path: Path, of: int, *, count: int = COUNT) -> list[Path]:
    folders = []
    for number in range(1, of + 1):
        folders.append(tmp_path / f"shard-{number}")
        with begun(folders[-1], count, shard=Shard(number, of), disk=QuickDisk()) as run:
            work(run)
    return folders


@pytest.mark.parametrize("of", [1, 2, 3, 7, 25])
def test_merged_shards_are_the_whole_run(tmp_path: Path, of: int) -> None:
    with begun(tmp_path / "whole", COUNT) as run:
        work(run)
        run.review([Review(id="cup-11.jpg", state="approved", at="now")])
    folders = shards(tmp_path, of)
    assert sum(len(Run.read(folder)) for folder in folders) == COUNT
    run = next(run for run in map(Run.read, folders) if run.find("cup-11.jpg") is not None)
    run.review([Review(id="cup-11.jpg", state="approved", at="now")])
    merge(tmp_path / "merged", folders[::-1], disk=QuickDisk())
    assert answers(tmp_path / "merged") == answers(tmp_path / "whole")
    one, other = (Run.read(tmp_path / name) for name in ("merged", "whole"))
    assert one.identity.manifest == other.identity.manifest
    assert one.counts() == other.counts()
    Run.open(tmp_path / "merged", IDENTITY, items(COUNT)).close()


def test_a_shard_is_the_unit_of_resume(tmp_path: Path) -> None:
    with begun(tmp_path / "a", COUNT, shard=Shard(2, 3)) as run:
        assert [ordinal for ordinal, _ in run.pending()] == [1, 4, 7, 10, 13, 16, 19]
        work(run, most=3)
        with pytest.raises(InvalidParamError, match="item 5 is none of shard 2/3"):
            run.record(outcome(5))
    with Run.open(tmp_path / "a", IDENTITY, items(COUNT)) as run:
        assert next(run.pending()) == (10, item(10))
        assert run.find("cup-10.jpg") == 10
        assert run.find("cup-11.jpg") is None
    changed = [item(100) if one.id == "cup-0.jpg" else one for one in items(COUNT)]
    with pytest.raises(RunChangedError, match="other shards"):
        Run.open(tmp_path / "a", IDENTITY, changed)


def test_what_is_not_one_whole_run_is_not_merged(tmp_path: Path) -> None:
    first, second, third = shards(tmp_path, 3)
    target = tmp_path / "merged"
    with pytest.raises(InputError, match="shards are missing: 2/3"):
        merge(target, [first, third])
    with pytest.raises(InputError, match="the same shard 1"):
        merge(target, [first, second, third, first])
    with pytest.raises(InputError, match="no shards"):
        merge(target, [])
    with Run.open(second) as run:
        with pytest.raises(RunLockedError, match="shard-2"):
            merge(target, [first, second, third])
        run.requeue([4])
    with pytest.raises(InputError, match=r"shard-2' has 1 items pending"):
        merge(target, [first, second, third])
    Run.create(tmp_path / "b", {**IDENTITY, "task": "ask"}, items(COUNT), shard=Shard(2, 3)).close()
    with pytest.raises(RunChangedError, match='task: "describe" -> "ask"'):
        merge(target, [first, tmp_path / "b", third])
    Run.create(tmp_path / "c", IDENTITY, items(COUNT + 1), shard=Shard(2, 3)).close()
    with pytest.raises(RunChangedError, match="other inputs"):
        merge(target, [first, tmp_path / "c", third])
    target.mkdir()
    with Run.open(second) as run:
        work(run)
    with pytest.raises(InputError, match="exists already"):
        merge(target, [first, second, third])
    assert list(target.iterdir()) == []


def test_a_merge_that_was_killed_is_done_again(tmp_path: Path) -> None:
    folders = shards(tmp_path, 2)
    child = os.fork()
    if not child:
        Run.record = lambda run, one: os._exit(9) if one.ordinal == 7 else None  # type: ignore
        merge(tmp_path / "merged", folders)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not (tmp_path / "merged").exists()
    merge(tmp_path / "merged", folders)
    assert Run.read(tmp_path / "merged").counts().done == COUNT
    assert not (tmp_path / "merged.part").exists()


@pytest.mark.parametrize(
    "text", ["3/2", "0/0", "a/b", "0/2", "-1/2", "1", "1/", "/2", "", "1/2/3", "١/٢"]
)
def test_a_shard_that_is_none_ends_with_2(text: str) -> None:
    with pytest.raises(InvalidParamError, match="shard") as caught:
        Shard.parse(text)
    assert caught.value.exit_code == 2


def test_a_shard_is_read_from_text() -> None:
    assert Shard.parse("2/3") == Shard(2, 3)
