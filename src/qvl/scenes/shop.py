"""Scenes with rules and papers beside them: moderation by a policy, customers' questions about a product."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qvl.scenes import jobs
from qvl.scenes.canvas import Size, canvas, ink_of, posed, size_of, strength_of, within
from qvl.scenes.goods import Ware, ware_of
from qvl.scenes.kinds import Kind, kinds
from qvl.scenes.objects import Draw, scattered, spoken
from qvl.scenes.phrases import (
    COLOURS,
    LANGUAGES,
    Language,
    capital,
    coloured,
    counted,
    definite,
    is_plural,
    name,
)
from qvl.scenes.questions import described
from qvl.scenes.scene import Job, Scene, Split, Thing, belongs


@dataclass(frozen=True, slots=True)
class Rule:
    """What a policy forbids: its name and its description by language, and the kinds it is about."""

    names: Mapping[Language, str]
    said: Mapping[Language, str]
    groups: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    def breaks(self, kind: Kind) -> bool:
        return kind.group in self.groups or kind.key in self.keys


def rule(en: str, ru: str, zh: str, groups: Sequence[str] = (), keys: Sequence[str] = ()) -> Rule:
    """Each text is "name: description"."""
    parted: dict[Language, str] = {"en": en, "ru": ru, "zh": zh}
    return Rule(
        {language: text.split(": ")[0] for language, text in parted.items()},
        {language: text.split(": ")[1] for language, text in parted.items()},
        tuple(groups),
        tuple(keys),
    )


BLADES = ("kitchen-knife", "axe", "dagger", "crossed-swords", "scissors", "saw", "razor")
RULES = (
    rule("alcohol: bottles, glasses and mugs of alcohol", "алкоголь: бутылки, бокалы и кружки со спиртным",
         "酒类: 酒瓶、酒杯和酒", ["alcohol"]),
    rule("tobacco: cigarettes", "табак: сигареты", "烟草: 香烟", ["tobacco"]),
    rule("blades: knives, axes, scissors, swords", "лезвия: ножи, топоры, ножницы, мечи", "刀刃: 刀、斧、剪刀、剑",
         [], BLADES),
    rule("medicine: pills, syringes, medical things", "медицина: таблетки, шприцы, медицинские вещи",
         "医疗: 药片、注射器和医疗用品", ["medical"]),
    rule("money: cash, coins, bank cards", "деньги: купюры, монеты, банковские карты", "金钱: 钞票、硬币、银行卡",
         [], ["money-bag", "coin", "banknote", "bank-card"]),
    rule("animals: any living animal", "животные: любые живые звери, птицы, насекомые", "动物: 任何活的动物",
         ["animal"]),
    rule("food: dishes and sweets", "еда: готовые блюда и сладости", "食物: 菜肴和甜食", ["dish", "sweet", "bakery"]),
    rule("vehicles: cars, planes, boats", "транспорт: машины, самолёты, суда", "交通工具: 汽车、飞机、船",
         ["vehicle"]),
    rule("toys: toys of any kind", "игрушки: любые игрушки", "玩具: 任何玩具", ["toy"]),
    rule("plants: flowers and trees", "растения: цветы и деревья", "植物: 花和树", ["plant"]),
)  # fmt: skip
# of the rules that come with the product, those that our objects can break, and surely
SHIPPED = {
    "bomb": "weapons",
    "dagger": "weapons",
    "crossed-swords": "weapons",
    "bank-card": "documents",
    "identity-card": "documents",
}
# what a person might argue about, under some policy or other
DOUBTFUL_GROUPS = ("weapon", "medical", "tobacco", "money", "toy")
DOUBTFUL = (*BLADES, "bone", "meat-on-the-bone", "chicken-leg", "steak", "teddy-bear", "robot",
            "mousetrap", "tooth", "honey", "pot-of-honey", "wheelchair", "wheel", "parachute", "anchor",
            "flying-saucer", "satellite", "dinosaur", "syringe", "target", "ticket", "baby-bottle",
            "amphora", "jar", "bottle-of-lotion", "glass-of-milk", "bubble-tea", "juice-box", "mushroom",
            "christmas-tree", "potted-plant", "wood", "log", "maple-leaf", "snowman", "sledge",
            "rocket")  # fmt: skip


def moderated(split: Split, rng: random.Random, size: Size | None = None) -> Scene:
    """One to three objects under the product's own policy or a small one; at most one rule is broken."""
    size = size_of(rng, size)
    plain = [k for k in kinds() if k.group not in DOUBTFUL_GROUPS and k.key not in DOUBTFUL]
    own = rng.random() < 0.35
    rules = [] if own else rng.sample(RULES, rng.randint(2, 5))
    breaking = [k for k in kinds() if _broken(k, rules, own=own)]
    allowed = [k for k in plain if not _broken(k, rules, own=own)]
    which = rng.sample(allowed, rng.choice((1, 2, 3)))
    guilty = rng.choice(breaking) if rng.random() < 0.6 else None
    if guilty is not None:
        if not belongs(split, "breaks", guilty.key, own, len(which)):
            return moderated(split, rng, size)
        which[rng.randrange(len(which))] = guilty
    elif not belongs(split, "keeps", *sorted(kind.key for kind in which)):
        return moderated(split, rng, size)
    at, found = scattered(which, split, rng, size)
    told = tuple(under_policy(found, guilty, rules, size, rng))
    return Scene("moderated", (at.photo(),), (tuple(thing for _, thing in found),), told)


