"""`qvl chat` as a person uses it: through a pipe, and at a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from command import Ended, Run
from qvl.chat import history
from qvl.chat.conversation import Conversation, Function
from qvl.cli.chat import Talk, approved
from qvl.errors import DeadlineError, ImageDecodeError
from qvl.log import set_up_logging
from qvl.types import Text, Tool, ToolCall
from scripted import Scripted, completion

ROOT = Path(__file__).parents[2]
PICTURE = sorted((ROOT / "examples" / "pictures").glob("pair*.png"))[0]
FIRST, SECOND = "Describe the picture.", "How many objects are there?"
PATIENCE_S = 60.0


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """An environment with nobody's settings and conversations."""
    for name in ("config", "state"):
        monkeypatch.setenv(f"XDG_{name.upper()}_HOME", str(tmp_path / name))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.chdir(tmp_path)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def chat(qvl: Run, place: dict[str, str]) -> Run:
    """The command in this process, asked through a pipe."""

    def run(questions: str, *args: str | Path) -> Ended:
        return qvl("chat", "-t", "0", *args, stdin=questions.encode())

    return run


def saved(tmp_path: Path) -> list[dict[str, object]]:
    (file,) = (tmp_path / "state" / "qvl" / "chats").iterdir()
    return json.loads(file.read_text("utf-8"))["messages"]


def test_a_pipe_asks_a_line_a_turn_and_can_go_on_later(chat: Run, tmp_path: Path) -> None:
    whole = chat(f"{FIRST}\n\n{SECOND}\nAnd now?", "--image", PICTURE)
    assert whole.code == 0, whole.err
    answers = whole.out.splitlines()
    assert len(answers) == 3
    (tmp_path / "state" / "qvl" / "chats").rename(tmp_path / "other")
    shown = chat(f"/image {PICTURE}\n{FIRST}\n{SECOND}\n")
    continued = chat("And now?\n", "--continue")
    assert [*shown.out.splitlines(), *continued.out.splitlines()] == answers
    assert [message["role"] for message in saved(tmp_path)] == ["user", "assistant"] * 3
    assert ">" not in whole.out


def test_a_pipe_ends_with_its_first_error_and_keeps_what_was_said(
    chat: Run, tmp_path: Path
) -> None:
    ended = chat(f"{FIRST}\n/image gone.png\n{SECOND}\n", "--image", PICTURE)
    assert ended.code == 4
    assert len(ended.out.splitlines()) == 1
    assert "gone.png" in ended.err
    assert len(saved(tmp_path)) == 2


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--continue"], 4, "no conversation to continue"),
        (["--image", "gone.png"], 4, "'gone.png' does not exist"),
        (["--image", "gone.mp4"], 4, "'gone.mp4' does not exist"),
        (["--image", "long" + "-" * 300], 4, "does not exist"),
        (["--tools", "gone.py"], 2, "'gone.py' does not exist"),
        (["--tools", "mcp:no-such-command"], 8, "'no-such-command' does not answer"),
        (["--tools", "mcp:http://example.com/mcp", "--offline"], 4, "no connection"),
        (["--seed", "-1"], 2, "seed"),
    ],
)
def test_a_wrong_flag_says_what_is_right(chat: Run, args: list[str], code: int, says: str) -> None:
    ended = chat(FIRST, *args)
    assert ended.code == code, ended.err
    assert says in ended.err
    assert ended.out == ""


@pytest.mark.parametrize("line", ["/imag a.png", "/image", "/usr/bin is what?"])
def test_an_unknown_command_is_not_a_question(chat: Run, line: str) -> None:
    ended = chat(f"{line}\n")
    assert ended.code == 2
    assert line.split()[0] in ended.err


class Terminal:
    """`qvl chat` with a person in front of it."""

    def __init__(self, env: dict[str, str], *args: str) -> None:
        self.fd, inside = pty.openpty()
        command = [sys.executable, "-m", "qvl", "chat", *args]
        self.process = subprocess.Popen(
            command, stdin=inside, stdout=inside, stderr=inside, env=env, start_new_session=True
        )
        os.close(inside)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, *words: str) -> None:
        """Wait for all words; what came until then is forgotten."""
        until_s = time.monotonic() + PATIENCE_S
        while not all(word in self.seen for word in words):
            self.read(0.2)
            if time.monotonic() > until_s:
                pytest.fail(f"{words} did not come: {self.seen!r}")
        self.seen = self.seen[max(self.seen.index(word) + len(word) for word in words) :]

    def prompted(self) -> None:
        """Wait for a prompt that nothing has followed yet: a Ctrl-D before it would be lost."""
        until_s = time.monotonic() + PATIENCE_S
        while not self.seen.endswith("> "):
            self.read(0.2)
            if time.monotonic() > until_s:
                pytest.fail(f"no prompt came: {self.seen!r}")

    def interrupt(self, word: str) -> None:
        """Ctrl-C until it is heard: Python misses one that comes while a prompt is being written.

        Each has its time, however much is said meanwhile: a second one would meet what the first does.
        """
        until_s = time.monotonic() + PATIENCE_S
        while word not in self.seen:
            self.process.send_signal(signal.SIGINT)
            again_s = time.monotonic() + 2.0
            while word not in self.seen and time.monotonic() < again_s:
                self.read(0.2)
            if time.monotonic() > until_s:
                pytest.fail(f"{word} did not come: {self.seen!r}")
        self.seen = self.seen.partition(word)[2]

    def read(self, wait_s: float) -> None:
        ready, _, _ = select.select([self.fd], [], [], wait_s)
        if ready:
            self.seen += os.read(self.fd, 4096).decode(errors="replace")


