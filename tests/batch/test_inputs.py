"""Files, folders, globs and lists as items: which, in which order, under which ids."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from documents import RED_LEFT, document
from qvl.batch.inputs import items
from qvl.batch.natural import natural_key
from qvl.batch.row import Refused, Wanted
from qvl.batch.taken import Taken
from qvl.errors import InputNotFoundError, InputUnreadableError, InvalidParamError, PdfError
from qvl.runs.record import Item, Source


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.new("RGB", (40, 30), "red").save(path)
    return path


def ids(named: Sequence[str], wanted: Wanted | None = None) -> list[str]:
    found = list(items(named, wanted or Wanted()))
    assert all(isinstance(one, Item) for one in found), found
    return [one.id for one in found if isinstance(one, Item)]


def refused(named: Sequence[str], wanted: Wanted | None = None) -> list[Refused]:
    return [one for one in items(named, wanted or Wanted()) if isinstance(one, Refused)]


def test_same_named_files_of_different_folders_have_ids_of_their_own(here: Path) -> None:
    for name in ("photos/1.png", "photos/a/1.png", "more/1.png"):
        picture(here / name)
    assert ids(["photos"]) == ["1.png", "a/1.png"]
    assert ids(["photos", "more"]) == ["photos/1.png", "photos/a/1.png", "more/1.png"]
    assert ids(["photos/*.png", "photos/a"]) == ["1.png", "a/1.png"]
    assert ids(["photos/1.png"]) == ["1.png"]
    assert ids(["**/1.png"]) == ["more/1.png", "photos/1.png", "photos/a/1.png"]


def test_a_folder_is_listed_in_the_order_that_a_person_expects(here: Path) -> None:
    for name in ("img10.png", "img2.png", "B.png", "a.png"):
        picture(here / name)
    assert ids(["."]) == ["a.png", "B.png", "img2.png", "img10.png"]


@given(st.lists(st.text(alphabet="a1²0٣.й ", max_size=6)))
def test_any_names_can_be_put_in_order(names: list[str]) -> None:
    backwards = [*reversed(names)]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)


def test_paths_are_absolute_and_items_are_json(here: Path) -> None:
    picture(here / "a.png")
    (item,) = items(["a.png"])
    assert isinstance(item, Item)
    assert item.sources == (Source(str(here / "a.png")),)
    assert json.loads(json.dumps(asdict(item)))["id"] == "a.png"


def test_b021_one_file_that_is_named_twice_is_two_items(here: Path) -> None:
    picture(here / "a.png")
    assert ids(["a.png", "a.png", "a.png"]) == ["a.png", "a.png#2", "a.png#3"]


def test_languages_make_an_item_each_of_one_row(here: Path) -> None:
    picture(here / "a.png")
    found = [
        one for one in items(["a.png"], Wanted(languages=("ru", "en"))) if isinstance(one, Item)
    ]
    assert [(one.id, one.row, one.options["language"]) for one in found] == [
        ("a.png.ru", "a.png", "ru"),
        ("a.png.en", "a.png", "en"),
    ]
    assert ids(["a.png"], Wanted(languages=("ru",))) == ["a.png"]


def test_an_id_of_a_language_is_not_another_rows(here: Path) -> None:
    (here / "t.csv").write_text("id,image,lang\na,x.png,\na.ru,x.png,ru\n")
    (bad,) = refused(["t.csv"], Wanted(languages=("ru", "en")))
    assert "'a.ru'" in bad.error.message


def test_b044_nothing_named_is_no_items_and_an_empty_table_is_told(here: Path) -> None:
    (here / "t.csv").write_text("id,image\n")
    told: list[str] = []
    assert list(items([])) == []
    assert list(items(["t.csv"], Wanted(), told.append)) == []
    assert "'t.csv' holds no rows" in told


def test_what_is_not_there_is_refused_and_the_rest_goes_on(here: Path) -> None:
    picture(here / "a.png")
    (here / "empty").mkdir()
    found = list(items(["empty", "*.jpg", "none.csv", "a.png"]))
    assert [type(one).__name__ for one in found] == ["Refused", "Refused", "Refused", "Item"]
    kinds = [type(one.error) for one in found if isinstance(one, Refused)]
    assert kinds == [InputNotFoundError, InputNotFoundError, InputNotFoundError]


def test_what_is_left_out_of_a_folder_is_told(here: Path) -> None:
    picture(here / "in/a.png")
    picture(here / "in/.hidden.png")
    picture(here / "in/.cache/b.png")
    (here / "in/notes.txt").touch()
    (here / "in/clip.mp4").touch()
    told: list[str] = []
    assert len(list(items(["in"], Wanted(), told.append))) == 1
    assert told == ["'in': files that are no pictures are left out: .mp4 1, .txt 1"]


class TestB031:
    """Folders as somebody else left them."""

    def test_a_loop_of_links_is_cut(self, here: Path) -> None:
        picture(here / "in/a.png")
        (here / "in/loop").symlink_to(here / "in")
        (here / "in/up").symlink_to(here)
        assert ids(["in"]) == ["a.png"]
        assert ids(["in"], Wanted(follow=True))[0] == "a.png"

    def test_links_out_of_it_are_followed_on_request_alone(self, here: Path) -> None:
        picture(here / "in/a.png")
        picture(here / "out/b.png")
        (here / "in/link.png").symlink_to(here / "out/b.png")
        (here / "in/folder").symlink_to(here / "out")
        (here / "in/own.png").symlink_to(here / "in/a.png")
        told: list[str] = []
        found = [one for one in items(["in"], Wanted(), told.append) if isinstance(one, Item)]
        assert [one.id for one in found] == ["a.png", "own.png"]
        assert told == ["'in': 2 links lead out of it and are not followed (--follow)"]
        followed = ids(["in"], Wanted(follow=True))
        assert followed == ["a.png", "link.png", "own.png", "folder/b.png"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_folder_that_may_not_be_read_is_told(self, here: Path) -> None:
        picture(here / "in/a.png")
        (here / "in/closed").mkdir(mode=0)
        (bad,) = refused(["in"])
        assert isinstance(bad.error, InputUnreadableError)

    def test_a_folder_that_cannot_be_listed_is_told(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        picture(here / "in/a.png")
        (here / "in/closed").mkdir()
        listed = os.scandir

        def scandir(path: str) -> object:
            if path.endswith("closed"):
                raise PermissionError(13, "Permission denied")
            return listed(path)

        monkeypatch.setattr(os, "scandir", scandir)
        item, bad = items(["in"])
        assert isinstance(item, Item)
        assert isinstance(bad, Refused)
        assert isinstance(bad.error, InputUnreadableError)
        assert "closed" in bad.error.message

    def test_a_name_that_is_no_utf8_has_an_id_that_is(self, here: Path) -> None:
        Path(os.fsdecode(str(here).encode() + b"/caf\xe9.png")).write_bytes(b"x")
        (item,) = items(["."])
        assert isinstance(item, Item)
        assert item.id == "caf%E9.png"
        back = json.loads(json.dumps(asdict(item)))["sources"][0]["where"]
        assert Path(back).read_bytes() == b"x"

    def test_many_files_are_listed_one_by_one(self, here: Path) -> None:
        """The first item comes when one folder's names are read, not all of the tree."""
        for name in ("a/1.png", "b/1.png"):
            picture(here / "in" / name)
        found = items(["in"])
        next(found)
        (here / "in/b/2.png").touch()
        assert [one.id for one in found if isinstance(one, Item)] == ["b/1.png", "b/2.png"]


