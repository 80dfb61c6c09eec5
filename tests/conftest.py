"""What holds for all tests: random examples are the same in every CI run, and never hurried.

`make parity` prints a table of what the parity tests recorded under "parity".
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from hypothesis import settings

# under `python -O` only what pytest rewrites asserts: so also the modules that tests share
pytest.register_assert_rewrite(*(file.stem for file in Path(__file__).parent.glob("*.py")))

from command import Ended, Run  # noqa: E402
from telling_nothing import leaks, noted_errors, refuse  # noqa: E402

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


@pytest.fixture(autouse=True)
def errors_tell_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """No error that a test meets, and no line that is logged, names a file of the program's own."""
    with noted_errors(monkeypatch) as words:
        yield
    lines = [
        record.getMessage()
        for record in caplog.get_records("call")
        if record.name.startswith("qvl") and record.levelname != "DEBUG"
    ]
    refuse(leaks("\n".join([*words, *lines])), "an error or the log tells too much")


@pytest.fixture
def qvl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command, in this process, in an empty folder, offline, without settings of anybody's."""
    monkeypatch.chdir(tmp_path)
    for name in ("CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*args: str | Path, stdin: bytes | TextIO = b"") -> Ended:
        from qvl.cli.main import main
        from qvl.settings import SECRET

        monkeypatch.setattr(sys, "argv", ["qvl", *map(str, args)])
        source = io.TextIOWrapper(io.BytesIO(stdin)) if isinstance(stdin, bytes) else stdin
        monkeypatch.setattr(sys, "stdin", source)
        capsys.readouterr()
        try:
            code = main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        told = capsys.readouterr()
        if "--debug" not in args:
            secrets = [value for name, value in os.environ.items() if name in SECRET and value]
            refuse(leaks(told.err, secrets=secrets), "the command tells too much")
        return Ended(code, told.out, told.err)

    return run
