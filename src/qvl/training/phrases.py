"""Questions and true answers about a scene, in Russian, English and Chinese.

The word forms stand in data/objects.tsv (genitives, plurals, classifiers), so agreement needs no
library here. A question never names what its answer should recognise, except where that is the
task (relations and boxes).
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from qvl.tasks.prompts import shipped

LANGUAGES = ("ru", "en", "zh")
DATA = files("qvl.training") / "data"


@dataclass(frozen=True, slots=True)
class Kind:
    """A nameable object: its forms in three languages."""

    key: str
    en: str
    en_plural: str
    ru_nom: str
    ru_gen: str
    ru_gen_pl: str
    zh: str
    zh_measure: str


@dataclass(frozen=True, slots=True)
class Colour:
    en: str
    ru: tuple[str, str, str]  # masculine, feminine, neuter
    zh: str
    rgb: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Shape:
    en: str
    ru: str
    ru_gender: int  # index into Colour.ru
    zh: str


COLOURS = (
    Colour("red", ("красный", "красная", "красное"), "红色", (214, 40, 40)),
    Colour("orange", ("оранжевый", "оранжевая", "оранжевое"), "橙色", (245, 140, 20)),
    Colour("yellow", ("жёлтый", "жёлтая", "жёлтое"), "黄色", (245, 215, 40)),
    Colour("green", ("зелёный", "зелёная", "зелёное"), "绿色", (40, 160, 70)),
    Colour("blue", ("синий", "синяя", "синее"), "蓝色", (40, 80, 210)),
    Colour("purple", ("фиолетовый", "фиолетовая", "фиолетовое"), "紫色", (125, 50, 165)),
    Colour("pink", ("розовый", "розовая", "розовое"), "粉色", (245, 130, 180)),
    Colour("black", ("чёрный", "чёрная", "чёрное"), "黑色", (25, 25, 28)),
)
SHAPES = (
    Shape("circle", "круг", 0, "圆形"),
    Shape("square", "квадрат", 0, "正方形"),
    Shape("triangle", "треугольник", 0, "三角形"),
    Shape("star", "звезда", 1, "星形"),
    Shape("heart", "сердце", 2, "心形"),
    Shape("cross", "крест", 0, "十字形"),
)
RELATIONS = ("left", "right", "above", "below")
RELATION_ANSWER = {
    "en": ("left", "right", "above", "below"),
    "ru": ("слева", "справа", "выше", "ниже"),
    "zh": ("左边", "右边", "上方", "下方"),
}
RELATION_PHRASE = {
    "en": ("to the left of", "to the right of", "above", "below"),
    "ru": ("слева от", "справа от", "выше", "ниже"),
    "zh": ("左边", "右边", "上方", "下方"),
}
OPPOSITE = (1, 0, 3, 2)

QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "name": {
        "en": ("What is in the picture?", "What is this?", "Name the object."),
        "ru": ("Что на картинке?", "Что это?", "Назови предмет."),
        "zh": ("图中是什么？", "这是什么？", "说出物体的名称。"),
    },
    "count": {
        "en": ("How many objects are in the picture?", "How many are there?", "Count the objects."),
        "ru": ("Сколько предметов на картинке?", "Сколько их?", "Посчитай предметы."),
        "zh": ("图中有多少个物体？", "一共有几个？", "数一数物体。"),
    },
    "colour": {
        "en": ("What colour is it?", "What colour is the shape?", "Name the colour."),
        "ru": ("Какого это цвета?", "Какого цвета фигура?", "Назови цвет."),
        "zh": ("这是什么颜色？", "图形是什么颜色？", "说出颜色。"),
    },
    "read": {
        "en": ("What is written here?", "Read the text.", "What does it say?"),
        "ru": ("Что здесь написано?", "Прочитай надпись.", "Какая надпись на картинке?"),
        "zh": ("这里写着什么？", "读出文字。", "图中的文字是什么？"),
    },
    "relation": {
        "en": ("Where is the {a} relative to the {b}?", "Is the {a} left, right, above or below the {b}?"),
        "ru": ("Где {a} относительно {b}?", "Как расположен предмет «{a}» относительно {b}?"),
        "zh": ("{a}在{b}的哪个方向？", "{a}相对于{b}在哪里？"),
    },
    "box": {
        "en": ("Locate the {a}. Answer with its box as JSON.", "Where is the {a}? Give a JSON box."),
        "ru": ("Найди предмет: {a}. Ответь рамкой в JSON.", "Где {a}? Дай рамку в JSON."),
        "zh": ("找到{a}，用JSON给出边框。", "{a}在哪里？给出JSON边框。"),
    },
    "boxes": {language: (wording,) for language, wording in shipped("describe_parts")["locate"].items()},
}  # fmt: skip


@cache
def kinds() -> tuple[Kind, ...]:
    with (DATA / "objects.tsv").open(encoding="utf-8") as lines:
        rows = csv.DictReader(lines, delimiter="\t")
        return tuple(Kind(**{name: row[name] for name in Kind.__slots__}) for row in rows)


@cache
def words() -> tuple[str, ...]:
    """The closed list of printed words and numbers."""
    with (DATA / "words.tsv").open(encoding="utf-8") as lines:
        return tuple(row["text"] for row in csv.DictReader(lines, delimiter="\t"))


def an(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def counted(kind: Kind, n: int, language: str) -> str:
    """ "a cat", "3 cats"; "кот", "3 кота", "5 котов"; "一只猫", "3只猫"."""
    if language == "en":
        return an(kind.en) if n == 1 else f"{n} {kind.en_plural}"
    if language == "zh":
        return f"{'一' if n == 1 else n}{kind.zh_measure}{kind.zh}"
    if n == 1:
        return kind.ru_nom
    return f"{n} {kind.ru_gen if n < 5 else kind.ru_gen_pl}"


def coloured(shape: Shape, colour: Colour, language: str) -> str:
    if language == "en":
        return an(f"{colour.en} {shape.en}")
    if language == "zh":
        return f"一个{colour.zh}的{shape.zh}"
    return f"{colour.ru[shape.ru_gender]} {shape.ru}"


def placed(a: Kind, relation: int, b: Kind, language: str) -> str:
    """ "a cat to the left of a car", "кот слева от машины", "猫在汽车的左边"."""
    phrase = RELATION_PHRASE[language][relation]
    if language == "en":
        return f"{an(a.en)} {phrase} {an(b.en)}"
    if language == "zh":
        return f"{a.zh}在{b.zh}的{phrase}"
    return f"{a.ru_nom} {phrase} {b.ru_gen}"


def printed(text: str, language: str) -> str:
    return {"en": f'the text "{text}"', "ru": f"надпись «{text}»", "zh": f"文字“{text}”"}[language]


def sentence(phrase: str, language: str) -> str:
    """The phrase as the plain description says it."""
    return {
        "en": f"The picture shows {phrase}.",
        "ru": f"На картинке {phrase}.",
        "zh": f"图中有{phrase}。",
    }[language]


def describe_question(language: str, rng: random.Random) -> tuple[str, str]:
    """(style, prompt): plain for half of the cases, every style of the product for the rest."""
    style = "plain" if rng.random() < 0.5 else rng.choice(tuple(shipped("describe")))
    return style, shipped("describe")[style][language]


def description(phrase: str, style: str, language: str) -> str:
    """Alt text is the bare phrase; the other styles say, at this stage, the plain sentence."""
    return capital(phrase) if style == "alt-text" else sentence(phrase, language)


def kind_name(kind: Kind, language: str) -> str:
    return {"en": kind.en, "ru": kind.ru_nom, "zh": kind.zh}[language]


def name_of(what: Kind | Shape | str, language: str) -> str:
    """The name of a thing; a printed text is its own."""
    if isinstance(what, Kind):
        return kind_name(what, language)
    if isinstance(what, Shape):
        return {"en": what.en, "ru": what.ru, "zh": what.zh}[language]
    return what


def forms_of(what: Kind | Shape | str) -> tuple[str, ...]:
    """The name as questions and answers write it: bare, after a space, in the genitive."""
    ru, en, zh = (name_of(what, language) for language in ("ru", "en", "zh"))
    genitive = what.ru_gen if isinstance(what, Kind) else ru
    return ru, f" {ru}", f" {genitive}", en, f" {en}", zh


def relation_question(a: Kind, b: Kind, language: str, rng: random.Random) -> str:
    """Where a is relative to b."""
    wording = rng.choice(QUESTIONS["relation"][language])
    return wording.format(a=kind_name(a, language), b=second_name(b, language))


def second_name(kind: Kind, language: str) -> str:
    """The name as it stands after "relative to"."""
    return kind.ru_gen if language == "ru" else kind_name(kind, language)


def box_answer(boxes: Sequence[tuple[str, tuple[int, int, int, int]]]) -> str:
    """Qwen3-VL's form, on its grid of 0..1000; here in steps of ten."""
    items = (
        f'{{"bbox_2d":[{",".join(map(str, box_1000))}],"label":"{label}"}}'
        for label, box_1000 in boxes
    )
    return f"[{','.join(items)}]"
