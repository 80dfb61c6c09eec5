"""What docs/exports-of-runs.md shows is true: its examples run, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "exports-of-runs.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.S)
    assert len(blocks) == 4
    exec("\n".join(blocks), {"__name__": "docs"})
    assert len(list((tmp_path / "exported").iterdir())) == 13
