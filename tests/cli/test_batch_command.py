"""`qvl batch`: thousands of pictures through a task, out of tables and into them."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from command import Run
from qvl import scenes
from qvl.runs.record import Review
from qvl.runs.run import Run as Store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    for number in range(4):
        path = folder / "ab"[number % 2] / f"{number // 2}.png"
        scenes.draw("object", "train", number).pictures[0].save(path)
    (folder / "goods.csv").write_text(
        "sku;название;фото;prompt\n"
        "A1;Чашка;a/0.png;Что на {картинке}?\n"
        "A2;=1+1;b/0.png;\n"
        "A3;Нет;nowhere.png;\n",
        "cp1251",
    )
    return folder


def rows(out: Path) -> list[dict[str, str]]:
    with out.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_in_two_languages(qvl: Run, folder: Path, tmp_path: Path) -> None:
    ended = qvl("batch", "run", "describe", folder / "a", folder / "b", "--run", "cups",
                "--language", "ru,en")  # fmt: skip
    assert (ended.code, ended.out) == (0, "")
    assert "8 of 8 done, 0 failed, 0 left" in ended.err
    assert qvl("batch", "export", "cups", "out.csv").code == 0
    found = rows(tmp_path / "out.csv")
    ids = [f"{name}.{language}" for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png")
           for language in ("ru", "en")]  # fmt: skip
    assert [row["qvl_id"] for row in found] == ids
    begin = {"ru": "На картинке", "en": "The picture"}
    assert all(row["qvl_text"].startswith(begin[row["qvl_language"]]) for row in found)
    status = json.loads(qvl("batch", "status", "--json").out)
    assert (status["state"], status["counts"]["done"]) == ("done", 8)


def test_the_same_command_goes_on_and_another_is_refused(qvl: Run, folder: Path) -> None:
    begin = ("batch", "run", "describe", folder / "a", "--run", "cups")
    assert qvl(*begin).code == 0
    again = qvl(*begin)
    assert (again.code, "nothing is left to do" in again.err) == (0, True)
    ended = qvl(*begin, "--style", "seo", "--seed", "5")
    assert ended.code == 7
    assert "options.style" in ended.err
    assert "seed" in ended.err
    ended = qvl(*begin[:3], folder / "b", *begin[4:])
    assert (ended.code, "item 1 of the inputs" in ended.err) == (7, True)


def test_a_folder_that_grew(qvl: Run, folder: Path, tmp_path: Path) -> None:
    """Answers are taken over, with what a person made of them; what is new is asked."""
    few = tmp_path / "few"
    shutil.copytree(folder / "a", few)
    assert qvl("batch", "run", "describe", few, "--run", "old", "--seed", "3").code == 0
    with Store.read(tmp_path / "data" / "qvl" / "runs" / "old") as run:
        run.review([Review(id="0.png", state="approved")])
    shutil.copy(folder / "b" / "0.png", few / "9.png")
    begin = ("batch", "run", "describe", few, "--run", "new", "--fork", "old")
    ended = qvl(*begin, "--seed", "3")
    assert (ended.code, "2 answers are those of old" in ended.err) == (0, True)
    with Store.read(tmp_path / "data" / "qvl" / "runs" / "new") as run:
        counts = run.counts()
    assert (counts.done, dict(counts.reviews)) == (3, {"approved": 1})
    ended = qvl(*begin[:5], "other", *begin[6:], "--seed", "4")
    assert "0 answers are those of old" in ended.err


def test_a_shops_table(qvl: Run, folder: Path, tmp_path: Path) -> None:
    ended = qvl("batch", "run", "ask", folder / "goods.csv", "--run", "goods", "--language", "ru",
                "--prompt", "Что такое {название}?", "--ids", "sku")  # fmt: skip
    assert ended.code == 3
    assert "2 of 3 done, 1 failed" in ended.err
    assert qvl("batch", "export", "goods", "out.jsonl").code == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [row["id"] for row in found] == ["A1", "A2", "A3"]
    assert [row.get("question") for row in found[:2]] == ["Что на {картинке}?", "Что такое =1+1?"]
    assert found[2]["error"]["code"] == "input_not_found"
    assert qvl("batch", "retry", "goods", "--where", "error=input_not_found").code == 0
    assert qvl("batch", "status", "goods").out.startswith("goods: interrupted; 2 of 3 done")
    assert qvl("batch", "resume", "goods").code == 3


def test_a_plan_tells_what_is_wrong_and_how_long_it_takes(qvl: Run, folder: Path) -> None:
    ended = qvl("batch", "plan", "ask", folder / "goods.csv", "--prompt", "Was ist {sku}?")
    assert ended.code == 3
    assert "2 items of 2 rows" in ended.out
    assert "nowhere.png" in ended.err
    assert "Was ist A2?" in ended.out
    assert "about" in ended.out
    ended = qvl("batch", "plan", "ask", folder / "goods.csv", "--prompt", "Was ist {titel}?")
    assert ended.code == 3
    assert "no column 'titel'" in ended.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("run", "describe", "empty", "--run", "a"), 4, "holds no pictures"),
        (("run", "describe", "nowhere", "--run", "a"), 3, "does not exist"),
        (("run", "describe", "none.csv", "--run", "a"), 0, "hold no items"),
        (("run", "describe", "empty", "--shard", "3/2"), 2, "shard"),
        (("run", "ask", "empty", "-p", "a", "-p", "b"), 2, "several"),
        (("run", "describe", "empty", "--profile", "ozn"), 2, "ozon"),
        (("status", "nothing"), 4, "there is no run"),
        (("resume", "nothing"), 4, "there is no run"),
        (("export", "nothing", "a.csv"), 4, "there is no run"),
        (("export", "nothing", "a.doc"), 2, "no format"),
        (("retry", "nothing", "--where", "x"), 2, "no filter"),
    ],
)
def test_bad_words(qvl: Run, tmp_path: Path, words: tuple[str, ...], code: int, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.csv").write_text("image\n")
    ended = qvl("batch", *words)
    assert (ended.code, said in ended.err) == (code, True), ended.err
    if code != 3:
        assert not (tmp_path / "data").exists()


def start(folder: Path, where: Path, *, telling: bool = False) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "qvl", "batch", "run", "describe", str(folder / "a"),
               str(folder / "b"), "--language", "ru,en,zh", "--run", str(where), "--seed", "1",
               "-t", "0.8"]  # fmt: skip
    return subprocess.Popen(command, stderr=subprocess.PIPE if telling else subprocess.DEVNULL)


def told(where: Path) -> list[Any]:
    with Store.read(where) as run:
        return [
            (one.item.id, one.outcome.ok, one.outcome.out["text"])
            for one in run.finished()
            if one.outcome
        ]


def test_killed_and_resumed_is_never_killed(folder: Path, tmp_path: Path) -> None:
    chance = random.Random(11)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(folder, whole).wait() == 0
    for _ in range(3):
        running = start(folder, killed)
        until_s = time.monotonic() + 60
        results = killed / "results-000001.jsonl"
        size = results.stat().st_size if results.exists() else 0
        while time.monotonic() < until_s and running.poll() is None:
            if results.exists() and results.stat().st_size > size:
                break
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.05))
        running.kill()
        running.wait()
    assert start(folder, killed).wait() == 0
    assert told(killed) == told(whole)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_keeps_what_is_done(
    folder: Path, tmp_path: Path, stop: signal.Signals, times: int
) -> None:
    running = start(folder, tmp_path / "run", telling=True)
    until_answers(tmp_path / "run", running)
    for _ in range(times):
        os.kill(running.pid, stop)
    _, err = running.communicate()
    with Store.read(tmp_path / "run") as run:
        counts = run.counts()
    assert counts.done > 0
    if counts.pending:  # else it was at its end already
        assert b"Traceback" not in err
        assert (running.returncode, b"qvl batch resume" in err) == (128 + stop, True)
    assert start(folder, tmp_path / "run").wait() == 0


def until_answers(run: Path, running: subprocess.Popen[bytes]) -> None:
    results = run / "results-000001.jsonl"
    while not (results.exists() and results.stat().st_size) and running.poll() is None:
        time.sleep(0.005)


def test_a_run_that_sleeps_fails_nothing(folder: Path, tmp_path: Path) -> None:
    """As a laptop does, B040."""
    running = start(folder, tmp_path / "run")
    until_answers(tmp_path / "run", running)
    running.send_signal(signal.SIGSTOP)
    time.sleep(3)
    running.send_signal(signal.SIGCONT)
    assert running.wait() == 0


def test_a_file_that_is_there_is_replaced_on_request_alone(
    qvl: Run, folder: Path, tmp_path: Path
) -> None:
    assert qvl("batch", "run", "describe", folder / "a", "--run", "cups").code == 0
    (tmp_path / "out.csv").write_text("mine")
    ended = qvl("batch", "export", "cups", "out.csv")
    assert (ended.code, "exists already" in ended.err) == (4, True)
    assert (tmp_path / "out.csv").read_text() == "mine"
    assert qvl("batch", "export", "cups", "out.csv", "--overwrite").code == 0
    assert (tmp_path / "out.csv").read_text("utf-8-sig").startswith("qvl_id")


@pytest.mark.parametrize("count", ["0", "-1", "10000"])
def test_a_count_of_workers_that_is_none_ends_with_2(qvl: Run, folder: Path, count: str) -> None:
    ended = qvl("batch", "run", "describe", folder / "a", "--ray", "local", "--workers", count)
    assert ended.code == 2
    assert "--workers" in ended.err
