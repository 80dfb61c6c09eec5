"""What the README shows is true: its Python runs, its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_python_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert len(done.stdout.strip().splitlines()) == 1


def test_every_command_and_flag_in_the_table_exists() -> None:
    commands = re.findall(r"`(qvl [^`]+)`", README)
    assert len(commands) >= 8
    for command in commands:
        words = [word for word in command.split()[1:] if re.fullmatch(r"[a-z]+", word)][:1]
        deeper = {"models": 2, "batch run": 3, "batch": 2}  # words of a command in groups
        depth = next((n for group, n in deeper.items() if command.startswith(f"qvl {group}")), 1)
        if depth > 1:
            words = command.split()[1 : 1 + depth]
        shown = subprocess.run(
            [sys.executable, "-m", "qvl", *words, "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for flag in re.findall(r"--[a-z-]+", command):
            assert flag in shown, command


def test_the_two_commands_are_make_verbs() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for verb in re.findall(r"\$ make ([a-z-]+)", README):
        assert f"\n{verb}:" in makefile
