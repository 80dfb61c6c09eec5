"""Jobs about printed texts, whatever they are printed on: read, find, count, and the JSON that answers.

Truths here, as JSON has them: of `ocr` the text, or for lines [text, box] of each; of `ground` and of the
places of extracted values boxes; of `ask` the value; of `extract` the data; of `solve` the final answer.
Boxes are [x1, y1, x2, y2] in pixels.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

from qvl.scenes.as_json import dumped, plain
from qvl.scenes.page import Page
from qvl.scenes.scene import Job, PixelBox, Thing
from qvl.scenes.words import LANGUAGES, Language
from qvl.tasks.ask import YES_NO
from qvl.tasks.language import is_in

ALPHABETS = (
    "0123456789", "ABCDEFGHKLMNPRSTUVWXYZ", "abcdefghkmnoprstuvwxyz", "АБВГДЕЖИКЛМНПРСТУФХЦЧШЭЮЯ",
    "абвгдежиклмнопрстуфхцчшыэюя", "大小中上下天日月水火山木人口手",
)  # fmt: skip
STEP = 5  # of the thousandths that boxes are told in: a line of small print is 25 of them high
READ: Mapping[Language, Sequence[str]] = {
    "ru": ("Что здесь написано?", "Прочитай надпись.", "Какой здесь текст?"),
    "en": ("What is written here?", "Read the text.", "What does it say?"),
    "zh": ("这里写着什么？", "读出文字。", "图中的文字是什么？"),
}
READ_AT: Mapping[Language, Sequence[str]] = {
    "ru": ("Что написано в рамке {box}?", "Прочитай текст в рамке {box}."),
    "en": ("What is written in the box {box}?", "Read the text in the box {box}."),
    "zh": ("框{box}里写着什么？", "读出框{box}中的文字。"),
}
READ_LINE: Mapping[Language, Sequence[str]] = {
    "ru": ("Что написано в строке {n}?", "Прочитай строку {n}."),
    "en": ("What does line {n} say?", "Read line {n}."),
    "zh": ("第{n}行写着什么？", "读出第{n}行。"),
}
HOW_MANY_LINES: Mapping[Language, Sequence[str]] = {
    "ru": ("Сколько строк текста на картинке?", "Сколько здесь строк?"),
    "en": ("How many lines of text are there?", "Count the lines of text."),
    "zh": ("图中有几行文字？", "一共有多少行字？"),
}
DOES_IT_SAY: Mapping[Language, Sequence[str]] = {
    "ru": ("Есть ли на картинке надпись «{text}»?", "Написано ли здесь «{text}»?"),
    "en": ('Is the text "{text}" in the picture?', 'Does it say "{text}"?'),
    "zh": ("图中有“{text}”这几个字吗？", "这里写着“{text}”吗？"),
}
PHRASES: Mapping[Language, Sequence[str]] = {
    "ru": ("надпись «{text}»", "текст {text}"),
    "en": ('the text "{text}"', "the text {text}"),
    "zh": ("文字“{text}”", "“{text}”"),
}


def thousandths(box: PixelBox, size: tuple[int, int]) -> list[int]:
    scaled = (v / side * 1000 / STEP for v, side in zip(box, size * 2, strict=True))
    return [min(1000, max(0, round(v) * STEP)) for v in scaled]


def places(things: Sequence[tuple[str, PixelBox]], size: tuple[int, int], key: str) -> str:
    """The generation's JSON of boxes, each with its text under the key."""
    return dumped([{"bbox_2d": thousandths(box, size), key: text} for text, box in things])


@lru_cache(20_000)
def languages_of(text: str) -> tuple[Language, ...]:
    """Those in which the text, as an answer, is not taken for a wrong language."""
    return tuple(language for language in LANGUAGES if is_in(text, language))


def any_language(rng: random.Random) -> Language:
    return rng.choice(LANGUAGES)


def ask(
    question: str,
    value: str | float | Decimal,
    language: Language,
    skill: str,
    *,
    choices: Sequence[str] = (),
    about: tuple[tuple[str, Thing], ...] = (),
) -> Job:
    """A question; the type of the value says in which form it is to be answered."""
    options: dict[str, Any] = {"question": question, "language": language}
    answer = str(value)
    match value:
        case bool():
            options["answer_as"], answer = "bool", YES_NO[language][not value]
        case int():
            options["answer_as"] = "int"
        case Decimal() | float():
            options["answer_as"] = "number"
        case _ if choices:
            options |= {"answer_as": "choice", "choices": list(choices)}
    return Job("ask", options, answer, plain(value), skill, about)


def ocr_jobs(page: Page, rng: random.Random) -> Iterator[Job]:
    """All of the text, bare and line by line with boxes."""
    lines = page.lines
    told = [(line.what, line.box) for line in lines]
    options: dict[str, Any] = {"language": any_language(rng)}
    if rng.random() < 0.2:
        options["kind"] = rng.choice(("scan", "sign"))
    yield Job("ocr", options, page.text, page.text, "read")
    answer = places(told, page.size, "text_content")
    by_line = {"language": any_language(rng), "answer_as": "lines"}
    yield Job("ocr", by_line, answer, [[text, list(box)] for text, box in told], "read-lines")


