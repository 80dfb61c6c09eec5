"""Printed arithmetic and simple geometry, with steps that can be checked and a final number.

Small numbers, so that the steps are what is learnt. The picture says all; a question is asked of the
drawn figures alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

from qvl.scenes.page import BLACK, HAND_FACE, PRINT_FACES, Page, fitting, width_of
from qvl.scenes.papers import Size, at_least, layouts, paper, photo, scene_of
from qvl.scenes.reading import ask, solve
from qvl.scenes.scene import Job, Scene, Split
from qvl.scenes.words import Language, Words, said

LEAST_SUM, LEAST_FIGURE = (192, 96), (192, 192)
TRIPLES = ((3, 4, 5), (6, 8, 10), (5, 12, 13), (8, 15, 17), (9, 12, 15))
UNITS: tuple[Words, ...] = ((" см", " cm", "厘米"), (" м", " m", "米"), ("", "", ""))
AREA: Words = (
    "Найди площадь прямоугольника.",
    "Find the area of the rectangle.",
    "求长方形的面积。",
)
PERIMETER: Words = (
    "Найди периметр прямоугольника.",
    "Find the perimeter of the rectangle.",
    "求长方形的周长。",
)
ANGLE: Words = (
    "Найди неизвестный угол треугольника.",
    "Find the missing angle of the triangle.",
    "求三角形的未知角。",
)
HYPOTENUSE: Words = ("Найди неизвестную сторону.", "Find the missing side.", "求未知边的长。")
ANGLES: Words = (
    "Сумма углов треугольника 180 градусов",
    "The angles of a triangle make 180 degrees",
    "三角形内角和是180度",
)
WHICH: Words = ("Какая фигура нарисована?", "Which figure is drawn?", "图中是什么图形？")
FIGURES: tuple[Words, Words] = (
    ("прямоугольник", "rectangle", "长方形"),
    ("треугольник", "triangle", "三角形"),
)


def arithmetic(split: Split, rng: random.Random, size: Size | None) -> Scene:
    """The layouts: 0 "12 + 30 = ?", 1 an equation with x, 2 three numbers with brackets."""
    layout, face, language = layouts("arithmetic", 3, (*PRINT_FACES, HAND_FACE), split, rng)
    page = Page.blank(at_least(size, LEAST_SUM, rng), paper(rng))
    text, steps, answer = (plain_sum, equation, brackets)[layout](rng)
    width, height = page.size
    px = fitting(text, face, 0.86 * width, min(44, round(0.4 * height)))
    y = rng.uniform(0.3, 0.85) * (height - 0.3 * px)
    page.write(text, (width / 2, max(px, y)), face, px, side="centre")
    page = photo(page, rng)
    return scene_of(
        "arithmetic", page, [solve(steps, str(answer), language, "arithmetic")], rng, is_paper=False
    )


def plain_sum(rng: random.Random) -> tuple[str, list[str], int]:
    sign = rng.choice("+-×÷")
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    if sign == "-":
        a, b = max(a, b), min(a, b)
        answer = a - b
    elif sign == "+":
        answer = a + b
    else:
        a, b = rng.randint(2, 12), rng.randint(2, 12)
        answer = a * b
        if sign == "÷":
            a, answer = answer, a
    return (
        f"{a} {sign} {b} = {rng.choice(('?', '', '…'))}".strip(),
        [f"{a} {sign} {b} = {answer}"],
        answer,
    )


def equation(rng: random.Random) -> tuple[str, list[str], int]:
    x, a = rng.randint(1, 40), rng.randint(2, 40)
    match rng.randrange(3):
        case 0:
            return f"x + {a} = {x + a}", [f"x = {x + a} - {a}", f"{x + a} - {a} = {x}"], x
        case 1:
            return f"x - {a} = {x}", [f"x = {x} + {a}", f"{x} + {a} = {x + a}"], x + a
    a = rng.randint(2, 9)
    return f"{a}x = {a * x}", [f"x = {a * x} / {a}", f"{a * x} / {a} = {x}"], x


def brackets(rng: random.Random) -> tuple[str, list[str], int]:
    a, b, c = rng.randint(1, 9), rng.randint(1, 9), rng.randint(2, 9)
    if rng.random() < 0.5:
        text, first, answer = f"({a} + {b}) × {c}", f"{a} + {b} = {a + b}", (a + b) * c
        return f"{text} = ?", [first, f"{a + b} × {c} = {answer}"], answer
    text, first, answer = f"{a} + {b} × {c}", f"{b} × {c} = {b * c}", a + b * c
    return f"{text} = ?", [first, f"{a} + {b * c} = {answer}"], answer


def geometry(split: Split, rng: random.Random, size: Size | None) -> Scene:
    """The layouts: 0 a rectangle with its sides, 1 a triangle with two angles, 2 a right triangle."""
    layout, face, language = layouts(
        "geometry", 3, ("sans", "serif", "slab", "sans-bold"), split, rng
    )
    page = Page.blank(at_least(size, LEAST_FIGURE, rng), paper(rng))
    jobs = (rectangle, triangle, right_triangle)[layout](page, face, language, rng)
    page = photo(page, rng, 0.6)
    names = [said(figure, language) for figure in FIGURES]
    jobs.append(ask(said(WHICH, language), names[layout > 0], language, "figure", choices=names))
    return scene_of("geometry", page, jobs, rng, is_paper=False)


def fill(rng: random.Random) -> tuple[int, int, int]:
    return rng.choice(((255, 255, 255), (222, 236, 250), (226, 244, 224), (250, 228, 232)))


def rectangle(page: Page, face: str, language: Language, rng: random.Random) -> list[Job]:
    a, b = rng.sample(range(2, 20), 2)
    width, height = page.size
    scale = min(0.6 * width / a, 0.6 * height / b)
    # thin ones are drawn thicker, and so are not to scale
    w, h = max(0.2 * width, a * scale), max(0.2 * height, b * scale)
    px, unit = rng.randint(15, 19), said(rng.choice(UNITS), language)
    beside = width_of(f"{b}{unit}", face, px) + 5
    w = min(w, 0.9 * width - beside)
    left, top = (width - w - beside) / 2, 0.4 * (height - h)
    page.pen.rectangle((left, top, left + w, top + h), fill=fill(rng), outline=BLACK, width=2)
    page.write(f"{b}{unit}", (left + w + 5, top + h / 2 + 0.35 * px), face, px)
    page.write(f"{a}{unit}", (left + w / 2, top + h + 1.2 * px), face, px, side="centre")
    around = 2 * (a + b)
    return [
        solve([f"{a} × {b} = {a * b}"], str(a * b), language, "geometry-area", question=said(AREA, language)),
        solve(
            [f"{a} + {b} = {a + b}", f"2 × {a + b} = {around}"],
            str(around), language, "geometry-perimeter", question=said(PERIMETER, language),
        ),
    ]  # fmt: skip


def triangle(page: Page, face: str, language: Language, rng: random.Random) -> list[Job]:
    """Drawn with its true angles; the third has a question mark."""
    while True:
        a, b = 5 * rng.randint(6, 20), 5 * rng.randint(6, 20)
        if 30 <= 180 - a - b <= 110:
            break
    c = 180 - a - b
    width, height = page.size
    # the side between a and b lies below; the third corner by the law of sines
    long = math.sin(math.radians(b)) / math.sin(math.radians(c))
    peak = long * math.cos(math.radians(a)), long * math.sin(math.radians(a))
    low, high = min(0.0, peak[0]), max(1.0, peak[0])
    scale = min(0.84 * width / (high - low), 0.78 * height / peak[1])
    x0 = (width - (high - low) * scale) / 2 - low * scale
    y0 = (height + peak[1] * scale) / 2
    corners = [(x0, y0), (x0 + scale, y0), (x0 + peak[0] * scale, y0 - peak[1] * scale)]
    page.pen.polygon(corners, fill=fill(rng), outline=BLACK, width=2)
    middle = sum(x for x, _ in corners) / 3, sum(y for _, y in corners) / 3
    px = rng.randint(14, 17)
    texts = [f"{a}°", f"{b}°", "?"]
    for n in sorted(range(3), key=lambda n: (corners[n][1], corners[n][0])):
        (x, y), share = corners[n], 0.36
        at = x + share * (middle[0] - x), y + share * (middle[1] - y) + 0.35 * px
        page.write(texts[n], at, face, px, side="centre", same_row=n == 1)
    steps = [f"{said(ANGLES, language)}", f"180 - {a} - {b} = {c}"]
    return [solve(steps, str(c), language, "geometry-angle", question=said(ANGLE, language))]


def right_triangle(page: Page, face: str, language: Language, rng: random.Random) -> list[Job]:
    a, b, c = rng.choice(TRIPLES)
    if rng.random() < 0.5:
        a, b = b, a
    width, height = page.size
    scale = min(0.62 * width / a, 0.62 * height / b)
    left, low = 0.24 * width, 0.82 * height
    corners = [(left, low), (left + a * scale, low), (left, low - b * scale)]
    page.pen.polygon(corners, fill=fill(rng), outline=BLACK, width=2)
    page.pen.rectangle((left, low - 9, left + 9, low), outline=BLACK)
    px = rng.randint(15, 18)
    slope_at = left + a * scale / 2 + 8, low - b * scale / 2 - 4
    page.write(str(b), (left - 6, low - b * scale / 2 + 0.35 * px), face, px, side="right")
    page.write("?", slope_at, face, px, same_row=True)
    page.write(str(a), (left + a * scale / 2, low + 1.15 * px), face, px, side="centre")
    steps = [f"{a}^2 + {b}^2 = {c * c}", f"{c} × {c} = {c * c}"]
    return [solve(steps, str(c), language, "geometry-side", question=said(HYPOTENUSE, language))]


KINDS: Mapping[str, tuple[Callable[[Split, random.Random, Size | None], Scene], float]] = {
    "arithmetic": (arithmetic, 2.0),
    "geometry": (geometry, 1.5),
}
