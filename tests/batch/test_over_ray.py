"""A run over engines of a local Ray cluster: equal to that of one process, also when one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from qvl import scenes
from qvl.batch.over_ray import engines
from qvl.runs.run import Run

pytest.importorskip("ray")
COUNT = 24


def command(pictures: Path, run: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "qvl", "batch", "run", "describe", str(pictures), "--run", str(run),
            "--seed", "1", "-t", "0.8", "--language", "ru,en", *more]  # fmt: skip


OVER_RAY = ("--ray", "local", "--workers", "2")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        scenes.draw("object", "train", number).pictures[0].save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert subprocess.run(command(pictures, run), check=False).returncode == 3
    return lines(run)


def lines(folder: Path) -> list[str]:
    """What is known of each item, by id; without what depends on what stood beside it, and on the clock."""
    found = []
    with Run.read(folder) as run:
        for one in run.finished():
            assert one.outcome is not None
            out: Any = json.loads(json.dumps(one.outcome.out))
            if "meta" in out:
                del out["meta"]["timings"], out["usage"]["cached_tokens"]
            kept = {"id": one.item.id, "ordinal": one.ordinal, "out": out, "ok": one.outcome.ok}
            found.append(json.dumps({**kept, "attempt": one.outcome.attempt}, sort_keys=True))
    return sorted(found)


def at_work(shards: Path) -> int:
    """The process of an engine that has done a part of a shard."""
    until_s = time.monotonic() + 120
    while time.monotonic() < until_s:
        for results in shards.glob("*/results-000001.jsonl"):
            events = (results.parent / "events-000001.jsonl").read_text("utf-8").splitlines()
            told = [json.loads(line) for line in events]
            if results.stat().st_size and told and told[-1]["event"] == "start":
                return told[-1]["pid"]
        time.sleep(0.01)
    raise AssertionError("no engine has begun")


def test_an_engine_that_is_killed_is_replaced(
    pictures: Path, whole: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    running = subprocess.Popen(command(pictures, run, *OVER_RAY), stderr=subprocess.PIPE, text=True)
    pid = at_work(tmp_path / "run.shards")
    is_ours = psutil.Process(running.pid) in psutil.Process(pid).parents()
    assert is_ours
    os.kill(pid, signal.SIGKILL)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 3, err  # one picture is none
    assert "was lost: another one goes on with it" in err
    assert "48 of 50 done, 2 failed, 0 left" in err
    assert lines(run) == whole
    seen = [json.loads(line)["i"] for path in tmp_path.glob("run.shards/*/results-*.jsonl")
            for line in path.read_text("utf-8").splitlines()]  # fmt: skip
    assert sorted(seen) == list(range(50))  # nothing that was recorded was asked again


@pytest.mark.slow
def test_the_same_command_goes_on_when_all_was_killed(
    pictures: Path, whole: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    running = subprocess.Popen(command(pictures, run, *OVER_RAY), stderr=subprocess.DEVNULL)
    at_work(tmp_path / "run.shards")
    running.kill()
    running.wait()
    other = subprocess.run(
        [*command(pictures, run, *OVER_RAY), "--style", "seo"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (other.returncode, "options.style" in other.stderr) == (7, True), other.stderr
    done = subprocess.run(command(pictures, run, *OVER_RAY), stderr=subprocess.DEVNULL, check=False)
    assert done.returncode == 3
    assert lines(run) == whole


def node(**resources: float) -> dict[str, Any]:
    return {"Alive": True, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "workers", "count", "needs"),
    [
        ([node(CPU=2)], None, 1, {"num_cpus": 2}),
        ([node(CPU=2)], 2, 2, {"num_cpus": 1}),
        ([node(CPU=2)], 5, 5, {"num_cpus": 1}),
        ([node(CPU=16), node(CPU=8), {**node(CPU=4), "Alive": False}], None, 2, {"num_cpus": 8}),
        ([node(CPU=16), node(CPU=8)], 3, 3, {"num_cpus": 4}),
        ([node(CPU=16, GPU=4), node(CPU=8)], None, 4, {"num_gpus": 1, "num_cpus": 1}),
    ],
)
def test_engines_share_the_machines(
    nodes: list[dict[str, Any]], workers: int | None, count: int, needs: dict[str, float]
) -> None:
    assert engines(nodes, workers) == (count, needs)
