"""Shards that are made together are those that are made one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from null_run import IDENTITY, answers, begun, item, items, work
from qvl.errors import InputError, InvalidParamError
from qvl.runs.items import INDEX, ITEMS, Shard
from qvl.runs.merge import merge
from qvl.runs.run import Run
from qvl.runs.split import shard_folders, split

COUNT = 20


@pytest.mark.parametrize("of", [1, 3, 25])
def test_each_shard_is_the_one_that_is_made_alone(tmp_path: Path, of: int) -> None:
    folders = split(tmp_path / "shards", of, IDENTITY, items(COUNT))
    assert folders == shard_folders(tmp_path / "shards")
    for number, folder in enumerate(folders, start=1):
        with begun(tmp_path / f"alone-{number}", COUNT, shard=Shard(number, of)) as alone:
            pass
        with Run.open(folder, IDENTITY, items(COUNT)) as run:
            assert (run.shard, run.identity.manifest) == (alone.shard, alone.identity.manifest)
            work(run)
        for name in (ITEMS, INDEX):
            assert (folder / name).read_bytes() == (alone.folder / name).read_bytes()
    merge(tmp_path / "merged", folders)
    with begun(tmp_path / "whole", COUNT) as run:
        work(run)
    assert answers(tmp_path / "merged") == answers(tmp_path / "whole")


def test_shards_are_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "shards"
    with pytest.raises(InputError, match="items 1 and 2 of the inputs have the same id"):
        split(target, 2, IDENTITY, [item(1), item(1)])
    assert not target.exists()
    assert len(split(target, 2, IDENTITY, items(COUNT))) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
    with pytest.raises(InputError, match="exists already"):
        split(target, 2, IDENTITY, items(COUNT))
    with pytest.raises(InvalidParamError, match="257 shards"):
        split(tmp_path / "many", 257, IDENTITY, items(COUNT))
