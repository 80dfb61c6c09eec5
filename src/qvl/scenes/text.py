"""Printed letters, words and lines: a ladder that reading is learnt on, from one digit to small print.

Main path: line(stage, split, rng, size) -> Scene, also as the kinds "text-0" to "text-9". A trainer
goes up a stage when the accuracy on held-out scenes of the one it is at is reached, and keeps drawing
some of those below. Sizes are those of the font (em), in pixels; a text that is wider than its place
is printed smaller.

| stage | what is printed | strings | px | faces | photo |
|---|---|---|---|---|---|
| 0 | one digit | 1 | 80-112 | sans-bold | 0 |
| 1 | single digits and capitals, Latin or Cyrillic | 1-4 | 56-80 | sans, sans-bold | 0 |
| 2 | numbers of two or three digits, pairs of capitals, single small letters | 1-4 | 44-64 | 3 | 0 |
| 3 | numbers, short words in capitals (to 5 letters) of the closed list, Russian or English | 1-4 | 36-52 | 4 | 0.1 |
| 4 | any word of the closed list in any case, prices | 1-4 | 28-44 | all of print | 0.2 |
| 5 | random strings of 3-6 letters and digits, codes | 1-5 | 26-38 | all of print | 0.3 |
| 6 | lines of two or three words, numbers, addresses, punctuation | 2-5 | 20-30 | all of print | 0.4 |
| 7 | as 6, dates, phones, longer strings, script by hand | 3-6 | 16-24 | all | 0.5 |
| 8 | small print: whole sentences over several lines | 5-9 | 12-17 | all of print | 0.6 |
| 9 | labels: Chinese words beside Latin, Cyrillic and numbers | 2-6 | 12-17 | all of print | 0.6 |

What comes after are whole papers, "receipt" and the other kinds of `documents`, printed at 10-14 px.

A fifth of texts x faces is kept from training; in stages 0 to 2, which have few texts, of texts x faces
x colours of the paper. The face "round" prints in the split "style" alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from qvl.errors import InvalidParamError
from qvl.scenes import words
from qvl.scenes.page import (
    BLACK,
    DARK,
    HAND_FACE,
    LIGHT,
    PRINT_FACES,
    STYLE_FACE,
    WHITE,
    Page,
    Rgb,
    fitting,
    tinted,
    width_of,
)
from qvl.scenes.papers import Size
from qvl.scenes.photo import photographed
from qvl.scenes.reading import ocr_jobs, text_jobs
from qvl.scenes.scene import Scene, Split, belongs

INKS: tuple[Rgb, ...] = ((150, 20, 28), (20, 60, 150), (16, 96, 52), (96, 40, 128), (120, 70, 10))
FEW_TEXTS = 2  # up to this stage the colour of the paper is part of the combination
HAND_SCALE = 1.35  # its letters are small for their em
MARGIN = 0.04  # of a side, left free around the page


@dataclass(frozen=True, slots=True)
class Stage:
    """`text` makes one string, `px` is the range of the font's size, `strings` of how many there are;
    `strength` is that of the photo, `columns` how many may stand beside each other.
    """

    text: Callable[[random.Random], str]
    px: tuple[int, int]
    faces: tuple[str, ...]
    strings: tuple[int, int]
    strength: float = 0.0
    columns: int = 1


def digit(rng: random.Random) -> str:
    return rng.choice(words.DIGITS)


def single(rng: random.Random) -> str:
    return rng.choice(words.DIGITS if rng.random() < 0.3 else words.LATIN + words.CYRILLIC)


def number(rng: random.Random) -> str:
    if rng.random() < 0.65:
        return str(rng.randint(10, 999))
    if rng.random() < 0.4:
        return rng.choice(words.LATIN_SMALL)
    return words.random_letters(rng, 2)


def any_word(rng: random.Random, most: int = 12) -> str:
    """Of the closed list, in the two alphabets."""
    while True:
        text = rng.choice(rng.choice(words.SIGNS)[:2])
        if len(text) <= most:
            return text


def short_word(rng: random.Random) -> str:
    return str(rng.randint(10, 9999)) if rng.random() < 0.3 else any_word(rng, 5)


def price(rng: random.Random) -> str:
    language = rng.choice(words.LANGUAGES[:2])
    value = words.product_price(rng, rng.choice(words.PRODUCTS), language)
    return (
        words.amount(value, language) if rng.random() < 0.5 else words.money(value, language, rng)
    )


def word(rng: random.Random) -> str:
    if rng.random() < 0.25:
        return price(rng)
    text = rng.choice((any_word(rng), rng.choice(rng.choice(words.PRODUCTS).names[:2])))
    return rng.choice((text, text.upper(), text.lower(), text.capitalize()))


def several_words(rng: random.Random) -> str:
    language = rng.choice(words.LANGUAGES[:2])
    index = words.LANGUAGES.index(language)
    match rng.randrange(6):
        case 0:
            return f"{rng.choice(words.PRODUCTS).names[index]} {price(rng)}"
        case 1:
            return words.address(rng, language)
        case 2:
            return words.said(rng.choice(words.SHOPS), language)
        case 3:
            return f"{rng.choice(words.PRODUCTS).names[index]}, {any_word(rng).lower()}"
        case 4:
            return f"{rng.randint(8, 11)}:00 - {rng.randint(17, 23)}:{rng.choice(('00', '30'))}"
    return f"{any_word(rng)} {any_word(rng, 8)}{rng.choice(('', '!', '', '?'))}"


def detail(rng: random.Random) -> str:
    language = rng.choice(words.LANGUAGES[:2])
    match rng.randrange(4):
        case 0:
            return words.printed_day(words.day(rng), language)
        case 1:
            return words.phone(rng, language)
        case 2:
            return words.random_string(rng, 6, 10)
    return several_words(rng)


SENTENCES: Mapping[words.Language, tuple[str, ...]] = {
    "ru": (
        "Хранить в сухом месте при температуре до {n} °C.",
        "Срок годности {n} месяцев со дня изготовления.",
        "Возврат товара в течение {n} дней при наличии чека.",
        "Масса нетто {n} г. Штрихкод указан на упаковке.",
        "Дети до {n} лет проходят бесплатно.",
        "Перед употреблением взболтать. После вскрытия хранить {n} дней.",
        "Просим не шуметь после {n} часов.",
        "Касса закрывается за {n} минут до закрытия магазина.",
    ),
    "en": (
        "Keep in a dry place below {n} °C.",
        "Best within {n} months of the date of packing.",
        "Goods may be returned within {n} days with the receipt.",
        "Net weight {n} g. See the pack for the bar code.",
        "Children under {n} enter free of charge.",
        "Shake well before use. Once opened, keep for {n} days.",
        "Please be quiet after {n} o'clock.",
        "The cash desk closes {n} minutes before the shop.",
    ),
    "zh": (
        "请存放在{n}度以下的干燥处。",
        "保质期{n}个月。",
        "凭小票{n}天内可以退货。",
        "净重{n}克。",
        "{n}岁以下儿童免费。",
        "开封后请在{n}天内食用。",
        "营业到{n}点。",
    ),
}  # fmt: skip


def sentence(rng: random.Random, language: words.Language) -> str:
    return rng.choice(SENTENCES[language]).format(
        n=rng.randint(5, 20)
    )  # 5-20: one plural in Russian


def chinese(rng: random.Random) -> str:
    match rng.randrange(7):
        case 0:
            return rng.choice(words.SIGNS)[2]
        case 1:
            return f"{rng.choice(words.PRODUCTS).names[2]} {rng.choice(words.PRODUCTS).names[1]}"
        case 2:
            product = rng.choice(words.PRODUCTS)
            value = words.product_price(rng, product, "zh")
            return f"{product.names[2]} {words.money(value, 'zh', rng)}"
        case 3:
            return words.printed_day(words.day(rng), "zh")
        case 4:
            return rng.choice((words.address(rng, "zh"), words.said(rng.choice(words.SHOPS), "zh")))
        case 5:
            return sentence(rng, "zh")
    return several_words(rng)


STAGES: tuple[Stage, ...] = (
    Stage(digit, (80, 112), ("sans-bold",), (1, 1)),
    Stage(single, (56, 80), ("sans", "sans-bold"), (1, 4), columns=2),
    Stage(number, (44, 64), ("sans", "sans-bold", "serif"), (1, 4), columns=2),
    Stage(short_word, (36, 52), ("sans", "sans-bold", "serif", "slab"), (1, 4), 0.1),
    Stage(word, (28, 44), PRINT_FACES, (1, 4), 0.2),
    Stage(partial(words.random_string, least=3, most=6), (26, 38), PRINT_FACES, (1, 5), 0.3),
    Stage(several_words, (20, 30), PRINT_FACES, (2, 5), 0.4),
    Stage(detail, (16, 24), (*PRINT_FACES, HAND_FACE), (3, 6), 0.5),
    Stage(partial(sentence, language="ru"), (12, 17), PRINT_FACES, (5, 9), 0.6),
    Stage(chinese, (12, 17), PRINT_FACES, (2, 6), 0.6),
)
SMALL_PRINT = 8
SIDES = (128, 160, 192, 224)
ROOMY = range(3, len(STAGES))  # stages whose strings are too long for the smaller sides


def line(stage: int, split: Split, rng: random.Random, size: tuple[int, int]) -> Scene:
    """Strings of a stage on a picture of `size` (width, height). Raises InvalidParamError."""
    if not 0 <= stage < len(STAGES):
        raise InvalidParamError(f"there is no stage {stage}", hint=f"0 to {len(STAGES) - 1}")
    ground = rng.randrange(len(LIGHT))
    page = Page.blank(size, WHITE)
    page.canvas.paste(
        tinted(rng, size, ground) if stage > FEW_TEXTS else LIGHT[ground], (0, 0, *size)
    )
    ink = BLACK
    if stage > FEW_TEXTS and rng.random() < 0.2:
        page.canvas.paste(rng.choice(DARK), (0, 0, *size))
        ink = WHITE
    elif stage > FEW_TEXTS and rng.random() < 0.15:
        ink = rng.choice(INKS)
    if stage == SMALL_PRINT:
        print_paragraphs(page, split, rng, ink)
    else:
        print_strings(page, stage, split, rng, ink, ground)
    others = [STAGES[stage].text(rng) for _ in range(3)]  # what is asked for and not there
    page = photographed(page, rng, STAGES[stage].strength * rng.uniform(0.5, 1.5))
    jobs = (*ocr_jobs(page, rng), *text_jobs(page, rng, others))
    return Scene(f"text-{stage}", (page.canvas,), (page.things,), jobs)


def print_strings(
    page: Page, stage: int, split: Split, rng: random.Random, ink: Rgb, ground: int
) -> None:
    """Each string in a cell of a loose grid, somewhere in it."""
    how = STAGES[stage]
    width, height = (round(side * (1 - 2 * MARGIN)) for side in page.size)
    least = how.px[0]
    count = rng.randint(*how.strings)
    columns = min(rng.randint(1, how.columns), max(1, width // round(1.6 * least)))
    rows = max(1, min(-(-count // columns), int(height / (1.3 * least))))
    cell = width / columns, height / rows
    left, top = page.size[0] * MARGIN, page.size[1] * MARGIN
    for row in range(rows):
        px = rng.randint(least, max(least, min(how.px[1], int(cell[1] / 1.25))))
        baseline = top + row * cell[1] + 0.8 * px + rng.random() * max(0.0, cell[1] - 1.15 * px)
        for column in range(columns):
            text, face, px_here = pick(stage, split, rng, cell[0] * 0.94, px, ground)
            room = max(0.0, cell[0] - width_of(text, face, px_here))
            x = left + column * cell[0] + rng.random() * room
            page.write(text, (x, baseline), face, px_here, ink=ink, same_row=column > 0)


def pick(
    stage: int, split: Split, rng: random.Random, width_px: float, most_px: int, ground: int
) -> tuple[str, str, int]:
    """A text, a face that the split may show it in, and the size at which it has room."""
    how = STAGES[stage]
    faces = (STYLE_FACE,) if split == "style" else how.faces
    for attempt in range(1000):
        text, face = how.text(rng), rng.choice(faces)
        own = (ground,) if stage <= FEW_TEXTS else ()
        if not belongs(split, "text", text, face, *own):
            continue
        scale = HAND_SCALE if face == HAND_FACE else 1.0
        px = fitting(text, face, width_px, round(most_px * scale))
        if px >= how.px[0] * scale or attempt > 60:
            return text, face, px
    raise InvalidParamError(f"no text of stage {stage} fits the split {split!r}")


def print_paragraphs(page: Page, split: Split, rng: random.Random, ink: Rgb) -> None:
    """Sentences in one face, broken into lines where the page ends."""
    how = STAGES[SMALL_PRINT]
    language = rng.choice(words.LANGUAGES[:2])
    px = rng.randint(*how.px)
    while True:
        face = STYLE_FACE if split == "style" else rng.choice(how.faces)
        texts = [sentence(rng, language) for _ in range(how.strings[1])]
        texts = [text for text in dict.fromkeys(texts) if belongs(split, "text", text, face)]
        if texts:
            break
    x, room = page.size[0] * 0.05, page.size[0] * 0.9
    baseline, most = page.size[1] * 0.05 + px, rng.randint(*how.strings)
    gap = px * rng.uniform(1.25, 1.6)
    most = min(most, int((page.size[1] * 0.95 - baseline) / gap) + 1)
    lines: list[str] = []
    for text in texts:  # whole ones; the first in any case
        broken = wrapped(text, face, px, room)
        if not lines or len(lines) + len(broken) <= most:
            lines += broken
    baseline += rng.random() * max(0.0, page.size[1] * 0.95 - baseline - gap * (len(lines) - 1))
    for text in lines:
        page.write(text, (x, baseline), face, px, ink=ink)
        baseline += gap


def wrapped(text: str, face: str, px: int, room: float) -> list[str]:
    """Broken at spaces into lines no wider than `room` pixels."""
    lines = [""]
    for part in text.split(" "):
        longer = f"{lines[-1]} {part}".strip()
        if lines[-1] and width_of(longer, face, px) > room:
            lines.append(part)
        else:
            lines[-1] = longer
    return lines


def at_stage(split: Split, rng: random.Random, size: Size | None, *, stage: int) -> Scene:
    """Without a size, sides of 128 to 224 pixels, which leave room for the larger letters."""
    least = SIDES[0] if stage not in ROOMY else SIDES[2]
    sides = [side for side in SIDES if side >= least]
    return line(stage, split, rng, size or (rng.choice(sides), rng.choice(sides)))


KINDS: Mapping[str, tuple[Callable[[Split, random.Random, Size | None], Scene], float]] = {
    f"text-{stage}": (partial(at_stage, stage=stage), 1.0) for stage in range(len(STAGES))
}
