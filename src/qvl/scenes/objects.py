"""Scenes of objects: one, copies, mixtures, pairs, plain shapes and outlines, with jobs about them.

Every function of KINDS is `(split, rng, size) -> Scene`; a combination that the split may not show is drawn
again. Questions are worded in `questions`, answers by `phrases` and `jobs`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from qvl.scenes import jobs
from qvl.scenes.canvas import (
    GROUNDS,
    Canvas,
    Size,
    canvas,
    cells,
    ground_for,
    ink_of,
    posed,
    size_of,
    solid_box,
    strength_of,
    within,
)
from qvl.scenes.kinds import Kind, by_key, kinds, sprites, styles_of
from qvl.scenes.phrases import (
    COLOURS,
    LANGUAGES,
    Colour,
    Language,
    coloured,
    counted,
    group_name,
    listed,
    name,
)
from qvl.scenes.products import outline
from qvl.scenes.questions import (
    RELATION_ANSWERS,
    described,
    placed,
    question,
    region,
    shares,
)
from qvl.scenes.scene import Job, Scene, Split, Thing, belongs

Draw = Callable[[Split, random.Random, Size | None], Scene]
Ink = tuple[int, int, int]  # RGB
MOST = 9  # things that are counted
TINT_DEPTH = 46  # how far shades of a tint go from it, of 255
LIVING = ("animal",)
EDIBLE = ("fruit", "vegetable", "bakery", "sweet", "food", "dish")
SHAPES = (  # plain shapes, which no atlas holds
    ("circle", "круг", "m", "圆形"),
    ("square", "квадрат", "m", "正方形"),
    ("triangle", "треугольник", "m", "三角形"),
    ("star", "звезда", "f", "星形"),
    ("heart", "сердце", "n", "心形"),
    ("cross", "крест", "m", "十字形"),
    ("hexagon", "шестиугольник", "m", "六边形"),
)
SHAPE_FORMS = {  # genitive, plural, its genitive
    "круг": ("круга", "круги", "кругов"),
    "квадрат": ("квадрата", "квадраты", "квадратов"),
    "треугольник": ("треугольника", "треугольники", "треугольников"),
    "звезда": ("звезды", "звёзды", "звёзд"),
    "сердце": ("сердца", "сердца", "сердец"),
    "крест": ("креста", "кресты", "крестов"),
    "шестиугольник": ("шестиугольника", "шестиугольники", "шестиугольников"),
}
SHAPE_KINDS = tuple(
    Kind(
        key=en,
        group="shape",
        icon="",
        en=en,
        en_number="one",
        en_plural=f"{en}{'es' if en == 'cross' else 's'}",
        ru=ru,
        ru_gender=gender,
        ru_gen=SHAPE_FORMS[ru][0],
        ru_acc="звезду" if gender == "f" else ru,
        ru_few=SHAPE_FORMS[ru][0],
        ru_plural=SHAPE_FORMS[ru][1],
        ru_gen_plural=SHAPE_FORMS[ru][2],
        zh=zh,
        zh_measure="个",
        counted=True,
    )
    for en, ru, gender, zh in SHAPES
)


def spoken(rng: random.Random) -> Language:
    return rng.choice(LANGUAGES)


def sprite_of(kind: Kind, split: Split, rng: random.Random) -> Image.Image:
    """The kind in one of the styles that the split may show."""
    return sprites(rng.choice(styles_of(kind.key, split)))[kind.key]


def some(jobs_: Sequence[Job], most: int, rng: random.Random) -> tuple[Job, ...]:
    return tuple(rng.sample(jobs_, min(most, len(jobs_))))


def single(split: Split, rng: random.Random, size: Size | None = None) -> Scene:
    """One object anywhere."""
    size = size_of(rng, size)
    kind = rng.choice(kinds())
    grounds = [at for at in range(len(GROUNDS)) if belongs(split, "on", kind.key, at)]
    if not grounds:  # a few objects have no held-out background at all
        return single(split, rng, size)
    strength = strength_of(rng)
    sprite = sprite_of(kind, split, rng)
    glyph = posed(sprite, min(size) * rng.uniform(0.35, 0.92), rng, strength)
    ground = ground_for(rng, [ink_of(glyph)], grounds)
    at = canvas(rng, size, ground=ground, strength=strength)
    thing = at.place(glyph, within(glyph, (0, 0, *size), rng), kind.key)
    if rng.random() < 0.2 * strength:
        at.cover(thing)
    return Scene("object", (at.photo(),), ((thing,),), tuple(about_one(kind, thing, size, rng)))


def about_one(kind: Kind, thing: Thing, size: Size, rng: random.Random) -> Iterator[Job]:
    language = spoken(rng)
    yield jobs.ask(
        question("name", language, rng), name(kind, language), language, "name", free=True
    )
    yield describe_plain([(kind, 1)], spoken(rng))
    language = spoken(rng)
    yield describe_longer(kind, thing, size, language, rng)
    yield describe_style([(kind, 1)], spoken(rng), rng)
    yield ground_named(kind, [thing], size, spoken(rng), rng)
    language = spoken(rng)
    yield rng.choice(
        (
            lambda: classified(kind, thing, language, rng),
            lambda: classified(kind, thing, language, rng),
            lambda: sorted_in_group(kind, language, rng),
            lambda: whether(kind, language, rng),
            lambda: fitting(kind, language, rng),
            lambda: chosen(kind, language, rng),
            lambda: jobs.point(name(kind, language), thing, size, language),
            lambda: jobs.ask(question("count", language, rng), 1, language, "count"),
        )
    )()


def describe_plain(shown: Sequence[tuple[Kind, int]], language: Language) -> Job:
    said = [counted(kind, n, language) for kind, n in shown]
    text = described("plain", language, phrase=listed(said, language))
    return jobs.describe(text, language, "describe", facts=said)


def describe_style(
    shown: Sequence[tuple[Kind, int]], language: Language, rng: random.Random
) -> Job:
    """In one of the shorter styles of the product; a menu offers what can be eaten."""
    styles = ["alt-text", "alt-text", "product", "catalogue", "marketplace", "seo"]
    (kind, n) = shown[0]
    if len(shown) == 1 and kind.group in (*EDIBLE, "drink", "alcohol"):
        styles += ["menu", "menu"]
    if len(shown) > 1:
        styles = ["alt-text"]
    style = rng.choice(styles)
    said = [counted(kind, n, language) for kind, n in shown]
    named = name(kind, language)
    if n > 1:
        named = {"en": kind.en_plural, "ru": kind.ru_plural, "zh": kind.zh}[language]
    text = described(
        style,
        language,
        phrase=listed(said, language),
        name=named,
        group=group_name(kind, language) if len(shown) == 1 else "",
        number=str(n),
    )
    facts = said if style in ("alt-text", "seo") else [named]
    return jobs.describe(text, language, f"describe-{style}", style=style, facts=facts)


def describe_longer(
    kind: Kind, thing: Thing, size: Size, language: Language, rng: random.Random
) -> Job:
    """To a length: one sentence; two, with the place; two paragraphs, with the category and the size."""
    length = rng.choice(("short", "medium", "long"))
    phrase = counted(kind, 1, language)
    first = described("plain", language, phrase=phrase)
    second = described("place", language, place=region(thing.box, size, language))
    gap = "" if language == "zh" else " "
    text = first
    if length == "medium":
        text = f"{first}{gap}{second}"
    elif length == "long":
        group = described("group", language, group=group_name(kind, language))
        share = described("share", language, share=shares(thing.box, size, language))
        text = f"{first}{gap}{group}\n\n{second}{gap}{share}"
    return jobs.describe(
        text, language, f"describe-{length}", options={"length": length}, facts=[phrase]
    )


def ground_named(
    kind: Kind, things: Sequence[Thing], size: Size, language: Language, rng: random.Random
) -> Job:
    """The boxes of a kind by its name; sometimes of another kind, of which there is none."""
    if rng.random() < 0.12:
        other = rng.choice([one for one in kinds() if one.group != kind.group])
        return jobs.ground(name(other, language), [], size, language)
    return jobs.ground(name(kind, language), things, size, language)


def rivals(kind: Kind, count: int, rng: random.Random) -> list[Kind]:
    """Other kinds, about half of them of the same group, none of the same name."""
    near = [one for one in kinds() if one.group == kind.group and one is not kind]
    far = [one for one in kinds() if one.group != kind.group]
    some_near = rng.sample(near, min(len(near), rng.randint(0, count)))
    return [*some_near, *rng.sample(far, count - len(some_near))]


def classified(kind: Kind, thing: Thing, language: Language, rng: random.Random) -> Job:
    among = [kind, *rivals(kind, rng.randint(1, 6), rng)]
    rng.shuffle(among)
    labels = [name(one, language) for one in among]
    return jobs.classify(labels, name(kind, language), language, thing)


def sorted_in_group(kind: Kind, language: Language, rng: random.Random) -> Job:
    """The category instead of the kind."""
    groups = {one.group: one for one in kinds() if one.group != kind.group}
    others = [groups[group] for group in rng.sample(sorted(groups), rng.randint(2, 5))]
    among = [kind, *others]
    rng.shuffle(among)
    labels = [group_name(one, language) for one in among]
    return jobs.classify(labels, group_name(kind, language), language)


def whether(kind: Kind, language: Language, rng: random.Random) -> Job:
    does = rng.random() < 0.5
    about = kind if does else rivals(kind, 1, rng)[0]
    words = question("is it", language, rng, a=counted(about, 1, language))
    return jobs.ask(words, does, language, "yes-no")


def fitting(kind: Kind, language: Language, rng: random.Random) -> Job:
    does = rng.random() < 0.5
    about = kind if does else rivals(kind, 1, rng)[0]
    return jobs.fits(name(about, language), language, does=does)


def chosen(kind: Kind, language: Language, rng: random.Random) -> Job:
    among = [kind, *rivals(kind, rng.randint(1, 4), rng)]
    rng.shuffle(among)
    choices = [name(one, language) for one in among]
    words = question("name", language, rng)
    return jobs.ask(words, name(kind, language), language, "choice", choices=choices)


def scattered(
    which: Sequence[Kind], split: Split, rng: random.Random, size: Size
) -> tuple[Canvas, list[tuple[Kind, Thing]]]:
    """The objects in cells of a loose grid, never overlapping; in reading order."""
    strength = strength_of(rng)
    one_style = rng.random() < 0.7
    drawn: dict[str, Image.Image] = {}
    places = cells(len(which), size, rng)
    room = min(places[0][2] - places[0][0], places[0][3] - places[0][1]) * rng.uniform(0.66, 0.95)
    glyphs = []
    for kind in which:
        sprite = drawn.get(kind.key) if one_style else None
        sprite = drawn[kind.key] = sprite or sprite_of(kind, split, rng)
        glyphs.append(posed(sprite, room * rng.uniform(0.85, 1.0), rng, strength))
    inks = [ink_of(glyph) for glyph in glyphs[:4]]
    at = canvas(rng, size, strength=strength, inks=inks)
    order = sorted(range(len(which)), key=lambda n: (places[n][1], places[n][0]))
    found = [
        (which[n], at.place(glyphs[n], within(glyphs[n], places[n], rng), which[n].key))
        for n in order
    ]
    return at, found


def copies(split: Split, rng: random.Random, size: Size | None = None) -> Scene:
    """Two to nine of one object."""
    size = size_of(rng, size)
    kind = rng.choice([one for one in kinds() if one.counted])
    numbers = [n for n in range(2, MOST + 1) if belongs(split, "n", kind.key, n)]
    if not numbers:
        return copies(split, rng, size)
    n = rng.choice(numbers)
    at, found = scattered([kind] * n, split, rng, size)
    things = [thing for _, thing in found]

    def told() -> Iterator[Job]:
        language = spoken(rng)
        yield jobs.ask(question("count", language, rng), n, language, "count")
        language = spoken(rng)
        words = question("count kind", language, rng, a=kind)
        yield jobs.ask(words, n, language, "count", free=rng.random() < 0.5)
        yield describe_plain([(kind, n)], spoken(rng))
        yield describe_style([(kind, n)], spoken(rng), rng)
        language = spoken(rng)
        yield jobs.ground(name(kind, language), things, size, language)
        language = spoken(rng)
        yield more_than(n, kind, language, rng)

    return Scene("copies", (at.photo(),), (tuple(things),), tuple(told()))


def more_than(n: int, kind: Kind, language: Language, rng: random.Random) -> Job:
    limit = max(2, n + rng.choice((-2, -1, 0, 1)))
    words = question("more than", language, rng, a=kind, n=limit)
    return jobs.ask(words, n > limit, language, "yes-no")


def mixed(split: Split, rng: random.Random, size: Size | None = None) -> Scene:
    """Two or three kinds, up to nine things: what they are says nothing about how many."""
    size = size_of(rng, size)
    among = [one for one in kinds() if one.counted]
    which = rng.sample(among, rng.choice((2, 2, 3)))
    numbers = {}
    left = MOST
    for index, kind in enumerate(which):
        n = rng.randint(1, min(6, left - (len(which) - 1 - index)))
        numbers[kind.key] = n
        left -= n
    if not all(n == 1 or belongs(split, "n", key, n) for key, n in numbers.items()):
        return mixed(split, rng, size)
    at, found = scattered(
        [kind for kind in which for _ in range(numbers[kind.key])], split, rng, size
    )
    things = [thing for _, thing in found]
    total = len(things)

    def told() -> Iterator[Job]:
        language = spoken(rng)
        yield jobs.ask(question("count", language, rng), total, language, "count-all")
        for kind in rng.sample(which, 2):
            language = spoken(rng)
            words = question("count kind", language, rng, a=kind)
            yield jobs.ask(
                words, numbers[kind.key], language, "count-kind", free=rng.random() < 0.3
            )
        absent = rng.choice([one for one in among if one.group not in {k.group for k in which}])
        language = spoken(rng)
        if rng.random() < 0.4:
            words = question("count kind", language, rng, a=absent)
            yield jobs.ask(words, 0, language, "count-kind")
        # the more numerous first, so that a scene has one true wording
        shown = sorted(which, key=lambda kind: (-numbers[kind.key], kinds().index(kind)))
        yield describe_plain([(kind, numbers[kind.key]) for kind in shown], spoken(rng))
        kind = rng.choice(which)
        language = spoken(rng)
        own = [thing for one, thing in found if one is kind]
        yield jobs.ground(name(kind, language), own, size, language)
        first, second = which[:2]
        if numbers[first.key] != numbers[second.key]:
            language = spoken(rng)
            most = first if numbers[first.key] > numbers[second.key] else second
            words = question("which more", language, rng, a=first, b=second)
            yield jobs.ask(words, name(most, language), language, "reason", free=True)
        groups = {kind.group for kind in which}
        if len(groups) > 1:
            group = rng.choice(sorted(groups))
            count = sum(numbers[kind.key] for kind in which if kind.group == group)
            language = spoken(rng)
            words = question("count group", language, rng, a=group_name(by_group(group), language))
            yield jobs.ask(words, count, language, "count-group")

    return Scene("mixed", (at.photo(),), (tuple(things),), some(tuple(told()), 6, rng))


def by_group(group: str) -> Kind:
    return next(kind for kind in by_key().values() if kind.group == group)


def crowd(split: Split, rng: random.Random, size: Size | None = None) -> Scene:
    """Two to six different objects."""
    size = size_of(rng, size)
    which = rng.sample(kinds(), rng.randint(2, 6))
    if not belongs(split, "crowd", *sorted(kind.key for kind in which)):
        return crowd(split, rng, size)
    at, found = scattered(which, split, rng, size)

    def told() -> Iterator[Job]:
        language = spoken(rng)
        said = [counted(kind, 1, language) for kind, _ in found]
        text = described("plain", language, phrase=listed(said, language))
        yield jobs.describe(text, language, "describe-many", facts=said)
        language = spoken(rng)
        yield jobs.ask(question("count", language, rng), len(found), language, "count-all")
        for kind, thing in rng.sample(found, 2):
            language = spoken(rng)
            if rng.random() < 0.7:
                yield jobs.ground(name(kind, language), [thing], size, language)
            else:
                yield jobs.point(name(kind, language), thing, size, language)
        language = spoken(rng)
        does = rng.random() < 0.5
        absent = rng.choice([one for one in kinds() if one not in which])
        about = rng.choice(which) if does else absent
        words = question("is there", language, rng, a=counted(about, 1, language))
        yield jobs.ask(words, does, language, "yes-no")
        language = spoken(rng)
        about = rng.choice(which) if does else absent
        yield jobs.fits(name(about, language), language, does=does)
        language = spoken(rng)
        labels = [(name(kind, language), thing.box) for kind, thing in found]
        yield Job(
            "describe",
            {"language": language, "boxes": True},
            jobs.places(labels, size),
            [list(thing.box) for _, thing in found],
            "ground-all",
            before=(text_of(found, language),),
        )

    return Scene("crowd", (at.photo(),), (tuple(t for _, t in found),), tuple(told()))


def text_of(found: Sequence[tuple[Kind, Thing]], language: Language) -> str:
    said = [counted(kind, 1, language) for kind, _ in found]
    return described("plain", language, phrase=listed(said, language))


def pair(split: Split, rng: random.Random, size: Size | None = None) -> Scene:
    """Two different objects, clearly beside or above each other, maybe of very different sizes."""
    size = size_of(rng, size)
    first = rng.choice(kinds())
    second = rng.choice(kinds())
    while second is first or not belongs(split, "pair", *sorted((first.key, second.key))):
        second = rng.choice(kinds())
    beside = rng.random() < 0.5
    strength = strength_of(rng)
    along, across = size if beside else size[::-1]
    cut = along * rng.uniform(0.36, 0.64)
    glyphs, spots = [], []
    for kind, start, end in ((first, 0.0, cut), (second, cut, float(along))):
        side = min(end - start, across) * rng.uniform(0.62, 0.97)
        glyph = posed(sprite_of(kind, split, rng), side, rng, strength)
        extent, breadth = glyph.size if beside else glyph.size[::-1]
        lengthwise = int(start + rng.uniform(0, max(0.0, end - start - extent)))
        # across the axis the two stay near one line, so that the relation is never in doubt
        middle = (across - breadth) / 2
        sideways = int(max(0.0, middle + rng.uniform(-0.5, 0.5) * middle))
        glyphs.append(glyph)
        spots.append((lengthwise, sideways) if beside else (sideways, lengthwise))
    at = canvas(rng, size, strength=strength, inks=[ink_of(glyph) for glyph in glyphs])
    things = [
        at.place(glyph, spot, kind.key)
        for glyph, spot, kind in zip(glyphs, spots, (first, second), strict=True)
    ]
    found = list(zip((first, second), things, strict=True))
    told = tuple(about_pair(found, 0 if beside else 2, size, rng))
    return Scene("pair", (at.photo(),), (tuple(things),), told)


def about_pair(
    found: Sequence[tuple[Kind, Thing]], relation: int, size: Size, rng: random.Random
) -> Iterator[Job]:
    """`relation` 0: the first is left of the second; 2: above it."""
    for _ in range(2):
        (one, one_thing), (other, other_thing) = found
        at = relation
        if rng.random() < 0.5:
            one, one_thing, other, other_thing, at = (
                other,
                other_thing,
                one,
                one_thing,
                relation + 1,
            )
        language = spoken(rng)
        words = question("relation", language, rng, a=one, b=other)
        about = jobs_about(words, ((one, one_thing), (other, other_thing)), language)
        answer = RELATION_ANSWERS[language][at]
        yield jobs.ask(words, answer, language, "relation", about=about, free=True)
    language = spoken(rng)
    (one, one_thing), (other, other_thing) = found
    phrase = placed(one, relation, other, language)
    text = described("plain", language, phrase=phrase)
    yield jobs.describe(text, language, "describe-pair", facts=[phrase])
    language = spoken(rng)
    end = rng.randrange(2)
    words = question(("leftmost", "rightmost", "upper", "lower")[relation + end], language, rng)
    yield jobs.ask(words, name(found[end][0], language), language, "which-side", free=True)
    sizes = [max(t.box[2] - t.box[0], t.box[3] - t.box[1]) for _, t in found]
    if max(sizes) > 1.5 * min(sizes):
        language = spoken(rng)
        larger = rng.random() < 0.5
        wanted = max(sizes) if larger else min(sizes)
        words = question("larger" if larger else "smaller", language, rng)
        yield jobs.ask(
            words, name(found[sizes.index(wanted)][0], language), language, "reason", free=True
        )
    trait = next(
        (t for t, groups in (("alive", LIVING), ("eaten", EDIBLE)) if one_has(found, groups)), None
    )
    if trait:
        groups = LIVING if trait == "alive" else EDIBLE
        right = next(kind for kind, _ in found if kind.group in groups)
        language = spoken(rng)
        words = question(trait, language, rng)
        yield jobs.ask(words, name(right, language), language, "reason", free=True)
    else:
        language = spoken(rng)
        words = question("same group", language, rng)
        yield jobs.ask(words, one.group == other.group, language, "reason")
    kind, thing = rng.choice(found)
    language = spoken(rng)
    yield jobs.ground(name(kind, language), [thing], size, language)


def jobs_about(
    words: str, found: Sequence[tuple[Kind, Thing]], language: Language
) -> list[tuple[str, Thing]]:
    """The names that a question says, in their order, with what they name; in the form it has there."""
    out, after = [], 0
    for kind, thing in found:
        forms = (kind.ru, kind.ru_gen) if language == "ru" else (name(kind, language),)
        starts = [(words.find(form, after), form) for form in forms]
        start, form = min((one for one in starts if one[0] >= 0), default=(-1, ""))
        if start < 0:
            return []
        out.append((form, thing))
        after = start + len(form)
    return out


def one_has(found: Sequence[tuple[Kind, Thing]], groups: Sequence[str]) -> bool:
    return sum(kind.group in groups for kind, _ in found) == 1


def toned(colour: Colour, rng: random.Random, by: int = 14) -> Ink:
    red, green, blue = (max(0, min(255, v + rng.randint(-by, by))) for v in colour.rgb)
    return red, green, blue


def shapes(split: Split, rng: random.Random, size: Size | None = None) -> Scene:
    """One to four plain shapes, each of a colour, no two alike in both."""
    size = size_of(rng, size)
    allowed = [
        (kind, colour)
        for kind in SHAPE_KINDS
        for colour in COLOURS
        if belongs(split, kind.key, colour.en)
    ]
    which = rng.sample(allowed, rng.choice((1, 1, 2, 3, 4)))

    def sprite(kind: Kind, ink: Ink) -> Image.Image:
        return shape_sprite(kind.key, ink)

    at, drawn = in_colours(which, sprite, size, rng, share=(0.5, 0.92), posing=0.5)
    told = tuple(about_coloured(drawn, size, rng, "shape"))
    return Scene("shapes", (at.photo(),), (tuple(thing for *_, thing in drawn),), told)


def in_colours(
    which: Sequence[tuple[Kind, Colour]],
    sprite: Callable[[Kind, Ink], Image.Image],
    size: Size,
    rng: random.Random,
    *,
    share: tuple[float, float],
    posing: float,
) -> tuple[Canvas, list[tuple[Kind, Colour, Thing]]]:
    """Things, each drawn in its colour in a cell of its own, in reading order.

    `share`: the least and the most of a cell's side that a thing takes; `posing`: how strongly things
    are turned, of how strong the photograph is.
    """
    strength = strength_of(rng)
    places = cells(len(which), size, rng)
    inks = [toned(colour, rng) for _, colour in which]
    at = canvas(rng, size, strength=strength, inks=inks)
    drawn = []
    for (kind, colour), place, ink in zip(which, places, inks, strict=True):
        side = min(place[2] - place[0], place[3] - place[1]) * rng.uniform(*share)
        glyph = posed(sprite(kind, ink), side, rng, strength * posing)
        thing = at.place(glyph, within(glyph, place, rng), kind.key, colour.en)
        drawn.append((place, (kind, colour, thing)))
    drawn.sort(key=lambda one: (one[0][1], one[0][0]))
    return at, [one for _, one in drawn]


def shape_sprite(shape: str, ink: Ink) -> Image.Image:
    wide = 192
    mask = Image.new("L", (wide, wide))
    ImageDraw.Draw(mask).polygon(outline(shape, wide / 2, wide / 2, wide * 0.48), fill=255)
    mask = mask.resize((96, 96), Image.Resampling.BOX)
    flat = Image.new("RGBA", (96, 96), (*ink, 255))
    flat.putalpha(mask)
    return flat.crop(solid_box(flat))


def about_coloured(
    drawn: Sequence[tuple[Kind, Colour, Thing]], size: Size, rng: random.Random, word: str
) -> Iterator[Job]:
    language = spoken(rng)
    said = [counted(coloured(kind, colour), 1, language) for kind, colour, _ in drawn]
    text = described("plain", language, phrase=listed(said, language))
    yield jobs.describe(text, language, "describe-coloured", facts=said)
    kind, colour, _ = rng.choice(drawn)
    language = spoken(rng)
    if sum(one.key == kind.key for one, _, _ in drawn) == 1:
        words = question("colour of", language, rng, a=kind)
        yield jobs.ask(words, colour.said(language), language, "colour", free=True)
    if sum(one is colour for _, one, _ in drawn) == 1:
        language = spoken(rng)
        words = question(f"what {word} is", language, rng, colour=colour)
        yield jobs.ask(words, name(kind, language), language, "name-by-colour", free=True)
    language = spoken(rng)
    both = coloured(kind, colour)
    own = [t for k, c, t in drawn if k.key == kind.key and c is colour]
    yield jobs.ground(name(both, language), own, size, language)
    language = spoken(rng)
    count = sum(one is colour for _, one, _ in drawn)
    if len(drawn) > 1:
        words = question("count colour", language, rng, colour=colour)
        yield jobs.ask(words, count, language, "count-colour")
    language = spoken(rng)
    does = rng.random() < 0.5
    pairs = {(k.key, c.en) for k, c, _ in drawn}
    others = [c for c in COLOURS if (kind.key, c.en) not in pairs]
    about = both if does else coloured(kind, rng.choice(others))
    words = question("is there", language, rng, a=counted(about, 1, language))
    yield jobs.ask(words, does, language, "yes-no")


def tinted_things(split: Split, rng: random.Random, size: Size | None = None) -> Scene:
    """One to three objects in a colour that is not their own."""
    size = size_of(rng, size)
    which = []
    wanted = rng.choice((1, 1, 2, 3))
    while len(which) < wanted:
        kind, colour = rng.choice(kinds()), rng.choice(COLOURS)
        taken = any(kind is one or colour is other for one, other in which)
        if kind.counted and not taken and belongs(split, "tint", kind.key, colour.en):
            which.append((kind, colour))

    def sprite(kind: Kind, ink: Ink) -> Image.Image:
        return tinted(sprite_of(kind, split, rng), ink)

    at, drawn = in_colours(which, sprite, size, rng, share=(0.6, 0.95), posing=1.0)
    told = tuple(about_coloured(drawn, size, rng, "object"))
    return Scene("tinted", (at.photo(),), (tuple(thing for *_, thing in drawn),), told)


def tinted(sprite: Image.Image, ink: Ink) -> Image.Image:
    """The sprite in shades of one colour."""
    pixels = np.asarray(sprite, dtype=np.float32)
    weight = pixels[..., 3] / 255
    grey = pixels[..., :3].mean(axis=2)
    grey -= (grey * weight).sum() / max(1.0, weight.sum())
    shade = grey[..., None] * (TINT_DEPTH / max(1.0, float(np.abs(grey * weight).max())))
    tint = (np.array(ink, np.float32) + shade).clip(0, 255).astype(np.uint8)
    out = Image.fromarray(tint).convert("RGBA")
    out.putalpha(sprite.getchannel("A"))
    return out


KINDS: Mapping[str, tuple[Draw, float]] = {
    "object": (single, 5.0),
    "copies": (copies, 3.0),
    "mixed": (mixed, 3.0),
    "crowd": (crowd, 2.0),
    "pair": (pair, 3.0),
    "shapes": (shapes, 1.0),
    "tinted": (tinted_things, 1.0),
}
