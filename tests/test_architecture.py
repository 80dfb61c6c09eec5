"""ARCHITECTURE.md is true: it names every file that one request runs through, and no file that is gone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qvl

ROOT = Path(__file__).parents[1]
SRC = Path(qvl.__file__).parent
PAGE = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
PICTURE = sorted((ROOT / "examples" / "pictures").glob("*.png"))[0]

# every file of the package in which a function is called while one picture is described
TRACED = """
import json, sys, threading
from pathlib import Path
import qvl
from qvl.cli.main import main
src, seen = str(Path(qvl.__file__).parent), set()
def note(frame, event, arg):
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(src) and not code.co_name.startswith("<"):
        seen.add(code.co_filename[len(src) + 1:])
sys.argv = ["qvl", "describe", sys.argv[1], "--boxes", "--html", sys.argv[2], "--max-new-tokens", "4"]
threading.setprofile(note)  # pictures are read in threads
sys.setprofile(note)
try:
    code = main()
except SystemExit as stop:
    code = stop.code or 0
sys.setprofile(None)
print("SEEN " + json.dumps([code, sorted(seen)]))
"""


@pytest.fixture(scope="module")
def files_of_one_request(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    page = tmp_path_factory.mktemp("page") / "page.html"
    done = subprocess.run(
        [sys.executable, "-c", TRACED, str(PICTURE), str(page)],
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("SEEN "))
    code, files = json.loads(line.removeprefix("SEEN "))
    assert code == 0
    return files


def test_every_file_on_the_path_of_a_request_is_named(files_of_one_request: list[str]) -> None:
    missing = [
        name
        for name in files_of_one_request
        if name not in PAGE and not (Path(name).name in PAGE and f"{Path(name).parts[0]}/" in PAGE)
    ]
    assert len(files_of_one_request) > 20
    assert not missing


def test_every_file_that_is_named_exists() -> None:
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.(?:py|md))", PAGE))
    known = {str(p.relative_to(SRC)) for p in SRC.rglob("*.py")}
    known |= {Path(name).name for name in known}
    known |= {
        str(p.relative_to(ROOT))
        for p in [*ROOT.glob("*.md"), *ROOT.glob("tests/*.py"), *ROOT.glob("docs/*.md")]
    }
    assert len(named) > 25
    assert not named - known
