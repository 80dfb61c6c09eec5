"""Pictures that come more than once, by their bytes and by their looks."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageDraw, ImageEnhance

from qvl.batch import duplicates
from qvl.batch.duplicates import NEAR_BITS, Looks, looks, near, same_bytes
from qvl.batch.inputs import items
from qvl.batch.row import Wanted
from qvl.processing.image import read_image
from qvl.runs.record import Item
from qvl.types import Image

PLAIN = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(*named: str, **wanted: object) -> list[Item]:
    return [one for one in items(named, Wanted(**wanted)) if isinstance(one, Item)]  # type: ignore[arg-type]


def test_the_same_bytes_are_found_wherever_they_lie(here: Path) -> None:
    for name, data in {"a.png": b"1234", "b.png": b"5678", "c/d.png": b"1234"}.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(data)
    with zipfile.ZipFile("p.zip", "w") as archive:
        archive.writestr("e.png", b"1234")
        archive.writestr("f.png", b"5678")
        archive.writestr("g.png", b"56789")
        archive.writestr("h.png", b"56789")
    assert same_bytes(rows("a.png", "b.png", "c")) == [("a.png", "c/d.png")]
    assert same_bytes(rows("p.zip")) == [("g.png", "h.png")]


def test_languages_of_one_row_are_no_duplicates_and_addresses_may_be(here: Path) -> None:
    (here / "a.png").write_bytes(b"1")
    (here / "t.csv").write_text(
        "id,image\n1,https://a.example/x.png\n2,https://a.example/y.png\n"
        "3,https://a.example/x.png\n4,a.png;a.png\n5,a.png\n6,a.png;a.png\n7,none.png\n8,none.png\n"
    )
    assert same_bytes(rows("t.csv", languages=("ru", "en"))) == [("1", "3"), ("4", "6")]


def test_only_files_of_one_size_are_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in range(1, 20):
        (here / f"{size}.png").write_bytes(b"x" * size)
    (here / "twin.png").write_bytes(b"x" * 7)
    read: list[str] = []
    content = duplicates.content

    def counted(source: object) -> str:
        read.append(source.where)  # type: ignore[attr-defined]
        return content(source)  # type: ignore[arg-type]

    monkeypatch.setattr(duplicates, "content", counted)
    assert same_bytes(rows(".")) == [("7.png", "twin.png")]
    assert len(read) == 2
    assert same_bytes([]) == []


def photo(seed: int) -> Pillow.Image:
    """A product of its own shape before white."""
    chance = np.random.default_rng(seed)
    image = Pillow.new("RGB", (400, 300), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        x, y = chance.integers(20, 250, 2).tolist()
        w, h = chance.integers(40, 140, 2).tolist()
        shape = draw.ellipse if chance.random() < 0.5 else draw.rectangle
        shape((x, y, x + w, y + h), fill=tuple(chance.integers(0, 256, 3).tolist()))
    return image


def seen(path: Path) -> Looks:
    return looks(read_image(Image.of(str(path))))


def test_saved_smaller_or_brighter_it_looks_the_same_and_another_does_not(here: Path) -> None:
    files = []
    for seed in range(12):
        image = photo(seed)
        changed = {
            "a.png": image,
            "b.jpg": image,
            "c.png": image.resize((200, 150)),
            "d.png": ImageEnhance.Brightness(image).enhance(0.97),
        }
        for name, one in changed.items():
            files.append(here / f"{seed}{name}")
            one.save(files[-1], quality=70)
    pairs = near([seen(file) for file in files])
    assert pairs == [(n, n // 4 * 4) for n in range(len(files)) if n % 4]


def test_plain_pages_of_other_colours_are_not_the_same(here: Path) -> None:
    found = []
    for colour in ("white", "red", "black", "white"):
        Pillow.new("RGB", (90, 80), colour).save("a.png")
        found.append(seen(here / "a.png"))
    assert len({one.bits for one in found}) == 2  # black has not even an average
    assert near(found) == [(3, 0)]


hashes = st.integers(0, 2**64 - 1)


@given(st.lists(st.one_of(st.sampled_from([0, 0xFF, 2**63]), hashes), max_size=12), st.data())
def test_pairs_are_those_that_comparing_all_finds(bits: list[int], data: st.DataObject) -> None:
    for one in list(bits):  # some close to others
        flips = data.draw(st.lists(st.integers(0, 63), max_size=NEAR_BITS + 2))
        for flip in flips:
            one ^= 1 << flip
        bits.append(one)
    slow = []
    for n, one in enumerate(bits):
        close = [m for m in range(n) if (one ^ bits[m]).bit_count() <= NEAR_BITS]
        if close:
            slow.append((n, close[0]))
    assert near([Looks(one, PLAIN) for one in bits]) == slow


@given(st.lists(hashes, min_size=1))
def test_set_bits_are_counted(numbers: list[int]) -> None:
    told = duplicates.ones(np.array(numbers, np.uint64))
    assert told.tolist() == [number.bit_count() for number in numbers]
