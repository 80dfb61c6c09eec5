"""`qvl models convert` as a person uses it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qvl.cli.main import main
from qvl.vlm.chat_model import EMBEDDED_FOLDER
from tiny import save_tiny

ROOT = Path(__file__).parents[2]
SOME = sorted((ROOT / "examples" / "pictures").glob("*.png"))[0]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """(exit code, stdout, stderr) of the command, in an empty folder, offline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def called(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qvl", *map(str, arguments)])
        capsys.readouterr()
        try:
            code = main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return code, told.out, told.err

    return called


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_a_packed_copy_describes_as_its_source_does(kind: str, run) -> None:
    code, out, err = run("models", "convert", "sprout", "packed", "--quantize", kind)
    assert (code, err) == (0, "")
    assert out.startswith(f"packed: {kind}, ")
    assert out.endswith(" GiB\n")
    tokenizer = (Path("packed") / "tokenizer.json").read_bytes()
    assert tokenizer == (EMBEDDED_FOLDER / "tokenizer.json").read_bytes()
    _, expected, _ = run("describe", SOME, "--dtype", kind)
    code, out, _ = run("describe", SOME, "--model", "packed")
    assert (code, out) == (0, expected)
    assert run("describe", SOME, "--model", "packed", "--dtype", kind)[:2] == (0, expected)
    code, _, err = run("describe", SOME, "--model", "packed", "--dtype", "bf16")
    assert code == 2
    assert f"packed as {kind}" in err
    assert kind in run("models", "show", "packed")[1]


def test_what_cannot_be_converted_is_told(run, tmp_path: Path) -> None:
    code, _, err = run("models", "convert", "sprout", "out", "--quantize", "int3")
    assert code == 2
    assert "'int3'" in err
    assert "int4, int8, bf16" in err
    assert run("models", "convert", "sprout", "out")[0] == 2  # no default: it says what is lost
    code, _, err = run("models", "convert", "no-such-folder", "out", "--quantize", "int4")
    assert code == 4
    assert "no-such-folder" in err
    save_tiny(tmp_path / "tiny", "qwen2_vl")
    assert run("models", "convert", "tiny", "tiny", "--quantize", "int4")[0] == 2
    assert run("models", "convert", "tiny", "gone/out", "--quantize", "int4")[0] == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]
