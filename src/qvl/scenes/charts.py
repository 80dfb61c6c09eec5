"""Tables, and bar, line and pie charts of made-up numbers: what is largest, how much, how much more.

A value is either printed or lies on a mark of the axis, so that it can be read exactly.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from qvl.scenes import words
from qvl.scenes.page import BLACK, Page, Rgb, fitting, width_of
from qvl.scenes.papers import (
    Part,
    Sheet,
    Size,
    Stock,
    at_least,
    layouts,
    paper,
    photo,
    scene_of,
    some,
)
from qvl.scenes.reading import any_language, ask, extract, solve
from qvl.scenes.scene import Job, Scene, Split
from qvl.scenes.words import Language, Words, said

LEAST = (256, 224)
SMALLEST_PX = 9
FACES = ("sans", "sans-bold", "serif", "slab", "narrow")
PALETTES: tuple[tuple[Rgb, ...], ...] = (
    ((66, 114, 196), (232, 120, 44), (112, 172, 72), (250, 192, 20), (150, 90, 170), (90, 90, 96)),
    ((214, 40, 40), (20, 110, 160), (240, 160, 40), (30, 130, 90), (120, 70, 150), (110, 80, 60)),
)
STYLE_PALETTE: tuple[Rgb, ...] = (  # of the split "style" alone
    (24, 24, 30), (90, 90, 100), (160, 160, 170), (200, 60, 90), (120, 40, 60), (220, 160, 170),
)  # fmt: skip
GREY: Rgb = (205, 205, 210)
TITLES: tuple[Words, ...] = (
    ("Продажи, шт.", "Sales, pieces", "销量（件）"), ("Посетители", "Visitors", "访客人数"),
    ("Заказы", "Orders", "订单数"), ("Выручка, тыс.", "Income, thousands", "收入（千）"),
)  # fmt: skip
Question = Mapping[Language, Sequence[str]]
VALUE: Question = {
    "ru": ("Какое значение у «{a}»?", "Сколько показано для «{a}»?"),
    "en": ('What is the value of "{a}"?', 'How much is shown for "{a}"?'),
    "zh": ("“{a}”的数值是多少？", "“{a}”是多少？"),
}
LARGEST: Question = {
    "ru": ("Что больше всего?", "У чего самое большое значение?"),
    "en": ("Which is the largest?", "What has the highest value?"),
    "zh": ("哪个最大？", "哪一项数值最高？"),
}
SMALLEST: Question = {
    "ru": ("Что меньше всего?", "У чего самое маленькое значение?"),
    "en": ("Which is the smallest?", "What has the lowest value?"),
    "zh": ("哪个最小？", "哪一项数值最低？"),
}
DIFFERENCE: Question = {
    "ru": ("На сколько «{a}» больше, чем «{b}»?",),
    "en": ('How much more is "{a}" than "{b}"?',),
    "zh": ("“{a}”比“{b}”多多少？",),
}
SUM: Question = {
    "ru": ("Сколько вместе «{a}» и «{b}»?", "Чему равна сумма «{a}» и «{b}»?"),
    "en": ('What do "{a}" and "{b}" come to together?', 'What is the sum of "{a}" and "{b}"?'),
    "zh": ("“{a}”和“{b}”一共是多少？", "“{a}”与“{b}”之和是多少？"),
}
TOTAL: Question = {
    "ru": ("Чему равна сумма всех значений?",),
    "en": ("What is the sum of all values?",),
    "zh": ("所有数值之和是多少？",),
}
MORE: Question = {
    "ru": ("Верно ли, что «{a}» больше, чем «{b}»?",),
    "en": ('Is "{a}" more than "{b}"?',),
    "zh": ("“{a}”比“{b}”多吗？",),
}
HOW_MANY: Question = {
    "ru": ("Сколько значений на диаграмме?",),
    "en": ("How many values does the chart show?",),
    "zh": ("图表中有几个数值？",),
}
TREND: Question = {
    "ru": ("Значения растут или убывают?", "Куда идёт линия: вверх или вниз?"),
    "en": ("Do the values rise or fall?", "Does the line go up or down?"),
    "zh": ("数值是上升还是下降？", "趋势是上升还是下降？"),
}
TRENDS: tuple[Words, Words] = (("растут", "rise", "上升"), ("убывают", "fall", "下降"))
TITLE: Question = {
    "ru": ("Как называется диаграмма?", "Какой у диаграммы заголовок?"),
    "en": ("What is the title of the chart?", "What is the chart called?"),
    "zh": ("图表的标题是什么？", "这张图表叫什么？"),
}


@dataclass(frozen=True, slots=True)
class Series:
    """Names and their whole numbers; no two are the same. `unit` is "%" for shares."""

    title: str
    names: tuple[str, ...]
    values: tuple[int, ...]
    unit: str = ""


def series(stock: Stock, rng: random.Random, *, step: int, ordered: bool, count: int) -> Series:
    """Multiples of `step` up to ten of them; in order of time where `ordered`."""
    language = stock.language
    if ordered:
        pool = rng.choice((words.MONTHS, words.WEEKDAYS[:7]))
        start = rng.randrange(len(pool) - count + 1)
        names = [said(name, language) for name in pool[start : start + count]]
    else:
        names = [said(p.names, language) for p in stock.products(24, rng)]
        names = [name for name in names if len(name) <= 7]
    values = [step * n for n in rng.sample(range(1, 11), count)]
    if ordered and rng.random() < 0.6:
        values.sort(reverse=rng.random() < 0.5)
    return Series(said(rng.choice(TITLES), language), tuple(names[:count]), tuple(values))


def palette(split: Split, rng: random.Random) -> tuple[Rgb, ...]:
    return STYLE_PALETTE if split == "style" else rng.choice(PALETTES)


@dataclass(slots=True)
class Axes:
    """Where a chart's values lie: `x`s of the names, `y` of 0 and of `top`."""

    sheet: Sheet
    left: float
    right: float
    zero: float
    high: float
    top: int

    def y(self, value: int) -> float:
        return self.zero - (self.zero - self.high) * value / self.top

    def x(self, n: int, count: int) -> float:
        return self.left + (n + 0.5) * (self.right - self.left) / count


