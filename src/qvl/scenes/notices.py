"""What hangs on walls and doors: signs, opening hours, notices with a heading and a list, adverts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from qvl.scenes import words
from qvl.scenes.page import (
    BLACK,
    DARK,
    LIGHT,
    PRINT_FACES,
    WHITE,
    Page,
    faces_of,
    fitting,
    width_of,
)
from qvl.scenes.papers import Part, Sheet, Size, Stock, at_least, layouts, paper, photo, scene_of
from qvl.scenes.reading import any_language, ask, extract
from qvl.scenes.scene import Job, Scene, Split, belongs
from qvl.scenes.text import SENTENCES, wrapped
from qvl.scenes.words import LANGUAGES, Language, Words, said
from qvl.tasks.moderate import NONE

LEAST_SIGN, LEAST_HOURS, LEAST_NOTICE, LEAST_ADVERT = (160, 128), (224, 192), (256, 256), (192, 160)
IS_OPEN: Mapping[Language, Sequence[str]] = {
    "ru": ("Сейчас открыто?", "Магазин открыт?", "Можно ли войти?"),
    "en": ("Is it open?", "Is the shop open?", "Can one go in now?"),
    "zh": ("现在营业吗？", "商店开门了吗？"),
}
SIGN_SAYS: Mapping[Language, Sequence[str]] = {
    "ru": ("Что написано на вывеске?", "Прочитай вывеску."),
    "en": ("What does the sign say?", "Read the sign."),
    "zh": ("招牌上写着什么？", "读出招牌上的字。"),
}


def sign(split: Split, rng: random.Random, size: Size | None) -> Scene:
    """A word or two on a plate; in a fifth the same in two languages; a quarter says open or closed."""
    is_open = rng.choice((True, False)) if rng.random() < 0.25 else None
    signs = {True: words.OPEN_SIGNS, False: words.CLOSED_SIGNS, None: words.SIGNS}[is_open]
    while True:
        those, language = rng.choice(signs), rng.choice(LANGUAGES)
        face = rng.choice(faces_of(split, PRINT_FACES))
        if belongs(split, "text", said(those, language), face):
            break
    texts = [said(those, language)]
    if rng.random() < 0.2:
        other = rng.choice([one for one in LANGUAGES if one != language])
        if belongs(split, "text", said(those, other), face):
            texts.append(said(those, other))
    page = Page.blank(at_least(size, LEAST_SIGN, rng), rng.choice(LIGHT))
    width, height = page.size
    plate = rng.choice(DARK)
    left, top = rng.uniform(0.02, 0.1) * width, rng.uniform(0.02, 0.25) * height
    right, bottom = width - left, height - rng.uniform(0.02, 0.25) * height
    ink = WHITE
    if rng.random() < 0.4:
        page.pen.rectangle((left, top, right, bottom), fill=WHITE, outline=plate, width=4)
        ink = plate
    else:
        page.pen.rectangle((left, top, right, bottom), fill=plate)
    row = (bottom - top) / len(texts)
    for n, text in enumerate(texts):
        px = fitting(text, face, 0.88 * (right - left), min(64, round(0.62 * row)))
        page.write(
            text, (width / 2, top + (n + 0.5) * row + 0.36 * px), face, px, side="centre", ink=ink
        )
    page = photo(page, rng)
    jobs = []
    if len(texts) == 1:
        jobs.append(ask(rng.choice(SIGN_SAYS[language]), texts[0], language, "ask-text"))
    if is_open is not None:
        asked = any_language(rng)
        jobs.append(ask(rng.choice(IS_OPEN[asked]), is_open, asked, "is-open"))
    return scene_of("sign", page, jobs, rng)


HOURS: Words = ("РЕЖИМ РАБОТЫ", "OPENING HOURS", "营业时间")
DAY_OFF: Words = ("выходной", "closed", "休息")
FULL_DAYS: tuple[Words, ...] = (
    ("в понедельник", "on Monday", "周一"), ("во вторник", "on Tuesday", "周二"),
    ("в среду", "on Wednesday", "周三"), ("в четверг", "on Thursday", "周四"),
    ("в пятницу", "on Friday", "周五"), ("в субботу", "on Saturday", "周六"),
    ("в воскресенье", "on Sunday", "周日"),
)  # fmt: skip
WORKS: Mapping[Language, str] = {
    "ru": "Открыто ли {day}?", "en": "Is it open {day}?", "zh": "{day}营业吗？",
}  # fmt: skip
OPENS: Mapping[Language, str] = {
    "ru": "Во сколько открывается {day}?", "en": "When does it open {day}?", "zh": "{day}几点开门？",
}  # fmt: skip
CLOSES: Mapping[Language, str] = {
    "ru": "Во сколько закрывается {day}?", "en": "When does it close {day}?", "zh": "{day}几点关门？",
}  # fmt: skip


def hours(split: Split, rng: random.Random, size: Size | None) -> Scene:
    """Seven days with their hours; one or two are days off. The layouts: 0 dark on light, 1 light on dark."""
    layout, face, language = layouts("hours", 2, PRINT_FACES, split, rng)
    ink = WHITE if layout else BLACK
    page = Page.blank(at_least(size, LEAST_HOURS, rng), rng.choice(DARK) if layout else paper(rng))
    sheet = Sheet.of(page, face, rng.randint(14, 16), rng, margin=0.1, top=1.8)
    title = said(HOURS, language)
    px = fitting(title, face, sheet.room, round(1.3 * sheet.px))
    sheet.row(Part(title, page.size[0] / 2, "centre", px=px), ink=ink)
    sheet.spread(8, rng)
    off = set(rng.sample(range(7), rng.choice((0, 1, 1, 2))))
    usual = rng.randint(7, 11), rng.randint(17, 22)
    rows = []
    for n, names in enumerate(words.WEEKDAYS):
        start, end = (
            usual if n < 5 or rng.random() < 0.4 else (usual[0] + 1, usual[1] - rng.randint(1, 3))
        )
        start_at, end_at = f"{start}:{rng.choice(('00', '30'))}", f"{end}:00"
        text = said(DAY_OFF, language) if n in off else f"{start_at} - {end_at}"
        rows.append((said(names, language), start_at, end_at))
        left, right = Part(said(names, language), sheet.left), Part(text, sheet.right, "right")
        sheet.row(left, right, ink=ink)
    page = photo(page, rng)
    jobs = []
    asked = [rng.choice(sorted(off)), rng.choice(sorted({*range(7)} - off))] if off else []
    for n in asked or rng.sample(range(7), 1):  # days off are asked about as often as others
        day = said(FULL_DAYS[n], language)
        jobs.append(ask(WORKS[language].format(day=day), n not in off, language, "is-open"))
        if n not in off:
            which, at = rng.choice(((OPENS, 1), (CLOSES, 2)))
            jobs.append(ask(which[language].format(day=day), rows[n][at], language, "hours"))
    return scene_of("hours", page, jobs, rng, is_paper=False)


HEADINGS: tuple[Words, ...] = (
    ("Вниманию покупателей", "Notice to customers", "顾客须知"), ("Правила", "House rules", "规定"),
    ("Важно", "Important", "重要提示"), ("Объявление", "Announcement", "通知"),
)  # fmt: skip
LISTS: tuple[Words, ...] = (
    ("В продаже:", "On sale:", "有售："), ("Сегодня:", "Today:", "今日供应："),
    ("Нужно взять:", "Please bring:", "请携带："),
)  # fmt: skip


def notice(split: Split, rng: random.Random, size: Size | None) -> Scene:
    """A heading, a paragraph and a list. The layouts: 0 the list with points, 1 numbered, 2 no list."""
    layout, face, language = layouts("notice", 3, PRINT_FACES, split, rng)
    page = Page.blank(at_least(size, LEAST_NOTICE, rng), paper(rng))
    sheet = Sheet.of(page, face, rng.randint(13, 15), rng, top=2.2)
    heading = said(rng.choice(HEADINGS), language)
    sheet.head(heading, scale=rng.uniform(1.3, 1.7), side=rng.choice(("left", "centre")))
    sheet.y += 0.4 * sheet.gap
    parts = [f"# {heading}"]
    for text in rng.sample(SENTENCES[language], rng.randint(1, 2)):
        told = text.format(n=rng.randint(5, 20))
        for piece in broken(told, face, sheet.px, sheet.room, language):
            sheet.row(Part(piece, sheet.left))
        sheet.y += 0.3 * sheet.gap
        parts.append(told)
    if layout < 2:
        title = said(rng.choice(LISTS), language)
        sheet.row(Part(title, sheet.left))
        items = [
            said(p.names, language)
            for p in Stock(split, face, language).products(rng.randint(2, 4), rng)
        ]
        items = items[: max(1, sheet.lines_left - 1)]
        marks = ["·" if layout == 0 else f"{n}." for n in range(1, len(items) + 1)]
        for mark, item in zip(marks, items, strict=True):
            if layout == 0:
                x, y = sheet.left + 0.6 * sheet.px, sheet.y - 0.35 * sheet.px
                page.pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=BLACK)
                sheet.row(Part(item, sheet.left + 1.4 * sheet.px))
            else:
                sheet.row(Part(f"{mark} {item}", sheet.left + 0.6 * sheet.px))
        shown = ["-" if layout == 0 else mark for mark in marks]
        listed = "\n".join(f"{mark} {item}" for mark, item in zip(shown, items, strict=True))
        parts += [title, listed]
    page = photo(page, rng)
    told = "\n\n".join(parts)
    options = {"language": any_language(rng), "answer_as": "markdown"}
    return scene_of("notice", page, [Job("ocr", options, told, told, "markdown")], rng)


def broken(text: str, face: str, px: int, room: float, language: Language) -> list[str]:
    """As `wrapped`; Chinese breaks behind any sign."""
    if language != "zh":
        return wrapped(text, face, px, room)
    lines = [""]
    for letter in text:
        if width_of(lines[-1] + letter, face, px) > room and letter not in "。，、":
            lines.append("")
        lines[-1] += letter
    return lines


RULES: Mapping[str, tuple[Words, Words]] = {  # its name and what it forbids
    "phone": (("телефон", "phone", "电话"), ("номер телефона", "a telephone number", "电话号码")),
    "price": (("цена", "price", "价格"), ("цена товара", "the price of something", "商品价格")),
    "website": (("сайт", "website", "网址"), ("адрес сайта", "the address of a site", "网站地址")),
    "discount": (
        ("скидка", "discount", "折扣"),
        ("обещание скидки", "a promised discount", "折扣承诺"),
    ),
}
REASONS: Mapping[str, Words] = {
    "phone": ("На картинке указан номер телефона: {text}.", "It shows a telephone number: {text}.", "图中有电话号码：{text}。"),
    "price": ("На картинке указана цена: {text}.", "It shows a price: {text}.", "图中有价格：{text}。"),
    "website": ("На картинке указан адрес сайта: {text}.", "It shows the address of a site: {text}.", "图中有网址：{text}。"),
    "discount": ("На картинке обещают скидку: {text}.", "It promises a discount: {text}.", "图中有折扣：{text}。"),
}  # fmt: skip
OFF: Words = ("скидка {n}%", "{n}% off", "优惠{n}%")


def advert(split: Split, rng: random.Random, size: Size | None) -> Scene:
    """A shop or a thing, and up to three of: telephone, price, site, discount."""
    layout, face, language = layouts("advert", 2, PRINT_FACES, split, rng)
    ink = WHITE if layout else BLACK
    page = Page.blank(at_least(size, LEAST_ADVERT, rng), rng.choice(DARK if layout else LIGHT))
    sheet = Sheet.of(page, face, rng.randint(15, 18), rng, top=2.0)
    stock = Stock(split, face, language)
    (product,), (shop,) = stock.products(1, rng), stock.shops(1, rng)
    there = rng.sample(tuple(RULES), rng.choices((0, 1, 2, 3), weights=(2, 4, 3, 1))[0])
    shown = {
        "phone": words.phone(rng, language),
        "price": words.money(words.product_price(rng, product, language), language, rng),
        "website": f"www.{shop[1].lower().replace(' ', '-')}.example",
        "discount": said(OFF, language).format(n=rng.randint(1, 10) * 5),
    }
    lines = [said(shop, language), said(product.names, language), *(shown[name] for name in there)]
    sheet.spread(len(lines) + 1, rng)
    for n, text in enumerate(lines):
        px = fitting(text, face, sheet.room, round(sheet.px * (1.4 if n == 0 else 1.0)))
        name = there[n - 2] if n > 1 else None
        sheet.row(Part(text, page.size[0] / 2, "centre", name, px), ink=ink)
    page = photo(page, rng)
    data = {name: shown[name] if name in there else None for name in ("phone", "website")}
    jobs = [
        *extract(page, data, rng, "contacts", fields="phone, website"),
        *moderation(there, shown, language, rng),
    ]
    return scene_of("advert", page, jobs, rng, is_paper=False)


def moderation(
    there: Sequence[str], shown: Mapping[str, str], language: Language, rng: random.Random
) -> Iterator[Job]:
    """Against a policy of which one rule at most is broken; then why."""
    absent = [name for name in RULES if name not in there]
    broken_rule = rng.choice(there) if there and rng.random() < 0.65 else None
    if broken_rule is None and not absent:
        return
    rules = rng.sample(absent, rng.randint(1 if broken_rule is None else 0, len(absent)))
    rules = [*rules, *([broken_rule] if broken_rule else [])]
    rng.shuffle(rules)
    asked = any_language(rng)
    policy = "\n".join(f"{said(RULES[r][0], asked)}: {said(RULES[r][1], asked)}" for r in rules)
    options = {"policy": policy, "language": asked}
    verdict = said(RULES[broken_rule][0], asked) if broken_rule else NONE[asked]
    yield Job("moderate", options, verdict, verdict if broken_rule else None, "moderate")
    if broken_rule and asked == language:
        why = said(REASONS[broken_rule], asked).format(text=shown[broken_rule])
        facts = (shown[broken_rule],)
        yield Job("moderate", options, why, why, "moderate-why", facts=facts, before=(verdict,))


KINDS: Mapping[str, tuple[Callable[[Split, random.Random, Size | None], Scene], float]] = {
    "sign": (sign, 3.0),
    "hours": (hours, 1.0),
    "notice": (notice, 1.5),
    "advert": (advert, 1.5),
}
