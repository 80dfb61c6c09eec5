"""What holds for all tests: random examples are the same in every CI run, and never hurried.

`make parity` prints a table of what the parity tests recorded under "parity".
"""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import TextIO

import pytest
from hypothesis import settings

from command import Ended, Run

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")

# A run in the background of a shell ignores Ctrl-C, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PARITY = ("model", "input", "features differ by", "logits by", "equal greedy tokens", "least lead")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if config.option.markexpr != "parity":
        return
    passed = terminalreporter.stats.get("passed", ())
    rows = [row for r in passed for name, row in r.user_properties if name == "parity"]
    terminalreporter.write_line("")
    for row in (PARITY, ["---"] * len(PARITY), *rows):
        terminalreporter.write_line(f"| {' | '.join(str(cell) for cell in row)} |")


@pytest.fixture
def qvl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command, in this process, in an empty folder, offline, without settings of anybody's."""
    monkeypatch.chdir(tmp_path)
    for name in ("CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*args: str | Path, stdin: bytes | TextIO = b"") -> Ended:
        from qvl.cli.main import main

        monkeypatch.setattr(sys, "argv", ["qvl", *map(str, args)])
        source = io.TextIOWrapper(io.BytesIO(stdin)) if isinstance(stdin, bytes) else stdin
        monkeypatch.setattr(sys, "stdin", source)
        capsys.readouterr()
        try:
            code = main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        told = capsys.readouterr()
        assert "Traceback" not in told.err or "--debug" in args
        return Ended(code, told.out, told.err)

    return run
