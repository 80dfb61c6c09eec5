"""Zip and tar archives as items, and those that somebody has made to do harm."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image as Pillow

from documents import RED_LEFT, document
from qvl.batch import archives, media
from qvl.batch.inputs import items
from qvl.batch.row import Refused
from qvl.errors import ArchiveError, InputNotFoundError, QvlError
from qvl.processing.image import read_image
from qvl.runs.record import Item, Source
from qvl.types import Image


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drawn(colour: str) -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", (40, 30), colour).save(file, "PNG")
    return file.getvalue()


MEMBERS = {"a.png": drawn("red"), "sub/b.png": drawn("blue"), "notes.txt": b"x", ".c.png": b"x"}
KINDS = ["p.zip", "p.tar", "p.tar.gz", "p.tgz", "p.tar.bz2", "p.tar.xz"]


def packed(name: str, members: dict[str, bytes]) -> None:
    if name.endswith(".zip"):
        with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in members.items():
                archive.writestr(member, data)
        return
    mode = {"gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", "xz": "w:xz"}.get(name.split(".")[-1], "w")
    with tarfile.open(name, mode) as archive:  # pyrefly: ignore
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def error(name: str) -> QvlError:
    (bad,) = items([name])
    assert isinstance(bad, Refused)
    return bad.error


@pytest.mark.parametrize("name", KINDS)
def test_members_are_items_and_read_when_they_are_looked_at(here: Path, name: str) -> None:
    packed(name, MEMBERS)
    found = [one for one in items([name]) if isinstance(one, Item)]
    assert [one.id for one in found] == ["a.png", "sub/b.png"]
    assert found[1].sources == (Source(str(here / name), "member=sub/b.png"),)
    (image,) = media.seen(found[1])
    assert isinstance(image, Image)
    assert image.name == f"{name}/sub/b.png"
    assert tuple(read_image(image).pixels[0, 0]) == (0, 0, 255)


def test_several_archives_have_ids_of_their_own(here: Path) -> None:
    packed("p.zip", MEMBERS)
    packed("q.zip", MEMBERS)
    found = [one.id for one in items(["p.zip", "q.zip"]) if isinstance(one, Item)]
    assert found == ["p.zip/a.png", "p.zip/sub/b.png", "q.zip/a.png", "q.zip/sub/b.png"]


def test_a_document_in_an_archive_has_pages(here: Path) -> None:
    packed("p.zip", {"two.pdf": document(RED_LEFT, b"")})
    found = [one for one in items(["p.zip"]) if isinstance(one, Item)]
    assert [one.id for one in found] == ["two.pdf#page=1", "two.pdf#page=2"]
    (image,) = media.seen(found[0])
    assert isinstance(image, Image)
    assert image.page == 1
    assert tuple(read_image(image).pixels[0, 0]) == (255, 0, 0)


BAD_NAMES = ["../x.png", "a/../../x.png", "/etc/x.png", "C:/x.png", "..\\x.png", "\\\\host\\x.png"]


@pytest.mark.parametrize("kind", ["p.zip", "p.tar"])
@pytest.mark.parametrize("name", BAD_NAMES)
def test_b030_a_name_that_leads_out_is_refused_and_the_others_are_read(
    here: Path, kind: str, name: str
) -> None:
    packed(kind, {name: drawn("red"), "ok.png": drawn("red")})
    bad, good = items([kind])
    assert isinstance(bad, Refused)
    assert isinstance(bad.error, ArchiveError)
    assert "leads out of it" in bad.error.message
    assert isinstance(good, Item)
    assert sorted(path.name for path in here.iterdir()) == [kind]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_b030_links_and_devices_of_a_tar_are_refused(here: Path, kind: bytes) -> None:
    with tarfile.open("p.tar", "w") as archive:
        info = tarfile.TarInfo("x.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    assert "a link or a device" in error("p.tar").message


def test_b030_a_link_in_a_zip_is_refused(here: Path) -> None:
    with zipfile.ZipFile("p.zip", "w") as archive:
        info = zipfile.ZipInfo("x.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert "a link or a device" in error("p.zip").message


def test_b030_a_million_members_are_refused_before_they_are_listed(here: Path) -> None:
    """The list is made here by hand: its entries point nowhere, as nobody gets so far."""
    entry = b"PK\1\2" + b"\0" * 24 + b"\5\0" + b"\0" * 16 + b"a.png"
    count = 1_000_000
    end = (
        b"PK\5\6" + b"\0" * 4 + b"\1\0\1\0" + (len(entry) * count).to_bytes(4, "little") + b"\0" * 6
    )
    (here / "p.zip").write_bytes(entry * count + end)
    assert error("p.zip").message == "'p.zip' has more than 100000 members"


def test_a_large_zip_has_its_list_at_another_place(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of 70,000 members has, where its end says that it is a zip64."""
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    packed("p.zip", MEMBERS)
    assert b"PK\6\6" in (here / "p.zip").read_bytes()
    assert [one.id for one in items(["p.zip"]) if isinstance(one, Item)] == ["a.png", "sub/b.png"]
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    assert error("p.zip").message == "'p.zip' has more than 3 members"


