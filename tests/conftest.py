"""What holds for all tests: random examples are the same in every CI run, and never hurried.

`make parity` prints a table of what the parity tests recorded under "parity".
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")

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
