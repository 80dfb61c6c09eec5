"""Every form of training data is read as the same conversation; what is wrong is named and left out."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from qvl.errors import InputNotFoundError, InvalidParamError
from qvl.training.rows import Row, read_rows
from qvl.types import Image, Message, Text, Url, Video

QUESTION, ANSWER = "What is this?", "A cup."


def read(tmp_path: Path, *lines: Any) -> tuple[list[Row], list[str]]:
    file = tmp_path / "data.jsonl"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    file.write_text(text + "\n", encoding="utf-8")
    rows, problems = read_rows([file])
    return rows, [str(problem) for problem in problems]


def messages(*parts: Any, answer: Any = ANSWER) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": answer}]


def test_all_forms_say_the_same(tmp_path: Path) -> None:
    text = {"type": "text", "text": QUESTION}
    said = {"from": "gpt", "value": ANSWER}
    marked = {"role": "user", "content": f"<image>\n{QUESTION}"}
    rows, problems = read(
        tmp_path,
        {"messages": messages({"type": "image_url", "image_url": {"url": "cup.png"}}, text)},
        {"messages": messages({"type": "image_url", "image_url": "cup.png"}, text)},
        {"messages": messages({"type": "image", "image": "cup.png"}, text)},
        {"messages": messages({"type": "image", "image": "file://cup.png"}, text)},
        {"messages": messages({"image": "cup.png"}, {"text": QUESTION})},
        {
            "id": "7",
            "image": "cup.png",
            "conversations": [{"from": "human", "value": f"<image>\n{QUESTION}"}, said],
        },
        {"images": ["cup.png"], "messages": [marked, {"role": "assistant", "content": ANSWER}]},
    )
    assert not problems
    asked = Message.user(Image(tmp_path / "cup.png", "cup.png"), QUESTION)
    wanted = (asked, Message("assistant", (Text(ANSWER),)))
    assert [row.messages for row in rows] == [wanted] * 7
    assert [row.name for row in rows] == [f"data.jsonl:{n}" for n in range(1, 8)]


def test_a_table_of_pictures_and_texts(tmp_path: Path) -> None:
    file = tmp_path / "goods.csv"
    file.write_text(
        'image,text,prompt\ncup.png,"A cup,\nblue.",Name it\nтарелка.png,Тарелка с узором.,\nx.png,,\n',
        encoding="utf-8-sig",
    )
    rows, problems = read_rows([file])
    first, second = rows
    assert first.messages[0] == Message.user(Image(tmp_path / "cup.png", "cup.png"), "Name it")
    assert first.messages[1].content == (Text("A cup,\nblue."),)
    asked = second.messages[0].content[1]
    assert isinstance(asked, Text)
    assert asked.text.startswith("Опиши")  # the product's own words, in the answer's language
    assert [str(problem) for problem in problems] == ["goods.csv:5: image or text is empty"]


def test_sources_of_pictures_and_videos(tmp_path: Path) -> None:
    data = "data:image/png;base64," + base64.b64encode(b"png").decode()
    rows, problems = read(
        tmp_path,
        {"messages": messages({"image": data}, {"image": "https://example.com/a.png"})},
        {"messages": messages({"type": "video", "video": "clip.mp4"})},
        {
            "videos": ["clip.mp4"],
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "See <video> here"},
                {"from": "gpt", "value": ANSWER},
            ],
        },
    )
    assert not problems
    inline, address = rows[0].messages[0].content
    assert isinstance(inline, Image)
    assert inline.source == b"png"
    assert isinstance(address, Image)
    assert address.source == Url("https://example.com/a.png")
    clip = Video(source=tmp_path / "clip.mp4", name="clip.mp4")
    assert rows[1].messages[0].content == (clip,)
    assert [m.role for m in rows[2].messages] == ["system", "user", "assistant"]
    assert rows[2].messages[1].content == (Text("See "), clip, Text(" here"))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ({"messages": []}, "no messages"),
        ({"text": "x"}, "unknown key 'text'"),
        ({"id": "1"}, "give messages, or conversations"),
        ({"messages": [{"role": "user", "content": "?"}]}, "nothing is learnt"),
        ({"messages": [{"role": "assistant", "content": "?"}]}, "without a question"),
        ({"messages": messages({"text": "?"}, answer=" ")}, "the answer is empty"),
        ({"messages": messages({"audio": "a.wav"})}, "no text, image or video"),
        ({"messages": [{"role": "judge", "content": "?"}]}, "the role 'judge'"),
        ({"images": ["a.png"], "messages": messages({"text": "?"})}, "more pictures"),
        ({"images": [7], "messages": messages({"text": "?"})}, "not a path"),
        ({"messages": messages({"image": "data:image/png;base64,###"})}, "not base64"),
    ],
)
def test_what_is_wrong_is_named_and_the_rest_goes_on(
    tmp_path: Path, line: Any, problem: str
) -> None:
    good = {"messages": messages({"text": QUESTION})}
    rows, problems = read(tmp_path, good, line, good)
    assert [row.name for row in rows] == ["data.jsonl:1", "data.jsonl:3"]
    (told,) = problems
    assert told.startswith("data.jsonl:2: ")
    assert problem in told


def test_files_that_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError):
        read_rows([tmp_path / "absent.jsonl"])
    with pytest.raises(InvalidParamError, match="not training data"):
        read_rows([tmp_path / "data.xlsx"])
    (tmp_path / "a.csv").write_text("picture,text\n")
    with pytest.raises(InvalidParamError, match="columns picture, text"):
        read_rows([tmp_path / "a.csv"])