def axes(sheet: Sheet, data: Series, step: int, *, marked: bool) -> Axes:
    """The title, the axes, the names below, and if `marked` a number at every second step."""
    page, px = sheet.page, sheet.px
    sheet.head(data.title, scale=1.2)
    top = step * 10
    left = sheet.left + (width_of(f"{top} ", sheet.face, px) if marked else 4)
    zero = page.size[1] - 2.2 * px
    made = Axes(sheet, left, sheet.right, zero, sheet.y + 0.6 * px, top)
    for value in range(top, -1, -step):
        y = made.y(value)
        if marked:
            page.pen.line((left, y, made.right, y), fill=GREY)
        if marked and value % (2 * step) == 0:
            page.write(str(value), (left - 4, y + 0.35 * px), sheet.face, px - 2, side="right")
    page.pen.line((left, zero, made.right, zero), fill=BLACK, width=1)
    page.pen.line((left, made.high, left, zero), fill=BLACK, width=1)
    count = len(data.names)
    room = (made.right - left) / count
    size = min(fitting(f"{name} ", sheet.face, room, px) for name in data.names)
    for n, name in enumerate(data.names):
        page.write(
            name,
            (made.x(n, count), zero + 1.3 * px),
            sheet.face,
            size,
            side="centre",
            same_row=n > 0,
        )
    return made


def start(
    kind: str, split: Split, rng: random.Random, size: Size | None
) -> tuple[Sheet, int, Language]:
    """The sheet, the layout (0 values printed, 1 on the marks of the axis) and the language."""
    layout, face, language = layouts(kind, 2, FACES, split, rng)
    page = Page.blank(at_least(size, LEAST, rng), paper(rng))
    return Sheet.of(page, face, rng.randint(12, 14), rng, margin=0.05, top=1.6), layout, language


def bar_chart(split: Split, rng: random.Random, size: Size | None) -> Scene:
    sheet, layout, language = start("bar-chart", split, rng, size)
    step = rng.choice((1, 2, 5, 10, 20, 50))
    data = series(
        Stock(split, sheet.face, language),
        rng,
        step=step,
        ordered=rng.random() < 0.3,
        count=rng.randint(3, 5),
    )
    made = axes(sheet, data, step, marked=layout == 1)
    colours, page, count = palette(split, rng), sheet.page, len(data.values)
    in_one = rng.random() < 0.5
    half = rng.uniform(0.25, 0.4) * (made.right - made.left) / count
    tops = []
    for n, value in enumerate(data.values):
        x, y = made.x(n, count), made.y(value)
        page.pen.rectangle((x - half, y, x + half, made.zero), fill=colours[0 if in_one else n])
        tops.append((value, x, y))
    if layout == 0:
        print_values(sheet, tops)
    return chart_scene("bar-chart", sheet.page, data, language, rng)