def text_jobs(page: Page, rng: random.Random, others: Sequence[str] = ()) -> Iterator[Job]:
    """Questions about single texts of the page; of `others` are asked for that are not on it."""
    things, lines, whole = page.things, page.lines, page.text
    apart = [thing for thing in things if is_apart(thing.what, page)]
    for thing in rng.sample(things, min(2, len(things))):
        if languages := languages_of(thing.what):
            language = rng.choice(languages)
            box = dumped(thousandths(thing.box, page.size))
            words = rng.choice(READ_AT[language]).format(box=box)
            yield ask(words, thing.what, language, "read-at", about=((box, thing),))
    if len(things) == 1 and (languages := languages_of(things[0].what)):
        language = rng.choice(languages)
        yield ask(rng.choice(READ[language]), things[0].what, language, "ask-text")
    if len(lines) > 1:
        n = rng.randrange(len(lines))
        if languages := languages_of(lines[n].what):
            language = rng.choice(languages)
            words = rng.choice(READ_LINE[language]).format(n=n + 1)
            yield ask(words, lines[n].what, language, "read-line")
    language = any_language(rng)
    yield ask(rng.choice(HOW_MANY_LINES[language]), len(lines), language, "count-lines")
    if not apart:
        return
    yield found(rng.choice(apart), page, rng)
    absent = [altered(rng.choice(apart).what, rng), *others]
    absent = [text for text in absent if text not in whole]
    language, there = any_language(rng), rng.random() < 0.5 or not absent
    text = rng.choice(apart).what if there else rng.choice(absent)
    words = rng.choice(DOES_IT_SAY[language]).format(text=text)
    yield ask(words, there, language, "is-there")
    if absent and rng.random() < 0.2:
        yield missing(rng.choice(absent), rng)


def is_apart(text: str, page: Page) -> bool:
    """It stands on the page once, and is no part of another text there."""
    return sum(text in thing.what for thing in page.things) == 1


def altered(text: str, rng: random.Random) -> str:
    """The text with one digit or letter replaced by another of its kind."""
    at = rng.choice([n for n, letter in enumerate(text) if not letter.isspace()])
    old = text[at]
    alphabet = next((a for a in ALPHABETS if old in a), "?!*")
    return text[:at] + rng.choice([new for new in alphabet if new != old]) + text[at + 1 :]


def found(thing: Thing, page: Page, rng: random.Random) -> Job:
    """Where a text stands."""
    language = any_language(rng)
    phrase = rng.choice(PHRASES[language]).format(text=thing.what)
    answer = places([(phrase, thing.box)], page.size, "label")
    options = {"phrases": [phrase], "language": language}
    return Job("ground", options, answer, [list(thing.box)], "find-text", ((thing.what, thing),))


def missing(text: str, rng: random.Random) -> Job:
    """Where a text stands that is not there."""
    language = any_language(rng)
    phrase = rng.choice(PHRASES[language]).format(text=text)
    return Job("ground", {"phrases": [phrase], "language": language}, "[]", [], "find-text")


def extract(
    page: Page,
    data: Mapping[str, Any],
    rng: random.Random,
    skill: str,
    *,
    profile: str | None = None,
    fields: str | None = None,
) -> Iterator[Job]:
    """The values by a profile or a list of fields, and where up to two of them stand."""
    options: dict[str, Any] = {"language": any_language(rng)}
    options |= {"profile": profile} if profile else {"schema": fields}
    answer = dumped(data)
    yield Job("extract", options, answer, plain(data), skill)
    # the task asks for the places of all printed values in turn; values alike are one question
    leaves = [(name, said_in_json(value)) for name, value in leaves_of(data) if is_printed(value)]
    texts = [text for _, text in leaves]
    asked = list(dict.fromkeys(texts))
    known = [
        (name, text)
        for name, text in leaves
        if name in page.named and texts.count(text) == 1 and is_apart(page.thing(name).what, page)
    ]
    for name, text in rng.sample(known, min(2, len(known))):
        thing = page.thing(name)
        told = places([(text, thing.box)], page.size, "label")
        before = (answer, *["[]"] * asked.index(text))
        about = ((text, thing),)
        located = {**options, "language": any_language(rng), "evidence": True}
        yield Job("extract", located, told, [list(thing.box)], "evidence", about, before=before)


def is_printed(value: Any) -> bool:
    return value is not None and not isinstance(value, bool)


def said_in_json(value: str | float | Decimal) -> str:
    """The value as a question about its place quotes it."""
    return value if isinstance(value, str) else dumped(value)


def solve(
    steps: Sequence[str],
    final: str,
    language: Language,
    skill: str,
    *,
    question: str | None = None,
) -> Job:
    """Steps, and the final answer in a form without a unit."""
    options: dict[str, Any] = {"language": language}
    if question is not None:
        options["question"] = question
    return Job("solve", options, dumped({"steps": list(steps), "answer": final}), final, skill)


def leaves_of(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The single values by the names that `extract` gives them: "lines[0].sum"."""
    match value:
        case Mapping():
            for key, one in value.items():
                yield from leaves_of(one, f"{name}.{key}" if name else key)
        case list() | tuple():
            for at, one in enumerate(value):
                yield from leaves_of(one, f"{name}[{at}]")
        case _:
            yield name, value
