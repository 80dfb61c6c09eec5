"""Two pictures that differ in one thing or in none, and short clips of what appears and moves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from qvl.scenes import jobs
from qvl.scenes.canvas import (
    GROUNDS,
    Canvas,
    Size,
    background,
    cells,
    ground_for,
    ink_of,
    posed,
    size_of,
    strength_of,
    within,
)
from qvl.scenes.goods import Ware, are_apart, painted
from qvl.scenes.kinds import Kind, kinds
from qvl.scenes.objects import Draw, spoken, sprite_of
from qvl.scenes.phrases import (
    COLOURS,
    Colour,
    Language,
    capital,
    counted,
    definite,
    is_plural,
    listed,
    name,
)
from qvl.scenes.products import product_kinds
from qvl.scenes.questions import question
from qvl.scenes.scene import Job, PixelBox, Scene, Split, Thing, belongs
from qvl.tasks.compare import KINDS as COMPARISONS

CHANGES = ("added", "removed", "replaced", "recoloured", "none")
FEWEST_FRAMES, MOST_PARTS = 4, 4  # a part is two frames, which the model sees as one
WAYS = ("right", "left", "down", "up")


@dataclass(frozen=True, slots=True)
class Shown:
    """One thing of a picture, where it stands, and how a phrase names it."""

    kind: Kind
    glyph: Image.Image
    spot: tuple[int, int]
    cell: PixelBox
    colour: Colour | None = None


def two(split: Split, rng: random.Random, size: Size | None = None) -> Scene:
    """The same things twice; between the pictures one is added, taken away, replaced or recoloured."""
    size = size_of(rng, size)
    change = rng.choice(CHANGES)
    strength = strength_of(rng)
    places = cells(rng.randint(2, 4), size, rng)
    room = min(places[0][2] - places[0][0], places[0][3] - places[0][1]) * rng.uniform(0.66, 0.92)

    def shown(kind: Kind, sprite: Image.Image, index: int, colour: Colour | None = None) -> Shown:
        glyph = posed(sprite, room, rng, strength)
        cell = places[index]
        return Shown(kind, glyph, within(glyph, cell, rng), cell, colour)

    which = rng.sample(kinds(), len(places))
    if not belongs(split, "change", which[0].key, change):
        return two(split, rng, size)
    first = [shown(kind, sprite_of(kind, split, rng), n) for n, kind in enumerate(which)]
    second = list(first)
    before: Shown | None = first[0]
    after: Shown | None = None
    match change:
        case "added":
            first, before, after = first[1:], None, second[0]
        case "removed":
            second = second[1:]
        case "replaced":
            new = rng.choice([kind for kind in kinds() if kind not in which])
            after = shown(new, sprite_of(new, split, rng), 0)
            second = [after, *second[1:]]
        case "recoloured":
            one, other = in_two_colours(split, rng)
            before, after = (
                shown(ware.kind, ware.sprite, 0, ware.paint.colour) for ware in (one, other)
            )
            first, second = [before, *first[1:]], [after, *second[1:]]
        case _:
            before = None
    inks = [ink_of(one.glyph) for one in (*first, *second[:1])]
    ground = GROUNDS[ground_for(rng, inks)]
    ground_seed = rng.random()
    pictures, things = [], []
    for which_shown in (first, second):
        base = background(random.Random(ground_seed), size, ground, strength)
        at = Canvas(base, random.Random(rng.random()), strength)
        for one in which_shown:
            at.place(one.glyph, one.spot, one.kind.key, one.colour.en if one.colour else None)
        pictures.append(at.photo())
        things.append(tuple(at.things))
    kept = [one for one in first if one in second]
    kept.sort(key=lambda one: (one.cell[1], one.cell[0]))
    told = tuple(about_two(change, before, after, kept, rng))
    return Scene("two", tuple(pictures), tuple(things), told)


def in_two_colours(split: Split, rng: random.Random) -> tuple[Ware, Ware]:
    """A plain product in two colours that the split may show it in."""
    while True:
        kind = rng.choice(product_kinds())
        hues = [c for c in COLOURS if belongs(split, "ware", kind.key, c.en, "plain")]
        pairs = [(one, other) for one in hues for other in hues if are_apart(one, other)]
        if pairs:
            one, other = rng.choice(pairs)
            return painted(kind, one, "plain", rng), painted(kind, other, "plain", rng)


def about_two(
    change: str,
    before: Shown | None,
    after: Shown | None,
    kept: Sequence[Shown],
    rng: random.Random,
) -> Iterator[Job]:
    for _ in range(2):
        language = spoken(rng)
        summary = summary_of(change, before, after, kept, language)
        same = [counted(one.kind, 1, language) for one in kept]
        rows = [row_of(change, before, after, language)] if change != "none" else []
        fields = {
            "summary": summary,
            "same": same,
            "different": [dict(zip(("aspect", "in_1", "in_2"), row, strict=True)) for row in rows],
        }
        truth = {"summary": summary, "same": same, "different": [list(row) for row in rows]}
        kind = rng.choice([one for one in COMPARISONS if one != "views"])
        options = {"kind": kind, "language": language}
        yield jobs.with_form("compare", options, fields, truth, "compare", [summary])
    language = spoken(rng)
    if change != "recoloured":
        words = question("are same", language, rng)
        yield jobs.ask(words, change == "none", language, "compare-same")
    if change != "none":
        language = spoken(rng)
        words = question("changed", language, rng)
        summary = summary_of(change, before, after, kept, language)
        yield jobs.ask(words, summary, language, "compare-ask", free=True)
    if change in ("added", "replaced") and after is not None:
        language = spoken(rng)
        words = question("only second", language, rng)
        yield jobs.ask(words, name(after.kind, language), language, "compare-new", free=True)


def summary_of(
    change: str,
    before: Shown | None,
    after: Shown | None,
    kept: Sequence[Shown],
    language: Language,
) -> str:
    """What has changed, in one sentence."""
    if change == "none" or (before is None and after is None):
        both = listed([counted(one.kind, 1, language) for one in kept], language)
        return {
            "en": f"Both pictures show the same: {both}.",
            "ru": f"На обеих картинках одно и то же: {both}.",
            "zh": f"两张图片内容相同：{both}。",
        }[language]
    if before is None and after is not None:
        new = counted(after.kind, 1, language)
        return {
            "en": f"The second picture also shows {new}.",
            "ru": f"На второй картинке добавлено: {new}.",
            "zh": f"第二张图片中多了{new}。",
        }[language]
    if before is not None and after is None:
        old = counted(before.kind, 1, language)
        return {
            "en": f"The second picture lacks {old}.",
            "ru": f"На второй картинке нет {before.kind.ru_gen}.",
            "zh": f"第二张图片中少了{old}。",
        }[language]
    if before is None or after is None:
        raise ValueError(f"nothing is {change}")
    if before.colour is not None and after.colour is not None:
        one, other = before.colour.said(language), after.colour.said(language)
        being = "are" if is_plural(before.kind, "en") else "is"
        return {
            "en": f"{capital(definite(before.kind, 'en'))} {being} {one} in the first picture and"
            f" {other} in the second.",
            "ru": f"{capital(before.kind.ru)}: на первой картинке цвет {one}, на второй {other}.",
            "zh": f"{before.kind.zh}在第一张图片中是{one}的，在第二张中是{other}的。",
        }[language]
    one, other = counted(before.kind, 1, language), counted(after.kind, 1, language)
    return {
        "en": f"The second picture shows {other} instead of {one}.",
        "ru": f"На второй картинке вместо {before.kind.ru_gen} {other}.",
        "zh": f"第二张图片中{one}换成了{other}。",
    }[language]


def row_of(
    change: str, before: Shown | None, after: Shown | None, language: Language
) -> tuple[str, str, str]:
    """The aspect, and what it is in each picture."""
    one = next(shown for shown in (before, after) if shown is not None)
    if change == "recoloured" and before and after and before.colour and after.colour:
        aspect = {
            "en": f"colour of {definite(one.kind, 'en')}",
            "ru": f"цвет {one.kind.ru_gen}",
            "zh": f"{one.kind.zh}的颜色",
        }[language]
        return aspect, before.colour.said(language), after.colour.said(language)
    if change == "replaced" and before and after:
        aspect = {"en": "object", "ru": "предмет", "zh": "物体"}[language]
        return aspect, name(before.kind, language), name(after.kind, language)
    there, gone = {"en": ("present", "absent"), "ru": ("есть", "нет"), "zh": ("有", "没有")}[
        language
    ]
    states = (there if before else gone, there if after else gone)
    return name(one.kind, language), *states


@dataclass(frozen=True, slots=True)
class Seen:
    """A thing of a clip, and the first and the last part that it is seen in."""

    kind: Kind
    glyph: Image.Image
    spot: tuple[int, int]
    first: int
    last: int


def clip(split: Split, rng: random.Random, size: Size | None = None) -> Scene:
    """Two or three things that appear one after another and may go again."""
    size = size or (rng.choice((128, 160)), rng.choice((128, 160)))
    parts = rng.choice((3, 4))
    count = rng.choice((2, 2, 3))
    which = rng.sample(kinds(), count)
    starts = sorted(rng.sample(range(parts), count))
    if not belongs(split, "appears", which[0].key, starts[0], which[1].key):
        return clip(split, rng, size)
    strength = strength_of(rng)
    places = cells(count, size, rng)
    room = min(places[0][2] - places[0][0], places[0][3] - places[0][1]) * rng.uniform(0.66, 0.92)
    seen = []
    for kind, start, place in zip(which, starts, places, strict=True):
        glyph = posed(sprite_of(kind, split, rng), room, rng, strength)
        last = rng.randint(start, parts - 1) if rng.random() < 0.4 else parts - 1
        seen.append(Seen(kind, glyph, within(glyph, place, rng), start, last))
    frames, things, times_s, fps = filmed(
        lambda at, frame: [
            at.place(one.glyph, one.spot, one.kind.key)
            for one in seen
            if one.first <= frame // 2 <= one.last
        ],
        2 * parts,
        [ink_of(one.glyph) for one in seen],
        size,
        strength,
        rng,
    )
    told = tuple(about_appearing(seen, fps, rng))
    return Scene("clip", frames, things, told, times_s)


def moving(split: Split, rng: random.Random, size: Size | None = None) -> Scene:
    """One thing that crosses the picture, beside another that stays."""
    size = size or (rng.choice((128, 160)), rng.choice((128, 160)))
    kind, other = rng.sample(kinds(), 2)
    ways = [way for way in WAYS if belongs(split, "moves", kind.key, way)]
    if not ways:
        return moving(split, rng, size)
    way = rng.choice(ways)
    strength = strength_of(rng)
    glyph = posed(sprite_of(kind, split, rng), min(size) * rng.uniform(0.32, 0.45), rng, strength)
    still = posed(sprite_of(other, split, rng), min(size) * rng.uniform(0.3, 0.42), rng, strength)
    frames_n = 2 * rng.choice((2, 3, 4))
    across = way in ("right", "left")
    long, broad = (0, 1) if across else (1, 0)
    near = rng.random() < 0.5  # the one that stays is on the other half
    lane = size[broad] / 2
    offset = rng.uniform(0, max(0.0, lane - glyph.size[broad]))
    lane_start = offset if near else size[broad] - glyph.size[broad] - offset
    stay_lane = size[broad] - still.size[broad] if near else 0.0
    stay_long = rng.uniform(0, max(0.0, size[long] - still.size[long]))

    def place(at: Canvas, frame: int) -> list[Thing]:
        done = frame / (frames_n - 1)
        if way in ("left", "up"):
            done = 1 - done
        along = done * (size[long] - glyph.size[long])
        spot = (along, lane_start) if across else (lane_start, along)
        stay = (stay_long, stay_lane) if across else (stay_lane, stay_long)
        return [
            at.place(still, (int(stay[0]), int(stay[1])), other.key),
            at.place(glyph, (int(spot[0]), int(spot[1])), kind.key),
        ]

    inks = [ink_of(glyph), ink_of(still)]
    frames, things, times_s, _ = filmed(place, frames_n, inks, size, strength, rng)
    told = tuple(about_moving(kind, other, way, times_s, rng))
    return Scene("moving", frames, things, told, times_s)


def filmed(
    place: Callable[[Canvas, int], Sequence[Thing]],
    count: int,
    inks: Sequence[tuple[int, int, int]],
    size: Size,
    strength: float,
    rng: random.Random,
) -> tuple[tuple[Image.Image, ...], tuple[tuple[Thing, ...], ...], tuple[float, ...], float]:
    """The frames over one background, their things, their times in seconds, and the rate."""
    ground = background(rng, size, GROUNDS[ground_for(rng, inks)], strength)
    fps = rng.choice((1.0, 2.0))
    camera = rng.random()
    frames, things = [], []
    for frame in range(count):
        # the same light in every frame
        at = Canvas(ground.copy(), random.Random(camera), strength)
        place(at, frame)
        frames.append(at.photo())
        things.append(tuple(at.things))
    times_s = tuple(frame / fps for frame in range(count))
    return tuple(frames), tuple(things), times_s, fps


def about_appearing(seen: Sequence[Seen], fps: float, rng: random.Random) -> Iterator[Job]:
    for _ in range(2):
        language = spoken(rng)
        text = story(seen, language)
        facts = [counted(one.kind, 1, language) for one in seen]
        if rng.random() < 0.5:
            yield Job("video", {"language": language}, text, text, "video", facts=tuple(facts))
        else:
            yield jobs.describe(text, language, "describe-video", facts=facts)
    language = spoken(rng)
    rows = []
    for one in sorted(seen, key=lambda one: (one.first, one.last)):
        start_s, end_s = 2 * one.first / fps, (2 * one.last + 1) / fps
        rows.append((start_s, end_s, visible(one.kind, language)))
    yield events(rows, language)
    for what, index in (("clip order", 0), ("clip last", -1)):
        language = spoken(rng)
        words = question(what, language, rng)
        answer = name(seen[index].kind, language)
        if rng.random() < 0.5:
            options = {"prompt": words, "language": language}
            yield Job("video", options, answer, answer, "video-order", facts=(answer,))
        else:
            yield jobs.ask(words, answer, language, "video-order", free=True)
    language = spoken(rng)
    one, other = rng.sample(list(seen), 2)
    words = order_question(one.kind, other.kind, language)
    yield jobs.ask(words, one.first < other.first, language, "video-order")


def story(seen: Sequence[Seen], language: Language) -> str:
    """What appears, in its order."""
    said = [counted(one.kind, 1, language) for one in seen]
    first, then = said[0], said[1:]
    if language == "en":
        being = "appear" if is_plural(seen[0].kind, "en") else "appears"
        return f"First {first} {being}, " + ", ".join(f"then {one}" for one in then) + "."
    if language == "ru":
        being = "появляются" if is_plural(seen[0].kind, "ru") else "появляется"
        return f"Сначала {being} {first}, " + ", ".join(f"затем {one}" for one in then) + "."
    return f"先出现{first}，" + "，".join(f"然后出现{one}" for one in then) + "。"


def visible(kind: Kind, language: Language) -> str:
    one = counted(kind, 1, language)
    if language == "en":
        return f"{one} {'are' if is_plural(kind, 'en') else 'is'} visible"
    if language == "ru":
        return f"{({'m': 'виден', 'f': 'видна', 'n': 'видно', 'p': 'видны'})[kind.ru_gender]} {one}"
    return f"可以看到{one}"


def order_question(one: Kind, other: Kind, language: Language) -> str:
    if language == "en":
        do = "Do" if is_plural(one, "en") else "Does"
        return f"{do} {definite(one, 'en')} appear before {definite(other, 'en')}?"
    if language == "ru":
        appears = "появляются" if is_plural(one, "ru") else "появляется"
        return f"Верно ли, что {one.ru} {appears} раньше {other.ru_gen}?"
    return f"{one.zh}比{other.zh}先出现吗？"


def events(rows: Sequence[tuple[float, float, str]], language: Language) -> Job:
    fields = {
        "events": [
            {"start_time": clock(start_s), "end_time": clock(end_s), "description": what}
            for start_s, end_s, what in rows
        ]
    }
    options = {"answer_as": "events", "language": language}
    truth = [list(row) for row in rows]
    return jobs.with_form("video", options, fields, truth, "video-events")


def clock(time_s: float) -> str:
    """62.5 is "01:02.5"."""
    minutes, rest = divmod(time_s, 60)
    tenth = f"{rest:04.1f}".removesuffix(".0")
    return f"{int(minutes):02}:{tenth}"


MOTIONS: dict[Language, dict[str, str]] = {
    "en": {"right": "from left to right", "left": "from right to left", "down": "downwards", "up": "upwards"},
    "ru": {"right": "слева направо", "left": "справа налево", "down": "сверху вниз", "up": "снизу вверх"},
    "zh": {"right": "从左向右", "left": "从右向左", "down": "从上向下", "up": "从下向上"},
}  # fmt: skip


def about_moving(
    kind: Kind, other: Kind, way: str, times_s: Sequence[float], rng: random.Random
) -> Iterator[Job]:
    language = spoken(rng)
    text = moves(kind, way, language)
    motion = MOTIONS[language][way]
    facts = (counted(kind, 1, language), motion)
    yield Job("video", {"language": language}, text, text, "video", facts=facts)
    language = spoken(rng)
    text = moves(kind, way, language)
    facts = (counted(kind, 1, language), MOTIONS[language][way])
    yield jobs.describe(text, language, "describe-video", facts=facts)
    language = spoken(rng)
    what = moves(kind, way, language).rstrip(".。")
    yield events([(times_s[0], times_s[-1], what)], language)
    language = spoken(rng)
    words = question("clip way", language, rng, a=kind)
    yield jobs.ask(words, MOTIONS[language][way], language, "video-motion", free=True)
    language = spoken(rng)
    still = {
        "en": "What stays in its place?",
        "ru": "Что стоит на месте?",
        "zh": "什么停在原处不动？",
    }[language]
    yield jobs.ask(still, name(other, language), language, "video-still", free=True)


def moves(kind: Kind, way: str, language: Language) -> str:
    one, motion = counted(kind, 1, language), MOTIONS[language][way]
    if language == "en":
        return f"{capital(one)} {'move' if is_plural(kind, 'en') else 'moves'} {motion}."
    if language == "ru":
        return f"{capital(one)} {'движутся' if is_plural(kind, 'ru') else 'движется'} {motion}."
    return f"{one}{motion}移动。"


KINDS: Mapping[str, tuple[Draw, float]] = {
    "two": (two, 2.5),
    "clip": (clip, 1.5),
    "moving": (moving, 1.0),
}
