"""`qvl video` of a live stream: a row for each window, and an end by Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

import clips
from camera import camera
from command import Run

FILM = clips.steady(100, 10, container="mpegts", options={"crf": "20"})  # ten seconds


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with camera(FILM) as port:
        yield f"rtsp://user:secret@127.0.0.1:{port}/live"


def test_each_window_is_a_row_named_by_when_it_ends(qvl: Run, address: str) -> None:
    ended = qvl("video", address, "--window", "4", "--fps", "1", "--json", "-n", "4")
    assert ended.code == 0
    rows = [json.loads(line) for line in ended.out.splitlines()]
    assert "secret" not in ended.out + ended.err
    # the stand-in does not wait, so some of it may have been left out
    ends_s = [float(row["id"].split(" up to ")[1].removesuffix(" s")) for row in rows]
    assert ends_s == sorted(set(ends_s))
    assert ends_s[-1] == 9
    assert {len(row["meta"]["videos"][0]["frame_times_s"]) for row in rows} == {4}


@pytest.mark.parametrize(
    "args",
    [
        ("video", "ADDRESS", "clip.mp4"),
        ("describe", "ADDRESS"),
        ("video", "ADDRESS", "--start", "3"),
        ("video", "ADDRESS", "--frames", "3"),
        ("video", "ADDRESS", "--html", "page.html"),
        ("video", "ADDRESS", "--format", "html"),
        ("video", "ADDRESS", "--window", "0.1"),
        ("video", "ADDRESS", "--window", "1000"),
        ("video", "clip.mp4", "--window", "3"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_live_is_refused_at_once(
    qvl: Run, address: str, args: tuple[str, ...]
) -> None:
    assert qvl(*[address if arg == "ADDRESS" else arg for arg in args]).code == 2


def test_ctrl_c_ends_it_and_what_was_said_stays() -> None:
    with camera(FILM, hangs=True) as port:
        args = ["video", f"rtsp://127.0.0.1:{port}/", "--window", "4", "--fps", "1", "-n", "4"]
        with subprocess.Popen(
            [sys.executable, "-c", COMMAND, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as going:
            assert going.stdout is not None
            row = going.stdout.readline()
            going.send_signal(signal.SIGINT)
            _, said = going.communicate(timeout=60)
    assert " up to " in row
    assert going.returncode == 130
    assert "stopped, with " in said


# a shell without job control starts background commands with Ctrl-C ignored
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from qvl.cli.main import main
sys.exit(main())
"""
