"""Scenes of a shop: things whose colour and pattern are known, several on a shelf, a dish on a plate."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from qvl.scenes import jobs
from qvl.scenes.canvas import (
    Size,
    canvas,
    cells,
    distance,
    ink_of,
    posed,
    size_of,
    strength_of,
    within,
)
from qvl.scenes.kinds import Kind, by_key, kinds
from qvl.scenes.objects import Draw, some, spoken, sprite_of, toned
from qvl.scenes.phrases import (
    BY_NAME,
    COLOURS,
    PATTERNS,
    Colour,
    Language,
    Pattern,
    adjective,
    capital,
    coloured,
    counted,
    group_name,
    listed,
    name,
    pattern_name,
)
from qvl.scenes.products import EMBLEMS, Paint, product, product_kinds
from qvl.scenes.questions import described, question
from qvl.scenes.scene import Job, Scene, Split, Thing, belongs

FAR_APART = 120.0  # of a pattern's two colours, in RGB
SERVED = ("dish", "bakery", "sweet", "fruit", "vegetable")
NOT_SERVED = ("takeaway-box", "bowl-of-rice", "noodle-soup", "stew", "bento-box", "salad", "pudding",
              "curry-with-rice", "spaghetti", "ice-cream-cone", "pot-of-honey", "lollipop",
              "piece-of-cake", "birthday-cake", "fried-egg", "oyster")  # they bring their own, or need none  # fmt: skip
FACTS: dict[Language, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "en": (
        ("Brand", ("Aurora", "Norda", "Lumo", "Vela")),
        ("Size", ("S", "M", "L", "42", "30 cm")),
        ("Price", ("12 euros", "7 euros", "45 euros")),
        ("Article", ("A-104", "K-27", "M-311")),
    ),
    "ru": (
        ("Марка", ("«Аврора»", "«Норда»", "«Вега»", "«Луч»")),
        ("Размер", ("S", "M", "L", "42", "30 см")),
        ("Цена", ("990 рублей", "1500 рублей", "340 рублей")),
        ("Артикул", ("А-104", "К-27", "М-311")),
    ),
    "zh": (
        ("品牌", ("晨光", "北星", "云山")),
        ("尺寸", ("S", "M", "L", "42", "30厘米")),
        ("价格", ("59元", "120元", "18元")),
        ("货号", ("A-104", "K-27", "M-311")),
    ),
}


@dataclass(frozen=True, slots=True)
class Ware:
    """A product that is drawn: its kind, its paint, and the kind with the paint in its name."""

    kind: Kind
    paint: Paint
    named: Kind

    def said(self, n: int, language: Language) -> str:
        return counted(self.named, n, language)

    @property
    def sprite(self) -> Image.Image:
        return product(self.kind.key, self.paint)


def ware_of(split: Split, rng: random.Random) -> Ware:
    """A product with a colour and a pattern that the split may show together."""
    while True:
        kind, colour = rng.choice(product_kinds()), rng.choice(COLOURS)
        patterns = [p for p in PATTERNS if kind.key in EMBLEMS or p not in ("star", "heart")]
        pattern = rng.choice([*patterns, patterns[0]])  # plain ones twice as often
        if belongs(split, "ware", kind.key, colour.en, pattern):
            return painted(kind, colour, pattern, rng)


def painted(kind: Kind, colour: Colour, pattern: Pattern, rng: random.Random) -> Ware:
    """The product in the colour, with the pattern in one that stands out from it."""
    second = rng.choice([c for c in COLOURS if are_apart(c, colour)])
    paint = Paint(
        colour,
        pattern,
        second,
        toned(colour, rng),
        toned(second, rng),
        steps=rng.choice((4, 5, 6, 7)),
        turned=rng.random() < 0.5,
    )
    return Ware(kind, paint, paint.named(kind))


def are_apart(one: Colour, other: Colour) -> bool:
    return distance(one.rgb, other.rgb) > FAR_APART


def card(split: Split, rng: random.Random, size: Size | None = None) -> Scene:
    """One product, as on its card; sometimes two or three alike."""
    size = size_of(rng, size)
    ware = ware_of(split, rng)
    n = rng.choice((1, 1, 1, 2, 3)) if ware.kind.counted else 1
    strength = strength_of(rng)
    places = cells(n, size, rng)
    side = min(places[0][2] - places[0][0], places[0][3] - places[0][1])
    side *= rng.uniform(0.55, 0.94)
    glyphs = [posed(ware.sprite, side, rng, strength) for _ in range(n)]
    at = canvas(rng, size, strength=strength, inks=[ink_of(glyphs[0]), ware.paint.tone])
    things = []
    for glyph, place in zip(glyphs, places, strict=True):
        spot = within(glyph, place, rng)
        things.append(at.place(glyph, spot, ware.kind.key, ware.paint.colour.en))
    told = some(tuple(about_ware(ware, things, size, rng)), 7, rng)
    return Scene("card", (at.photo(),), (tuple(things),), told)


def about_ware(
    ware: Ware, things: Sequence[Thing], size: Size, rng: random.Random
) -> Iterator[Job]:
    n, kind, paint = len(things), ware.kind, ware.paint
    for style in rng.sample(["plain", "alt-text", "product", "catalogue", "marketplace", "seo"], 3):
        yield describe_ware(ware, n, style, spoken(rng))
    language = spoken(rng)
    yield with_facts(ware, n, language, rng)
    language = spoken(rng)
    yield jobs.listing(listing_of(ware, n, language), language, [ware.said(n, language)])
    language = spoken(rng)
    words = (
        question("colour of", language, rng, a=kind)
        if n == 1
        else question("colour", language, rng)
    )
    yield jobs.ask(words, paint.colour.said(language), language, "colour", free=True)
    language = spoken(rng)
    words = question("pattern", language, rng)
    patterns = [*rng.sample([p for p in PATTERNS if p != paint.pattern], 2), paint.pattern]
    rng.shuffle(patterns)
    said = [pattern_name(p, language) for p in patterns]
    right = pattern_name(paint.pattern, language)
    yield jobs.ask(words, right, language, "pattern", choices=said)
    if paint.pattern != "plain":
        language = spoken(rng)
        words = question("pattern colour", language, rng)
        yield jobs.ask(words, paint.second.said(language), language, "pattern-colour", free=True)
    language = spoken(rng)
    yield jobs.ground(name(kind, language), things, size, language)
    language = spoken(rng)
    yield extracted(ware, n, language)
    language = spoken(rng)
    yield classified_colour(ware, language, rng)
    language = spoken(rng)
    does = rng.random() < 0.5
    other = rng.choice([c for c in COLOURS if c is not paint.colour])
    about = coloured(kind, paint.colour if does else other)
    if n == 1:
        words = question("is it", language, rng, a=counted(about, 1, language))
        yield jobs.ask(words, does, language, "yes-no")
    else:
        yield jobs.fits(name(about, language), language, does=does)


def describe_ware(ware: Ware, n: int, style: str, language: Language) -> Job:
    phrase = ware.said(n, language)
    facts = [phrase]
    if style in ("plain", "alt-text"):
        text = described(style, language, phrase=phrase)
    elif style == "catalogue":
        text = catalogue(ware, n, language)
        facts = [name(ware.kind, language), colours_of(ware.paint, language)]
    elif style == "product":
        text = product_text(ware, n, language)
        facts = [name(ware.named, language), pattern_words(ware.paint, language)]
    else:
        text = described(
            style,
            language,
            phrase=phrase,
            name=name(ware.named, language),
            group=group_name(ware.kind, language),
            number=str(n),
        )
        facts = [name(ware.named, language)]
    return jobs.describe(text, language, f"describe-{style}", style=style, facts=facts)


def catalogue(ware: Ware, n: int, language: Language) -> str:
    named, colours = name(ware.kind, language), colours_of(ware.paint, language)
    return {
        "en": f"Name: {named}; colour: {colours}; number: {n}",
        "ru": f"Название: {named}; цвет: {colours}; количество: {n}",
        "zh": f"名称：{named}；颜色：{colours}；数量：{n}",
    }[language]


def product_text(ware: Ware, n: int, language: Language) -> str:
    """Three sentences of what can be seen."""
    named = capital(name(ware.named, language))
    main, pattern = ware.paint.colour.said(language), pattern_words(ware.paint, language)
    return {
        "en": f"{named}. Main colour: {main}; pattern: {pattern}. Pieces in the picture: {n}.",
        "ru": f"{named}. Основной цвет: {main}; узор: {pattern}. На картинке: {n} шт.",
        "zh": f"{named}。主色：{main}；图案：{pattern}。图中数量：{n}。",
    }[language]


def colours_of(paint: Paint, language: Language) -> str:
    colours = [paint.colour] if paint.pattern == "plain" else [paint.colour, paint.second]
    return listed([colour.said(language) for colour in colours], language)


def pattern_words(paint: Paint, language: Language) -> str:
    """ "white stripes", "белая полоска", "白色条纹"."""
    if paint.pattern == "plain":
        return {"en": "none", "ru": "без узора", "zh": "无"}[language]
    second, pattern = paint.second, pattern_name(paint.pattern, language)
    if language == "en":
        return f"{'a ' if pattern.startswith('a ') else ''}{second.en} {pattern.removeprefix('a ')}"
    if language == "zh":
        return f"{second.zh}色{pattern}"
    gender = {"stripes": "f", "checks": "f", "star": "f", "dots": "m", "heart": "n"}[paint.pattern]
    return f"{adjective(second.ru, gender)} {pattern}"


def with_facts(ware: Ware, n: int, language: Language, rng: random.Random) -> Job:
    """A product description that holds what is known beside what is seen, in the order it is given."""
    chosen = rng.sample(FACTS[language], rng.randint(1, 3))
    facts = {label: rng.choice(values) for label, values in chosen}
    stop = "。" if language == "zh" else "."
    colon = "：" if language == "zh" else ": "
    gap = "" if language == "zh" else " "
    known = gap.join(f"{label}{colon}{value}{stop}" for label, value in facts.items())
    text = f"{product_text(ware, n, language)}{gap}{known}"
    return jobs.describe(
        text,
        language,
        "describe-facts",
        style="product",
        options={"facts": facts},
        facts=[name(ware.named, language), *facts.values()],
    )


def listing_of(ware: Ware, n: int, language: Language) -> dict[str, object]:
    keywords = [name(ware.kind, language), ware.paint.colour.said(language)]
    if ware.paint.pattern != "plain":
        keywords.append(pattern_name(ware.paint.pattern, language))
    keywords.append(group_name(ware.kind, language))
    return {
        "title": capital(name(ware.named, language)),
        "description": product_text(ware, n, language),
        "keywords": keywords,
        "alt_text": capital(ware.said(n, language)),
    }


def extracted(ware: Ware, n: int, language: Language) -> Job:
    """The attributes as fields; what is not there is null."""
    plain = ware.paint.pattern == "plain"
    data = {
        "product": name(ware.kind, language),
        "colour": ware.paint.colour.said(language),
        "pattern": None if plain else pattern_name(ware.paint.pattern, language),
        "pattern_colour": None if plain else ware.paint.second.said(language),
        "number": n,
    }
    options = {
        "schema": "product, colour, pattern, pattern_colour, number int",
        "language": language,
    }
    return jobs.with_form("extract", options, data, data, "extract-product")


def classified_colour(ware: Ware, language: Language, rng: random.Random) -> Job:
    """By colour and kind together."""
    paint, kind = ware.paint, ware.kind
    others = rng.sample([c for c in COLOURS if c is not paint.colour], 2)
    others_alike = rng.sample([k for k in product_kinds() if k is not kind], 2)
    among = [
        coloured(kind, paint.colour),
        *(coloured(kind, other) for other in others),
        *(coloured(rival, paint.colour) for rival in others_alike),
    ]
    rng.shuffle(among)
    right = name(coloured(kind, paint.colour), language)
    return jobs.classify([name(one, language) for one in among], right, language)


def shelf(split: Split, rng: random.Random, size: Size | None = None) -> Scene:
    """Two to six products; colours and kinds come again, so that both must be looked at."""
    size = size_of(rng, size)
    total = rng.randint(2, 6)
    which = rng.sample([k for k in product_kinds() if k.counted], min(total, rng.randint(1, 3)))
    hues = rng.sample(COLOURS, rng.randint(2, 3))
    wares: list[Ware] = []
    for _ in range(total):
        kind, colour = rng.choice(which), rng.choice(hues)
        if belongs(split, "ware", kind.key, colour.en, "plain"):
            wares.append(painted(kind, colour, "plain", rng))
    if len(wares) < 2:
        return shelf(split, rng, size)
    strength = strength_of(rng)
    places = sorted(cells(len(wares), size, rng), key=lambda place: (place[1], place[0]))
    room = min(places[0][2] - places[0][0], places[0][3] - places[0][1]) * rng.uniform(0.7, 0.94)
    glyphs = [posed(w.sprite, room * rng.uniform(0.85, 1.0), rng, strength) for w in wares]
    inks = [w.paint.tone for w in wares]
    at = canvas(rng, size, strength=strength, inks=inks)
    things = [
        at.place(glyph, within(glyph, place, rng), ware.kind.key, ware.paint.colour.en)
        for ware, glyph, place in zip(wares, glyphs, places, strict=True)
    ]
    told = tuple(about_shelf(wares, things, size, rng))
    return Scene("shelf", (at.photo(),), (tuple(things),), told)


def about_shelf(
    wares: Sequence[Ware], things: Sequence[Thing], size: Size, rng: random.Random
) -> Iterator[Job]:
    language = spoken(rng)
    groups: dict[str, list[int]] = {}
    for index, ware in enumerate(wares):
        groups.setdefault(ware.named.key, []).append(index)
    said = [wares[at[0]].said(len(at), language) for at in groups.values()]
    text = described("plain", language, phrase=listed(said, language))
    yield jobs.describe(text, language, "describe-shelf", facts=said)
    own = rng.choice(list(groups.values()))
    ware = wares[own[0]]
    language = spoken(rng)
    yield jobs.ground(name(ware.named, language), [things[n] for n in own], size, language)
    language = spoken(rng)
    colour = ware.paint.colour
    words = question("count colour", language, rng, colour=colour)
    yield jobs.ask(words, sum(w.paint.colour is colour for w in wares), language, "count-colour")
    language = spoken(rng)
    words = question("count kind", language, rng, a=ware.kind)
    yield jobs.ask(words, sum(w.kind is ware.kind for w in wares), language, "count-kind")
    language = spoken(rng)
    words = question("count kind", language, rng, a=ware.named)
    yield jobs.ask(words, len(own), language, "count-both")
    language = spoken(rng)
    absent = coloured(ware.kind, rng.choice([c for c in COLOURS if not any(
        w.kind is ware.kind and w.paint.colour is c for w in wares)]))  # fmt: skip
    does = rng.random() < 0.5
    about = ware.named if does else absent
    words = question("is there", language, rng, a=counted(about, 1, language))
    yield jobs.ask(words, does, language, "yes-no")


def dish(split: Split, rng: random.Random, size: Size | None = None) -> Scene:
    """Food on a plate of a colour, for a menu."""
    size = size_of(rng, size)
    food = [k for k in kinds() if k.group in SERVED and k.key not in NOT_SERVED]
    kind = rng.choice(food)
    hues = [c for c in COLOURS if belongs(split, "dish", kind.key, c.en)]
    if not hues:
        return dish(split, rng, size)
    colour = rng.choice(hues)
    strength = strength_of(rng)
    side = min(size) * rng.uniform(0.7, 0.97)
    white = BY_NAME["white"]
    tone = toned(colour, rng)
    plain = Paint(colour, "plain", white, tone, tone)
    plate = posed(product("plate", plain), side, rng, strength)
    plate = plate.resize((plate.width, max(8, round(plate.height * rng.uniform(0.72, 1.0)))))
    room = min(plate.size) * rng.uniform(0.5, 0.68)
    glyph = posed(sprite_of(kind, split, rng), room, rng, strength)
    at = canvas(rng, size, strength=strength, inks=[tone])
    x, y = within(plate, (0, 0, *size), rng)
    under = at.place(plate, (x, y), "plate", colour.en)
    inset = (plate.width - glyph.width) // 2, (plate.height - glyph.height) // 2
    food_thing = at.place(glyph, (x + inset[0], y + inset[1]), kind.key)
    told = tuple(about_dish(kind, colour, food_thing, under, size, rng))
    return Scene("dish", (at.photo(),), ((food_thing, under),), told)


def about_dish(
    kind: Kind, colour: Colour, food: Thing, plate: Thing, size: Size, rng: random.Random
) -> Iterator[Job]:
    for style in ("menu", "plain", "alt-text"):
        language = spoken(rng)
        served = on_plate(kind, colour, language)
        if style == "menu":
            text = served
        else:
            text = described(
                style,
                language,
                phrase=served if style == "alt-text" else counted_on(kind, colour, language),
            )
        facts = [name(kind, language)]
        yield jobs.describe(text, language, f"describe-{style}", style=style, facts=facts)
    language = spoken(rng)
    words = question("on plate", language, rng)
    yield jobs.ask(words, name(kind, language), language, "name", free=True)
    language = spoken(rng)
    words = question("colour of", language, rng, a=by_key()["plate"])
    yield jobs.ask(words, colour.said(language), language, "colour", free=True)
    language = spoken(rng)
    yield jobs.ground(name(kind, language), [food], size, language)
    language = spoken(rng)
    yield jobs.ground(name(by_key()["plate"], language), [plate], size, language)


def on_plate(kind: Kind, colour: Colour, language: Language) -> str:
    """A line of a menu: "Steak on a white plate", "Стейк на белой тарелке"."""
    return capital(
        {
            "en": f"{kind.en} on {article(colour.en)} plate",
            "ru": f"{kind.ru} на {adjective(colour.ru, 'gen f')} тарелке",
            "zh": f"{colour.zh}色盘子里的{kind.zh}",
        }[language]
    )


def counted_on(kind: Kind, colour: Colour, language: Language) -> str:
    one = counted(kind, 1, language)
    return {
        "en": f"{one} on {article(colour.en)} plate",
        "ru": f"{one} на {adjective(colour.ru, 'gen f')} тарелке",
        "zh": f"{one}，盛在{colour.zh}色的盘子里",
    }[language]


def article(colour: str) -> str:
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour}"


KINDS: Mapping[str, tuple[Draw, float]] = {
    "card": (card, 4.0),
    "shelf": (shelf, 2.0),
    "dish": (dish, 1.5),
}
