"""Published cases of every metric that has some, and what must hold of any answer."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvl.evals import scores

CASES = Path(__file__).parents[1] / "data" / "metric_cases.jsonl"
# jiwer, Donut by way of CC-OCR, lmms-eval's RefCOCO, scikit-learn, Qwen-VL's GQA: as their code prints
NEAR = 1e-6
texts = st.text(alphabet="abc да猫 .,1", max_size=12)
sides = st.integers(0, 20)
boxes = st.tuples(sides, sides, sides, sides)


def cases(metric: str) -> list[dict]:
    rows = [json.loads(line) for line in CASES.read_text("utf-8").splitlines()]
    return [row for row in rows if row["metric"] == metric]


def id_of(row: dict) -> str:
    return row["id"]


@pytest.mark.parametrize("case", cases("cer"), ids=id_of)
def test_character_errors(case):
    told, true = case["prediction"], case["references"]
    assert scores.cer([told] if isinstance(told, str) else told, true) == pytest.approx(
        case["expected"], abs=NEAR
    )


@pytest.mark.parametrize("case", cases("field_f1"), ids=id_of)
def test_fields(case):
    f1 = scores.field_f1(case["prediction"], case["references"])
    assert f1 == pytest.approx(case["expected"], abs=1.1 * NEAR)  # theirs adds 1e-6 to a divisor


@pytest.mark.parametrize("case", cases("iou"), ids=id_of)
def test_overlap_of_boxes(case):
    found = scores.iou(case["prediction"], case["references"])
    assert found == pytest.approx(case["expected"], abs=NEAR)


@pytest.mark.parametrize("case", cases("cls_macro_f1"), ids=id_of)
def test_macro_f1(case):
    labels = case["params"]["labels"] if case["mode"] == "union_labels" else None
    f1 = scores.macro_f1(case["prediction"], case["references"], labels)
    assert f1 == pytest.approx(case["expected"], abs=NEAR)


@pytest.mark.parametrize("case", cases("exact_match"), ids=id_of)
def test_exact_match(case):
    assert scores.exact(case["prediction"], case["references"][0]) == bool(case["expected"])


@pytest.mark.parametrize(
    ("told", "true"),
    [
        ("Слева.", "слева"),
        ("ЁЛКА", "елка"),
        ("  two   cups ", "two cups"),
        ("黄色。", "黄色"),
        ("５", "5"),
    ],
)
def test_what_does_not_count_in_a_short_answer(told, true):
    assert scores.exact(told, true)


def test_words_of_a_fact_stand_whole():
    assert scores.says("There are 3 cups.", "3 cups")
    assert not scores.says("There are 13 cups.", "3 cups")
    assert not scores.says("a catalogue", "cat")
    assert scores.says("图中有三只猫和一只狗", "三只猫")
    assert scores.says("На картинке Ёлка.", "ёлка")


def test_words_overlap_as_bags():
    # SQuAD's own example of the formula: 2 words of 3 told, 2 of 4 true
    assert scores.token_f1("the red cup", "a red cup here") == pytest.approx(4 / 7)
    assert scores.token_f1("一只猫", "一只狗") == pytest.approx(2 / 3)
    assert scores.token_f1("cup cup", "cup") == pytest.approx(2 / 3)


def test_sets_overlap():
    assert scores.set_f1(["cat", "dog"], ["cat", "cup", "dog"]) == pytest.approx(0.8)
    assert scores.set_f1([], []) == 1
    assert scores.set_f1([], ["cat"]) == 0


def test_overlaps_pool_items_by_their_sizes():
    pooled = scores.overlap("ab", "ab") + scores.overlap("", "abcdef")
    assert pooled.f1 == pytest.approx(2 * 2 / (2 + 8))


def test_numbers_are_values_not_spellings():
    assert scores.field_f1({"price": 16, "count": 2.0}, {"price": 16.00, "count": 2}) == 1
    assert scores.field_f1({"ok": True}, {"ok": 1}) == 0
    assert scores.field_f1({"ok": False}, {"ok": False}) == 1
    assert scores.fields({"ok": False, "no": None, "none": [], "l": [{"a": 1}, {"a": 1}]}) == {
        ("ok", "False"): 1,
        ("l.a", "1.0"): 2,
    }


def test_each_box_is_matched_once():
    left, right = [0, 0, 10, 10], [20, 0, 30, 10]
    assert scores.boxes_found([left, right], [right, left]) == 1
    assert scores.boxes_found([left, left], [left, right]) == 0.5
    assert scores.boxes_found([left], [left, right]) == 0.5
    assert scores.boxes_found([left, right], [left]) == 0.5
    assert scores.boxes_found([], []) == 1
    assert scores.boxes_found([left], []) == 0


def test_the_most_pairs_are_found_where_the_first_fit_is_not_the_best():
    fits = {(1, 1), (1, 2), (2, 1)}
    assert scores.matched([1, 2], [1, 2], lambda a, b: (a, b) in fits) == 2


@pytest.mark.parametrize(
    ("places", "share"),
    [
        ([1, 2, 3], 1),
        ([3, 2, 1], 0),
        ([1, 3, 2], 2 / 3),
        ([1, None, 2], 1 / 3),
        ([1, 1], 0),
        ([None, None], 0),
        ([4], 1),
    ],
)
def test_pairs_of_events_in_their_order(places, share):
    assert scores.in_order(places) == pytest.approx(share)


def test_calibration_by_hand():
    # two bins of equal width: 0.5 belongs to the lower one
    confidence, right = [0.2, 0.5, 0.9, 0.9], [0, 1, 1, 1]
    expected = 2 / 4 * abs(0.5 - 0.35) + 2 / 4 * abs(1 - 0.9)
    assert scores.calibration_error(confidence, right, bins=2) == pytest.approx(expected)
    apart = scores.calibration_error(confidence, right, bins=4, adaptive=True)
    assert apart == pytest.approx((0.2 + 0.5 + 0.1 + 0.1) / 4)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_model_that_knows_how_often_it_is_right_is_calibrated(adaptive):
    rng = np.random.default_rng(0)
    confidence = rng.random(40_000).tolist()
    right = [
        float(drawn < sure) for drawn, sure in zip(rng.random(40_000), confidence, strict=True)
    ]
    assert scores.calibration_error(confidence, right, adaptive=adaptive) < 0.01
    halves = [sure / 2 for sure in confidence]
    shy = scores.calibration_error(halves, right, adaptive=adaptive)
    assert shy == pytest.approx(0.25, abs=0.01)


def test_no_answers_have_no_calibration():
    with pytest.raises(ValueError, match="at least one"):
        scores.calibration_error([], [])
    with pytest.raises(ValueError, match="no class"):
        scores.macro_f1([], [])


@given(texts, texts)
def test_f1_of_texts_is_symmetric_and_bounded(one, other):
    f1 = scores.token_f1(one, other)
    assert 0 <= f1 <= 1
    assert f1 == scores.token_f1(other, one)
    assert scores.token_f1(one, one) == 1


@given(texts, texts)
def test_edits_are_a_distance(one, other):
    edits = scores.edits(one, other)
    assert edits == scores.edits(other, one)
    assert abs(len(one) - len(other)) <= edits <= max(len(one), len(other))
    assert (edits == 0) == (one == other)


@given(boxes, boxes)
def test_boxes_overlap_symmetrically(one, other):
    found = scores.iou(one, other)
    assert 0 <= found <= 1
    assert found == scores.iou(other, one)


@given(st.lists(boxes, max_size=4), st.lists(boxes, max_size=4), st.randoms())
def test_the_order_of_boxes_does_not_count(told, true, rng):
    found = scores.boxes_found(told, true)
    assert 0 <= found <= 1
    assert found == scores.boxes_found(true, told)
    assert found == scores.boxes_found(rng.sample(told, len(told)), true)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.data())
def test_macro_f1_is_bounded_and_perfect_for_the_truth(true, data):
    told = data.draw(st.lists(st.sampled_from("abcd"), min_size=len(true), max_size=len(true)))
    assert 0 <= scores.macro_f1(told, true) <= 1
    assert scores.macro_f1(true, true) == 1


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.booleans())
def test_calibration_error_is_bounded(answers, adaptive):
    sure, right = zip(*answers, strict=True)
    assert 0 <= scores.calibration_error(sure, right, adaptive=adaptive) <= 1
