"""What is drawn on a picture: in its place, whole, in the letters of the product's languages."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as Pillow

from qvl.drawing import COLOURS, FACES, drawn, face_of, font_of, length_of
from qvl.scenes.kinds import kinds
from qvl.types import Box, Point


def blank(width: int, height: int, grey: int = 255) -> np.ndarray:
    return np.full((height, width, 3), grey, np.uint8)


def where(picture: Pillow.Image, colour: str) -> tuple[int, int, int, int]:
    """The box around all pixels of exactly that colour."""
    wanted = tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))
    ys, xs = np.nonzero((np.asarray(picture) == wanted).all(2))
    return xs.min(), ys.min(), xs.max(), ys.max()


def test_a_box_is_drawn_around_its_pixels() -> None:
    picture, numbered = drawn(blank(200, 300), [Box("", 20, 100, 150, 280)])
    assert picture.size == (200, 300)
    assert where(picture, COLOURS[0]) == (20, 100, 150, 280)
    assert numbered == ()


@pytest.mark.parametrize("label", ["кошка", "红色的杯子", "x" * 40, "x" * 300])
def test_a_label_is_whole_wherever_its_place_is(label: str) -> None:
    """By the white of its letters on a grey picture; a very long one is the same cut one."""
    whites = []
    for corners in ((0, 150, 40, 190), (0, 0, 40, 40), (380, 0, 399, 299), (0, 280, 20, 299)):
        picture, _ = drawn(blank(400, 300, grey=128), [Box(label, *corners)])
        white = np.asarray(picture).min(2) > 200
        whites.append(int(white.sum()))
        assert not white[:, -2:].any()  # where the margin of its plate is, at the most
    assert min(whites) > 0.9 * max(whites) > 0


def test_a_long_label_gets_smaller_letters_before_it_is_cut() -> None:
    ends = ("a", "b")
    for length, is_cut in ((10, False), (50, False), (300, True)):
        first, second = (
            drawn(blank(400, 300), [Box("x" * length + end, 10, 50, 60, 99)])[0] for end in ends
        )
        assert (first.tobytes() == second.tobytes()) == is_cut


def test_labels_alike_have_one_colour_and_others_another() -> None:
    boxes = [Box("a", 10, 50, 60, 100), Box("b", 110, 50, 160, 100), Box("a", 210, 50, 260, 100)]
    picture, _ = drawn(blank(300, 150), boxes, [Point("b", 135, 130)])
    assert where(picture, COLOURS[0])[::2] == (10, 260)
    assert where(picture, COLOURS[1])[0] == 110
    assert where(picture, COLOURS[1])[3] > 130


@pytest.mark.parametrize(
    "label",
    [
        "красная кошка, №1 «Ёж» — 5 ₽",
        "红色的猫，第一只。",
        "ґанок їжака",
        "қазақ тілі",
        "Größe, façade, ñandú, żółw, ığdır, đậu hũ",
        *[name for kind in kinds()[:8] for name in (kind.en, kind.ru, kind.zh)],
    ],
)
def test_the_shipped_fonts_have_the_letters(label: str) -> None:
    assert all(face_of(letter) for letter in label), label
    _, numbered = drawn(blank(64, 64), [Box(label, 1, 1, 9, 9)])
    assert numbered == ()


def test_letters_that_no_font_has_become_a_number() -> None:
    boxes = [Box("cat", 10, 50, 60, 100), Box("고양이", 110, 50, 160, 100)]
    picture, numbered = drawn(blank(300, 150), boxes)
    same, _ = drawn(blank(300, 150), [boxes[0], Box("2", 110, 50, 160, 100)])
    assert numbered == ("고양이",)
    assert picture.tobytes() == same.tobytes()


def test_a_mixed_label_is_as_long_as_its_parts() -> None:
    latin, chinese = (font_of(name, 20) for name in FACES)
    parts = latin.getlength("cat ") + chinese.getlength("猫")
    assert length_of("cat 猫", 20) == pytest.approx(parts)
