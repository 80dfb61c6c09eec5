"""The ladder of printed lines, and the page, the words and the photo that they are made with."""

from __future__ import annotations

import itertools
import random
from statistics import mean

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from qvl.errors import InvalidParamError
from qvl.scenes import cards, words
from qvl.scenes.page import (
    BLACK,
    CHINESE_FACE,
    HAND_FACE,
    PAPER_FACES,
    PRINT_FACES,
    STYLE_FACE,
    WHITE,
    Page,
    face_for,
    font,
    width_of,
)
from qvl.scenes.photo import photographed
from qvl.scenes.reading import altered, thousandths
from qvl.scenes.scene import Split
from qvl.scenes.text import SENTENCES, STAGES, line, pick
from qvl.tasks.checks import is_ean13, is_iban, is_inn, mrz_faults

SIZE = (224, 224)
NO_LETTER = "\U0010ffff"


def test_each_stage_prints_no_larger_than_the_one_before() -> None:
    for before, after in itertools.pairwise(STAGES):
        assert after.px[0] <= before.px[0]
        assert after.px[1] <= before.px[1]
        assert after.strength >= before.strength
    heights = []
    for stage in range(len(STAGES)):
        rng = random.Random(stage)
        drawn = [line(stage, "train", rng, SIZE) for _ in range(12)]
        boxes = [thing.box for scene in drawn for thing in scene.things[0]]
        heights.append(mean(bottom - top for _, top, _, bottom in boxes))
    assert all(after < 1.1 * before for before, after in itertools.pairwise(heights))
    assert heights[0] > 5 * heights[-1]


def test_the_first_stage_is_one_digit_in_one_face() -> None:
    rng = random.Random(0)
    for _ in range(30):
        (thing,) = line(0, "train", rng, (128, 128)).things[0]
        assert thing.what in words.DIGITS
        assert thing.box[3] - thing.box[1] > 50


def test_a_stage_that_is_none_is_refused() -> None:
    for stage in (-1, len(STAGES)):
        with pytest.raises(InvalidParamError, match=f"no stage {stage}"):
            line(stage, "train", random.Random(0), SIZE)


@pytest.mark.parametrize("stage", [0, 3, 4, 5, 6, 9])
def test_held_out_texts_in_their_faces_are_never_trained_on(stage: int) -> None:
    def shown(split: Split) -> set[object]:
        rng = random.Random(2)
        found: set[object] = set()
        for n in range(500):
            ground = n % 8
            text, face, _ = pick(stage, split, rng, 200, STAGES[stage].px[0], ground)
            found.add((text, face, ground) if stage <= 2 else (text, face))
        return found

    train, held_out = shown("train"), shown("held-out")
    assert min(len(train), len(held_out)) >= 8
    assert not train & held_out


def test_every_digit_is_trained_on_though_a_fifth_of_papers_is_kept() -> None:
    rng = random.Random(3)
    seen = {pick(0, "train", rng, 120, 80, rng.randrange(8))[0] for _ in range(300)}
    assert seen == set(words.DIGITS)


def test_random_letters_tell_their_alphabet() -> None:
    rng = random.Random(5)
    for _ in range(300):
        text = words.random_letters(rng, rng.randint(1, 6))
        assert set(text) & set(words.OWN_LATIN + words.CYRILLIC)
        assert text.isascii() or not any(letter.isascii() for letter in text)


def test_the_fonts_have_every_letter_that_is_printed() -> None:
    texts = [text for row in SENTENCES.values() for text in row]
    for table in (
        words.SIGNS, words.OPEN_SIGNS, words.CLOSED_SIGNS, words.SHOPS, words.STREETS, words.GIVEN_NAMES,
        words.SURNAMES, words.POSITIONS, words.COUNTRIES, words.COLOUR_WORDS, words.COMPOSITIONS,
        words.MONTHS, words.WEEKDAYS, tuple(p.names for p in words.PRODUCTS), (words.BRANDS,),
        tuple(cards.LABELS.values()), tuple(cards.PASSPORT_LABELS.values()), cards.TITLES,
    ):  # fmt: skip
        texts += [text for row in table for text in row]
    texts += [words.DIGITS + words.LATIN + words.CYRILLIC + "₽$€¥№×÷°<>@.,:;!?()-+%/"]
    letters = {letter for text in texts for letter in text if not letter.isspace()}
    for face in {*PRINT_FACES, *PAPER_FACES, HAND_FACE, STYLE_FACE}:
        for letter in letters:
            its_font = font(face_for(letter, face), 40)
            assert drawn(its_font, letter) != drawn(its_font, NO_LETTER), (face, letter)


