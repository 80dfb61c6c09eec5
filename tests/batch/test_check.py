"""What is found out about items before a model is asked."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image as Pillow

from qvl.batch.check import Looked, changed, looked_at
from qvl.batch.inputs import items
from qvl.batch.media import seen, seen_in
from qvl.batch.row import Refused, Wanted
from qvl.errors import (
    FetchBlockedError,
    ImageDecodeError,
    ImageTooLargeError,
    InputNotFoundError,
    InvalidParamError,
)
from qvl.processing.image import read_image, read_sizes
from qvl.runs.record import Item, Source
from qvl.types import Image, Video


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(name: str, size: tuple[int, int] = (60, 40), **how: object) -> None:
    Pillow.new("RGB", size, "red").save(name, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif", "avif"])
def test_sizes_come_of_headers_alone_and_are_those_of_the_picture(here: Path, suffix: str) -> None:
    picture(f"a.{suffix}", (61, 43))
    (size,) = read_sizes([Image.of(f"a.{suffix}")])
    assert size == (61, 43)
    assert size == read_image(Image.of(f"a.{suffix}")).pixels.shape[1::-1]


def test_a_turned_picture_has_the_sides_that_are_seen(here: Path) -> None:
    turned = Pillow.Exif()
    turned[0x0112] = 6
    picture("a.jpg", (60, 40), exif=turned)
    assert read_sizes([Image.of("a.jpg")]) == [(40, 60)]


def test_a_size_behind_a_long_profile_is_found(here: Path) -> None:
    picture("a.jpg", icc_profile=b"x" * 300_000)
    assert (here / "a.jpg").read_bytes().index(b"\xff\xc0") > 256 * 1024
    assert read_sizes([Image.of("a.jpg")]) == [(60, 40)]


def test_half_a_picture_still_has_its_size(here: Path) -> None:
    picture("a.png", (800, 600))
    (here / "a.png").write_bytes((here / "a.png").read_bytes()[:60])
    assert read_sizes([Image.of("a.png")]) == [(800, 600)]


def test_many_sizes_come_in_order_with_errors_among_them(here: Path) -> None:
    images = []
    for number in range(100):
        name = f"{number}.png"
        if number % 10 == 3:
            (here / name).write_bytes(b"no picture")
        elif number % 10 != 7:
            picture(name, (30 + number, 40))
        images.append(Image.of(name))
    for number, size in enumerate(read_sizes(images)):
        if number % 10 == 3:
            assert isinstance(size, ImageDecodeError)
            assert repr(f"{number}.png") in size.message
        elif number % 10 == 7:
            assert isinstance(size, InputNotFoundError)
        else:
            assert size == (30 + number, 40)


def test_sizes_over_the_limits_are_refused(here: Path) -> None:
    header = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (20_000).to_bytes(4, "big") * 2 + b"\1" * 20
    (here / "a.png").write_bytes(header)
    (here / "b.png").write_bytes(b"x" * (21 << 20))
    for told in read_sizes([Image.of("a.png"), Image.of("b.png")]):
        assert isinstance(told, ImageTooLargeError)


def test_b015_one_bad_picture_among_many_is_one_that_is_refused(here: Path) -> None:
    for number in range(40):
        picture(f"{number}.png")
    (here / "17.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (here / "t.csv").write_text("image\nmissing.png\n" + "".join(f"{n}.png\n" for n in range(40)))
    found = list(looked_at(items(["t.csv"])))
    bad = [one for one in found if isinstance(one, Refused)]
    assert [one.name for one in bad] == ["missing.png", "17.png"]
    assert isinstance(bad[0].error, InputNotFoundError)
    assert isinstance(bad[1].error, ImageDecodeError)
    good = [one for one in found if isinstance(one, Looked)]
    assert [one.sizes for one in good] == [((60, 40),)] * 39
    assert {stamp.size_bytes for one in good if (stamp := one.stamps[0])} == {
        (here / "0.png").stat().st_size
    }


def test_what_was_refused_before_stays_in_its_place(here: Path) -> None:
    picture("a.png")
    (here / "t.csv").write_text("id,image\n1,a.png\n1,a.png\n2,a.png\n")
    found = list(looked_at(items(["t.csv"])))
    assert [type(one) for one in found] == [Looked, Refused, Looked]


def test_it_looks_no_further_ahead_than_it_must(here: Path) -> None:
    picture("a.png")
    given = 0

    def many() -> Iterator[Item]:
        nonlocal given
        while True:
            given += 1
            yield Item(id=str(given), row=str(given), sources=(Source(str(here / "a.png")),))

    found = looked_at(many())
    for _ in range(10):
        assert isinstance(next(found), Looked)
    assert given <= 10 * 32


@pytest.mark.parametrize("by_content", [False, True])
def test_b036_a_file_that_was_replaced_is_noted(here: Path, by_content: bool) -> None:
    picture("a.png")
    picture("b.png")
    (here / "t.csv").write_text("image\na.png; b.png\n")
    (looked,) = looked_at(items(["t.csv"]), with_sha256=by_content)
    assert isinstance(looked, Looked)
    assert changed(looked.item, looked.stamps) == ()
    before = (here / "b.png").stat()
    (here / "b.png").write_bytes((here / "b.png").read_bytes()[::-1])
    if by_content:  # of the same size, and the clock was set back
        os.utime("b.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert changed(looked.item, looked.stamps) == (str(here / "b.png"),)
    (here / "a.png").unlink()
    assert changed(looked.item, looked.stamps) == (str(here / "a.png"), str(here / "b.png"))


@pytest.mark.parametrize("address", ["http://127.0.0.1/a.png", "http://169.254.169.254/a.png"])
def test_b038_an_address_of_a_private_network_is_blocked(here: Path, address: str) -> None:
    (here / "t.csv").write_text(f"url\n{address}\n")
    (item,) = items(["t.csv"])
    assert isinstance(item, Item)
    (looked,) = looked_at([item])
    assert isinstance(looked, Looked)
    assert looked.sizes == (None,)
    (image,) = seen(item)
    assert isinstance(image, Image)
    with pytest.raises(FetchBlockedError):
        read_image(image)


def test_nothing_is_fetched_before_it_is_looked_at(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr(socket, "getaddrinfo", None)
    (here / "list.txt").write_text("https://example.com/a.png\nhttps://example.com/b.mp4\n")
    found = list(looked_at(items(["list.txt"], Wanted())))
    assert [type(one) for one in found] == [Looked, Looked]
    kinds = [type(seen(one.item)[0]) for one in found if isinstance(one, Looked)]
    assert kinds == [Image, Video]


def test_parts_are_read_as_they_are_written() -> None:
    video = seen_in(Source("/a.mp4", "t=1.5,20"))
    assert isinstance(video, Video)
    assert (video.start_s, video.end_s) == (1.5, 20)
    page = seen_in(Source("/a.pdf", "page=3"))
    assert isinstance(page, Image)
    assert page.page == 3
    for part in ("page=x", "page=0", "t=a,b", "other=1", "t=1"):
        with pytest.raises(InvalidParamError):
            seen_in(Source("/a.pdf", part))
