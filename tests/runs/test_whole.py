"""Files are whole or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from qvl.errors import StorageError
from qvl.runs.whole import whole_file, write_whole


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with whole_file(target) as part:
        part.write_bytes(b"one")
        assert part.parent == target.parent
        assert not target.exists()
    assert target.read_bytes() == b"one"
    assert os.listdir(target.parent) == ["a.txt"]


def test_the_old_file_stays_where_the_new_one_fails(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_whole(target, b"old")

    def fail() -> None:
        with whole_file(target) as part:
            part.write_bytes(b"ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_refuses_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    target = tmp_path / "a.txt"
    write_whole(target, b"old")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(f"qvl.runs.whole.os.{call}", refuse)
        with pytest.raises(StorageError, match=r"a\.txt' cannot be written: "):
            write_whole(target, b"new")
    assert target.read_bytes() == b"old"
    write_whole(target, b"new")
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_a_killed_program_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.part").write_bytes(b"half of a longer file")
    write_whole(tmp_path / "a.txt", b"new")
    assert (tmp_path / "a.txt").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_two_programs_do_not_write_one_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with whole_file(target) as part:
        part.write_bytes(b"first")
        with pytest.raises(StorageError, match="being written by another program"):
            write_whole(target, b"second")
    assert target.read_bytes() == b"first"