def test_b030_too_many_members_of_a_tar_are_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    packed("p.tar", {f"{n}.png": b"x" for n in range(4)})
    *found, bad = items(["p.tar"])
    assert len(found) == 2
    assert isinstance(bad, Refused)
    assert bad.error.message == "'p.tar' has more than 2 members"


@pytest.mark.parametrize("name", ["p.zip", "p.tar.gz", "p.tar.xz"])
def test_b030_what_unpacks_to_too_much_is_refused(here: Path, name: str) -> None:
    packed(name, {"a.png": b"\0" * (4 << 20)})
    told = error(name)
    assert isinstance(told, ArchiveError)
    assert "times its size, the limit is 100" in told.message


def test_b030_archives_in_archives_are_not_opened(here: Path) -> None:
    packed("inner.zip", {"a.png": drawn("red")})
    packed("p.zip", {"inner.zip": (here / "inner.zip").read_bytes(), "ok.png": drawn("red")})
    assert [one.id for one in items(["p.zip"]) if isinstance(one, Item)] == ["ok.png"]


def test_b030_a_size_that_lies_gives_no_more_than_it_says(here: Path) -> None:
    packed("p.zip", {"a.png": b"x" * 1000})
    data = (here / "p.zip").read_bytes().replace((1000).to_bytes(4, "little"), b"\x64\0\0\0")
    (here / "p.zip").write_bytes(data)
    with pytest.raises(ArchiveError, match="damaged"):
        media.seen_in(Source(str(here / "p.zip"), "member=a.png"))


def test_a_member_over_the_limit_is_refused(here: Path) -> None:
    packed("p.zip", MEMBERS)
    with pytest.raises(ArchiveError, match="the limit is 0"):
        archives.read(here / "p.zip", "a.png", 10)


def test_a_member_with_a_password_is_refused(here: Path) -> None:
    packed("p.zip", {"a.png": b"x"})
    data = bytearray((here / "p.zip").read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    (here / "p.zip").write_bytes(data)
    assert "needs a password" in error("p.zip").message


def test_a_member_that_comes_twice_is_refused(here: Path) -> None:
    packed("p.zip", {"a.png": b"1", "b.png": b"2"})
    (here / "p.zip").write_bytes((here / "p.zip").read_bytes().replace(b"b.png", b"a.png"))
    first, second = items(["p.zip"])
    assert isinstance(first, Item)
    assert isinstance(second, Refused)
    assert "more than once" in second.error.message


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_cut_anywhere_is_an_error_or_has_fewer_members(here: Path, name: str) -> None:
    packed(name, MEMBERS)
    whole = (here / name).read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 12)):
        (here / name).write_bytes(whole[:length])
        for one in items([name]):
            if isinstance(one, Refused):
                assert isinstance(one.error, QvlError)


def test_an_archive_that_is_gone_is_told(here: Path) -> None:
    assert isinstance(error("none.zip"), InputNotFoundError)
    with pytest.raises(InputNotFoundError):
        media.seen_in(Source(str(here / "none.zip"), "member=a.png"))


def test_an_archive_that_was_replaced_is_read_anew(here: Path) -> None:
    packed("p.zip", {"a.png": drawn("red")})
    source = Source(str(here / "p.zip"), "member=a.png")
    assert media.seen_in(source).source == drawn("red")
    packed("p.zip", {"a.png": drawn("blue"), "b.png": b"x"})
    assert media.seen_in(source).source == drawn("blue")