def test_a_list_names_paths_from_its_own_folder_and_addresses(here: Path) -> None:
    picture(here / "shop/a.png")
    (here / "shop/list.txt").write_text(
        "\ufeffa.png\n\nhttps://user:pw@a.example/b.jpg?x=1\nc.pdf#page=2\n"
    )
    found = [one for one in items(["shop/list.txt"]) if isinstance(one, Item)]
    assert [one.sources[0] for one in found] == [
        Source(str(here / "shop/a.png")),
        Source("https://user:pw@a.example/b.jpg?x=1"),
        Source(str(here / "shop/c.pdf"), "page=2"),
    ]
    assert [one.id for one in found] == ["a.png", "https://a.example/b.jpg?x=1", "c.pdf#page=2"]


def test_a_list_comes_on_stdin(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.png\nsub/b.png")))
    assert ids(["-"]) == ["a.png", "sub/b.png"]


def test_a_list_that_is_none_is_refused_line_by_line(here: Path) -> None:
    (here / "list.txt").write_bytes(b"a\0b\n" + b"x" * 200_000 + b"\nok.png\n")
    *bad, good = items(["list.txt"])
    assert [one.name for one in bad if isinstance(one, Refused)] == [
        "'list.txt', row 1",
        "'list.txt', row 2",
    ]
    assert isinstance(good, Item)


def test_each_page_of_a_document_is_an_item(here: Path) -> None:
    (here / "in").mkdir()
    (here / "in/two.pdf").write_bytes(document(RED_LEFT, RED_LEFT))
    picture(here / "in/z.png")
    found = [one for one in items(["in"]) if isinstance(one, Item)]
    assert [one.id for one in found] == ["two.pdf#page=1", "two.pdf#page=2", "z.png"]
    assert [one.sources[0].part for one in found] == ["page=1", "page=2", ""]


def test_an_encrypted_or_broken_document_is_refused_and_the_next_is_read(here: Path) -> None:
    key = b"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <%s> /U <%s> >> /ID [<00> <00>]" % (
        b"00" * 32,
        b"11" * 32,
    )
    (here / "locked.pdf").write_bytes(document(RED_LEFT, trailer=key))
    (here / "torn.pdf").write_bytes(document(RED_LEFT)[:60])
    (here / "whole.pdf").write_bytes(document(RED_LEFT))
    found = list(items(["."]))
    assert [type(one).__name__ for one in found] == ["Refused", "Refused", "Item"]
    locked = found[0]
    assert isinstance(locked, Refused)
    assert isinstance(locked.error, PdfError)
    assert "needs a password" in locked.error.message


def test_a_video_is_cut_into_segments(here: Path) -> None:
    clips = pytest.importorskip("clips")
    av = pytest.importorskip("av")
    del clips
    with av.open("clip.mp4", "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(25):
            frame = av.VideoFrame.from_image(Pillow.new("RGB", (64, 48), (number * 10, 0, 0)))
            for packet in stream.encode(frame):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    assert ids(["clip.mp4"]) == ["clip.mp4"]
    assert ids(["clip.mp4"], Wanted(every_s=1)) == [
        "clip.mp4#t=0,1",
        "clip.mp4#t=1,2",
        "clip.mp4#t=2,3",
    ]


class TestPrompts:
    """A prompt a line for so many pictures."""

    def test_they_are_paired_in_natural_order(self, here: Path) -> None:
        for name in ("img10.png", "img2.png", "img1.png"):
            picture(here / "in" / name)
        (here / "prompts.txt").write_text("\ufeffone\ntwo {title}\nten\n\n")
        found = list(items(["in"], Wanted(prompts=here / "prompts.txt")))
        pairs = [(one.id, one.options["prompt"]) for one in found if isinstance(one, Item)]
        assert pairs == [("img1.png", "one"), ("img2.png", "two {title}"), ("img10.png", "ten")]

    def test_another_count_says_both(self, here: Path) -> None:
        picture(here / "in/a.png")
        (here / "prompts.txt").write_text("one\ntwo\n")
        with pytest.raises(InvalidParamError, match="has 2 prompts, and there are 1 pictures"):
            list(items(["in"], Wanted(prompts=here / "prompts.txt")))

    def test_an_empty_line_between_is_named(self, here: Path) -> None:
        picture(here / "in/a.png")
        picture(here / "in/b.png")
        (here / "prompts.txt").write_text("\ntwo\n")
        with pytest.raises(InvalidParamError, match="no prompt in line 1"):
            list(items(["in"], Wanted(prompts=here / "prompts.txt")))

    def test_nothing_is_paired_where_a_picture_cannot_be_used(self, here: Path) -> None:
        picture(here / "in/a.png")
        (here / "prompts.txt").write_text("one\n")
        found = list(items(["in", "*.jpg"], Wanted(prompts=here / "prompts.txt")))
        assert [type(one) for one in found] == [Refused]

    def test_a_file_that_is_no_text_is_told(self, here: Path) -> None:
        (here / "prompts.txt").write_bytes(b"\xff\xfe\xff")
        with pytest.raises(InputUnreadableError, match=r"prompts\.txt"):
            list(items([], Wanted(prompts=here / "prompts.txt")))


@given(st.lists(st.integers(0, 300).map(str), max_size=400))
def test_taken_knows_who_was_first(names: list[str]) -> None:
    taken, first = Taken(), {}
    for number, name in enumerate(names, 2):
        holder = taken.take(name, "t.csv", number)
        assert holder == (None if name not in first else ("t.csv", first[name]))
        first.setdefault(name, number)


def test_taken_forgets_nobody_when_it_grows() -> None:
    taken = Taken()
    for number in range(1, 20_000):
        assert taken.take(str(number), f"{number % 3}.csv", number) is None
    for number in range(1, 20_000):
        assert taken.take(str(number), "again.csv", 1) == (f"{number % 3}.csv", number)