@pytest.fixture
def terminal(place: dict[str, str]) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*args: str) -> Terminal:
        opened.append(Terminal(place, *args))
        return opened[-1]

    yield start
    for one in opened:
        one.process.kill()
        one.process.wait()
        os.close(one.fd)


def test_ctrl_c_stops_an_answer_and_ctrl_d_ends(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    """The first answer has no end in sight and is stopped, the program goes on."""
    talk = terminal("-t", "2", "-n", "4096", "--seed", "5", "--top-k", "1000")
    talk.until("Ctrl-D ends", "> ")
    talk.interrupt("(Ctrl-D ends)")
    talk.prompted()
    talk.type("Describe\n")
    talk.until("Describe\r\n")
    talk.until(" ")  # the first words of the answer
    talk.interrupt("(stopped)")
    talk.type("/help\n")
    talk.until("/image PATH")
    talk.type("/nothing\n")
    talk.until("is no command")
    talk.prompted()
    talk.type("\x04")
    assert talk.process.wait(PATIENCE_S) == 0
    question, answer = saved(tmp_path)
    assert (question["role"], answer["role"]) == ("user", "assistant")
    assert answer["content"]


class AtTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


ADD = ToolCall("add", {"a": 2, "b": 3})
ADDER = Function(Tool("add", "Add.", {}), lambda given: str(given["a"] + given["b"]))


@pytest.mark.parametrize(
    ("stdin", "said", "told"),
    [
        (AtTerminal("2+3?\ny\n/thoughts\n"), "5", "call add({"),
        (AtTerminal("2+3?\nn\n/thoughts\n"), "error: the user does not allow this call", "[y/N]"),
        (io.StringIO("2+3?\n/thoughts\n"), "error: the user does not allow", "--approve-tools"),
    ],
)
def test_a_call_waits_for_a_yes_and_thoughts_are_folded(
    place: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stdin: io.StringIO,
    said: str,
    told: str,
) -> None:
    del place
    stdin.seek(0)
    monkeypatch.setattr(sys, "stdin", stdin)
    model = Scripted(
        completion("", tool_calls=(ADD,)), completion("Five.", reasoning="two and three")
    )
    conversation = Conversation(model=model, functions=[ADDER], approve=approved)
    set_up_logging()
    Talk(conversation, history.new_file()).run()
    out, err = capsys.readouterr()
    assert out == "Five.\ntwo and three\n"
    assert told in err
    assert f"-> {said}" in err
    assert "3 words" in err
    assert history.load(history.latest()) == conversation.messages
    result = conversation.messages[2].content[0]
    assert isinstance(result, Text)
    assert result.text.startswith(said)


def test_a_picture_of_a_turn_that_was_taken_back_goes_with_the_next_question(
    place: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is what could not be used: then no question would ever be answered."""
    del place
    monkeypatch.setattr(sys, "stdin", AtTerminal(f"/image {PICTURE}\nWhat?\nWhat?\nSo?\n"))
    model = Scripted(DeadlineError("late"), ImageDecodeError("torn"), completion("Fine."))
    Talk(Conversation(model=model), history.new_file()).run()
    assert [len(request.messages[-1].content) for request in model.asked] == [2, 2, 1]


def test_what_is_to_be_approved_is_shown_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", AtTerminal("n\n"))
    assert not approved(ToolCall("run", {"first": "a" * 1000, "last": "rm -r"}))
    assert '"last": "rm -r"})? [y/N]' in capsys.readouterr().err


def test_an_answer_that_is_cut_is_said_to_be(chat: Run) -> None:
    assert "cut at 2 tokens" in chat(f"{FIRST}\n", "--image", PICTURE, "-n", "2").err


def test_tools_of_a_file_are_offered_once(chat: Run, tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text(
        "def add(a: int, b: int) -> int:\n    'Add.'\n    return a + b\n"
    )
    assert chat("Hello\n", "--tools", "tools.py", "--approve-tools").code == 0
    twice = chat("Hello\n", "--tools", "tools.py", "--tools", "tools.py")
    assert twice.code == 2
    assert "two tools are called 'add'" in twice.err
