"""`qvl describe --write-xmp`: copies that hold what was printed, and originals as they were."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image as Pillow

from command import Run
from qvl.cli.copies import words_in
from qvl.tasks.describe import Description
from qvl.xmp import ALT_TEXT, DESCRIPTION, RDF, XML_LANG
from scripted import completion

SOME = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.png"))[:2]


@pytest.fixture
def describe(qvl: Run) -> Run:
    return partial(qvl, "describe")


def texts(picture: Path, tag: str) -> dict[str | None, str | None]:
    with Pillow.open(picture) as opened:
        root = ElementTree.fromstring(opened.info["XML:com.adobe.xmp"])
    return {item.get(XML_LANG): item.text for item in root.findall(f".//{tag}//{RDF}li")}


def test_a_copy_holds_what_was_printed(describe: Run, tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        shutil.copy(SOME[0], tmp_path / place / "cup.png")
    code, out, _ = describe("a", "b", "--language", "ru,en", "--write-xmp", "copies", "-t", "0")
    assert code == 0
    printed = [line.split("] ", 1)[1] for line in out.splitlines()]
    for name, (russian, english) in zip(
        ("cup.png", "cup-2.png"), (printed[:2], printed[2:]), strict=True
    ):
        said = {"x-default": russian, "ru": russian, "en": english}
        assert texts(tmp_path / "copies" / name, ALT_TEXT) == said
        assert texts(tmp_path / "copies" / name, DESCRIPTION) == said
    assert sorted(path.name for path in (tmp_path / "copies").iterdir()) == ["cup-2.png", "cup.png"]
    assert (tmp_path / "a" / "cup.png").read_bytes() == SOME[0].read_bytes()


def test_nothing_is_overwritten_and_the_text_is_printed_all_the_same(
    describe: Run, tmp_path: Path
) -> None:
    shutil.copy(SOME[0], tmp_path / "cup.png")
    code, out, err = describe("cup.png", SOME[1], "--write-xmp", ".", "-t", "0")
    assert code == 3
    assert len(out.splitlines()) == 2
    assert "'cup.png' is in the folder" in err
    assert (tmp_path / "cup.png").read_bytes() == SOME[0].read_bytes()
    assert (tmp_path / SOME[1].name).exists()


def test_what_has_no_file_has_no_copy(describe: Run) -> None:
    code, out, err = describe("-", "--write-xmp", "copies", stdin=SOME[0].read_bytes())
    assert code == 4
    assert out.strip()
    assert "'stdin' is not a picture's file" in err


def test_a_long_text_is_no_alt_text() -> None:
    def told(text: str, language: str, alt_text: str = "") -> Description:
        return Description(
            text=text, language=language, completions=(completion(text),), alt_text=alt_text,
            keywords=("a", "b"),
        )  # fmt: skip

    words = words_in(
        "cup", [told("x" * 251, "en"), told("y" * 251, "ru", "кратко"), told("", "zh")]
    )
    assert words.alt_text == {"ru": "кратко"}
    assert set(words.description) == {"en", "ru"}
    assert words.keywords == ("a", "b")