def _broken(kind: Kind, rules: Sequence[Rule], *, own: bool) -> bool:
    """By exactly one rule, so that there is one right name."""
    if own:
        return kind.key in SHIPPED
    return sum(one.breaks(kind) for one in rules) == 1


def under_policy(
    found: Sequence[tuple[Kind, Thing]],
    guilty: Kind | None,
    rules: Sequence[Rule],
    size: Size,
    rng: random.Random,
) -> Iterator[Job]:
    for number, language in enumerate(rng.sample(LANGUAGES, 2)):
        policy = written(rules, language, rng) if rules else None
        broken = None
        if guilty is not None:
            broken = (
                next(one.names[language] for one in rules if one.breaks(guilty))
                if rules
                else SHIPPED[guilty.key]
            )
        yield jobs.broken_rule(policy, broken, language)
        if guilty is None or broken is None or number:
            continue
        phrase = counted(guilty, 1, language)
        why = described("plain", language, phrase=phrase)
        yield jobs.reason(policy, broken, why, language, [phrase])
        guilty_things = [thing for kind, thing in found if kind is guilty]
        options = {"language": language, "boxes": True, **({"policy": policy} if policy else {})}
        label = name(guilty, language)
        yield Job(
            "moderate",
            options,
            jobs.places([(label, thing.box) for thing in guilty_things], size),
            [list(thing.box) for thing in guilty_things],
            "moderate-locate",
            before=(broken, why),
        )


def written(rules: Sequence[Rule], language: Language, rng: random.Random) -> str:
    """The policy as lines, or as TOML with severities."""
    if rng.random() < 0.5:
        return "\n".join(f"{one.names[language]}: {one.said[language]}" for one in rules)
    return "\n".join(
        f'["{one.names[language]}"]\nseverity = "{rng.choice(("low", "medium", "high"))}"\n'
        f'description = "{one.said[language]}"'
        for one in rules
    )


def customer(split: Split, rng: random.Random, size: Size | None = None) -> Scene:
    """A product, its sheet, a policy, and what a customer asks about it."""
    size = size_of(rng, size)
    ware = ware_of(split, rng)
    strength = strength_of(rng)
    glyph = posed(ware.sprite, min(size) * rng.uniform(0.5, 0.92), rng, strength)
    at = canvas(rng, size, strength=strength, inks=[ink_of(glyph), ware.paint.tone])
    spot = within(glyph, (0, 0, *size), rng)
    thing = at.place(glyph, spot, ware.kind.key, ware.paint.colour.en)
    told = tuple(served(ware, spoken(rng), rng) for _ in range(3))
    return Scene("customer", (at.photo(),), ((thing,),), told)


