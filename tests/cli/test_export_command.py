"""`qvl models convert --export` as a person uses it."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest

from command import Run
from qvl.vlm.chat_model import EMBEDDED_FOLDER

PICTURES = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.png"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A few pictures, one of which is none."""
    (tmp_path / "pictures").mkdir()
    for path in PICTURES[:3]:
        shutil.copy(path, tmp_path / "pictures")
    (tmp_path / "pictures" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "pictures"


def test_pictures_calibrate_and_the_loss_is_told(qvl: Run, folder: Path) -> None:
    code, out, err = qvl(
        "models", "convert", "sprout", "made", "--export", "awq", "--calibrate", str(folder)
    )
    assert code == 0
    written, calibrated, loss = out.splitlines()
    assert written.startswith("made: AWQ, 4 bits in groups of 128, ")
    assert calibrated.startswith("calibrated on 2 conversations, ")
    assert "next tokens of 1 others: cosine of logits " in loss
    assert "broken.png" in err
    assert "left out" in err
    code, answer, _ = qvl("describe", PICTURES[0], "--model", "made")
    assert (code, answer) == (0, qvl("describe", PICTURES[0])[1])
    assert (Path("made") / "tokenizer.json").read_bytes() == (
        EMBEDDED_FOLDER / "tokenizer.json"
    ).read_bytes()
    code, _, err = qvl("models", "convert", "made", "again", "--export", "fp8")
    assert code == 4
    assert "quantised already (awq)" in err


def line(url: str, answer: str) -> str:
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is it?"},
    ]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages})


def test_conversations_calibrate(qvl: Run, folder: Path) -> None:
    data = base64.b64encode(PICTURES[0].read_bytes()).decode()
    lines = [
        line(f"data:image/png;base64,{data}", "It is a cup."),
        line(f"pictures/{PICTURES[1].name}", "It is a ball."),
        "",
        json.dumps({"messages": [{"role": "user", "content": "hello"}]}),
    ]
    Path("rows.jsonl").write_text("\n".join(lines), "utf-8")
    call = ("models", "convert", "sprout", "made", "--export", "gptq", "--calibrate", "rows.jsonl")
    code, out, err = qvl(*call)
    assert (code, err) == (0, "")
    assert "calibrated on 2 conversations, " in out
    Path("rows.jsonl").write_text('{"messages": [{"role": "judge", "content": "?"}]}', "utf-8")
    code, _, err = qvl(*call[:3], "other", *call[4:])
    assert code == 2
    assert "rows.jsonl:1 is no conversation" in err
    assert not Path("other").exists()


def test_what_is_missing_or_too_much_is_told_in_a_line(qvl: Run) -> None:
    convert = ("models", "convert", "sprout", "made")
    for flags, words in (
        (("--export", "gptq"), "--export gptq is calibrated on pictures like yours"),
        (("--export", "int3"), "--export is 'int3'"),
        (("--export", "fp8", "--quantize", "int8"), "--quantize and --export are given together"),
        (("--quantize", "int8", "--calibrate", "x"), "--calibrate is for --export"),
        ((), "neither --quantize nor --export is given"),
    ):
        code, _, err = qvl(*convert, *flags)
        assert code == 2, flags
        assert words in err
    assert not Path("made").exists()
    code, out, _ = qvl(*convert, "--export", "fp8")
    assert code == 0
    assert "loss: not measured" in out
