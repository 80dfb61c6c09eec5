"""The language guard: how many wrong texts it sees, how many right ones it takes for wrong."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from language_corpus import SENTENCES, halves, injected, texts
from qvl.tasks.language import is_in, language_of
from qvl.tasks.prompts import LANGUAGES

RECALL, FALSE_ALARMS = 0.99, 0.01
RECALL_OF_A_KIND = 0.95  # of tens of texts
OWN = {"ru": ("CYRILLIC",), "en": (), "zh": ("CJK",)}


def refused(language: str, some: Iterable[str]) -> tuple[list[str], list[str]]:
    """The texts that are taken for wrong, and those that are not."""
    found: tuple[list[str], list[str]] = ([], [])
    for text in some:
        found[is_in(text, language)].append(text)
    return found


def show(kind: str, language: str, part: int, whole: int) -> float:
    print(f"{kind:34} {language:3} {part:5} of {whole:5}  {part / whole:7.2%}")  # noqa: T201 - the table is what one runs it for
    return part / whole


def test_right_texts_are_left_alone() -> None:
    alarms = total = 0
    for language in SENTENCES:
        count = 600 if language in OWN else 100
        wrong, right = refused(language, texts(language, count))
        show("false alarms", language, len(wrong), count)
        assert len(wrong) <= FALSE_ALARMS * count, wrong[:5]
        if language in OWN:
            alarms, total = alarms + len(wrong), total + len(wrong) + len(right)
    assert show("false alarms, ru zh en together", "", alarms, total) <= FALSE_ALARMS


def test_wrong_texts_are_seen() -> None:
    seen = total = 0
    for language, own in OWN.items():
        others = [name for name in SENTENCES if name != language]
        kinds: dict[str, Iterable[str]] = {
            "recall: a run of another script": injected(language, own, 400),
            **{f"recall: all in {name}": texts(name, 60, seed=1) for name in others},
            **{f"recall: half in {name}": halves(language, name, 60) for name in others},
        }
        for kind, some in kinds.items():
            wrong, right = refused(language, some)
            whole = len(wrong) + len(right)
            assert show(kind, language, len(wrong), whole) >= RECALL_OF_A_KIND, right[:5]
            seen, total = seen + len(wrong), total + whole
    assert show("recall, all together", "", seen, total) >= RECALL


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("ru", "Смартфон Samsung Galaxy S24 Ultra 256GB Titanium Black"),
        ("ru", "LEGO 42115"),
        ("ru", "12,5 %"),
        ("ru", ""),
        ("ru", "На вывеске написано: «Open 24 hours, please come in and enjoy»."),
        ("ru", r"Площадь $S = \frac{a \cdot b}{2}$, значит \(S = 12\)."),
        ("zh", "这件衣服采用 slim fit 剪裁"),
        ("zh", "是"),
        ("ja", "白いカップです。"),
        ("ko", "흰색 컵"),
        ("en", "A resistor of 10 Ω and a lens of 5 µm."),
        ("en", "The label reads “Молоко 3,2 %”."),
        ("en", "Cup"),
        ("hi", "मेज पर एक सफेद कप रखा है।"),
    ],
)
def test_names_sizes_and_quotations_are_no_other_language(language: str, text: str) -> None:
    assert is_in(text, language)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("ru", "Yes."),
        ("ru", "White cup."),
        ("ru", "“White cup on a table.”"),
        ("ru", "Белая кружка 杯 на столе."),
        ("ru", "Біла чашка."),
        ("zh", "A red cup."),
        ("zh", "白いカップです。"),
        ("ja", "桌子上放着一个白色的杯子。"),
        ("en", "Белая кружка."),
        ("en", "A mug of белый colour."),
        ("uk", "Это красивый объём."),
    ],
)
def test_short_answers_in_another_script_are_seen(language: str, text: str) -> None:
    assert not is_in(text, language)


@pytest.mark.parametrize("language", sorted(SENTENCES))
def test_the_language_of_a_text_is_told(language: str) -> None:
    for text in texts(language, 50, seed=2):
        for otherwise in ("en", "ru"):
            assert language_of(text, otherwise) == language or is_in(text, otherwise)


def test_what_says_nothing_is_in_the_expected_language() -> None:
    assert [language_of(text, "zh") for text in ("", "42", "LEGO")] == ["zh"] * 3
    assert language_of("Есть ли доставка?", "en") == "ru"
    assert language_of("有现货吗？", "en") == "zh"


def test_any_of_the_languages_can_be_asked_about() -> None:
    for language in LANGUAGES:
        assert not is_in("\u0e2a\u0e35\u0e02\u0e32\u0e27 แก้วกาแฟ", language)