# label in the sheet, question, its answer; {value} is what the sheet says, {it} the product
SHEET: dict[Language, tuple[tuple[str, tuple[str, ...], str, str], ...]] = {
    "en": (
        ("Price", ("12 euros", "25 euros", "40 euros"), "How much does it cost?", "The price is {value}."),
        ("Material", ("cotton", "wool", "glass", "oak"), "What is it made of?", "The material is {value}."),
        ("Delivery", ("2 days", "5 days", "a week"), "How long does the delivery take?", "The delivery takes {value}."),
        ("Guarantee", ("1 year", "2 years", "6 months"), "How long is the guarantee?", "The guarantee lasts {value}."),
        ("Country", ("Italy", "Portugal", "Japan"), "Where is it made?", "It is made in {value}."),
    ),
    "ru": (
        ("Цена", ("990 рублей", "1500 рублей", "340 рублей"), "Сколько это стоит?", "Цена: {value}."),
        ("Материал", ("хлопок", "шерсть", "стекло", "дуб"), "Из чего это сделано?", "Материал: {value}."),
        ("Доставка", ("2 дня", "5 дней", "неделя"), "Сколько займёт доставка?", "Срок доставки: {value}."),
        ("Гарантия", ("1 год", "2 года", "6 месяцев"), "Какая на него гарантия?", "Срок гарантии: {value}."),
        ("Страна", ("Италия", "Португалия", "Япония"), "Где это сделано?", "Страна изготовления: {value}."),
    ),
    "zh": (
        ("价格", ("59元", "120元", "300元"), "这个多少钱？", "价格是{value}。"),
        ("材质", ("棉", "羊毛", "玻璃", "橡木"), "这是什么材质的？", "材质是{value}。"),
        ("配送", ("2天", "5天", "一周"), "多久能送到？", "配送需要{value}。"),
        ("保修", ("1年", "2年", "6个月"), "保修多长时间？", "保修期是{value}。"),
        ("产地", ("意大利", "葡萄牙", "日本"), "这是哪里生产的？", "产地是{value}。"),
    ),
}  # fmt: skip
# a line of a policy: what it says, question, answer, and whether a person takes over
POLICY: dict[Language, tuple[tuple[str, str, str, bool], ...]] = {
    "en": (
        ("Goods may be returned within {n} days.", "May I return it?", "Yes, you may return it within {n} days.", False),
        ("Damaged goods: a person answers.", "It came damaged, what shall I do?", "", True),
        ("Discounts: a person answers.", "Can you give me a discount?", "", True),
    ),
    "ru": (
        ("Товар можно вернуть за {n} дней.", "Можно ли это вернуть?", "Да, вернуть можно за {n} дней.", False),
        ("О повреждённом товаре отвечает сотрудник.", "Товар пришёл с повреждением, что делать?", "", True),
        ("О скидках отвечает сотрудник.", "Можете сделать скидку?", "", True),
    ),
    "zh": (
        ("商品可在{n}天内退货。", "可以退货吗？", "可以，请在{n}天内退货。", False),
        ("商品损坏的问题由人工答复。", "收到的商品坏了，怎么办？", "", True),
        ("折扣问题由人工答复。", "可以打折吗？", "", True),
    ),
}  # fmt: skip
PASSED_ON: dict[Language, str] = {
    "en": "I am passing your question on to a colleague.",
    "ru": "Передаю ваш вопрос сотруднику.",
    "zh": "我把您的问题转给同事。",
}
WHY_NOT_SAID: dict[Language, str] = {
    "en": "the product sheet does not say it",
    "ru": "в описании товара этого нет",
    "zh": "商品资料中没有说明",
}
WHY_POLICY: dict[Language, str] = {
    "en": "the policy asks for a person",
    "ru": "этого требуют правила",
    "zh": "规定要求人工答复",
}
WHY_SEEN: dict[Language, str] = {
    "en": "the picture shows it",
    "ru": "это видно на картинке",
    "zh": "图片中可以看到",
}
WHY_SHEET: dict[Language, str] = {
    "en": "the product sheet says it",
    "ru": "это есть в описании товара",
    "zh": "商品资料中有说明",
}
WHY_RULE: dict[Language, str] = {
    "en": "the policy says it",
    "ru": "это есть в правилах",
    "zh": "规定中有说明",
}