def line_chart(split: Split, rng: random.Random, size: Size | None) -> Scene:
    sheet, layout, language = start("line-chart", split, rng, size)
    step = rng.choice((1, 2, 5, 10, 20, 50))
    data = series(
        Stock(split, sheet.face, language), rng, step=step, ordered=True, count=rng.randint(4, 6)
    )
    made = axes(sheet, data, step, marked=layout == 1)
    colour, page, count = rng.choice(palette(split, rng)), sheet.page, len(data.values)
    points = [(made.x(n, count), made.y(value)) for n, value in enumerate(data.values)]
    page.pen.line(points, fill=colour, width=2, joint="curve")
    for x, y in points:
        page.pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    if layout == 0:
        tops = [(value, x, y) for value, (x, y) in zip(data.values, points, strict=True)]
        print_values(sheet, tops)
    return chart_scene("line-chart", sheet.page, data, language, rng)


def print_values(sheet: Sheet, tops: Sequence[tuple[int, float, float]]) -> None:
    """Each above its place, in a gap of the line that may run there."""
    page, px, paper_colour = sheet.page, sheet.px - 1, sheet.page.canvas.getpixel((0, 0))
    for value, x, y in sorted(tops, key=lambda top: top[2]):
        half = width_of(str(value), sheet.face, px) / 2 + 1
        page.pen.rectangle((x - half, y - 6 - 0.75 * px, x + half, y - 4), fill=paper_colour)
        page.write(str(value), (x, y - 5), sheet.face, px, side="centre")


def pie_chart(split: Split, rng: random.Random, size: Size | None) -> Scene:
    """Shares of 100 %, with a legend on the right; in layout 0 with the shares in it."""
    sheet, layout, language = start("pie-chart", split, rng, size)
    count = rng.randint(3, 5)
    while True:
        cuts = sorted(rng.sample(range(1, 20), count - 1))
        values = [5 * (b - a) for a, b in zip([0, *cuts], [*cuts, 20], strict=True)]
        if len(set(values)) == count:
            break
    some_series = series(
        Stock(split, sheet.face, language), rng, step=1, ordered=False, count=count
    )
    data = Series(some_series.title, some_series.names, tuple(values), "%")
    sheet.head(data.title, scale=1.2)
    colours, page = palette(split, rng), sheet.page
    width, height = page.size
    radius = min(0.23 * width, 0.42 * (height - sheet.y))
    middle = sheet.left + radius, sheet.y - 0.5 * sheet.px + radius
    angle = rng.uniform(0, 360)
    disc = (middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius)
    for n, value in enumerate(values):
        page.pen.pieslice(
            disc, angle, angle + 3.6 * value, fill=colours[n], outline=(255, 255, 255)
        )
        angle += 3.6 * value
    x = sheet.left + 2 * radius + 0.05 * width
    sheet.y, sheet.gap = middle[1] - 0.5 * radius, max(sheet.gap, 1.6 * sheet.px)
    for n, name in enumerate(data.names):
        y = sheet.y
        page.pen.rectangle((x, y - 0.7 * sheet.px, x + 0.7 * sheet.px, y), fill=colours[n])
        parts = [Part(name, x + 1.2 * sheet.px)]
        if layout == 0:
            parts.append(Part(f"{values[n]}%", sheet.right, "right"))
        beside = width_of("55% ", sheet.face, sheet.px) if layout == 0 else 0.0
        room = sheet.right - x - 1.2 * sheet.px - beside
        parts[0] = Part(name, x + 1.2 * sheet.px, px=fitting(name, sheet.face, room, sheet.px))
        sheet.row(*parts)
    return chart_scene("pie-chart", page, data, language, rng, readable=layout == 0)


def chart_scene(
    kind: str,
    page: Page,
    data: Series,
    language: Language,
    rng: random.Random,
    *,
    readable: bool = True,
) -> Scene:
    """`readable` says whether single values can be told."""
    page.rows.sort(key=lambda row: row[0].box[1])
    page = photo(page, rng, 0.5)
    jobs = some(list(questions(data, language, rng, readable=readable)), 6, rng)
    if kind == "line-chart" and list(data.values) in (
        sorted(data.values),
        sorted(data.values)[::-1],
    ):
        choices = [said(trend, language) for trend in TRENDS]
        told = choices[0 if data.values[0] < data.values[-1] else 1]
        jobs.append(
            ask(rng.choice(TREND[language]), told, language, "chart-trend", choices=choices)
        )
    return scene_of(kind, page, jobs, rng, is_paper=False)


