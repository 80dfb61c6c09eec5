"""The program's own messages: on stderr, one line each, coloured only for a terminal that wants it."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from qvl.log import StderrHandler, set_up_logging, wants_colour


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    logger = logging.getLogger("qvl")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


def test_a_warning_goes_to_stderr_and_nothing_to_stdout(capsys: pytest.CaptureFixture[str]):
    set_up_logging()
    logging.getLogger("qvl.loading").warning("%d shards", 3)
    logging.getLogger("qvl.loading").info("not at this level")
    assert capsys.readouterr() == ("", "warning: 3 shards\n")


@pytest.mark.parametrize(
    ("verbosity", "shown"),
    [(-1, ["error"]), (0, ["error", "warning"]), (2, ["error", "warning", "info", "debug"])],
)
def test_verbosity_chooses_the_levels(
    verbosity: int, shown: list[str], capsys: pytest.CaptureFixture[str]
):
    set_up_logging(verbosity)
    for level in ("error", "warning", "info", "debug"):
        getattr(logging.getLogger("qvl"), level)("x")
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == shown


def test_setting_up_twice_writes_each_message_once(capsys: pytest.CaptureFixture[str]):
    set_up_logging()
    set_up_logging(1)
    logging.getLogger("qvl").info("once")
    assert capsys.readouterr().err == "info: once\n"
    assert sum(isinstance(h, StderrHandler) for h in logging.getLogger("qvl").handlers) == 1


def test_colour_is_for_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert wants_colour(Terminal())
    assert not wants_colour(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_colour(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(Terminal())


def test_a_coloured_level_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    set_up_logging()
    logging.getLogger("qvl").error("no room")
    assert terminal.getvalue() == "\x1b[31merror\x1b[0m: no room\n"
