"""`qvl models` as a person uses it; the hub is a local stand-in."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from command import Run
from qvl.cli import models
from qvl.loading import hub
from qvl.vlm.chat_model import EMBEDDED_FOLDER
from stand_in_hub import ID, NEW, Hub, serving
from tiny import save_tiny

ROOT = Path(__file__).parents[2]
SOME = sorted((ROOT / "examples" / "pictures").glob("*.png"))[0]


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_a_packed_copy_describes_as_its_source_does(kind: str, qvl: Run) -> None:
    code, out, err = qvl("models", "convert", "sprout", "packed", "--quantize", kind)
    assert (code, err) == (0, "")
    assert out.startswith(f"packed: {kind}, ")
    assert out.endswith(" GiB\n")
    tokenizer = (Path("packed") / "tokenizer.json").read_bytes()
    assert tokenizer == (EMBEDDED_FOLDER / "tokenizer.json").read_bytes()
    _, expected, _ = qvl("describe", SOME, "--dtype", kind)
    code, out, _ = qvl("describe", SOME, "--model", "packed")
    assert (code, out) == (0, expected)
    assert qvl("describe", SOME, "--model", "packed", "--dtype", kind)[:2] == (0, expected)
    code, _, err = qvl("describe", SOME, "--model", "packed", "--dtype", "bf16")
    assert code == 2
    assert f"packed as {kind}" in err
    assert kind in qvl("models", "show", "packed")[1]


def test_what_cannot_be_converted_is_told(qvl: Run, tmp_path: Path) -> None:
    code, _, err = qvl("models", "convert", "sprout", "out", "--quantize", "int3")
    assert code == 2
    assert "'int3'" in err
    assert "int4, int8, bf16" in err
    assert qvl("models", "convert", "sprout", "out")[0] == 2  # no default: it says what is lost
    code, _, err = qvl("models", "convert", "no-such-folder", "out", "--quantize", "int4")
    assert code == 4
    assert "no-such-folder" in err
    save_tiny(tmp_path / "tiny", "qwen2_vl")
    assert qvl("models", "convert", "tiny", "tiny", "--quantize", "int4")[0] == 2
    assert qvl("models", "convert", "tiny", "gone/out", "--quantize", "int4")[0] == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


# ---- list


@pytest.mark.parametrize(
    ("free", "verdicts"),
    [
        (700, {"2B": "yes", "8B": "yes", "235B-A22B": "yes"}),
        (12, {"2B": "yes", "8B": "as int8", "235B-A22B": "too big"}),
        (8, {"2B": "yes", "8B": "as int4", "235B-A22B": "too big"}),
        (1, {"2B": "too big", "8B": "too big", "235B-A22B": "too big"}),
    ],
)
def test_each_row_says_what_it_needs_and_whether_that_fits(
    free: int, verdicts: dict[str, str], qvl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "memory_bytes", lambda: (800 << 30, free << 30))
    rows = [json.loads(line) for line in qvl("models", "list", "--json")[1].splitlines()]
    told = {row["id"]: row for row in rows}
    for size, expected in verdicts.items():
        assert told[f"Qwen/Qwen3-VL-{size}-Thinking"]["runs_here"] == expected
    eight = told["Qwen/Qwen3-VL-8B-Instruct"]["memory_gib"]
    assert eight["bf16"] > eight["int8"] > eight["int4"] > 6
    assert list(told["Qwen/Qwen2-VL-7B-Instruct-AWQ"]["memory_gib"]) == ["int4"]
    lines = qvl("models", "list")[1].splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(told)
    for line in lines[1:]:
        row = told[line.split()[0]]
        need = [str(row["memory_gib"].get(kept, "-")) for kept in ("bf16", "int8", "int4")]
        assert line.split()[2:5] == need
        assert f"  {row['runs_here']} " in line
        assert f"  {row['kind']} " in line
        assert row["licence"] in line
        assert ("NO commercial use" in line) == (row["commercial"] == "no")


# ---- pull and remove


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("published")
    save_tiny(folder, "qwen3_vl", shards=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def served(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    with serving(files, tmp_path, monkeypatch) as hub:
        yield hub


def cache() -> Path:
    return Path(constants.HF_HUB_CACHE)


def test_pull_fetches_what_is_missing_and_says_where_it_is(
    served: Hub, files: dict[str, bytes], qvl: Run
) -> None:
    code, out, err = qvl("models", "pull", ID)
    folder = Path(out.strip())
    assert (code, folder.name) == (0, NEW)
    assert folder.is_relative_to(cache())
    assert {p.name for p in folder.iterdir()} == set(files)
    assert all((folder / name).read_bytes() == data for name, data in files.items())
    assert f"downloading {ID}: 0.00 GiB" in err
    served.asked.clear()
    assert qvl("models", "pull", ID) == (0, out, "")
    assert not [path for method, path, _ in served.asked if method == "GET" and "resolve" in path]


def test_pull_goes_on_where_it_stopped(served: Hub, files: dict[str, bytes], qvl: Run) -> None:
    last = max(name for name in files if name.endswith(".safetensors"))
    served.broken = last
    code, out, err = qvl("models", "pull", ID)
    assert (code, out) == (8, "")
    assert "run the same command again" in err
    served.broken = None
    arrived = {path.name for path in cache().rglob("*/snapshots/*/*")}
    served.asked.clear()
    assert qvl("models", "pull", ID)[0] == 0
    assert served.downloads(last)
    assert not [name for name in arrived if served.downloads(name)]


def test_pull_shows_a_bar_on_a_terminal(
    served: Hub, qvl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    huggingface_hub.utils.enable_progress_bars()
    try:
        assert qvl("models", "pull", ID)[0] == 0
    finally:
        huggingface_hub.utils.disable_progress_bars()
    assert "100%" in terminal.getvalue()


def test_pull_says_what_goes_wrong(
    served: Hub, files: dict[str, bytes], qvl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.spoil = True
    code, _, err = qvl("models", "pull", ID)
    assert code == 8
    assert "arrived damaged" in err
    served.spoil = False
    usage = shutil.disk_usage("/")._replace(free=50_000)
    with monkeypatch.context() as patch:
        patch.setattr(hub.shutil, "disk_usage", lambda path: usage)
        code, _, err = qvl("models", "pull", ID)
    assert code == 6
    assert "GiB are free" in err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, err = qvl("models", "pull", ID)
    assert code == 4
    assert "downloads are off" in err


def test_pull_says_what_a_licence_forbids(served: Hub, files: dict[str, bytes], qvl: Run) -> None:
    served.repos["Qwen/Qwen2.5-VL-3B-Instruct"] = {NEW: files}
    code, _, err = qvl("models", "pull", "qwen2.5-vl-3b-instruct")
    assert code == 0
    assert "Qwen research licence: for research only" in err


def test_remove_frees_what_it_says(served: Hub, files: dict[str, bytes], qvl: Run) -> None:
    served.repos["org/other"] = {NEW: files}  # a copy, of the same commit
    other = qvl("models", "pull", "org/other")[1].strip()
    qvl("models", "pull", ID)
    folder = cache() / "models--org--tiny-vl"
    taken = sum(path.stat().st_size for path in (folder / "blobs").iterdir())
    code, _, err = qvl("models", "remove", ID)
    assert code == 2
    assert f"({taken} bytes)" in err
    assert "--yes" in err
    assert folder.exists()
    code, out, _ = qvl("models", "remove", ID, "--yes")
    assert code == 0
    assert f"({taken} bytes) freed" in out
    assert not folder.exists()
    assert (Path(other) / "config.json").exists()
    code, _, err = qvl("models", "remove", ID, "--yes")
    assert code == 4
    assert "not in the local cache" in err


@pytest.mark.parametrize(("said", "is_kept"), [("n\n", True), ("\n", True), ("y\n", False)])
def test_remove_asks_on_a_terminal(
    said: str, is_kept: bool, served: Hub, qvl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    qvl("models", "pull", ID)
    terminal = io.StringIO(said)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    code, _, err = qvl("models", "remove", ID, stdin=terminal)
    assert code == 0
    assert f"Remove {ID}" in err
    assert ("kept" in err) == is_kept
    assert (cache() / "models--org--tiny-vl").exists() == is_kept


def test_remove_takes_a_half_download_too(served: Hub, files: dict[str, bytes], qvl: Run) -> None:
    served.broken = max(name for name in files if name.endswith(".safetensors"))
    qvl("models", "pull", ID)
    assert qvl("models", "remove", ID, "--yes")[0] == 0
    assert not (cache() / "models--org--tiny-vl").exists()


def test_remove_refuses_what_is_no_cached_checkpoint(
    served: Hub, files: dict[str, bytes], qvl: Run, tmp_path: Path
) -> None:
    save_tiny(tmp_path / "mine", "qwen2_vl")
    for name in ("mine", "sprout", "org/never-fetched", "no name", "hf:org/x"):
        code, _, err = qvl("models", "remove", name, "--yes")
        assert code in (2, 4), name
        assert name in err
    assert (tmp_path / "mine" / "config.json").exists()
    for kind, content in (("datasets", "config.json"), ("models", "weights.bin")):
        folder = cache() / f"{kind}--org--x" / "snapshots" / NEW
        folder.mkdir(parents=True)
        (folder / content).write_text("{}")
        code, _, err = qvl("models", "remove", "org/x", "--yes")
        assert code == 4
        assert "org/x" in err
        assert (folder / content).exists()
