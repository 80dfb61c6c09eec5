"""How questions about objects are worded, and how descriptions in the product's styles are.

A question has several wordings, so that none is learnt by heart; an answer has one, so that there is one
right text for a scene and a style. Nothing a question says tells its answer.
"""

from __future__ import annotations

import random

from qvl.scenes.kinds import Kind
from qvl.scenes.phrases import (
    Colour,
    Language,
    adjective,
    capital,
    counted,
    definite,
    genitive,
    is_plural,
    name,
    plural,
)
from qvl.scenes.scene import PixelBox

RELATION_ANSWERS: dict[Language, tuple[str, str, str, str]] = {
    "en": ("left", "right", "above", "below"),
    "ru": ("слева", "справа", "выше", "ниже"),
    "zh": ("左边", "右边", "上方", "下方"),
}
_RELATIONS: dict[Language, tuple[str, str, str, str]] = {
    "en": ("to the left of", "to the right of", "above", "below"),
    "ru": ("слева от", "справа от", "выше", "ниже"),
    "zh": ("左边", "右边", "上方", "下方"),
}
# fields: {a} a name or phrase, {the_a} with the article, {gen_a} Russian genitive, {many_a} as after
# "how many", {is_a} is or are, {n} a number, {colour}, {gen_colour} as after "what object is"
QUESTIONS: dict[str, dict[Language, tuple[str, ...]]] = {
    "name": {
        "en": (
            "What is in the picture?",
            "What is this?",
            "Name the object.",
            "What do you see here?",
        ),
        "ru": ("Что на картинке?", "Что это?", "Назови предмет.", "Что здесь изображено?"),
        "zh": ("图中是什么？", "这是什么？", "说出图中物体的名称。", "你看到了什么？"),
    },
    "is it": {
        "en": ("Is this {a}?", "Does the picture show {a}?"),
        "ru": ("Это {a}?", "На картинке {a}?", "Верно ли, что это {a}?"),
        "zh": ("这是{a}吗？", "图中是{a}吗？"),
    },
    "is there": {
        "en": ("Is there {a} in the picture?", "Can you see {a} here?"),
        "ru": ("Есть ли на картинке {a}?", "Видно ли здесь: {a}?"),
        "zh": ("图中有{a}吗？", "能看到{a}吗？"),
    },
    "count": {
        "en": (
            "How many objects are in the picture?",
            "How many objects are there?",
            "Count the objects.",
        ),
        "ru": ("Сколько предметов на картинке?", "Сколько здесь предметов?", "Посчитай предметы."),
        "zh": ("图中有多少个物体？", "一共有几个物体？", "数一数图中的物体。"),
    },
    "count kind": {
        "en": (
            "How many {many_a} are in the picture?",
            "How many {many_a} are there?",
            "Count the {many_a}.",
        ),
        "ru": (
            "Сколько {many_a} на картинке?",
            "Сколько здесь {many_a}?",
            "Сколько {many_a} ты видишь?",
        ),
        "zh": ("图中有多少{measure_a}{a}？", "一共有几{measure_a}{a}？", "数一数图中的{a}。"),
    },
    "count group": {
        "en": ("How many things in the picture belong to “{a}”?", "Count what belongs to “{a}”."),
        "ru": (
            "Сколько предметов на картинке относится к группе «{a}»?",
            "Посчитай всё из группы «{a}».",
        ),
        "zh": ("图中有多少个物体属于“{a}”？", "数一数属于“{a}”的物体。"),
    },
    "count colour": {
        "en": ("How many of them are {colour}?", "How many {colour} things are in the picture?"),
        "ru": (
            "Сколько из них {gen_colour} цвета?",
            "Сколько на картинке предметов {gen_colour} цвета?",
        ),
        "zh": ("其中有几个是{colour}的？", "图中有多少个{colour}的物体？"),
    },
    "more than": {
        "en": (
            "Are there more than {n} {many_a} in the picture?",
            "Do you see more than {n} {many_a}?",
        ),
        "ru": (
            "Предметов на картинке больше, чем {n}?",
            "Верно ли, что предметов здесь больше, чем {n}?",
        ),
        "zh": ("图中的{a}多于{n}{measure_a}吗？", "{a}超过{n}{measure_a}了吗？"),
    },
    "which more": {
        "en": (
            "Which are there more of: {many_a} or {many_b}?",
            "What do you see more of, {many_a} or {many_b}?",
        ),
        "ru": (
            "Чего больше: {many_a} или {many_b}?",
            "Кого или чего на картинке больше: {many_a} или {many_b}?",
        ),
        "zh": ("{a}和{b}，哪个更多？", "图中哪种更多：{a}还是{b}？"),
    },
    "relation": {
        "en": (
            "Where {is_a} {the_a} relative to {the_b}?",
            "{Is_a} {the_a} left, right, above or below {the_b}?",
        ),
        "ru": ("Где {a} относительно {gen_b}?", "Где находится {a} относительно {gen_b}?"),
        "zh": ("{a}在{b}的哪个方向？", "{a}相对于{b}在哪里？"),
    },
    "leftmost": {
        "en": ("What is on the left?", "Which object is on the left?"),
        "ru": ("Что слева?", "Какой предмет находится слева?"),
        "zh": ("左边是什么？", "哪个物体在左边？"),
    },
    "rightmost": {
        "en": ("What is on the right?", "Which object is on the right?"),
        "ru": ("Что справа?", "Какой предмет находится справа?"),
        "zh": ("右边是什么？", "哪个物体在右边？"),
    },
    "upper": {
        "en": ("What is at the top?", "Which object is higher?"),
        "ru": ("Что вверху?", "Какой предмет находится выше?"),
        "zh": ("上面是什么？", "哪个物体在上面？"),
    },
    "lower": {
        "en": ("What is at the bottom?", "Which object is lower?"),
        "ru": ("Что внизу?", "Какой предмет находится ниже?"),
        "zh": ("下面是什么？", "哪个物体在下面？"),
    },
    "larger": {
        "en": ("Which of the two is drawn larger?", "Which object is bigger in the picture?"),
        "ru": (
            "Какой из двух предметов на картинке крупнее?",
            "Что на картинке больше по размеру?",
        ),
        "zh": ("图中哪个物体更大？", "两个物体中哪个画得更大？"),
    },
    "smaller": {
        "en": ("Which of the two is drawn smaller?", "Which object is smaller in the picture?"),
        "ru": ("Какой из двух предметов на картинке мельче?", "Что на картинке меньше по размеру?"),
        "zh": ("图中哪个物体更小？", "两个物体中哪个画得更小？"),
    },
    "alive": {
        "en": ("Which of the two is an animal?", "Name the animal in the picture."),
        "ru": ("Кто из них животное?", "Назови животное на картинке."),
        "zh": ("两者中哪个是动物？", "说出图中的动物。"),
    },
    "eaten": {
        "en": ("Which of the two can be eaten?", "Name what is food here."),
        "ru": ("Что из этого едят?", "Назови то, что здесь съедобно."),
        "zh": ("两者中哪个可以吃？", "图中哪个是食物？"),
    },
    "same group": {
        "en": (
            "Are the two things of the same category?",
            "Do both things belong to one category?",
        ),
        "ru": (
            "Относятся ли эти два предмета к одной категории?",
            "Эти предметы из одной категории?",
        ),
        "zh": ("这两个物体属于同一类别吗？", "它们是同一类物品吗？"),
    },
    "colour of": {
        "en": ("What colour {is_a} {the_a}?", "Name the colour of {the_a}."),
        "ru": ("Какого цвета {a}?", "Назови цвет {gen_a}."),
        "zh": ("{a}是什么颜色？", "说出{a}的颜色。"),
    },
    "colour": {
        "en": ("What colour is it?", "What is its main colour?", "Name the colour."),
        "ru": ("Какого это цвета?", "Какой здесь основной цвет?", "Назови цвет."),
        "zh": ("这是什么颜色？", "它的主要颜色是什么？", "说出颜色。"),
    },
    "pattern": {
        "en": ("What pattern does it have?", "What is the pattern?"),
        "ru": ("Какой здесь узор?", "Какой узор на предмете?"),
        "zh": ("它是什么图案？", "上面有什么图案？"),
    },
    "pattern colour": {
        "en": ("What colour is the pattern?", "What colour is the pattern on it?"),
        "ru": ("Какого цвета узор?", "Какой цвет у узора?"),
        "zh": ("图案是什么颜色？", "上面的图案是什么颜色的？"),
    },
    "what shape is": {
        "en": ("Which shape is {colour}?", "Name the {colour} shape."),
        "ru": ("Какая фигура {gen_colour} цвета?", "Назови фигуру {gen_colour} цвета."),
        "zh": ("哪个图形是{colour}的？", "说出{colour}图形的名称。"),
    },
    "what object is": {
        "en": ("Which object is {colour}?", "Name the {colour} object."),
        "ru": ("Какой предмет {gen_colour} цвета?", "Назови предмет {gen_colour} цвета."),
        "zh": ("哪个物体是{colour}的？", "说出{colour}物体的名称。"),
    },
    "on plate": {
        "en": ("What is on the plate?", "Which dish is served?"),
        "ru": ("Что лежит на тарелке?", "Что подали на тарелке?"),
        "zh": ("盘子里是什么？", "盘中盛着什么？"),
    },
    "clip order": {
        "en": ("What appears first?", "Which object appears first in the video?"),
        "ru": ("Что появляется первым?", "Какой предмет появляется на видео первым?"),
        "zh": ("最先出现的是什么？", "视频中哪个物体最先出现？"),
    },
    "clip last": {
        "en": ("What appears last?", "Which object appears last in the video?"),
        "ru": ("Что появляется последним?", "Какой предмет появляется на видео последним?"),
        "zh": ("最后出现的是什么？", "视频中哪个物体最后出现？"),
    },
    "clip way": {
        "en": ("Which way does {the_a} move?", "In which direction does {the_a} go?"),
        "ru": ("Куда движется {a}?", "В какую сторону движется {a}?"),
        "zh": ("{a}往哪个方向移动？", "{a}朝哪边走？"),
    },
    "changed": {
        "en": ("What differs between the two pictures?", "What has changed in the second picture?"),
        "ru": ("Чем отличаются две картинки?", "Что изменилось на второй картинке?"),
        "zh": ("两张图片有什么不同？", "第二张图片有什么变化？"),
    },
    "are same": {
        "en": (
            "Do the two pictures show the same objects?",
            "Are the same objects in both pictures?",
        ),
        "ru": (
            "На обеих картинках одни и те же предметы?",
            "Одинаковы ли предметы на двух картинках?",
        ),
        "zh": ("两张图片中的物体相同吗？", "两张图里是同样的物体吗？"),
    },
    "only second": {
        "en": ("What is in the second picture but not in the first?",),
        "ru": ("Что есть на второй картинке, но нет на первой?",),
        "zh": ("第二张图片中有而第一张没有的是什么？",),
    },
}
# fields: {phrase} with its number, {Phrase} capitalised, {name}, {group}, {number}
DESCRIPTIONS: dict[str, dict[Language, str]] = {
    "plain": {"en": "The picture shows {phrase}.", "ru": "На картинке {phrase}.", "zh": "图中有{phrase}。"},
    "alt-text": {"en": "{Phrase}", "ru": "{Phrase}", "zh": "{phrase}"},
    "product": {
        "en": "{Name}. Category: {group}. Pieces in the picture: {number}.",
        "ru": "{Name}. Категория: {group}. На картинке: {number} шт.",
        "zh": "{name}。类别：{group}。图中数量：{number}。",
    },
    "catalogue": {
        "en": "Name: {name}; number: {number}",
        "ru": "Название: {name}; количество: {number}",
        "zh": "名称：{name}；数量：{number}",
    },
    "marketplace": {
        "en": "{Name}, pieces: {number}. Section: {group}.",
        "ru": "{Name}, {number} шт. Раздел: {group}.",
        "zh": "{name}，{number}件。分类：{group}。",
    },
    "seo": {
        "en": "{Phrase} in a picture. Keywords: {name}, {group}.",
        "ru": "{Phrase} на картинке. Ключевые слова: {name}, {group}.",
        "zh": "图片：{phrase}。关键词：{name}，{group}。",
    },
    "menu": {"en": "{Name} ({group})", "ru": "{Name} ({group})", "zh": "{name}（{group}）"},
    "place": {
        "en": "It is {place} of the picture.",
        "ru": "Место на картинке — {place}.",
        "zh": "位于图片的{place}。",
    },
    "share": {
        "en": "It takes up {share} of the picture.",
        "ru": "Изображение занимает {share} картинки.",
        "zh": "约占画面的{share}。",
    },
    "group": {"en": "Category: {group}.", "ru": "Категория: {group}.", "zh": "类别：{group}。"},
}  # fmt: skip
_REGIONS: dict[
    Language, tuple[tuple[str, str, str], ...]
] = {  # rows from above, columns from the left
    "en": (
        ("in the upper left part", "in the upper part", "in the upper right part"),
        ("in the left part", "in the middle", "in the right part"),
        ("in the lower left part", "in the lower part", "in the lower right part"),
    ),
    "ru": (
        ("слева вверху", "вверху", "справа вверху"),
        ("слева", "в середине", "справа"),
        ("слева внизу", "внизу", "справа внизу"),
    ),
    "zh": (("左上方", "上方", "右上方"), ("左侧", "中央", "右侧"), ("左下方", "下方", "右下方")),
}
_SHARES: dict[Language, tuple[str, str, str]] = {
    "en": ("a small part", "about a third", "more than half"),
    "ru": ("небольшую часть", "около трети", "больше половины"),
    "zh": ("一小部分", "三分之一", "一半以上"),
}


