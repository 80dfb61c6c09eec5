"""Boxes out of answers: pixels of the original, tolerant of what surrounds them, never outside."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qvl.tasks.boxes import parse_boxes
from qvl.training.phrases import box_answer
from qvl.types import Box, ImageInfo

INFO = ImageInfo(
    name="a",
    sha256="",
    width_px=400,
    height_px=200,
    resized_width_px=160,
    resized_height_px=96,
    tokens=15,
)


def test_the_grid_of_a_thousand_becomes_pixels_of_the_original() -> None:
    text = '```json\n[{"bbox_2d": [100, 200, 500, 900], "label": "кошка"}]\n```'
    assert parse_boxes(text, INFO) == (Box("кошка", 40, 40, 200, 180),)


def test_corners_are_put_in_order_and_clamped() -> None:
    text = '[{"bbox_2d":[900,-50,100,2000],"label":"x"}]'
    assert parse_boxes(text, INFO) == (Box("x", 40, 0, 360, 200),)


def test_a_list_that_was_cut_off_keeps_its_whole_boxes() -> None:
    text = '[{"bbox_2d":[0,0,500,500],"label":"a"},{"bbox_2d":[0,0,50'
    assert [box.label for box in parse_boxes(text, INFO)] == ["a"]


def test_no_box_without_an_area_and_none_in_plain_text() -> None:
    assert parse_boxes('[{"bbox_2d":[10,10,10,50],"label":"a"}]', INFO) == ()
    assert parse_boxes('[{"bbox_2d":[1.2.3,1,2,3]}] nothing here', INFO) == ()


@given(st.text(alphabet='[]{}",:.0123456789bbox_2d label-кошка', max_size=200))
def test_any_text_is_read_without_a_fault(text: str) -> None:
    for box in parse_boxes(text, INFO):
        assert 0 <= box.x1 < box.x2 <= INFO.width_px
        assert 0 <= box.y1 < box.y2 <= INFO.height_px


whole = st.integers(0, 99).map(lambda v: v * 10)


@given(st.lists(st.tuples(whole, whole, whole, whole), max_size=5))
def test_what_training_writes_is_read_back(corners: list[tuple[int, int, int, int]]) -> None:
    proper = [(x1, y1, x2, y2) for x1, y1, x2, y2 in corners if x1 < x2 and y1 < y2]
    found = parse_boxes(box_answer([("вещь", box) for box in proper]), INFO)
    grid = [
        tuple(round(v) for v in (b.x1 / 0.4, b.y1 / 0.2, b.x2 / 0.4, b.y2 / 0.2)) for b in found
    ]
    assert grid == proper
