"""What all papers share: their size and colour, rows of print, which layouts a split may show, their kind."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import ImageDraw

from qvl.scenes.page import BLACK, Page, Rgb, Side, faces_of, fitting
from qvl.scenes.photo import photographed
from qvl.scenes.reading import any_language, ocr_jobs, text_jobs
from qvl.scenes.scene import Job, Scene, Split, belongs
from qvl.scenes.words import LANGUAGES, PRODUCTS, SHOPS, Language, Product, Words, said

Size = tuple[int, int]
SIDE_STEP = 32  # pixels: a visual token's side, so that no picture is resized
PAPER_KINDS: dict[str, Words] = {
    "receipt": ("чек", "receipt", "小票"),
    "invoice": ("счёт", "invoice", "发票"),
    "business-card": ("визитка", "business card", "名片"),
    "label": ("этикетка", "label", "标签"),
    "price-tag": ("ценник", "price tag", "价签"),
    "passport": ("паспорт", "passport", "护照"),
    "form": ("анкета", "form", "表单"),
    "notice": ("объявление", "notice", "通知"),
    "sign": ("вывеска", "sign", "招牌"),
    "table": ("таблица", "table", "表格"),
    "chart": ("диаграмма", "chart", "图表"),
    "problem": ("задача", "maths problem", "数学题"),
}


def at_least(size: Size | None, least: Size, rng: random.Random) -> Size:
    """`size`, but large enough to be read; without one, up to two steps larger than that."""
    if size is None:
        across, down = (side + SIDE_STEP * rng.randint(0, 2) for side in least)
        return across, down
    return max(size[0], least[0]), max(size[1], least[1])


def paper(rng: random.Random) -> Rgb:
    """White, greyish or yellowish."""
    tone = rng.randint(232, 255)
    return tone, tone - rng.randint(0, 4), tone - rng.randint(0, 18)


def layouts(
    kind: str, count: int, faces: Sequence[str], split: Split, rng: random.Random
) -> tuple[int, str, Language]:
    """Layout, face and language of a paper: a combination that the split may show."""
    while True:
        layout, language = rng.randrange(count), rng.choice(LANGUAGES)
        face = rng.choice(faces_of(split, faces))
        if belongs(split, kind, layout, face, language):
            return layout, face, language


@dataclass(frozen=True, slots=True)
class Stock:
    """The names that papers in this face and language may print: in training none that `text` holds
    out in that face, so that no word is learnt from a receipt that is to be read from a sign.
    """

    split: Split
    face: str
    language: Language

    def shows(self, names: Words) -> bool:
        kept = self.split == "held-out"  # which papers are, their layouts decide
        return kept or belongs(self.split, "text", said(names, self.language), self.face)

    def products(self, n: int, rng: random.Random) -> list[Product]:
        return rng.sample([one for one in PRODUCTS if self.shows(one.names)], n)

    def shops(self, n: int, rng: random.Random) -> list[Words]:
        return rng.sample([names for names in SHOPS if self.shows(names)], n)


@dataclass(frozen=True, slots=True)
class Part:
    """A text of a row: where, and what it stands for; `px` None is the sheet's own size."""

    text: str
    x: float
    side: Side = "left"
    name: str | None = None
    px: int | None = None