def question(
    what: str,
    language: Language,
    rng: random.Random,
    *,
    a: Kind | str | None = None,
    b: Kind | str | None = None,
    n: int | None = None,
    colour: Colour | None = None,
) -> str:
    """One of the wordings, with what it is about filled in."""
    given: dict[str, str] = {}
    for letter, about in (("a", a), ("b", b)):
        if isinstance(about, Kind):
            being = "are" if is_plural(about, "en") else "is"
            given |= {
                letter: name(about, language),
                f"the_{letter}": definite(about, language),
                f"gen_{letter}": genitive(about, language),
                f"many_{letter}": plural(about, language),
                f"measure_{letter}": about.zh_measure,
                f"is_{letter}": being,
                f"Is_{letter}": capital(being),
            }
        elif about is not None:
            given[letter] = about
    if n is not None:
        given["n"] = str(n)
    if colour is not None:
        given |= {"colour": colour.said(language), "gen_colour": adjective(colour.ru, "gen")}
    said = rng.choice(QUESTIONS[what][language]).format(**given)
    # Russian verbs beside what has no singular
    if language == "ru" and isinstance(a, Kind) and is_plural(a, "ru"):
        said = said.replace("находится", "находятся").replace("движется", "движутся")
    if language == "en" and isinstance(a, Kind) and is_plural(a, "en"):
        said = said.replace("Which way does", "Which way do").replace(
            "direction does", "direction do"
        )
    return said


