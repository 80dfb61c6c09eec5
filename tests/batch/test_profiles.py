"""Marketplaces: whatever the text, an exported field passes, and all that was cut is told."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.batch import profiles
from qvl.batch.profiles import Cut, Profile, check, fields_of, fit, load, written
from qvl.batch.texts import DETECTORS, capitals, cut, matches
from qvl.errors import UsageError

SHIPPED = (
    "amazon", "etsy", "google_merchant", "ozon", "shopify", "wildberries", "yandex_market", "yandex_products",
)  # fmt: skip
PIECES = st.sampled_from(
    [
        "Кружка белая. ", "СКИДКА ", "хит продаж ", "лучшая цена", "<b>", "</b>", "&amp;", "&lt;p&gt;", "<script>", "<",
        "🎉", "👨‍👩‍👧", "★", "\ufe0f", "500 руб.", "$5", "1 999 ₽", "https://a.ru/x", "www.shop", "shop.ru", "a@b.ru",
        "@telega", "+7 (495) 123-45-67", "8 800 555 35 35", "13812345678", "™", "®", "\n", "\n\n", "\t", " ", "=", "＝",
        "@", "-", "白色的杯子。", "ДЛИННОЕСЛОВО" * 9, "слово " * 60, "İ", "ǅ", "𝐀", "e\u0301", "\u0301", "\ud800", "\x00",
        "\u2028", "1", ".", ",", ";", "best seller", "free", " shipping", "ски", "дка", "A B C D E F G H I J K",
    ]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=30).map("".join) | st.text(max_size=300)


def wrong(profile: Profile, fields: Mapping[str, profiles.Value]) -> set[tuple[str, str]]:
    return {(one.field, one.rule) for one in check(profile, fields) if not one.advice}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_tells_its_sources(name: str) -> None:
    profile = load(name)
    assert profile.name == name
    assert all(rules.source for rules in profile.field)
    assert len(set(profile.headings)) == len(profile.headings)
    assert profiles.names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
@settings(max_examples=40)
@given(said=st.fixed_dictionaries({}, optional={"title": TEXTS, "text": TEXTS, "keywords": st.lists(TEXTS, max_size=20) | TEXTS}), sku=TEXTS)  # fmt: skip
def test_whatever_the_text_its_fields_pass(name: str, said: dict[str, object], sku: str) -> None:
    """What is left can only be too short, or missing: the rest is what the validator lets through."""
    profile = load(name)
    fields = fields_of(profile, said.get, {"sku": sku})
    fitted, cuts = fit(profile, fields)
    of_answers = {rules.name for rules in profile.field if rules.of}
    assert {r for field, r in wrong(profile, fitted) if field in of_answers} <= {"must", "min"}
    again, none = fit(profile, fitted)
    assert again == fitted
    assert none == ()
    assert [*written(profile, fitted)] == [*profile.headings]
    lossy = {field for field in fields if _letters(fields[field]) != _letters(fitted[field])}
    assert lossy <= {one.field for one in cuts}


def _letters(value: profiles.Value) -> str:
    """What may not be lost silently: all but white space, and how letters are composed."""
    import html

    text = "".join(value)
    for _ in range(1):
        text = html.unescape(text)
    return "".join(unicodedata.normalize("NFC", text).split())


def test_what_was_cut_is_told() -> None:
    text = "Белая кружка. Всего 500 руб. за штуку! Пишите a@b.ru. Ручка <b>справа</b> 🎉."
    fitted, cuts = fit(load("ozon"), {"offer_id": "A", "name": "Кружка", "description": text})
    assert fitted["description"] == "Белая кружка. Ручка справа."
    assert {(one.rule, one.what.strip()) for one in cuts} == {
        ("price", "Всего 500 руб. за штуку!"),
        ("email", "Пишите a@b.ru."),
        ("html", "<b>"),
        ("html", "</b>"),
        ("emoji", "🎉"),
    }


def test_a_long_text_ends_with_a_sentence() -> None:
    text = "Первое предложение о кружке. Второе предложение. Третье, которое не помещается"
    assert cut(text, 60) == "Первое предложение о кружке. Второе предложение."
    assert cut("Кружка белая фарфоровая с ручкой", 22) == "Кружка белая"
    assert cut("Кружка, белая", 8) == "Кружка"
    assert cut("а" * 30, 10) == "а" * 10
    assert cut("Коротко.", 60) == "Коротко."
    assert cut("桌上有一个杯子。它是白色的。还有一个", 15) == "桌上有一个杯子。它是白色的。"


def test_a_title_for_wildberries_has_sixty_characters_at_most() -> None:
    fields = {"vendorCode": "1", "title": "Кружка белая фарфоровая для чая и кофе, 350 мл, с ручкой, в подарочной коробке", "description": ""}  # fmt: skip
    assert wrong(load("wildberries"), fields) == {("title", "max")}
    fitted, (removed,) = fit(load("wildberries"), fields)
    assert fitted["title"] == "Кружка белая фарфоровая для чая и кофе, 350 мл, с ручкой"
    assert removed == Cut("title", "max", ", в подарочной коробке")


def test_a_part_of_an_article_number_is_another_article() -> None:
    fields = {"offer_id": "A" * 60, "name": "Кружка", "description": ""}
    fitted, cuts = fit(load("ozon"), fields)
    assert (fitted["offer_id"], cuts) == ("A" * 60, ())
    assert wrong(load("ozon"), fitted) == {("offer_id", "max")}


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("html", "a <br/> b"), ("html", "a &nbsp; b"), ("html", "<b"), ("emoji", "кружка ☕"), ("emoji", "1️⃣"),
        ("url", "смотри http://a.b/c"), ("url", "на shop.ru/x"), ("url", "магазин.рф"), ("email", "a.b@c.com"), ("email", "пишите @shop_bot"),
        ("phone", "+7 495 123 45 67"), ("phone", "8(800)555-35-35"), ("phone", "(495) 123-45-67"), ("phone", "13812345678"),
        ("price", "500 руб"), ("price", "1 999,90 ₽"), ("price", "$12.50"), ("price", "10 USD"), ("price", "12 €"),
    ],
)  # fmt: skip
def test_it_is_found(rule: str, text: str) -> None:
    assert DETECTORS[rule].search(text)


@pytest.mark.parametrize(
    "text",
    [
        "размер 10 x 20 x 30 см", "5 < 7 и 7 > 5", "R&B; и прочее", "объём 350 мл, диаметр ⌀8 см", "№ 5, 100 %, 20 °C",
        "штрихкод 4601234567890", "артикул 1234-5678", "т.е. белая, и т.д.", "2024-2025", "USB 3.0, Wi-Fi 6", "рубашка 5", "евро-стиль 3",
    ],
)  # fmt: skip
def test_it_is_no_alarm(text: str) -> None:
    assert [rule for rule, pattern in DETECTORS.items() if pattern.search(text)] == []


def test_forbidden_words_are_whole_words_of_any_case() -> None:
    patterns = ("хит", "лучш*", "*дешев*", "самая низкая цена", "№ 1", "# % off")
    text = "ХИТ! Архитектор, хитин. ЛУЧШЕЕ. Удешевлённый. Самая  низкая цена. №1. 20% off"
    found = [text[a:b] for a, b in matches(text, patterns)]
    assert found == ["ХИТ", "ЛУЧШЕЕ", "Удешевлённый", "Самая  низкая цена", "№1", "20% off"]


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "<",
        "1 ",
        "a.a-",
        "@a",
        "&a",
        "🎉\u200d",
        "(1",
        "+7 495 ",
        "a@a.",
        "лучш ",
        "a@a.ru. Да. ",
        ".",
        ". ",
        ".x",
        " ",
        "\n",
        "\u00ad",
        "А",
    ],
)
def test_time_is_linear_in_the_text(piece: str) -> None:
    """Whoever wrote it: a pattern that tried again from each sign would take minutes here."""
    text = piece * (40_000 // len(piece)) + "x"
    started = time.process_time()
    fit(load("ozon"), {"offer_id": "1", "name": text, "description": text})
    assert time.process_time() - started < 10


def test_capitals_are_a_share_of_letters() -> None:
    assert capitals("USB") == 0
    assert capitals("КРУЖКА БЕЛАЯ") == 1
    fitted, _ = fit(load("yandex_market"), {"offerId": "1", "name": "КРУЖКА БЕЛАЯ Luminarc 350 мл", "description": ""})  # fmt: skip
    assert fitted["name"] == "Кружка Белая Luminarc 350 мл"


def test_lists_are_lists() -> None:
    fields = fields_of(load("etsy"), {"title": "Mug", "text": "A mug.", "keywords": ["mug", "Mug", "white, mug", "x" * 30, *map(str, range(20))]}.get, {"sku": "1"})  # fmt: skip
    fitted, cuts = fit(load("etsy"), fields)
    assert len(fitted["tags"]) == 13
    assert written(load("etsy"), fitted)["tags"].startswith("mug,white mug," + "x" * 20 + ",0,")
    assert Cut("tags", "twice", "Mug") in cuts
    assert {one.rule for one in cuts} == {"twice", "sign", "max", "most"}


def test_bullets_have_a_column_each() -> None:
    fields = fields_of(load("amazon"), {"text": "A white mug of china. It has a handle. Holds 350 ml."}.get, {"sku": "1"})  # fmt: skip
    cells = written(load("amazon"), fit(load("amazon"), fields)[0])
    assert [cells[f"bullet_point{n}"] for n in range(1, 6)] == ["A white mug of china.", "It has a handle.", "Holds 350 ml.", "", ""]  # fmt: skip


def test_a_profile_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = profiles.own_folder()
    folder.mkdir(parents=True)
    own = (profiles.FOLDER / "ozon.toml").read_text("utf-8").replace("max = 200", "max = 20")
    (folder / "ozon.toml").write_text(own, "utf-8")
    (tmp_path / "mine.toml").write_text(own.replace('"ozon"', '"mine"'), "utf-8")
    assert load("ozon").rules("name").max == 20
    assert load(str(tmp_path / "mine.toml")).name == "mine"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max = 200", "max = 0", r"field\.1\.max"),
        ("max = 200", "most_of_all = 1", r"field\.1\.max"),
        ('no = ["html"', 'no = ["htlm"', r"no\.0"),
        ("version = 1", "version = ", "cannot be read"),
        ('name = "name"', 'name = "offer_id"', "'offer_id' twice"),
        ("verified = false", "", "verified"),
    ],
)
def test_a_wrong_profile_is_refused_by_name(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = (profiles.FOLDER / "ozon.toml").read_text("utf-8")
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new), "utf-8")
    with pytest.raises(UsageError, match=said) as caught:
        load(str(tmp_path / "mine.toml"))
    assert "mine.toml" in caught.value.message


def test_an_unknown_profile_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="no profile 'ozone'") as caught:
        load("ozone")
    assert "'ozon'" in str(caught.value.hint)
