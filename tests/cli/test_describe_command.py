"""`qvl describe` as a person uses it: what it prints, what it refuses, how it ends."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image as Pillow

import clips
from command import Run
from documents import RED_LEFT, document
from tiny import save_tiny

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "examples" / "pictures"
SOME = sorted(PICTURES.glob("*.png"))[0]


def test_one_picture_is_one_line_of_text(qvl: Run) -> None:
    ended = qvl("describe", SOME)
    assert ended.code == 0
    assert len(ended.out.splitlines()) == 1
    assert "sprout" in ended.err  # says who answers, and not on stdout
    assert "sprout" not in ended.out


def test_a_picture_on_stdin_is_the_picture_in_the_file(qvl: Run) -> None:
    assert qvl("describe", "-", stdin=SOME.read_bytes()).out == qvl("describe", SOME).out


def test_json_lines_carry_text_boxes_usage_and_provenance(qvl: Run) -> None:
    ended = qvl("describe", SOME, "--json", "--boxes", "--language", "ru,zh", "--seed", "5")
    rows = [json.loads(line) for line in ended.out.splitlines()]
    assert [row["language"] for row in rows] == ["ru", "zh"]
    for row in rows:
        assert row["id"] == str(SOME)
        assert row["text"]
        # the text and the boxes are asked for apart, and usage tells of both
        assert row["usage"]["image_tokens"] == 2 * row["meta"]["images"][0]["tokens"] > 0
        assert row["meta"]["model"] == "sprout"
        assert 0 < row["meta"]["confidence"] <= 1
        assert all(set(box) == {"label", "x1", "y1", "x2", "y2"} for box in row["boxes"])


def test_a_video_is_described_beside_a_picture(qvl: Run, tmp_path: Path) -> None:
    (tmp_path / "clip.MP4").write_bytes(clips.steady(40, 25))
    (tmp_path / "broken.mkv").write_bytes(b"no video")
    ended = qvl(
        "describe",
        tmp_path / "*.[mM]*",
        SOME,
        "--json",
        "--html",
        "page.html",
        "--language",
        "ru,en",
    )
    assert ended.code == 3
    rows = [json.loads(line) for line in ended.out.splitlines()]
    broken, *film, _, _ = rows
    assert broken["error"]["code"] == "video_decode"
    for row in film:
        (video,) = row["meta"]["videos"]
        assert row["meta"]["images"] == row["boxes"] == []
        assert video["frame_times_s"] == pytest.approx([0.0, 0.52, 1.04, 1.56])
        assert row["usage"]["image_tokens"] == video["tokens"] > 0
    assert [row["language"] for row in rows[1:]] == ["ru", "en"] * 2
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count("<article>") == 3
    assert page.count("<img") == 1
    assert "96x64 px" in page


def test_a_hundred_pictures_of_which_five_are_broken(qvl: Run, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for number in range(95):
        place = folder / "deeper" if number % 10 == 0 else folder
        colour = (number * 2, 120, 200)
        Pillow.new("RGB", (40, 30), colour).save(place / f"{number:03}.png")
    whole = (folder / "001.png").read_bytes()
    broken = {
        "text.jpg": b"this is not a picture",
        "cut.png": whole[: len(whole) // 2],
        "empty.png": b"",
        "page.png": b"<!doctype html><html></html>",
        "long.png": png_bytes((2010, 10)),
    }
    for name, data in broken.items():
        (folder / name).write_bytes(data)
    ended = qvl("describe", folder, "--json", "--max-new-tokens", "4")
    rows = [json.loads(line) for line in ended.out.splitlines()]
    failed = {Path(row["id"]).name for row in rows if "error" in row}
    assert ended.code == 3
    assert len(rows) == 100
    assert failed == set(broken)
    assert "95 done, 5 failed" in ended.err
    assert all(name in ended.err for name in broken)


def png_bytes(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", size).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("gone.jpg", None, "gone.jpg"),
        ("text.jpg", b"hello there", "text"),
        ("empty.png", b"", "empty"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    ],
)
def test_one_unusable_picture_ends_with_4(
    qvl: Run, tmp_path: Path, name: str, data: bytes | None, word: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    ended = qvl("describe", name)
    assert ended.code == 4
    assert name in ended.err
    assert word.lower() in ended.err.lower()
    assert ended.out == ""


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--temperature", "5"], 2, ["temperature", "2.0"]),
        (["--max-new-tokens", "50000"], 2, ["max", "40960"]),
        (["--top-p", "0.01"], 2, ["top_p", "0.05"]),
        (["--top-k", "0"], 2, ["top_k", "1000"]),
        (["--style", "catalog"], 2, ["catalogue"]),
        (["--language", "russian"], 2, ["language"]),
        (["--language", "xx"], 2, ["xx"]),
        (["--tempurature", "1"], 2, ["--temperature"]),
        (["--device", "cuda:99"], 2, ["cuda"]),
        (["--dtype", "fp8"], 2, ["bf16"]),
        (["--model", "sprot"], 4, ["sprout"]),
        (["--model", "Qwen/Qwen3-VL-2B-Instrukt", "--offline"], 4, ["Qwen"]),
        (["--model", "hf:Qwen/Qwen2-VL-2B-Instruct"], 4, ["does not have yet"]),
        (["--out", "no/such/folder/a.txt"], 6, ["a.txt"]),
    ],
)
def test_a_wrong_flag_says_what_is_right(
    qvl: Run, args: list[str], code: int, words: list[str]
) -> None:
    ended = qvl("describe", SOME, *args)
    assert ended.code == code
    assert all(word in ended.err for word in words), ended.err


def test_an_empty_folder_and_an_empty_pattern_say_so(qvl: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in ("empty", "nothing-*.jpg"):
        ended = qvl("describe", source)
        assert ended.code == 4
        assert source in ended.err


def test_debug_shows_where_an_error_came_from(qvl: Run) -> None:
    ended = qvl("--debug", "describe", "gone.png")
    assert ended.code == 4
    assert "Traceback" in ended.err


def test_a_text_that_is_cut_is_said_to_be(qvl: Run) -> None:
    assert "cut at 2 tokens" in qvl("describe", SOME, "--max-new-tokens", "2").err


def test_an_address_inside_a_network_and_any_when_offline_is_refused(qvl: Run) -> None:
    for address, flag, words in (
        ("http://127.0.0.1/a.jpg", "--json", "not public"),
        ("https://me:secret@example.com/clip.mp4", "--json", "not a valid address"),
        ("https://example.com/a.jpg", "--offline", "nothing is fetched offline"),
        ("https://example.com/a.pdf?b=c", "--offline", "nothing is fetched offline"),
    ):
        ended = qvl("describe", address, SOME, flag, "--max-new-tokens", "4")
        assert ended.code == 3
        assert words in ended.err
        assert "secret" not in ended.out + ended.err


def test_a_document_is_its_pages(qvl: Run, tmp_path: Path) -> None:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(document(RED_LEFT, b""))
    (folder / "b.PDF").write_bytes(b"%PDF-1.7 cut")
    shutil.copy(SOME, folder / "c.png")
    ended = qvl("describe", folder, "--json", "--html", "page.html", "--max-new-tokens", "4")
    assert ended.code == 3
    broken, *rows = [json.loads(line) for line in ended.out.splitlines()]
    assert (broken["id"], broken["error"]["code"]) == (str(folder / "b.PDF"), "pdf")
    names = [str(folder / name) for name in ("a.pdf, page 1", "a.pdf, page 2", "c.png")]
    assert [row["id"] for row in rows] == names
    assert [row["meta"]["images"][0]["width_px"] for row in rows[:2]] == [200, 200]
    piped = qvl("describe", "-", "--json", "--max-new-tokens", "4", stdin=document(RED_LEFT, b""))
    ids = [json.loads(line)["id"] for line in piped.out.splitlines()]
    assert ids == ["stdin, page 1", "stdin, page 2"]


def test_results_go_into_a_file_whole(qvl: Run, tmp_path: Path) -> None:
    printed = qvl("describe", SOME, "--language", "ru,en").out
    assert qvl("describe", SOME, "--language", "ru,en", "--out", "texts.txt").out == ""
    assert (tmp_path / "texts.txt").read_text("utf-8") == printed
    assert not list(tmp_path.glob("*.part"))


def test_the_page_shows_pictures_texts_and_boxes_and_nothing_from_outside(
    qvl: Run, tmp_path: Path
) -> None:
    named = tmp_path / "<b>&.png"
    shutil.copy(SOME, named)
    ended = qvl("describe", named, "gone.png", "--html", "page.html", "--language", "ru,en")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert ended.code == 3
    assert "data:image/png;base64," in page
    assert "<rect" in page
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;.png" in page
    assert "gone.png" in page
    assert "http" not in page.replace("http-equiv", "")


def test_reasoning_is_told_apart_and_one_without_an_answer_is_said(
    qvl: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "thinking"
    save_tiny(folder, "qwen3_vl")
    template = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    ended = qvl("describe", SOME, "--model", folder, "--json", "--max-new-tokens", "8")
    row = json.loads(ended.out)
    assert (row["text"], row["finish_reason"]) == ("", "reasoning")
    assert row["reasoning"]
    assert "--max-new-tokens raises that" in ended.err
    ended = qvl("describe", SOME, "--model", folder, "--json", "--max-new-tokens", "40")
    row = json.loads(ended.out)
    assert row["text"]
    assert row["usage"]["reasoning_tokens"] <= 33


@pytest.mark.parametrize("damage", ["shard", "shape", "short", "lying", "pickle", "no-config"])
def test_a_damaged_checkpoint_is_one_error_with_4(qvl: Run, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    save_tiny(folder, "qwen3_vl", shards=damage == "shard")
    weights = folder / "model.safetensors"
    if damage == "shard":
        sorted(folder.glob("model-*.safetensors"))[0].unlink()
    elif damage == "shape":
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["intermediate_size"] += 8
        (folder / "config.json").write_text(json.dumps(config))
    elif damage == "short":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "lying":
        data = weights.read_bytes()
        weights.write_bytes((2**40).to_bytes(8, "little") + data[8:])
    elif damage == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    else:
        (folder / "config.json").unlink()
    ended = qvl("describe", SOME, "--model", folder)
    assert ended.code == 4
    assert ended.err.count("error:") == 1
    assert ended.out == ""


def test_ctrl_c_keeps_what_is_done_and_ends_with_130(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(400):
        Pillow.new("RGB", (200, 200), (number % 256, 90, 30)).save(folder / f"{number:03}.png")
    out = tmp_path / "texts.txt"
    command = [sys.executable, "-m", "qvl", "describe", str(folder), "--out", str(out)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    partial = tmp_path / "texts.txt.part"
    try:
        deadline_s = time.monotonic() + 120
        while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    lines = out.read_text("utf-8").splitlines()
    assert 0 < len(lines) < 400
    assert not partial.exists()


def test_models_and_settings_are_shown(qvl: Run) -> None:
    listed = qvl("models", "list")
    assert listed.code == 0
    assert "sprout" in listed.out
    assert "Qwen/Qwen3-VL-235B-A22B-Instruct" in listed.out
    assert "research only" in listed.out
    assert "qwen3_vl" in qvl("models", "show", "sprout").out
    assert "conditional" in qvl("models", "show", "Qwen/Qwen2-VL-72B-Instruct").out
    wrong = qvl("models", "show", "Qwen/Qwen3-VL-4B-Instrukt")
    assert wrong.code == 4
    assert "Qwen/Qwen3-VL-4B-Instruct" in wrong.err
    assert "default" in qvl("settings").out


def test_a_settings_file_is_honoured_and_its_mistakes_named(qvl: Run, tmp_path: Path) -> None:
    (tmp_path / "qvl.toml").write_text('language = "zh"\n')
    assert qvl("describe", SOME).out == qvl("describe", SOME, "--language", "zh").out
    (tmp_path / "qvl.toml").write_text('langage = "zh"\n')
    ended = qvl("describe", SOME)
    assert ended.code == 2
    assert "langage" in ended.err
    assert "'language'" in ended.err