def described(style: str, language: Language, **given: str) -> str:
    """The text of a style; `phrase` and `name` come capitalised, too."""
    for field in ("phrase", "name"):
        if field in given:
            given[capital(field)] = capital(given[field])
    return DESCRIPTIONS[style][language].format(**given)


def placed(one: Kind, relation: int, other: Kind, language: Language) -> str:
    """ "a cat to the left of a car", "кошка слева от машины", "一只猫在一辆汽车的左边"."""
    where = _RELATIONS[language][relation]
    if language == "zh":
        return f"{counted(one, 1, language)}在{counted(other, 1, language)}的{where}"
    if language == "en":
        return f"{counted(one, 1, language)} {where} {counted(other, 1, language)}"
    return f"{one.ru} {where} {other.ru_gen}"


def region(box: PixelBox, size: tuple[int, int], language: Language) -> str:
    """Where the middle of a box is, of nine parts."""
    column = min(2, int((box[0] + box[2]) / 2 / size[0] * 3))
    row = min(2, int((box[1] + box[3]) / 2 / size[1] * 3))
    return _REGIONS[language][row][column]


def shares(box: PixelBox, size: tuple[int, int], language: Language) -> str:
    """How much of the picture a box covers."""
    covered = (box[2] - box[0]) * (box[3] - box[1]) / (size[0] * size[1])
    return _SHARES[language][0 if covered < 0.2 else 1 if covered < 0.5 else 2]
