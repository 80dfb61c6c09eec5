"""The table of kinds agrees with itself and with pymorphy3; every atlas shows what it says."""

from collections import Counter

import numpy as np
import pytest

from qvl.scenes.kinds import CELL_PX, STYLE_APART, STYLES, by_key, kinds, sprites, styles_of
from qvl.scenes.phrases import (
    BY_NAME,
    COLOURS,
    GROUPS,
    LANGUAGES,
    coloured,
    counted,
    is_plural,
    name,
    patterned,
)


def test_there_are_hundreds_of_kinds_in_several_styles():
    assert len(kinds()) >= 300
    trained = [kind for kind in kinds() if len(styles_of(kind.key, "train")) >= 3]
    assert len(trained) >= 300


def test_the_style_kept_apart_is_never_in_training():
    for kind in kinds():
        assert STYLE_APART not in styles_of(kind.key, "train")
        assert STYLE_APART not in styles_of(kind.key, "held-out")
        assert styles_of(kind.key, "style") == (STYLE_APART,)


@pytest.mark.parametrize("style", STYLES)
def test_sprites_are_visible_and_as_large_as_a_cell(style):
    for key, sprite in sprites(style).items():
        assert max(sprite.size) >= CELL_PX - 4, key
        assert np.asarray(sprite)[..., 3].max() > 200, key


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_kinds_have_one_name(language):
    names = Counter(name(kind, language) for kind in by_key().values())
    assert [said for said, n in names.items() if n > 1] == []


def test_every_kind_has_all_of_its_forms():
    for kind in by_key().values():
        assert kind.group in GROUPS
        assert kind.ru_gender in "mfnp"
        assert kind.en_number in ("one", "mass", "many")
        assert bool(kind.en_plural) == (kind.en_number == "one")
        texts = (kind.en, kind.ru, kind.ru_gen, kind.ru_acc, kind.zh, kind.zh_measure)
        assert all(text and text == text.strip() for text in texts)
        assert len(kind.zh_measure) == 1
        if kind.counted:
            assert kind.en_number == "one"
            assert kind.ru_gender != "p"


def test_russian_forms_are_those_of_pymorphy():
    pytest.importorskip("pymorphy3")
    from qvl.scenes.russian import forms

    for kind in by_key().values():
        gender, gen, acc, few, plural, gen_plural = forms(kind.ru)
        assert (kind.ru_gender, kind.ru_gen, kind.ru_acc) == (gender, gen, acc), kind.key
        assert (kind.ru_few, kind.ru_plural, kind.ru_gen_plural) == (few, plural, gen_plural)


def test_russian_colours_agree_with_every_kind_by_pymorphy():
    pymorphy3 = pytest.importorskip("pymorphy3")
    analyser = pymorphy3.MorphAnalyzer()
    genders = {"m": "masc", "f": "femn", "n": "neut"}
    for kind in by_key().values():
        for colour in COLOURS:
            both = coloured(kind, colour)
            adjective, genitive = both.ru.split()[0], both.ru_gen.split()[0]
            wanted = "plur" if kind.ru_gender == "p" else genders[kind.ru_gender]
            for word, case in ((adjective, "nomn"), (genitive, "gent")):
                tags = [one.tag for one in analyser.parse(word)]
                assert any({wanted, case} <= tag.grammemes for tag in tags), (word, kind.key)


@pytest.mark.parametrize(
    ("key", "n", "ru", "en", "zh"),
    [
        ("cat", 1, "кошка", "a cat", "一只猫"),
        ("cat", 3, "3 кошки", "3 cats", "3只猫"),
        ("cat", 5, "5 кошек", "5 cats", "5只猫"),
        ("toothbrush", 2, "2 зубные щётки", "2 toothbrushes", "2把牙刷"),
        ("balloon", 4, "4 воздушных шара", "4 balloons", "4个气球"),
        ("umbrella", 1, "зонт", "an umbrella", "一把雨伞"),
        ("scissors", 1, "ножницы", "scissors", "一把剪刀"),
        ("bread", 1, "хлеб", "bread", "一块面包"),
    ],
)
def test_numbers_and_nouns_agree(key, n, ru, en, zh):
    kind = by_key()[key]
    assert [counted(kind, n, language) for language in LANGUAGES] == [ru, en, zh]


@pytest.mark.parametrize(
    ("key", "n", "ru", "en", "zh"),
    [
        ("mug", 1, "синяя кружка в белую полоску", "a blue mug with white stripes", "一个蓝底白条纹的马克杯"),
        ("mug", 3, "3 синие кружки в белую полоску", "3 blue mugs with white stripes", "3个蓝底白条纹的马克杯"),
        ("jumper", 2, "2 синих свитера в белую полоску", "2 blue jumpers with white stripes", "2件蓝底白条纹的毛衣"),
        ("trousers", 1, "синие брюки в белую полоску", "blue trousers with white stripes", "一条蓝底白条纹的裤子"),
    ],
)  # fmt: skip
def test_colours_and_patterns_agree(key, n, ru, en, zh):
    ware = patterned(by_key()[key], BY_NAME["blue"], "stripes", BY_NAME["white"])
    assert [counted(ware, n, language) for language in LANGUAGES] == [ru, en, zh]


def test_what_has_no_singular_takes_a_plural_verb():
    assert is_plural(by_key()["jeans"], "en")
    assert is_plural(by_key()["jeans"], "ru")
    assert not is_plural(by_key()["bread"], "en")
    assert is_plural(by_key()["watch"], "ru")
    assert not is_plural(by_key()["watch"], "en")
