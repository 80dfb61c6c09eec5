"""Small papers with fields: business cards, product labels, price tags, passports, filled-in forms."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from qvl.scenes import words
from qvl.scenes.page import (
    BLACK,
    DARK,
    HAND_FACE,
    PRINT_FACES,
    WHITE,
    Page,
    Rgb,
    fitting,
    width_of,
)
from qvl.scenes.papers import (
    Part,
    Sheet,
    Size,
    Stock,
    at_least,
    layouts,
    paper,
    photo,
    scene_of,
    some,
)
from qvl.scenes.reading import ask, extract, languages_of
from qvl.scenes.scene import Job, Scene, Split
from qvl.scenes.words import Language, Words, said

CENT = Decimal("0.01")
LEAST_CARD, LEAST_LABEL, LEAST_TAG = (256, 160), (224, 224), (160, 128)
LEAST_PASSPORT, LEAST_FORM = (352, 256), (224, 224)
MRZ_FACE, MRZ_PX, MRZ_LETTERS = "mono", 12, 44
COUNTRY = "UTO"  # Utopia, the country of the specimens in ICAO 9303
EAN_LEFT = (
    "0001101",
    "0011001",
    "0010011",
    "0111101",
    "0100011",
    "0110001",
    "0101111",
    "0111011",
    "0110111",
    "0001011",
)
EAN_PARITY = (
    "LLLLLL",
    "LLGLGG",
    "LLGGLG",
    "LLGGGL",
    "LGLLGG",
    "LGGLLG",
    "LGGGLL",
    "LGLGLG",
    "LGLGGL",
    "LGGLGL",
)
LABELS: Mapping[str, Words] = {
    "article": ("Арт.", "Art.", "货号"),
    "composition": ("Состав", "Composition", "成分"),
    "size": ("Размер", "Size", "尺码"),
    "colour": ("Цвет", "Colour", "颜色"),
    "weight": ("Масса", "Weight", "重量"),
    "volume": ("Объём", "Volume", "容量"),
    "country": ("Страна", "Made in", "产地"),
    "made": ("Дата изг.", "Made on", "生产日期"),
    "best_before": ("Годен до", "Best before", "保质期至"),
    "price": ("Цена", "Price", "价格"),
    "name": ("Имя", "Name", "姓名"),
    "date": ("Дата", "Date", "日期"),
    "phone": ("Телефон", "Phone", "电话"),
    "city": ("Адрес", "Address", "地址"),
    "number": ("Номер", "Number", "编号"),
    "amount": ("Сумма", "Amount", "金额"),
    "count": ("Кол-во", "Quantity", "数量"),
    "position": ("Должность", "Position", "职位"),
    "email": ("Почта", "Email", "邮箱"),
}  # fmt: skip
FORM_KINDS: Mapping[str, str] = {
    "name": "text", "date": "date", "phone": "text", "city": "text", "number": "text",
    "amount": "float", "count": "int", "position": "text", "email": "text",
}  # fmt: skip
TITLES: tuple[Words, ...] = (
    ("АНКЕТА", "APPLICATION FORM", "申请表"), ("ЗАЯВКА", "ORDER FORM", "订单"),
    ("ПРОПУСК", "PASS", "通行证"), ("КВИТАНЦИЯ", "PAYMENT SLIP", "缴费单"),
)  # fmt: skip
WHAT_IS: Mapping[Language, Sequence[str]] = {
    "ru": ("Что указано в поле «{field}»?", "Какое значение у «{field}»?"),
    "en": ('What does the field "{field}" say?', 'What is the value of "{field}"?'),
    "zh": ("“{field}”一栏写的是什么？", "“{field}”是什么？"),
}
PRICE: Mapping[Language, Sequence[str]] = {
    "ru": ("Сколько стоит товар?", "Какая цена?"),
    "en": ("How much is it?", "What is the price?"),
    "zh": ("多少钱？", "价格是多少？"),
}
SAVED: Mapping[Language, Sequence[str]] = {
    "ru": ("Есть ли скидка?",),
    "en": ("Is there a discount?",),
    "zh": ("有折扣吗？",),
}


def label_of(name: str, language: Language) -> str:
    return said(LABELS[name], language)


def business_card(split: Split, rng: random.Random, size: Size | None) -> Scene:
    """The layouts: 0 on the left, 1 in the middle, 2 on the right, white on dark in a third."""
    layout, face, language = layouts("business-card", 3, PRINT_FACES, split, rng)
    is_dark = rng.random() < 0.33
    page = Page.blank(at_least(size, LEAST_CARD, rng), rng.choice(DARK) if is_dark else paper(rng))
    ink = WHITE if is_dark else BLACK
    sheet = Sheet.of(page, face, rng.randint(12, 14), rng, margin=0.08, top=2.6)
    data = card_data(Stock(split, face, language), rng)
    sheet.spread(
        sum(len(v) if isinstance(v, list) else v is not None for v in data.values()) + 2, rng
    )
    side, x = (("left", sheet.left), ("centre", page.size[0] / 2), ("right", sheet.right))[layout]

    def put(text: str, name: str, scale: float = 1.0) -> None:
        px = fitting(text, face, sheet.room, round(sheet.px * scale))
        sheet.y += max(0, px - sheet.px)
        sheet.row(Part(text, x, side, name, px), ink=ink)

    if data["company"]:
        put(data["company"], "company", rng.uniform(1.0, 1.4))
    put(data["name"], "name", rng.uniform(1.3, 1.7))
    if data["position"]:
        put(data["position"], "position")
    if not is_dark and rng.random() < 0.5:
        sheet.rule(rng)
    else:
        sheet.y += 0.4 * sheet.gap
    for key in ("phones", "emails"):
        for n, text in enumerate(data[key] or ()):
            put(text, f"{key}[{n}]")
    for key in ("website", "address"):
        if data[key]:
            put(data[key], key)
    page = photo(page, rng)
    return scene_of(
        "business-card",
        page,
        list(extract(page, data, rng, "business-card", profile="business-card")),
        rng,
    )


def card_data(stock: Stock, rng: random.Random) -> dict[str, Any]:
    name, (company,), language = rng.choice(words.MAILBOXES), stock.shops(1, rng), stock.language
    site = company[1].lower().replace(" ", "-") + ".example"
    phones = [
        words.phone(rng, language) for _ in range(rng.choices((0, 1, 2), weights=(1, 6, 2))[0])
    ]
    return {
        "name": words.person(rng, language),
        "position": said(rng.choice(words.POSITIONS), language) if rng.random() < 0.8 else None,
        "company": said(company, language) if rng.random() < 0.8 else None,
        "phones": list(dict.fromkeys(phones)) or None,
        "emails": [f"{name}@{site}"] if rng.random() < 0.6 else None,
        "website": f"www.{site}" if rng.random() < 0.5 else None,
        "address": words.address(rng, language) if rng.random() < 0.5 else None,
    }


def label(split: Split, rng: random.Random, size: Size | None) -> Scene:
    """The layouts: 0 labels and values in a row, 1 at both sides."""
    layout, face, language = layouts("label", 2, PRINT_FACES, split, rng)
    page = Page.blank(at_least(size, LEAST_LABEL, rng), paper(rng))
    sheet = Sheet.of(page, face, rng.randint(12, 14), rng)
    data = label_data(Stock(split, face, language), rng)
    sheet.spread(13 if data["ean"] else 9, rng)
    if data["brand"]:
        sheet.head(data["brand"], "brand", scale=rng.uniform(1.2, 1.8))
    sheet.head(data["name"], "name", scale=rng.uniform(1.2, 1.6))
    for key, value in data.items():
        if value is None or key not in LABELS or key == "name":
            continue
        text = words.amount(value, language) if key == "price" else value
        if key in ("made", "best_before"):
            text = words.printed_day(words.from_iso(text), language)
        title = label_of(key, language)
        if layout == 0:
            after = sheet.left + width_of(f"{title}: ", face, sheet.px)
            sheet.row(Part(f"{title}:", sheet.left), Part(text, after, name=key))
        else:
            sheet.pair(title, text, key)
    if data["ean"]:
        bars(sheet, data["ean"], rng)
    page = photo(page, rng)
    jobs = [*extract(page, data, rng, "label", profile="label")]
    if data["price"]:
        jobs.append(ask(rng.choice(PRICE[language]), data["price"], language, "price"))
    return scene_of("label", page, jobs, rng)


def label_data(stock: Stock, rng: random.Random) -> dict[str, Any]:
    """Six of the fields at most beside the name, so that they have room."""
    (product,), made, language = stock.products(1, rng), words.day(rng), stock.language
    later = (made[0] + 1, made[1], made[2])
    units = {"ru": ("г", "мл"), "en": ("g", "ml"), "zh": ("克", "毫升")}[language]
    is_weight = rng.random() < 0.5
    data: dict[str, Any] = {
        "brand": rng.choice(words.BRANDS),
        "name": said(product.names, language),
        "article": "".join(rng.choices(words.DIGITS, k=rng.randint(4, 7))),
        "composition": said(rng.choice(words.COMPOSITIONS), language),
        "size": rng.choice(("S", "M", "L", "XL", "42", "44", "38")),
        "colour": said(rng.choice(words.COLOUR_WORDS), language),
        "weight": f"{rng.randint(2, 40) * 25} {units[0]}" if is_weight else None,
        "volume": None if is_weight else f"{rng.randint(2, 40) * 25} {units[1]}",
        "country": said(rng.choice(words.COUNTRIES), language),
        "made": words.iso(made),
        "best_before": words.iso(later),
        "price": words.product_price(rng, product, language).quantize(CENT),
        "ean": words.ean13(rng),
    }
    kept = {"name", *rng.sample([key for key in data if key != "name"], 6)}
    return {key: value if key in kept else None for key, value in data.items()}


def bars(sheet: Sheet, code: str, rng: random.Random) -> None:
    """The code's bars (GS1 General Specifications, 5.2), and its digits below them."""
    right = {
        digit: pattern.translate(str.maketrans("01", "10"))
        for digit, pattern in enumerate(EAN_LEFT)
    }
    parity = EAN_PARITY[int(code[0])]
    left = [
        EAN_LEFT[int(digit)] if kind == "L" else right[int(digit)][::-1]
        for digit, kind in zip(code[1:7], parity, strict=True)
    ]
    pattern = (
        "101" + "".join(left) + "01010" + "".join(right[int(digit)] for digit in code[7:]) + "101"
    )
    height = sheet.page.size[1]
    top = round(sheet.y - 0.3 * sheet.gap)
    low = min(round(top + 2.2 * sheet.gap), height - round(1.6 * sheet.px))
    x = round((sheet.page.size[0] - len(pattern)) / 2)
    for at, bit in enumerate(pattern):
        if bit == "1" and low > top:
            sheet.page.pen.line((x + at, top, x + at, low), fill=BLACK)
    sheet.y = low + 1.1 * sheet.px
    sheet.head(code, "ean")