def questions(
    data: Series, language: Language, rng: random.Random, *, readable: bool
) -> Iterator[Job]:
    named = dict(zip(data.names, data.values, strict=True))
    names = list(named)
    for question, best in ((LARGEST, max), (SMALLEST, min)):
        told = best(names, key=named.__getitem__)
        yield ask(rng.choice(question[language]), told, language, "chart-extreme", choices=names)
    a, b = rng.sample(names, 2)
    if named[a] - named[b] in range(-10, 11) and not readable:
        a, b = max(names, key=named.__getitem__), min(names, key=named.__getitem__)
    yield ask(
        rng.choice(MORE[language]).format(a=a, b=b), named[a] > named[b], language, "chart-more"
    )
    yield ask(rng.choice(HOW_MANY[language]), len(names), language, "chart-count")
    yield ask(rng.choice(TITLE[language]), data.title, language, "chart-title")
    if not readable:
        return
    a = rng.choice(names)
    yield ask(rng.choice(VALUE[language]).format(a=a), named[a], language, "chart-value")
    b, a = sorted(rng.sample(names, 2), key=named.__getitem__)
    seen = [f"{name}: {named[name]}" for name in (a, b)]
    gap, both = named[a] - named[b], named[a] + named[b]
    question = rng.choice(DIFFERENCE[language]).format(a=a, b=b)
    steps = [*seen, f"{named[a]} - {named[b]} = {gap}"]
    yield solve(steps, str(gap), language, "chart-difference", question=question)
    question = rng.choice(SUM[language]).format(a=a, b=b)
    steps = [*seen, f"{named[a]} + {named[b]} = {both}"]
    yield solve(steps, str(both), language, "chart-sum", question=question)
    if data.unit != "%":
        steps = [", ".join(f"{name}: {value}" for name, value in named.items())]
        steps.append(f"{' + '.join(map(str, data.values))} = {sum(data.values)}")
        question = rng.choice(TOTAL[language])
        yield solve(steps, str(sum(data.values)), language, "chart-sum", question=question)


COLUMNS: Mapping[str, Words] = {
    "item": ("Товар", "Item", "商品"),
    "count": ("Кол-во", "Count", "数量"),
    "price": ("Цена", "Price", "价格"),
    "sum": ("Сумма", "Sum", "金额"),
}
CELL: Mapping[str, Question] = {
    "count": {
        "ru": ("Какое количество в строке «{a}»?",),
        "en": ('What is the count of "{a}"?',),
        "zh": ("“{a}”的数量是多少？",),
    },
    "price": {
        "ru": ("Какая цена в строке «{a}»?",),
        "en": ('What is the price of "{a}"?',),
        "zh": ("“{a}”的价格是多少？",),
    },
}
DEAREST: Question = {
    "ru": ("Что дороже всего?",), "en": ("Which item is the dearest?",), "zh": ("哪种商品最贵？",),
}  # fmt: skip
ALL_COUNT: Question = {
    "ru": ("Сколько всего штук?",), "en": ("How many pieces are there in all?",), "zh": ("总数量是多少？",),
}  # fmt: skip
ROWS: Question = {
    "ru": ("Сколько строк в таблице, не считая заголовка?",),
    "en": ("How many rows does the table have below its head?",),
    "zh": ("表格除表头外有几行？",),
}


