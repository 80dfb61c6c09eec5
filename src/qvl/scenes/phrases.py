"""Noun phrases about drawn things, in Russian, English and Chinese, that agree in gender and number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qvl.scenes.kinds import Kind

Language = Literal["ru", "en", "zh"]
LANGUAGES: tuple[Language, ...] = ("ru", "en", "zh")


@dataclass(frozen=True, slots=True)
class Colour:
    """`ru` is the masculine nominative; `zh` the bare sign, as in 红底."""

    en: str
    ru: str
    zh: str
    rgb: tuple[int, int, int]

    def said(self, language: Language) -> str:
        return {"en": self.en, "ru": self.ru, "zh": f"{self.zh}色"}[language]


COLOURS = (
    Colour("red", "красный", "红", (210, 38, 40)),
    Colour("orange", "оранжевый", "橙", (245, 138, 22)),
    Colour("yellow", "жёлтый", "黄", (246, 214, 44)),
    Colour("green", "зелёный", "绿", (44, 156, 68)),
    Colour("light blue", "голубой", "浅蓝", (130, 202, 244)),
    Colour("blue", "синий", "蓝", (36, 72, 196)),
    Colour("purple", "фиолетовый", "紫", (122, 52, 166)),
    Colour("pink", "розовый", "粉", (246, 142, 186)),
    Colour("brown", "коричневый", "棕", (124, 76, 40)),
    Colour("black", "чёрный", "黑", (28, 28, 32)),
    Colour("white", "белый", "白", (250, 250, 250)),
    Colour("grey", "серый", "灰", (136, 138, 144)),
)
BY_NAME = {colour.en: colour for colour in COLOURS}
HARD = ("ый", "ая", "ое", "ые", "ого", "ой", "ых", "ую", "ым")
SOFT = ("ий", "яя", "ее", "ие", "его", "ей", "их", "юю", "им")
ADJECTIVE_FORMS = ("m", "f", "n", "p", "gen", "gen f", "gen p", "acc f", "ins")


def adjective(masculine: str, form: str) -> str:
    """A form of a Russian adjective, one of ADJECTIVE_FORMS; neuter ones are as the masculine there.

    "gen f" is the dative, the instrumental and the prepositional of the feminine, too.
    """
    endings = SOFT if masculine.endswith("ний") else HARD
    if form == "m":
        return masculine
    return masculine[:-2] + endings[ADJECTIVE_FORMS.index(form)]


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def an(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeio' or noun.startswith('um') else 'a'} {noun}"


def name(kind: Kind, language: Language) -> str:
    return {"en": kind.en, "ru": kind.ru, "zh": kind.zh}[language]


def genitive(kind: Kind, language: Language) -> str:
    """The name as it stands after "relative to" or "to the left of"."""
    return kind.ru_gen if language == "ru" else name(kind, language)


def definite(kind: Kind, language: Language) -> str:
    """ "the cat", "кошка", "猫"."""
    return f"the {kind.en}" if language == "en" else name(kind, language)


def plural(kind: Kind, language: Language) -> str:
    """As it stands after "how many": "cats", "кошек", "猫"."""
    return {"en": kind.en_plural or kind.en, "ru": kind.ru_gen_plural, "zh": kind.zh}[language]


def is_plural(kind: Kind, language: Language) -> bool:
    """Whether a verb beside one of it is in the plural."""
    return kind.en_number == "many" if language == "en" else kind.ru_gender == "p"


def counted(kind: Kind, n: int, language: Language) -> str:
    """ "a cat", "3 cats"; "кошка", "3 кошки", "5 кошек"; "一只猫", "3只猫"."""
    if language == "zh":
        return f"{'一' if n == 1 else n}{kind.zh_measure}{kind.zh}"
    if n == 1 and language == "en":
        return an(kind.en) if kind.en_number == "one" else kind.en
    if n == 1:
        return kind.ru
    if language == "en":
        return f"{n} {kind.en_plural}"
    return f"{n} {kind.ru_few if n < 5 else kind.ru_gen_plural}"


def listed(parts: Sequence[str], language: Language) -> str:
    """ "a cat, a dog and a cup"."""
    if len(parts) == 1:
        return parts[0]
    comma, last = {"en": (", ", " and "), "ru": (", ", " и "), "zh": ("、", "和")}[language]
    return comma.join(parts[:-1]) + last + parts[-1]


def coloured(kind: Kind, colour: Colour) -> Kind:
    """The kind with the colour in all of its forms, as "red cup", "красной чашки", "红色的杯子"."""
    if kind.ru_gender == "f":
        nominative, genitive_form, accusative = "f", "gen f", "acc f"
    elif kind.ru_gender == "p":
        nominative, genitive_form, accusative = "p", "gen p", "p"
    else:
        nominative, genitive_form, accusative = kind.ru_gender, "gen", kind.ru_gender
        if kind.ru_gender == "m" and kind.ru_acc == kind.ru_gen != kind.ru:
            accusative = "gen"  # what lives
    ru = colour.ru
    return replace(
        kind,
        key=f"{colour.en} {kind.key}",
        en=f"{colour.en} {kind.en}",
        en_plural=f"{colour.en} {kind.en_plural}" if kind.en_plural else "",
        ru=f"{adjective(ru, nominative)} {kind.ru}",
        ru_gen=f"{adjective(ru, genitive_form)} {kind.ru_gen}",
        ru_acc=f"{adjective(ru, accusative)} {kind.ru_acc}",
        ru_few=f"{adjective(ru, 'p' if kind.ru_gender == 'f' else 'gen p')} {kind.ru_few}",
        ru_plural=f"{adjective(ru, 'p')} {kind.ru_plural}",
        ru_gen_plural=f"{adjective(ru, 'gen p')} {kind.ru_gen_plural}",
        zh=f"{colour.zh}色的{kind.zh}",
    )


Pattern = Literal["plain", "stripes", "dots", "checks", "star", "heart"]
PATTERNS: tuple[Pattern, ...] = ("plain", "stripes", "dots", "checks", "star", "heart")
PATTERN_NAMES: dict[Pattern, tuple[str, str, str]] = {  # in the order of LANGUAGES
    "plain": ("без узора", "no pattern", "无图案"),
    "stripes": ("полоска", "stripes", "条纹"),
    "dots": ("горошек", "dots", "圆点"),
    "checks": ("клетка", "checks", "格子"),
    "star": ("звезда", "a star", "星形"),
    "heart": ("сердце", "a heart", "心形"),
}


def pattern_name(pattern: Pattern, language: Language) -> str:
    return PATTERN_NAMES[pattern][LANGUAGES.index(language)]


def patterned(kind: Kind, colour: Colour, pattern: Pattern, second: Colour) -> Kind:
    """The kind with colour and pattern: "red cup with white dots", "красная чашка в белый горошек"."""
    both = coloured(kind, colour)
    if pattern == "plain":
        return both
    ru, en, zh = behind(pattern, second)
    return replace(
        both,
        key=f"{both.key} {pattern} {second.en}",
        en=f"{both.en} {en}",
        en_plural=f"{both.en_plural} {en}" if both.en_plural else "",
        ru=f"{both.ru} {ru}",
        ru_gen=f"{both.ru_gen} {ru}",
        ru_acc=f"{both.ru_acc} {ru}",
        ru_few=f"{both.ru_few} {ru}",
        ru_plural=f"{both.ru_plural} {ru}",
        ru_gen_plural=f"{both.ru_gen_plural} {ru}",
        zh=f"{colour.zh}底{zh}的{kind.zh}",
    )


def behind(pattern: Pattern, second: Colour) -> tuple[str, str, str]:
    """What says the pattern after the noun in Russian and English, and before it in Chinese."""
    match pattern:
        case "star":
            return (
                f"с {adjective(second.ru, 'gen f')} звездой",
                f"with a {second.en} star",
                f"{second.zh}色星形图案",
            )
        case "heart":
            return (
                f"с {adjective(second.ru, 'ins')} сердцем",
                f"with a {second.en} heart",
                f"{second.zh}色心形图案",
            )
        case "stripes":
            return (
                f"в {adjective(second.ru, 'acc f')} полоску",
                f"with {second.en} stripes",
                f"{second.zh}条纹",
            )
        case "dots":
            return f"в {second.ru} горошек", f"with {second.en} dots", f"{second.zh}圆点"
        case "checks":
            return (
                f"в {adjective(second.ru, 'acc f')} клетку",
                f"with {second.en} checks",
                f"{second.zh}格子",
            )
    raise ValueError(f"{pattern} has no words of its own")


GROUPS: dict[str, tuple[str, str, str]] = {  # in the order of LANGUAGES
    "animal": ("животные", "animals", "动物"),
    "fruit": ("фрукты и ягоды", "fruit", "水果"),
    "vegetable": ("овощи", "vegetables", "蔬菜"),
    "bakery": ("выпечка", "baked goods", "烘焙食品"),
    "sweet": ("сладости", "sweets", "甜食"),
    "food": ("продукты", "food", "食品"),
    "dish": ("блюда", "dishes", "菜肴"),
    "drink": ("напитки", "drinks", "饮料"),
    "alcohol": ("спиртные напитки", "alcoholic drinks", "酒类"),
    "tableware": ("посуда", "tableware", "餐具"),
    "container": ("тара", "containers", "容器"),
    "clothes": ("одежда", "clothing", "服装"),
    "shoes": ("обувь", "footwear", "鞋类"),
    "accessory": ("аксессуары", "accessories", "配饰"),
    "cosmetics": ("косметика", "cosmetics", "化妆品"),
    "furniture": ("мебель и интерьер", "furniture and interior", "家具家居"),
    "household": ("товары для дома", "household goods", "家庭用品"),
    "tool": ("инструменты", "tools", "工具"),
    "toy": ("игрушки", "toys", "玩具"),
    "electronics": ("электроника", "electronics", "电子产品"),
    "medical": ("медицина", "medicine", "医疗用品"),
    "stationery": ("канцтовары", "stationery", "文具"),
    "money": ("деньги и документы", "money and documents", "钱和证件"),
    "vehicle": ("транспорт", "vehicles", "交通工具"),
    "street": ("улица", "street", "街道设施"),
    "sport": ("спорт", "sport", "体育用品"),
    "music": ("музыкальные инструменты", "musical instruments", "乐器"),
    "plant": ("растения", "plants", "植物"),
    "nature": ("природа", "nature", "自然"),
    "building": ("здания", "buildings", "建筑"),
    "weapon": ("оружие", "weapons", "武器"),
    "tobacco": ("табак", "tobacco", "烟草"),
}


def group_name(kind: Kind, language: Language) -> str:
    return GROUPS[kind.group][LANGUAGES.index(language)]