def served(ware: Ware, language: Language, rng: random.Random) -> Job:
    """One question: of the sheet, of the policy, of the picture, or one that nothing there answers."""
    known = rng.sample(SHEET[language], rng.randint(2, 4))
    values = {label: rng.choice(choices) for label, choices, _, _ in known}
    titled = capital(name(ware.kind, language))
    colon = "：" if language == "zh" else ": "
    title = {"en": "Product", "ru": "Товар", "zh": "商品"}[language]
    sheet = "\n".join(
        f"{label}{colon}{value}" for label, value in {title: titled, **values}.items()
    )
    days = rng.choice((7, 14, 30))
    lines = rng.sample(POLICY[language], rng.randint(1, 3))
    policy = "\n".join(line.format(n=days) for line, *_ in lines)
    kind = rng.choice(("sheet", "sheet", "policy", "seen", "seen", "not said", "mismatch"))
    if kind == "sheet":
        label, _, words, answer = rng.choice(known)
        said = answer.format(value=values[label])
        return reply(words, sheet, policy, language, said, WHY_SHEET, facts=[values[label]])
    if kind == "policy":
        _, words, answer, is_passed_on = rng.choice(lines)
        if is_passed_on:
            return reply(words, sheet, policy, language, PASSED_ON[language], WHY_POLICY, over=True)
        said = answer.format(n=days)
        return reply(words, sheet, policy, language, said, WHY_RULE, facts=[str(days)])
    if kind == "not said":
        missing = [row for row in SHEET[language] if row[0] not in values]
        words = rng.choice(missing)[2]
        return reply(words, sheet, policy, language, PASSED_ON[language], WHY_NOT_SAID, over=True)
    if kind == "seen":
        words, said, fact = colour_asked(ware, language)
        return reply(words, sheet, policy, language, said, WHY_SEEN, facts=[fact])
    does = rng.random() < 0.5
    other = rng.choice([c for c in COLOURS if c is not ware.paint.colour])
    about = coloured(ware.kind, ware.paint.colour if does else other)
    words, said = is_asked(about, does, ware, language)
    return reply(words, sheet, policy, language, said, WHY_SEEN, facts=[said])


def colour_asked(ware: Ware, language: Language) -> tuple[str, str, str]:
    colour, kind = ware.paint.colour.said(language), ware.kind
    being = "are" if is_plural(kind, "en") else "is"
    words = {
        "en": f"What colour {being} {definite(kind, 'en')} in the photo?",
        "ru": f"Какого цвета {kind.ru} на фото?",
        "zh": f"照片上的{kind.zh}是什么颜色的？",
    }[language]
    said = {
        "en": f"{capital(definite(kind, 'en'))} in the photo {being} {colour}.",
        "ru": f"На фото цвет такой: {colour}.",
        "zh": f"照片上的{kind.zh}是{colour}的。",
    }[language]
    return words, said, colour


def is_asked(about: Kind, does: bool, ware: Ware, language: Language) -> tuple[str, str]:  # noqa: FBT001
    """Whether the photo shows the one that the customer means."""
    meant, seen = (
        counted(about, 1, language),
        counted(coloured(ware.kind, ware.paint.colour), 1, language),
    )
    words = {
        "en": f"I would like {meant}. Is that the one in the photo?",
        "ru": f"Мне нужен такой товар: {meant}. Он на фото?",
        "zh": f"我想要{meant}，照片上的是吗？",
    }[language]
    yes_no = {"en": ("Yes", "No"), "ru": ("Да", "Нет"), "zh": ("是的", "不是")}[language][
        0 if does else 1
    ]
    said = {
        "en": f"{yes_no}, the photo shows {seen}.",
        "ru": f"{yes_no}, на фото {seen}.",
        "zh": f"{yes_no}，照片上是{seen}。",
    }[language]
    return words, said


def reply(
    words: str,
    sheet: str,
    policy: str,
    language: Language,
    said: str,
    why: Mapping[Language, str],
    *,
    over: bool = False,
    facts: Sequence[str] = (),
) -> Job:
    options = {"question": words, "sheet": sheet, "policy": policy, "language": language}
    fields = {"answer": said, "hand_over": over, "reason": why[language]}
    truth = {"answer": said, "hand_over": over, "reason": why[language] if over else ""}
    return jobs.with_form("service", options, fields, truth, "service", facts)


KINDS: Mapping[str, tuple[Draw, float]] = {
    "moderated": (moderated, 2.0),
    "customer": (customer, 1.5),
}