def drawn(its_font: ImageFont.FreeTypeFont, letter: str) -> bytes:
    canvas = Image.new("L", (80, 80))
    ImageDraw.Draw(canvas).text((10, 50), letter, font=its_font, fill=255, anchor="ls")
    return canvas.tobytes()


def test_made_up_numbers_have_right_check_digits() -> None:
    rng = random.Random(6)
    for _ in range(50):
        assert is_inn(words.inn(rng))
        assert is_ean13(words.ean13(rng))
        assert is_iban(words.iban(rng))
    # the specimen of ICAO 9303-4, appendix B
    first, second = cards.machine_lines("SAMPLE", "ANNA", "L898902C3", (1974, 8, 12), (2012, 4, 15))
    assert mrz_faults(first, second) == ()
    assert second[:28] == "L898902C36UTO7408122F1204159"


def test_numbers_and_days_are_printed_as_each_language_has_them() -> None:
    from decimal import Decimal

    value = Decimal("1299.90")
    assert [words.amount(value, one) for one in words.LANGUAGES] == [
        "1 299,90",
        "1,299.90",
        "1299.90",
    ]
    day = [words.printed_day((2026, 11, 3), one) for one in words.LANGUAGES]
    assert day == ["03.11.2026", "3 Nov 2026", "2026年11月03日"]


def test_letters_lie_side_by_side_in_the_box_of_their_text() -> None:
    page = Page.blank((200, 60), WHITE)
    thing = page.write("Хлеб 牛奶 9", (10, 40), "serif", 24)
    assert "".join(letter for letter, _ in thing.letters) == "Хлеб牛奶9"
    lefts = [box[0] for _, box in thing.letters]
    assert lefts == sorted(lefts)
    dark = np.argwhere(np.asarray(page.canvas.convert("L")) < 128)
    (top, left), (bottom, right) = dark.min(axis=0), dark.max(axis=0)
    assert np.allclose(thing.box, (left, top, right + 1, bottom + 1), atol=1.5)
    assert width_of("牛", "serif", 24) == font(CHINESE_FACE, 24).getlength("牛")


def test_a_row_is_read_as_one_line() -> None:
    page = Page.blank((200, 60), WHITE)
    page.write("Чай", (10, 30), "sans", 14)
    page.write("90,00", (190, 30), "sans", 14, side="right", same_row=True)
    page.write("ИТОГО", (10, 50), "sans", 14)
    assert page.text == "Чай 90,00\nИТОГО"
    assert page.lines[0].box[0] < 15
    assert page.lines[0].box[2] > 185


@pytest.mark.parametrize("seed", range(12))
def test_places_follow_the_page_when_it_is_photographed(seed: int) -> None:
    page = Page.blank((320, 256), WHITE)
    page.write("A", (150, 140), "sans-bold", 60)
    (box,) = (thing.box for thing in page.things)
    page.pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=(255, 0, 0))
    seen = photographed(page, random.Random(seed), 1.0)
    assert seen.canvas.size == page.size
    pixels = np.asarray(seen.canvas, dtype=np.int32)
    red = np.argwhere(pixels[..., 0] - pixels[..., 1] > 90)
    (top, left), (bottom, right) = red.min(axis=0), red.max(axis=0)
    assert np.allclose(seen.things[0].box, (left, top, right + 1, bottom + 1), atol=2.5)
    assert seen.things[0].letters[0][1] == pytest.approx(seen.things[0].box, abs=6)


def test_without_strength_a_page_is_left_as_it_is() -> None:
    page = Page.blank((64, 64), BLACK)
    assert photographed(page, random.Random(0), 0.0) is page


def test_an_altered_text_differs_in_one_letter_of_its_kind() -> None:
    rng = random.Random(7)
    for text in ("12,50", "ХЛЕБ", "Tea 5", "牛奶"):
        other = altered(text, rng)
        assert sum(a != b for a, b in zip(text, other, strict=True)) == 1


def test_boxes_are_told_in_thousandths_inside_the_picture() -> None:
    assert thousandths((-3, 0, 112, 224), (224, 224)) == [0, 0, 500, 1000]
    assert thousandths((10, 20, 30, 40), (200, 400)) == [50, 50, 150, 100]