def price_tag(split: Split, rng: random.Random, size: Size | None) -> Scene:
    """The layouts: 0 the price below the name, 1 above it; half have an old price, struck out."""
    layout, face, language = layouts("price-tag", 2, PRINT_FACES, split, rng)
    ground = rng.choice(((255, 255, 255), (255, 236, 120), (255, 214, 214), (226, 244, 224)))
    page = Page.blank(at_least(size, LEAST_TAG, rng), ground)
    sheet = Sheet.of(page, face, max(14, page.size[0] // 12), rng, top=1.6)
    (product,) = Stock(split, face, language).products(1, rng)
    price = words.product_price(rng, product, language)
    old = price + max(1, round(price / 4)) if rng.random() < 0.5 else None
    data = {
        "name": said(product.names, language),
        "price": price,
        "old_price": old,
        "article": words.random_code(rng) if rng.random() < 0.5 else None,
    }

    def put_price() -> None:
        sheet.y += 0.4 * sheet.gap
        sheet.head(words.money(price, language, rng), "price", scale=1.9)
        sheet.y += 0.3 * sheet.gap

    if layout == 1:
        put_price()
    sheet.head(data["name"], "name")
    if layout == 0:
        put_price()
    if old is not None:
        sheet.head(words.money(old, language, rng), "old_price", scale=0.9, side="left")
        left, top, right, bottom = page.thing("old_price").box
        page.pen.line(
            (left, (top + bottom) / 2, right, (top + bottom) / 2), fill=(200, 30, 30), width=1
        )
    if data["article"] and sheet.lines_left > 0:
        sheet.head(data["article"], "article", scale=0.75, side="right")
    elif data["article"]:
        data["article"] = None
    page = photo(page, rng)
    fields = "name, price float, old_price float, article"
    jobs = [
        *extract(page, data, rng, "price-tag", fields=fields),
        ask(rng.choice(PRICE[language]), price, language, "price"),
        ask(rng.choice(SAVED[language]), old is not None, language, "is-reduced"),
    ]
    return scene_of("price-tag", page, jobs, rng)


def passport(split: Split, rng: random.Random, size: Size | None) -> Scene:
    """Of Utopia: the layouts put the portrait left or right."""
    layout, face, language = layouts(
        "passport", 2, ("sans", "serif", "slab", "sans-bold", "mono"), split, rng
    )
    tone = rng.choice(((236, 228, 240), (228, 238, 232), (246, 234, 226), (226, 234, 244)))
    page = Page.blank(at_least(size, LEAST_PASSPORT, rng), tone)
    width, height = page.size
    sheet = Sheet.of(page, face, 11, rng, top=1.8)
    data = passport_data(language, rng)
    sheet.head({"ru": "ПАСПОРТ", "en": "PASSPORT", "zh": "护照"}[language], scale=1.3)
    across, top = 0.24 * width, sheet.y - 0.5 * sheet.px
    portrait_x = sheet.left if layout == 0 else sheet.right - across
    portrait(page, (portrait_x, top, portrait_x + across, top + 0.42 * height), rng)
    x = sheet.left + across + 0.04 * width if layout == 0 else sheet.left
    rows = sum(data[key] is not None for key in PASSPORT_LABELS)
    sheet.gap = min(1.5 * sheet.px, (0.8 * height - sheet.y) / max(1, rows - 1))
    for key, title in PASSPORT_LABELS.items():
        if data[key] is None:
            continue
        text = data[key]
        if key in ("birth_date", "issued", "expires"):
            text = words.printed_day(words.from_iso(text), language)
        after = x + 0.3 * width
        sheet.row(Part(said(title, language), x), Part(text, after, name=key))
    px = MRZ_PX if width_of("<" * MRZ_LETTERS, MRZ_FACE, MRZ_PX) < 0.96 * width else MRZ_PX - 1
    for name, y in (("mrz_1", 0.88), ("mrz_2", 0.95)):
        page.write(data[name], (width / 2, y * height), MRZ_FACE, px, side="centre", name=name)
    page = photo(page, rng, 0.6)
    jobs = list(extract(page, data, rng, "passport", profile="passport"))
    return scene_of("passport", page, jobs, rng)


PASSPORT_LABELS: Mapping[str, Words] = {
    "country": ("Код страны", "Country code", "国家码"),
    "number": ("Номер", "Passport no.", "护照号"),
    "surname": ("Фамилия", "Surname", "姓"),
    "given_names": ("Имя", "Given names", "名"),
    "nationality": ("Гражданство", "Nationality", "国籍"),
    "birth_date": ("Дата рожд.", "Date of birth", "出生日期"),
    "sex": ("Пол", "Sex", "性别"),
    "birth_place": ("Место рожд.", "Place of birth", "出生地"),
    "issued": ("Выдан", "Date of issue", "签发日期"),
    "expires": ("Годен до", "Date of expiry", "有效期至"),
    "authority": ("Орган", "Authority", "签发机关"),
}  # fmt: skip


def passport_data(language: Language, rng: random.Random) -> dict[str, Any]:
    """The lines' check digits fit, but in one of twelve; names as the lines have them, in Latin capitals."""
    surname, given = rng.choice(words.SURNAMES)[1].upper(), rng.choice(words.GIVEN_NAMES)[1].upper()
    number = "".join(rng.choices("ABCEHKLMX", k=1) + rng.choices(words.DIGITS, k=8))
    born = (rng.randint(1950, 2005), rng.randint(1, 12), rng.randint(1, 28))
    issued = (rng.randint(2018, 2025), rng.randint(1, 12), rng.randint(1, 28))
    expires = (issued[0] + 10, issued[1], issued[2])
    first, second = machine_lines(surname, given, number, born, expires)
    if rng.random() < 1 / 12:  # a digit misprinted
        second = second[:9] + str((int(second[9]) + rng.randint(1, 9)) % 10) + second[10:]
    return {
        "country": COUNTRY,
        "number": number,
        "surname": surname,
        "given_names": given,
        "nationality": "UTOPIAN",
        "sex": "F",
        "birth_date": words.iso(born),
        "birth_place": "ZENITH" if rng.random() < 0.6 else None,
        "issued": words.iso(issued),
        "expires": words.iso(expires),
        "authority": "UTOPIA OFFICE" if rng.random() < 0.5 else None,
        "mrz_1": first,
        "mrz_2": second,
    }


def machine_lines(
    surname: str, given: str, number: str, born: tuple[int, int, int], expires: tuple[int, int, int]
) -> tuple[str, str]:
    """The two lines of 44 letters of a passport (ICAO 9303-4, 4.2)."""
    first = f"P<{COUNTRY}{surname}<<{given}".ljust(MRZ_LETTERS, "<")
    days = ["".join(f"{part % 100:02}" for part in day) for day in (born, expires)]
    parts = [number, *days, "<" * 14]
    a, b, c, d = (part + words.checked_digit(part) for part in parts)
    composite = words.checked_digit(a + b + c + d)
    return first, f"{a}{COUNTRY}{b}F{c}{d}{composite}"


def portrait(page: Page, box: tuple[float, float, float, float], rng: random.Random) -> None:
    """A head and shoulders in grey: nobody's."""
    left, top, right, bottom = box
    tone = rng.randint(120, 190)
    shade: Rgb = (tone, tone, tone + 6)
    page.pen.rectangle(box, fill=(214, 216, 220), outline=(130, 130, 134))
    middle, width, height = (left + right) / 2, right - left, bottom - top
    page.pen.pieslice(
        (
            middle - 0.42 * width,
            bottom - 0.45 * height,
            middle + 0.42 * width,
            bottom + 0.4 * height,
        ),
        180,
        360,
        fill=shade,
    )
    page.pen.ellipse(
        (middle - 0.22 * width, top + 0.14 * height, middle + 0.22 * width, top + 0.6 * height),
        fill=shade,
    )


def form(split: Split, rng: random.Random, size: Size | None) -> Scene:
    """A few fields filled in, in print or by hand; some that are asked for are not there, or empty."""
    layout, face, language = layouts("form", 2, PRINT_FACES, split, rng)
    page = Page.blank(at_least(size, LEAST_FORM, rng), paper(rng))
    sheet = Sheet.of(page, face, rng.randint(12, 14), rng)
    names = rng.sample(tuple(FORM_KINDS), rng.randint(2, 5))
    data: dict[str, Any] = {}
    sheet.head(said(rng.choice(TITLES), language), scale=rng.uniform(1.1, 1.5))
    sheet.y += 0.3 * sheet.gap
    sheet.spread(len(names) + 1, rng)
    by_hand = rng.random() < 0.35 and split != "style" and language != "zh"
    rows = []
    for name in names:
        value, text = filled_in(name, language, rng)
        is_empty = rng.random() < 0.12
        data[name] = None if is_empty else value
        if name in LABELS and (rng.random() < 0.93 or not is_empty):
            rows.append((name, "" if is_empty else text))
    for name, text in rows:
        print_field(sheet, name, text, language, layout, HAND_FACE if by_hand else face)
    page = photo(page, rng)
    order = list(data)
    fields = ", ".join(
        name if FORM_KINDS[name] == "text" else f"{name} {FORM_KINDS[name]}" for name in order
    )
    jobs = [*extract(page, data, rng, "form", fields=fields)]
    jobs += some(list(form_questions(data, rows, language, rng)), 2, rng)
    return scene_of("form", page, jobs, rng)


def print_field(
    sheet: Sheet, name: str, text: str, language: Language, layout: int, face: str
) -> None:
    """The label, then a line with the value on it; in layout 1 in two columns."""
    title = f"{label_of(name, language)}:"
    x = sheet.left + (0.4 * sheet.room if layout else width_of(f"{title} ", sheet.face, sheet.px))
    sheet.page.write(title, (sheet.left, sheet.y), sheet.face, sheet.px)
    sheet.page.pen.line((x, sheet.y + 3, sheet.right, sheet.y + 3), fill=(150, 150, 150))
    if text:
        most = round(sheet.px * (1.45 if face == HAND_FACE else 1.0))
        px = fitting(text, face, sheet.right - x, most)
        ink = (30, 40, 130) if face == HAND_FACE else BLACK
        sheet.page.write(text, (x + 2, sheet.y), face, px, ink=ink, name=name, same_row=True)
    sheet.y += sheet.gap


def filled_in(name: str, language: Language, rng: random.Random) -> tuple[Any, str]:
    """A value, and how it is printed."""
    match name:
        case "name":
            text = words.person(rng, language)
        case "date":
            day = words.day(rng)
            return words.iso(day), words.printed_day(day, language)
        case "phone":
            text = words.phone(rng, language)
        case "city":
            text = words.address(rng, language)
        case "number":
            text = words.random_code(rng)
        case "amount":
            value = Decimal(rng.randint(100, 999_999)).scaleb(-2)
            return value, words.amount(value, language)
        case "count":
            count = rng.randint(1, 99)
            return count, str(count)
        case "position":
            text = said(rng.choice(words.POSITIONS), language)
        case _:
            text = f"{rng.choice(words.MAILBOXES)}@mail.example"
    return text, text


def form_questions(
    data: Mapping[str, Any], rows: Sequence[tuple[str, str]], language: Language, rng: random.Random
) -> Iterator[Job]:
    """What a field says, in the language of the form."""
    for name, text in rows:
        question = rng.choice(WHAT_IS[language]).format(field=label_of(name, language))
        value = data[name]
        if isinstance(value, Decimal | int):
            yield ask(question, value, language, "field-number")
        elif text and language in languages_of(text):
            yield ask(question, text, language, "field")


KINDS: Mapping[str, tuple[Callable[[Split, random.Random, Size | None], Scene], float]] = {
    "business-card": (business_card, 1.0),
    "label": (label, 1.5),
    "price-tag": (price_tag, 2.0),
    "passport": (passport, 1.0),
    "form": (form, 1.5),
}
