"""A run that is kept in an object store, a real S3 server on this machine: killed, moved, gone on with."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from null_run import IDENTITY, answers, begun, items, work
from qvl import scenes
from qvl.batch import mirror, object_store
from qvl.batch.mirror import Mirror, mirrored
from qvl.errors import RunChangedError, StorageError, StoreCorruptError
from qvl.runs.run import Run
from s3 import environment, put, serving_s3
from served import until

pytest.importorskip("obstore")
pytest.importorskip("moto")
COUNT = 40


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving_s3() as address:
        put(address, "", b"")
        for number in range(16):
            file = io.BytesIO()
            scenes.draw("object", "train", number).pictures[0].save(file, "PNG")
            put(address, f"/shop/{number:02}.png", file.getvalue())
        yield address


@pytest.fixture
def where(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A prefix that is empty."""
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    object_store._store.cache_clear()
    yield f"s3://pictures/runs/{tmp_path.name}"
    object_store._store.cache_clear()


def half(folder: Path, where: str | None, most: int | None = None) -> None:
    with mirrored(folder, where), begun(folder, COUNT) as run:
        work(run, most=most)


def test_what_was_done_elsewhere_is_not_done_again(where: str, tmp_path: Path) -> None:
    half(tmp_path / "a", where, 15)
    with mirrored(tmp_path / "b", where):
        with Run.read(tmp_path / "b") as run:
            assert (run.counts().done, run.counts().pending) == (15, COUNT - 15)
        with Run.open(tmp_path / "b", IDENTITY, items(COUNT)) as run:
            work(run)
    with begun(tmp_path / "whole", COUNT) as run:
        work(run)
    Mirror(tmp_path / "c", where).fetch()
    assert answers(tmp_path / "b") == answers(tmp_path / "c") == answers(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as small:  # in the first place, the rest is brought
        small.setattr(mirror, "PART_BYTES", 1000)
        with mirrored(tmp_path / "a", where):
            assert answers(tmp_path / "a") == answers(tmp_path / "whole")


def test_parts_are_whole_lines_of_any_length(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "PART_BYTES", 700)
    half(tmp_path / "a", where)
    kept = object_store.sizes_below(where)
    parts = [name for name in kept if name.startswith("results-000001.jsonl/")]
    assert len(parts) > COUNT / 2
    assert all(object_store.read(f"{where}/{name}", 10**6).endswith(b"\n") for name in parts)
    with (tmp_path / "a" / "results-000001.jsonl").open("ab") as file:
        file.write(b'{"v":1,"b":99')  # a line that is being written
    Mirror(tmp_path / "a", where).fetch()
    monkeypatch.setattr(mirror, "PART_BYTES", 8 << 20)
    again = Mirror(tmp_path / "a", where)
    again.fetch()
    again.send()
    assert object_store.sizes_below(where) == kept
    Mirror(tmp_path / "b", where).fetch()
    assert answers(tmp_path / "b") == answers(tmp_path / "a")


def test_of_two_that_go_on_the_one_that_came_later_has_the_run(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half(tmp_path / "a", where, 10)
    monkeypatch.setattr(mirror, "EVERY_S", 0.05)

    def go_on() -> None:
        with mirrored(tmp_path / "a", where) as early, Run.open(tmp_path / "a") as run:
            assert early is not None
            until(lambda: early._has_run)
            with mirrored(tmp_path / "b", where) as later, begun(tmp_path / "b", COUNT) as other:
                assert later is not None
                until(lambda: later._has_run)
                work(run, most=5)  # while the other has done nothing yet
                run.flush()
                until(lambda: early.error is not None)
                work(other, most=7)

    with pytest.raises(RunChangedError, match="another process has gone on"):
        go_on()
    with pytest.raises(RunChangedError, match="is another than in"):
        Mirror(tmp_path / "a", where).fetch()
    half(tmp_path / "b", where, 2)
    Mirror(tmp_path / "c", where).fetch()
    assert answers(tmp_path / "c") == answers(tmp_path / "b")
    with Run.read(tmp_path / "c") as run:
        assert run.counts().done == 19


def test_a_part_whose_answer_was_lost_is_ours(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with begun(tmp_path / "a", COUNT) as run:
        work(run, most=9)
    sends = Mirror(tmp_path / "a", where)
    put_new = object_store.put_new

    def lost(at: str, data: bytes) -> bool:
        put_new(at, data)
        raise StorageError("the connection broke")

    monkeypatch.setattr(object_store, "put_new", lost)
    for _ in range(4):
        with pytest.raises(StorageError):
            sends.send()
    monkeypatch.setattr(object_store, "put_new", put_new)
    with begun(tmp_path / "a", COUNT) as run:  # the parts would be other ones now
        work(run)
    sends.send()
    Mirror(tmp_path / "b", where).fetch()
    assert answers(tmp_path / "b") == answers(tmp_path / "a")


def test_another_run_and_a_lost_part_are_told(where: str, tmp_path: Path) -> None:
    half(tmp_path / "a", where)
    with begun(tmp_path / "b", 3):
        pass
    with pytest.raises(RunChangedError, match="is another than the one in"):
        half(tmp_path / "b", where)
    store = object_store._obstore()
    bucket, key = object_store._taken_apart(f"{where}/items.jsonl/000000000000000")
    store.delete(object_store._store(bucket), key)
    object_store.put_new(f"{where}/items.jsonl/000000000000007", b"\n")
    with pytest.raises(StoreCorruptError, match=r"a part of items\.jsonl is missing"):
        Mirror(tmp_path / "c", where).fetch()


def test_a_store_that_cannot_be_written_loses_nothing_here(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_it() -> None:
        with mirrored(tmp_path / "a", where):
            half(tmp_path / "a", None)
            monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
            monkeypatch.setattr(object_store, "RETRIES", {"max_retries": 0})
            object_store._store.cache_clear()

    with pytest.raises(StorageError, match="not all of run 'a' is in"):
        lose_it()
    assert len(answers(tmp_path / "a")) == COUNT


OFTEN = """
import sys
from qvl.batch import mirror
from qvl.cli.main import main
mirror.EVERY_S = 0.2
sys.exit(main())
"""


def start(run: Path, where: str, *more: str) -> subprocess.Popen[bytes]:
    """A run that is sent to the store often; the engines of a cluster have their own pace."""
    command = [sys.executable, "-c", OFTEN, "batch", "run", "describe", "s3://pictures/shop/", "--run",
               str(run), "--to", where, "--seed", "1", "-t", "0.8", "--language", "ru,en", *more]  # fmt: skip
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def told_of(folder: Path) -> dict[str, Any]:
    with Run.read(folder) as run:
        rows = {one.item.id: dict(one.outcome.out) for one in run.finished() if one.outcome}
    for row in rows.values():
        row["meta"] = {k: v for k, v in row["meta"].items() if k != "timings"}
        row["usage"] = {k: v for k, v in row["usage"].items() if k != "cached_tokens"}
    return rows


def test_killed_and_gone_on_with_on_another_machine(where: str, tmp_path: Path) -> None:
    """Pictures and results lie in the store alone: what was a machine is a folder here."""
    assert start(tmp_path / "whole", f"{where}-whole").wait() == 0
    before = 0
    for number in range(2):
        folder = tmp_path / f"machine-{number}"
        running = start(folder, where)
        until_s = time.monotonic() + 60
        while time.monotonic() < until_s and running.poll() is None:
            kept = object_store.sizes_below(where)
            sent = sum(kept[name] for name in kept if name.startswith("results-"))
            if sent > before:
                before = sent
                break
            time.sleep(0.02)
        running.kill()
        running.wait()
        shutil.rmtree(folder)
    assert before
    last = tmp_path / "last"
    assert start(last, where).wait() == 0
    assert json.dumps(told_of(last)) == json.dumps(told_of(tmp_path / "whole"))
    lines = (last / "results-000001.jsonl").read_text("utf-8").splitlines()
    assert sorted(json.loads(line)["i"] for line in lines) == list(range(32))


@pytest.mark.slow
def test_shards_in_the_store_make_the_same_run(where: str, tmp_path: Path) -> None:
    """Engines that share no folder, one of them killed: another brings its shard from the store."""
    pytest.importorskip("ray")
    assert start(tmp_path / "whole", f"{where}-whole").wait() == 0
    running = start(tmp_path / "run", where, "--ray", "local", "--workers", "2")
    until_s = time.monotonic() + 120
    while time.monotonic() < until_s:
        kept = object_store.sizes_below(where)
        results = [name for name in kept if "/results-" in name]
        if results:
            shard = results[0].partition("/")[0]
            events = [name for name in kept if name.startswith(f"{shard}/events-")]
            told = b"".join(object_store.read(f"{where}/{name}", 10**6) for name in sorted(events))
            pids = [json.loads(line)["pid"] for line in told.splitlines() if b'"pid"' in line]
            os.kill(pids[-1], signal.SIGKILL)
            break
        time.sleep(0.02)
    assert running.wait() == 0
    assert json.dumps(told_of(tmp_path / "run")) == json.dumps(told_of(tmp_path / "whole"))
    assert "run.json" in object_store.sizes_below(where)