def table(split: Split, rng: random.Random, size: Size | None) -> Scene:
    """Two to four columns. The layouts: 0 all lines, 1 lines between rows, 2 every other row grey."""
    layout, face, language = layouts("table", 3, FACES, split, rng)
    page = Page.blank(at_least(size, LEAST, rng), paper(rng))
    sheet = Sheet.of(page, face, rng.randint(12, 14), rng, margin=0.04, top=1.9)
    columns = ["item", *rng.sample(("count", "price"), rng.randint(1, 2))]
    columns.sort(key=list(COLUMNS).index)
    if len(columns) == 3 and rng.random() < 0.4:
        columns.append("sum")
    products = Stock(split, face, language).products(rng.randint(2, 6), rng)
    rows: list[dict[str, Any]] = []
    for product in products:
        count, price = rng.randint(1, 40), words.product_price(rng, product, language)
        whole = {
            "item": said(product.names, language),
            "count": count,
            "price": price,
            "sum": count * price,
        }
        rows.append({column: whole[column] for column in columns})
    if rng.random() < 0.5:
        sheet.head(said(rng.choice(TITLES), language), scale=1.2)
        sheet.y += 0.3 * sheet.px
        title = page.text
    else:
        title = ""
    heads = [said(COLUMNS[column], language) for column in columns]
    told = [[row["item"], *(in_cell(row[c], language) for c in columns[1:])] for row in rows]
    sheet.gap = min(2.0 * sheet.px, (page.size[1] - sheet.y) / (len(rows) + 0.6))
    print_table(sheet, [heads, *told], columns, layout)
    page = photo(page, rng, 0.6)
    head = [f"# {title}", ""] if title else []
    lines = [
        *head,
        markdown_row(heads),
        markdown_row(["---"] * len(heads)),
        *map(markdown_row, told),
    ]
    text = "\n".join(lines)
    options = {"language": any_language(rng), "answer_as": "markdown"}
    kinds = {"item": "", "count": " int", "price": " float", "sum": " float"}
    fields = f"rows[{', '.join(column + kinds[column] for column in columns)}]"
    jobs = [
        Job("ocr", options, text, text, "markdown-table"),
        *extract(page, {"rows": rows}, rng, "table", fields=fields),
        *some(list(table_questions(rows, columns, language, rng)), 3, rng),
    ]
    return scene_of("table", page, jobs, rng)


def in_cell(value: int | Decimal, language: Language) -> str:
    return words.amount(value, language) if isinstance(value, Decimal) else str(value)


def markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def print_table(
    sheet: Sheet, rows: Sequence[Sequence[str]], columns: Sequence[str], layout: int
) -> None:
    """Names on the left of their column, numbers on the right; the columns share what room is left."""
    while True:
        widths = [
            max(width_of(cell, sheet.face, sheet.px) for cell in column) + 4
            for column in zip(*rows, strict=True)
        ]
        if sum(widths) + 4 * len(widths) <= sheet.room or sheet.px == SMALLEST_PX:
            break
        sheet.px -= 1
    spare = max(4.0, (sheet.room - sum(widths)) / len(widths))
    edges = [sheet.left]
    for width in widths:
        edges.append(min(edges[-1] + width + spare, sheet.right))
    pen, top = sheet.page.pen, sheet.y - 0.7 * sheet.gap
    ends = [top + n * sheet.gap for n in range(len(rows) + 1)]
    for n, y in enumerate(ends):
        if layout == 2 and n % 2 == 0 and n < len(rows):
            pen.rectangle((edges[0], y, edges[-1], ends[n + 1]), fill=(222, 226, 232))
    for n, row in enumerate(rows):
        parts = []
        for c, cell in enumerate(row):
            name = f"rows[{n - 1}].{columns[c]}" if n else None
            at = (edges[c] + 4, "left") if c == 0 else (edges[c + 1] - 4, "right")
            parts.append(Part(cell, at[0], at[1], name))  # type: ignore[arg-type]
        sheet.row(*parts)
    for n, y in enumerate(ends):
        if layout < 2 or n in (0, 1, len(rows)):
            pen.line((edges[0], y, edges[-1], y), fill=(110, 110, 116))
    if layout == 0:
        for x in edges:
            pen.line((x, ends[0], x, ends[-1]), fill=(110, 110, 116))


def table_questions(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    language: Language,
    rng: random.Random,
) -> Iterator[Job]:
    row = rng.choice(rows)
    yield ask(rng.choice(ROWS[language]), len(rows), language, "table-rows")
    for column in columns[1:3]:
        question = rng.choice(CELL[column][language]).format(a=row["item"])
        yield ask(question, row[column], language, "table-cell")
    if "price" in columns:
        dearest = max(rows, key=lambda row: row["price"])
        if [r["price"] for r in rows].count(dearest["price"]) == 1:
            names = [r["item"] for r in rows]
            question = rng.choice(DEAREST[language])
            yield ask(question, dearest["item"], language, "table-extreme", choices=names)
    if "count" in columns:
        counts = [r["count"] for r in rows]
        steps = [", ".join(f"{r['item']}: {r['count']}" for r in rows)]
        steps.append(f"{' + '.join(map(str, counts))} = {sum(counts)}")
        question = rng.choice(ALL_COUNT[language])
        yield solve(steps, str(sum(counts)), language, "table-sum", question=question)


KINDS: Mapping[str, tuple[Callable[[Split, random.Random, Size | None], Scene], float]] = {
    "bar-chart": (bar_chart, 2.0),
    "line-chart": (line_chart, 1.5),
    "pie-chart": (pie_chart, 1.5),
    "table": (table, 2.0),
}
