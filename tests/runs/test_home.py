"""A list of runs says of each how it is doing."""

from __future__ import annotations

from pathlib import Path

import pytest

from null_run import begun, outcome, work
from qvl.errors import InvalidParamError
from qvl.runs.home import folder_of, look, runs
from qvl.runs.run import Run


def test_each_run_is_listed_with_its_state(tmp_path: Path) -> None:
    with begun(tmp_path / "done", 3) as run:
        work(run)
    with begun(tmp_path / "failed", 3) as run:
        work(run, most=2)
        run.record(outcome(2, ok=False))
    with begun(tmp_path / "interrupted", 3) as run:
        work(run, most=1)
    begun(tmp_path / "broken", 3).close()
    (tmp_path / "broken" / "run.json").write_text("{}")
    (tmp_path / "no run").mkdir()
    (tmp_path / "file").touch()
    with begun(tmp_path / "running", 3) as run:
        work(run, most=1)
        run.flush()
        found = {known.folder.name: known for known in runs(tmp_path)}
    assert {name: known.state for name, known in found.items()} == {
        name: name for name in ("broken", "done", "failed", "interrupted", "running")
    }
    for name in ("done", "failed", "interrupted"):
        assert found[name].counts == Run.read(tmp_path / name).counts()
    assert found["running"].counts is not None
    assert found["running"].counts.done == 1
    assert "is not as it was written" in found["broken"].error
    assert list(runs(tmp_path / "nowhere")) == []


def test_a_run_that_was_killed_is_counted_anew(tmp_path: Path) -> None:
    with begun(tmp_path / "a", 3) as run:
        work(run, most=1)
    run = begun(tmp_path / "a", 3)
    work(run, most=1)
    run.flush()
    run._held.pop_all()  # its process is gone: no stop was written
    run._held.close()
    counts = look(tmp_path / "a").counts
    assert counts is not None
    assert counts.done == 2


def test_a_name_is_one_of_the_home_and_a_path_is_itself(tmp_path: Path) -> None:
    assert folder_of("cups", tmp_path) == tmp_path / "cups"
    assert folder_of("./cups", tmp_path) == Path("cups")
    assert folder_of("/data/cups", tmp_path) == Path("/data/cups")
    for name in ("", ".", "..", ".hidden", "a\nb", "a\0b"):
        with pytest.raises(InvalidParamError):
            folder_of(name, tmp_path)
