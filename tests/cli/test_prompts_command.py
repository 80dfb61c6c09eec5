"""`qvl prompts`: what is asked, in which languages, and what of it is one's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from qvl.cli.main import main
from qvl.errors import UsageError
from qvl.tasks.prompts import tasks_with_prompts, version, wording

OWN = '[plain]\nen = "Say what you see."\n[catalog-b2b]\nen = "Sell it."\nru = "Продай это."\n'


@pytest.fixture
def own_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "qvl" / "prompts" / "describe.toml"
    file.parent.mkdir(parents=True)
    return file


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str) -> str:
    monkeypatch.setattr(sys, "argv", ["qvl", "prompts", *args])
    capsys.readouterr()
    try:
        code = main()
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return out if not code else f"{code} {err}"


def test_the_list_names_every_task_and_the_users_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, own_file: Path
) -> None:
    listed = told(capsys, monkeypatch, "list")
    assert all(f"{task} (version {version(task)}" in listed for task in tasks_with_prompts())
    assert "your own:" not in listed
    assert str(own_file.with_name("TASK.toml")) in listed
    own_file.write_text(OWN)
    listed = told(capsys, monkeypatch, "list")
    assert f"your own: plain (replaces), catalog-b2b (new), in {own_file}" in listed
    rows = {
        row["id"]: row
        for row in map(json.loads, told(capsys, monkeypatch, "list", "--json").splitlines())
    }
    assert set(rows) == set(tasks_with_prompts())
    assert rows["describe"]["own"] == {"file": str(own_file), "names": ["plain", "catalog-b2b"]}
    assert {"en", "ru", "zh"} <= set(rows["describe"]["languages"])


def test_what_is_shown_is_what_is_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, own_file: Path
) -> None:
    own_file.write_text(OWN)
    shown = told(capsys, monkeypatch, "show", "describe")
    assert "[plain] (your own)\n  en: Say what you see.\n" in shown
    assert "[seo]\n" in shown
    (line,) = told(capsys, monkeypatch, "show", "describe", "seo", "--json").splitlines()
    row = json.loads(line)
    assert (row["id"], row["own"], row["version"]) == ("describe/seo", False, version("describe"))
    assert row["wordings"]["ru"] == wording("describe", "seo", "ru")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["show", "discribe"], "'describe'"),
        (["show", "describe", "plane"], "'plain'"),
        (["show"], "'task'"),
    ],
)
def test_an_unknown_name_has_a_nearest_one(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    own_file: Path,
    args: list[str],
    says: str,
) -> None:
    del own_file
    error = told(capsys, monkeypatch, *args)
    assert error.startswith("2 ")
    assert says in error


def test_a_broken_file_of_ones_own_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, own_file: Path
) -> None:
    own_file.write_text("[plain]\nru = 'Опиши.'")
    assert "'plain' in describe.toml has no English" in told(capsys, monkeypatch, "list")


@pytest.mark.parametrize(
    "words",
    [
        "{unknown}",
        "{0.__class__}",
        "{a!r}",
        "{a!r:>{b}}",
        "{phrase.__class__}",
        "{phrase[0]}",
        "{}",
    ],
)
def test_a_field_that_is_no_plain_name_is_refused(own_file: Path, words: str) -> None:
    """F007."""
    own_file.write_text(f"[trap]\nen = 'See {words}.'\n")
    with pytest.raises(UsageError, match="which nothing fills in") as caught:
        wording("describe", "trap", "en", phrase="a cup")
    assert "{phrase}" in str(caught.value.hint)


def test_a_file_that_is_too_large_is_not_read(own_file: Path) -> None:
    """F006."""
    own_file.write_text("# " + "x" * 2**20)
    with pytest.raises(UsageError, match="the limit is 1048576"):
        wording("describe", "plain", "en")
