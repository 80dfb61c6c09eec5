"""The command starts quickly, and shells can complete it."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys

import pytest

# what any command of this kind imports; takes 0.16 s of an idle core, so three times that is under 0.5 s
LIBRARIES = "import typer, pydantic, platformdirs; from pydantic import BaseModel, TypeAdapter"


def cpu_s(*args: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *args], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_takes_little_more_than_its_libraries() -> None:
    """Compared in turn, by processor time, since a busy machine slows both down."""
    ratios = [cpu_s("-m", "qvl", "--help") / cpu_s("-c", LIBRARIES) for _ in range(5)]
    assert statistics.median(ratios) < 3


def completed(words: str) -> list[str]:
    """What a shell offers for the last of the words."""
    asked = {
        "_QVL_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run(
        [sys.executable, "-m", "qvl"], env={**os.environ, **asked}, capture_output=True, text=True
    )
    return done.stdout.split()


def test_shells_complete_commands_and_flags() -> None:
    assert completed("qvl desc") == ["describe"]
    assert completed("qvl describe --write") == ["--write-xmp"]
    assert "list" in completed("qvl prompts ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_each_shell(shell: str) -> None:
    """Named, since a test may have no shell above it for Typer to find."""
    done = subprocess.run(
        [sys.executable, "-m", "qvl", "--show-completion", shell],
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "_QVL_COMPLETE" in done.stdout
