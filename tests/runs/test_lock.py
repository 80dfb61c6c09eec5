"""One process at a time writes to a run, and whoever comes second is told who has it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from null_run import IDENTITY, begun, items
from qvl.errors import InputError, RunLockedError
from qvl.runs import lock
from qvl.runs.lock import Lock, is_held, network_file_system
from qvl.runs.run import Run


def started(code: str, *args: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


RACES = """
import sys, time
from pathlib import Path
from null_run import IDENTITY, items
from qvl.errors import QvlError
from qvl.runs.run import Run
for line in sys.stdin:
    began = time.monotonic()
    try:
        run = Run.create(Path(line.strip()), IDENTITY, items(5))
    except QvlError as err:
        print(err.exit_code, time.monotonic() - began, err.message, flush=True)
    else:
        print(0, time.monotonic() - began, "won", flush=True)
        sys.stdin.readline()  # hold it until all have tried
        run.close()
"""


def test_of_fifty_races_each_has_one_winner(tmp_path: Path) -> None:
    racers = [started(RACES) for _ in range(2)]
    try:
        for number in range(50):
            told = []
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write(f"{tmp_path / str(number)}\n")
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.flush()
            for racer in racers:
                assert racer.stdout is not None
                code, took_s, *message = racer.stdout.readline().split(maxsplit=2)
                told.append((int(code), float(took_s), message[0], racer))
            codes = sorted(code for code, *_ in told)
            assert codes == [0, 5]
            (winner,) = (racer for code, *_, racer in told if not code)
            for code, took_s, message, _ in told:
                if code:
                    assert took_s < 1
                    assert f"process {winner.pid}" in message
            assert winner.stdin is not None
            winner.stdin.write("go on\n")
            winner.stdin.flush()
    finally:
        for racer in racers:
            racer.communicate()


def test_a_held_run_can_be_read_and_is_running(tmp_path: Path) -> None:
    with begun(tmp_path / "run", 3):
        assert Run.read(tmp_path / "run").is_running()
        with pytest.raises(RunLockedError, match=f"process {os.getpid()}") as caught:
            Run.open(tmp_path / "run")
        assert caught.value.exit_code == 5
    assert not Run.read(tmp_path / "run").is_running()


def test_a_question_does_not_keep_a_writer_out(tmp_path: Path) -> None:
    begun(tmp_path / "run", 3).close()
    asking = os.open(
        tmp_path / "run" / "lock", os.O_RDONLY
    )  # as is_held does, if only for a moment
    fcntl.flock(asking, fcntl.LOCK_EX)
    threading.Timer(0.05, os.close, [asking]).start()
    Run.open(tmp_path / "run").close()


HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from null_run import begun
run = begun(Path(sys.argv[1]), 3)
if sys.argv[2] == "forked":
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
else:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid
print(child, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["forked", "spawned"])
def test_a_child_that_lives_on_does_not_keep_the_lock(tmp_path: Path, how: str) -> None:
    holder = started(HOLDER, tmp_path / "run", how)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(RunLockedError, match=f"process {holder.pid}"):
            Run.open(tmp_path / "run")
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # it is alive
        Run.open(tmp_path / "run").close()
    finally:
        os.kill(child, signal.SIGKILL)
        holder.communicate()


@pytest.fixture
def on_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda rw\n"
        f"35 21 0:40 / {tmp_path}/far\\040away rw shared:2 - nfs4 server:/x rw\n"
    )
    monkeypatch.setattr(lock, "MOUNTS", mounts)
    (tmp_path / "far away").mkdir()
    return tmp_path / "far away"


def test_a_network_file_system_is_told_and_has_a_second_lock(
    on_nfs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert network_file_system(on_nfs / "x") == "nfs4"
    assert network_file_system(tmp_path / "near") is None
    held = Lock(on_nfs / "lock", "run 'a'")
    assert "network file system (nfs4)" in caplog.text
    owner = json.loads((on_nfs / "lock.owner").read_text())
    assert (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid())
    held.close()
    assert not (on_nfs / "lock.owner").exists()


def test_where_flock_keeps_nobody_out_the_second_lock_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_flock", lambda descriptor: False)
    held = Lock(tmp_path / "lock", "run 'a'")
    with pytest.raises(RunLockedError, match=f"process {os.getpid()}") as caught:
        Lock(tmp_path / "lock", "run 'a'")
    assert "lock.owner" in (caught.value.hint or "")
    assert is_held(tmp_path / "lock")
    held.close()
    Lock(tmp_path / "lock", "run 'a'").close()


@pytest.mark.parametrize(
    ("owner", "is_gone"),
    [
        ({"pid": 2**22 + 1}, True),  # above the largest there can be
        ({"pid": os.getpid(), "boot": "an earlier one"}, True),
        ({"pid": os.getpid()}, False),
        ({"pid": 2**22 + 1, "host": "another"}, False),
        (None, False),
    ],
)
def test_a_second_lock_of_who_is_gone_is_taken_over(on_nfs: Path, owner, is_gone: bool) -> None:
    text = "half" if owner is None else json.dumps({**lock._me(), **owner})
    (on_nfs / "lock.owner").write_text(text)
    if is_gone:
        Lock(on_nfs / "lock", "run 'a'").close()
    else:
        with pytest.raises(RunLockedError):
            Lock(on_nfs / "lock", "run 'a'")
        assert (on_nfs / "lock.owner").read_text() == text


def test_a_run_is_not_begun_twice(tmp_path: Path) -> None:
    begun(tmp_path / "run", 3).close()
    with pytest.raises(InputError, match="already") as caught:
        Run.create(tmp_path / "run", IDENTITY, items(3))
    assert caught.value.exit_code == 4