@dataclass(slots=True)
class Sheet:
    """A page that is written on from the top, `y` being the next baseline."""

    page: Page
    face: str
    px: int
    left: float
    right: float
    gap: float
    y: float

    @classmethod
    def of(
        cls,
        page: Page,
        face: str,
        px: int,
        rng: random.Random,
        *,
        margin: float = 0.06,
        top: float = 2.0,
    ) -> Sheet:
        """`margin` is a share of the width, `top` the first baseline in lines of print."""
        width = page.size[0]
        gap = px * rng.uniform(1.3, 1.5)
        return cls(
            page, face, px, round(width * margin), round(width * (1 - margin)), gap, top * px
        )

    @property
    def room(self) -> float:
        return self.right - self.left

    @property
    def lines_left(self) -> int:
        return int((self.page.size[1] - self.y - 0.3 * self.px) / self.gap) + 1

    def spread(self, rows: int, rng: random.Random) -> None:
        """Lines closer together or further apart, so that so many have room and fill the page."""
        widest = (self.page.size[1] - self.y) / rows
        self.gap = min(1.9 * self.px, max(1.15 * self.px, widest * rng.uniform(0.7, 0.95)))

    def cut(self) -> Page:
        """The page without what is empty below, in whole visual tokens."""
        width, height = self.page.size
        used = -(-round(self.y + self.px) // SIDE_STEP) * SIDE_STEP
        canvas = self.page.canvas.crop((0, 0, width, min(height, used)))
        return replace(self.page, canvas=canvas, pen=ImageDraw.Draw(canvas))

    def row(self, *parts: Part, ink: Rgb = BLACK) -> None:
        """Texts beside each other, then the next line."""
        for number, part in enumerate(parts):
            self.page.write(
                part.text,
                (part.x, self.y),
                self.face,
                part.px or self.px,
                side=part.side,
                ink=ink,
                name=part.name,
                same_row=number > 0,
            )
        self.y += self.gap

    def head(
        self, text: str, name: str | None = None, *, scale: float = 1.0, side: Side = "centre"
    ) -> None:
        """A line alone, smaller if it has no room."""
        px = fitting(text, self.face, self.room, round(self.px * scale))
        self.y += max(0, px - self.px)
        x = {"left": self.left, "centre": (self.left + self.right) / 2, "right": self.right}[side]
        self.row(Part(text, x, side, name, px))

    def pair(self, first: str, second: str, name: str | None = None, *, scale: float = 1.0) -> None:
        """A label on the left and its value on the right."""
        px = round(self.px * scale)
        self.y += max(0, px - self.px)
        px = fitting(f"{first}  {second}", self.face, self.room, px)
        self.row(Part(first, self.left, px=px), Part(second, self.right, "right", name, px))

    def rule(self, rng: random.Random) -> None:
        """A line across, drawn or dashed."""
        y = self.y - 0.55 * self.px
        dash = round(rng.choice((self.room, 3, 6)))
        for x in range(round(self.left), round(self.right), 2 * dash):
            self.page.pen.line((x, y, min(x + dash, self.right), y), fill=(90, 90, 90))
        self.y += 0.5 * self.gap


def classified(kind: str, rng: random.Random) -> Job:
    """Which kind of paper it is, of two to five."""
    language = any_language(rng)
    others = rng.sample([k for k in PAPER_KINDS if k != kind], rng.randint(1, 4))
    labels = [said(PAPER_KINDS[k], language) for k in (kind, *others)]
    rng.shuffle(labels)
    right = said(PAPER_KINDS[kind], language)
    return Job(
        "classify", {"labels": labels, "language": language}, right, [right], "kind-of-paper"
    )


def some(jobs: Sequence[Job], most: int, rng: random.Random) -> list[Job]:
    """Up to so many of them."""
    return rng.sample(jobs, min(most, len(jobs)))


def scene_of(
    kind: str, page: Page, jobs: Sequence[Job], rng: random.Random, *, is_paper: bool = True
) -> Scene:
    """The scene of a photographed page: its own jobs, a few about its texts, and its kind."""
    read = [*ocr_jobs(page, rng), *some(list(text_jobs(page, rng)), 3, rng)]
    all_jobs = (*jobs, *read, *([classified(kind, rng)] if is_paper else []))
    return Scene(kind, (page.canvas,), (page.things,), all_jobs)


def photo(page: Page, rng: random.Random, most: float = 0.9) -> Page:
    """A third of papers are scans without a flaw."""
    return photographed(page, rng, max(0.0, rng.uniform(-most / 2, most)))
