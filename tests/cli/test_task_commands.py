"""The commands of the tasks that see, and what is common to all commands: formats, drawings, pipes."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image as Pillow

import clips
from command import Run
from qvl import VLM, Image
from qvl.cells import csv_row
from qvl.cli import formats
from qvl.cli.draw import draw
from qvl.cli.formats import columns
from qvl.cli.output import Outcome
from qvl.errors import InputNotFoundError
from qvl.log import visible
from qvl.tasks import TASKS
from qvl.tasks.describe import Describe
from qvl.vlm.chat_model import EMBEDDED_FOLDER
from stand_in_openai import MODEL, Handler, chunk, serving, usage

PICTURES = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.png"))[:3]
ONE, TWO, THREE = PICTURES
SHORT = ("--max-new-tokens", "12")


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM()


def test_commands_say_what_the_methods_say(qvl: Run, vlm: VLM) -> None:
    assert qvl("ocr", ONE, "--language", "ru").out == vlm.ocr(ONE, language="ru").text + "\n"
    found = vlm.ground(ONE, phrases=("cat", "dog"))
    assert qvl("ground", ONE, "-p", "cat", "-p", "dog").out == found.text + "\n"
    assert qvl("ground", ONE, "-p", "cat, dog").out == found.text + "\n"
    (row,) = [json.loads(qvl("ground", ONE, "-p", "cat", "--points", "--json").out)]
    (point, *_) = vlm.ground(ONE, phrases=("cat",), points=True).points
    assert row["points"][0] == {"label": "cat", "x": point.x, "y": point.y}
    assert row["boxes"] == []


def test_a_thinking_edition_answers_after_so_many_tokens(qvl: Run, tmp_path: Path) -> None:
    thinking = tmp_path / "thinking"
    shutil.copytree(EMBEDDED_FOLDER, thinking)
    ending = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    (thinking / "chat_template.jinja").write_text(ending)
    flags = ("--model", thinking, "--thinking-tokens", "7", *SHORT, "--json")
    row = json.loads(qvl("ask", ONE, "-p", "What is it?", *flags).out)
    assert row["usage"]["reasoning_tokens"] == 7 + 3  # with `</think>` and two line breaks
    refused = qvl("ask", ONE, "-p", "What is it?", "--thinking-tokens", "7")
    assert refused.code == 2
    assert "does not reason" in refused.err


def test_a_clip_on_stdin_is_the_clip_in_the_file(qvl: Run, tmp_path: Path) -> None:
    film = clips.steady(20, 10)
    (tmp_path / "clip.mp4").write_bytes(film)
    args = ("--as", "events", "--start", "0.5", "--end", "1.5", "--json")
    file, pipe = (
        json.loads(ended.out)
        for ended in (qvl("video", "clip.mp4", *args), qvl("video", "-", *args, stdin=film))
    )
    assert file["events"] == pipe["events"]
    assert all(0.5 <= event["start_s"] <= event["end_s"] <= 1.5 for event in file["events"])
    srt = qvl("video", "clip.mp4", "--as", "srt").out
    assert "-->" in srt or srt == "\n"


def test_a_comparison_takes_all_pictures_at_once(qvl: Run) -> None:
    ended = qvl("compare", ONE, TWO, "--json", "--aspect", "colour")
    row = json.loads(ended.out)
    assert row["id"] == f"{ONE}, {TWO}"
    assert len(row["meta"]["images"]) == 2
    assert all(len(difference["each"]) == 2 for difference in row["differences"])
    assert qvl("compare", ONE).code == 2


def test_each_task_has_a_length_of_its_own_which_a_setting_and_then_a_flag_overrule(
    qvl: Run, tmp_path: Path
) -> None:
    """A full page does not fit into what describes a picture."""

    def limit(task: str, *flags: str) -> int:
        row = json.loads(qvl(task, ONE, "--json", *flags).out)
        return row["meta"]["sampling"]["max_new_tokens"]

    assert (limit("ocr"), limit("ask", "-p", "What?")) == (4096, 512)
    (tmp_path / "qvl.toml").write_text("max_new_tokens = 30\n")
    assert (limit("ocr"), limit("ocr", "-n", "20")) == (30, 20)


def test_remote_answers_cost_what_the_settings_say(qvl: Run) -> None:
    counted = usage(1_000, 10, prompt_tokens_details={"cached_tokens": 400})

    def reply(handler: Handler, body: object) -> None:
        handler.begin()
        for event in (chunk("stop", content="A cup."), counted, "[DONE]"):
            handler.event(event)

    with serving(reply) as server:
        model = ("--model", f"openai:{MODEL}@{server.url}")
        ended = qvl("describe", ONE, TWO, "--json", *model)
        assert (ended.code, "cost" in ended.out + ended.err) == (0, False)
        assert "cost unknown" in qvl("-v", "describe", ONE, *model).err
        prices = "input = 2.0\ncached_input = 0.5\noutput = 10\n"
        Path("qvl.toml").write_text(f"[prices.{MODEL}]\n{prices}", "utf-8")
        ended = qvl("describe", ONE, TWO, "--json", *model)
        told = [json.loads(line) for line in ended.out.splitlines()]
        assert [row["usage"]["cost"] for row in told] == pytest.approx([0.0015, 0.0015])
        assert "cost of 2 answers: 0.003\n" in ended.err
        assert qvl("chat", *model, stdin=b"Hello!\nAnd?\n").err.endswith(
            "cost of 2 answers: 0.003\n"
        )


def timeless(text: str) -> str:
    return re.sub(r'"timings": {[^}]*}', "", text)


@pytest.mark.parametrize("form", formats.FORMATS)
def test_every_format_holds_the_text_and_the_error_of_each_item(
    qvl: Run, tmp_path: Path, form: str
) -> None:
    (tmp_path / "кошка.png").write_bytes(ONE.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    args = ("ocr", "кошка.png", "broken.png", "--format", form)
    ended = qvl(*args)
    text = qvl("ocr", "кошка.png").out.strip()
    assert ended.code == 3
    assert "кошка.png" in ended.out
    assert text in ended.out
    assert "broken.png" in (ended.err if form == "text" else ended.out)
    assert qvl(*args, "--out", "told").out == ""
    in_file = (tmp_path / "told").read_text("utf-8")
    assert timeless(in_file) == timeless(ended.out)


def test_json_is_json_and_two_formats_are_refused(qvl: Run) -> None:
    told = [json.loads(qvl("ocr", ONE, *flag).out) for flag in (["--json"], ["--format", "json"])]
    assert told[0]["text"] == told[1]["text"]
    assert qvl("ocr", ONE, "--json", "--format", "csv").code == 2
    ended = qvl("ocr", ONE, "--format", "cvs")
    assert (ended.code, "'csv'" in ended.err) == (2, True)


def test_csv_has_a_mark_for_excel_and_a_column_for_each_thing_that_is_told(
    qvl: Run, vlm: VLM
) -> None:
    ended = qvl("ground", ONE, TWO, "-p", "кот", "--language", "ru", "--format", "csv")
    assert ended.out.startswith("\ufeff")
    rows = list(csv.DictReader(io.StringIO(ended.out.removeprefix("\ufeff"))))
    assert [row["id"] for row in rows] == [str(ONE), str(TWO)]
    assert list(rows[0]) == columns(TASKS["ground"])
    found = vlm.ground(ONE, phrases=("кот",), language="ru")
    assert rows[0]["text"] == found.text
    assert [box["x1"] for box in json.loads(rows[0]["boxes"])] == [box.x1 for box in found.boxes]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_its_columns(name: str) -> None:
    own = columns(TASKS[name])
    assert own[:2] == ["id", "text"]
    assert own[-2:] == ["flags", "error"]
    assert len(set(own)) == len(own)


FORMULAS = [
    start + rest
    for start in ("=", "+", "-", "@", "\t=", "\r=", "\n+", " =", "＝", "＋", "－", "＠", "\u00a0=", "\u3000@")
    for rest in ("1+1", "cmd|' /C calc'!A0", 'HYPERLINK("http://a")')
]  # fmt: skip


@pytest.mark.parametrize("payload", FORMULAS)
def test_no_cell_is_a_formula(payload: str) -> None:
    (row,) = csv.reader(io.StringIO(csv_row([payload, "a", ""]), newline=""))
    assert row == ["'" + payload, "a", ""]


def test_no_control_code_reaches_a_terminal(qvl: Run, tmp_path: Path) -> None:
    """A047: neither of an answer nor of a name; lines, tabs and letters of any script stay."""
    said = Outcome("a\x1b[31m.png", InputNotFoundError("no \x1b[2J file"))
    assert "\x1b" not in formats.item(said, Describe, "md", alone=False)
    told = visible("\x1b[31mred\x07 \u202egnp.exe\r\n\tשלום 你好\x9b1m")
    assert told == "\\x1b[31mred\\x07 \\u202egnp.exe\\r\n\tשלום 你好\\x9b1m"
    (tmp_path / "b\x1b[31m.png").write_bytes(b"no picture")
    ended = qvl("ask", "b\x1b[31m.png", ONE, "-p", "\x1b[31mHow many?", "--max-new-tokens", "4")
    assert ended.code == 3
    assert "\x1b" not in ended.out + ended.err


def test_a_drawing_is_the_picture_with_its_boxes(qvl: Run, tmp_path: Path) -> None:
    assert qvl("ground", ONE, "-p", "cat", "--draw", "found.png").code == 0
    with Pillow.open(tmp_path / "found.png") as one, Pillow.open(ONE) as original:
        assert one.size == original.size
        assert one.tobytes() != original.convert("RGB").tobytes()
    exif = Pillow.Exif()
    exif[274] = 6  # it lies in its file
    with Pillow.open(ONE) as original:
        original.save(tmp_path / "lying.png", exif=exif)
        assert qvl("ground", "lying.png", "-p", "cat", "--draw", "upright.png").code == 0
        with Pillow.open(tmp_path / "upright.png") as upright:
            assert upright.size == original.size[::-1]
    ended = qvl("ask", ONE, "-p", "What is it?", "--draw", "none.jpg")
    assert "no boxes" in ended.err
    with Pillow.open(tmp_path / "none.jpg") as none, Pillow.open(ONE) as original:
        assert (none.format, none.size) == ("JPEG", original.size)
    assert not list(tmp_path.rglob("*.part"))


def test_several_drawings_go_into_a_folder_each_under_its_own_name(
    qvl: Run, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "кот №1.png").write_bytes(ONE.read_bytes())
    (tmp_path / "b" / "broken.png").write_bytes(b"no picture")
    ended = qvl("describe", "a", "b", "--boxes", "--language", "ru,en", "--draw", "out", *SHORT)
    assert ended.code == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "0001-кот_1.png",
        "0003-кот_1.png",
    ]
    (tmp_path / "file.png").write_bytes(b"")
    ended = qvl("describe", "a", "b", "--draw", "file.png")
    assert (ended.code, "folder" in ended.err) == (2, True)
    assert qvl("describe", ONE, "--draw", "out.gif").code == 2
    assert (tmp_path / "file.png").read_bytes() == b""


def test_boxes_are_not_drawn_on_another_picture(
    vlm: VLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.png").write_bytes(ONE.read_bytes())
    shown = Image.of(tmp_path / "a.png")
    outcome = Outcome("a.png", [vlm.ground(shown, phrases=("cat",))], [shown])
    (tmp_path / "a.png").write_bytes(TWO.read_bytes())
    draw(outcome, 1, tmp_path / "found.png", alone=True)
    assert "another picture" in caplog.text
    assert not (tmp_path / "found.png").exists()


def test_a_drawing_that_cannot_be_written_is_told(qvl: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for target in ("file/found.png", "folder.png"):
        ended = qvl("ground", ONE, "-p", "cat", "--draw", target)
        assert ended.code == 6
        assert "--draw" in ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_a_page_shows_points_as_it_shows_boxes(qvl: Run) -> None:
    assert "<circle" in qvl("ground", ONE, "-p", "cat", "--points", "--format", "html").out
    assert "<rect" in qvl("ground", ONE, "-p", "cat", "--format", "html").out
