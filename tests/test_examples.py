"""What the examples show is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_a_style_is_learnt_from_200_pictures(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "new_style.py"), str(tmp_path)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    rows = re.findall(r"^\| (.+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", done, flags=re.M)
    scores = {name: tuple(map(float, numbers)) for name, *numbers in rows}
    before, after = scores["before"], scores["after, with the adapter"]
    assert before[0] == 0  # not one text is in the style
    assert after[0] >= 0.25, done
    assert after[1] >= before[1] + 0.25, done
    assert before[2] > 0.05  # the other skill is one that it has
    assert scores["after, without it"] == before
