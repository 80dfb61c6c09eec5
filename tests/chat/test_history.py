"""A conversation comes back from its file as it was, and the file is whole at any moment."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from qvl.chat import history
from qvl.errors import InputError, InvalidParamError, StorageError
from qvl.types import Image, Message, Text, ToolCall, Url, Video

MESSAGES = [
    Message("system", (Text("Be brief."),)),
    Message.user(
        Image(Path("/a/cup.png"), "cup.png"),
        Image(b"\x89PNG", "bytes"),
        Image(Url("https://example.com/a.pdf"), "https://example.com/a.pdf", page=3, detail="low"),
        Video(source=Path("/a/clip.mp4"), name="clip.mp4", fps=2.0, start_s=1.5),
        "Что это? \ud800",
    ),
    Message("assistant", (), "hm", (ToolCall("add", {"a": [1, None, "я"]}),)),
    Message("tool", (Text("5"),)),
    Message("assistant", (Text("五"),)),
]


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_what_is_saved_is_loaded() -> None:
    file = history.new_file()
    history.save(file, MESSAGES, "sprout")
    assert history.load(file) == MESSAGES
    assert history.latest() == file
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.name for one in file.parent.iterdir()] == [file.name]


def test_a_path_is_kept_as_an_absolute_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    file = history.new_file()
    history.save(file, [Message.user(Image.of("cup.png"))], "sprout")
    (message,) = history.load(file)
    assert message.content == (Image(tmp_path / "cup.png", "cup.png"),)


def test_the_last_one_that_was_changed_is_continued() -> None:
    files = [history.new_file() for _ in range(3)]
    assert len(set(files)) == 3
    for second, file in enumerate([files[1], files[2], files[0]]):
        history.save(file, MESSAGES, "sprout")
        os.utime(file, (second, second))
    assert history.latest() == files[0]


def test_a_save_that_fails_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    file = history.new_file()
    history.save(file, MESSAGES, "sprout")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        history.save(file, MESSAGES[:1], "sprout")
    assert history.load(file) == MESSAGES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"version": 2, "messages": []}',
        '{"version": 1, "messages": [{}]}',
        '{"version": 1, "messages": ["hello"]}',
        '{"version": 1, "messages": [{"role": "user", "content": [{"image": 5, "name": "a", "page": 1}]}]}',
    ],
    ids=range(8),
)
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"'a\.json' is not a conversation"):
        history.load(tmp_path / "a.json")


def test_there_may_be_none() -> None:
    with pytest.raises(InputError, match="no conversation"):
        history.latest()


def test_a_video_of_single_pictures_is_refused() -> None:
    message = Message.user(Video(source=(Image(b"a"),)))
    with pytest.raises(InvalidParamError):
        history.save(history.new_file(), [message], "sprout")
