"""Receipts and invoices: what was sold, at what price, and totals that add up, or do not.

In one of eight the total is wrong on purpose, as `tasks.checks` then finds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from qvl.scenes import words
from qvl.scenes.page import PAPER_FACES, Page, width_of
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
from qvl.scenes.reading import ask, extract, solve
from qvl.scenes.scene import Job, Scene, Split
from qvl.scenes.words import Language, Words, said

CENT = Decimal("0.01")
WRONG_TOTALS = 1 / 8
LEAST_RECEIPT, LEAST_INVOICE = (256, 384), (320, 448)
PX = (11, 13)
PAYMENTS: tuple[Words, ...] = (
    ("наличные", "cash", "现金"),
    ("карта", "card", "银行卡"),
    ("безналичные", "bank transfer", "转账"),
)
LABELS: Mapping[str, Words] = {
    "inn": ("ИНН", "TIN", "税号"),
    "total": ("ИТОГО", "TOTAL", "合计"),
    "discount": ("СКИДКА", "DISCOUNT", "优惠"),
    "tax": ("НДС", "TAX", "税额"),
    "payment": ("ОПЛАТА", "PAID BY", "支付方式"),
    "thanks": ("СПАСИБО ЗА ПОКУПКУ!", "THANK YOU!", "谢谢惠顾！"),
    "name": ("Товар", "Item", "商品"),
    "count": ("Кол.", "Qty", "数量"),
    "price": ("Цена", "Price", "单价"),
    "sum": ("Сумма", "Sum", "金额"),
    "receipt": ("КАССОВЫЙ ЧЕК", "RECEIPT", "收银小票"),
    "invoice": ("Счёт №", "Invoice no.", "发票号码"),
    "issued": ("Дата", "Date", "开票日期"),
    "due": ("Оплатить до", "Due", "付款期限"),
    "seller": ("Продавец", "Seller", "销售方"),
    "buyer": ("Покупатель", "Buyer", "购买方"),
    "iban": ("Счёт IBAN", "IBAN", "账号"),
    "net": ("Без налога", "Net", "不含税"),
    "currency": ("Валюта", "Currency", "币种"),
}  # fmt: skip


def label(name: str, language: Language) -> str:
    return said(LABELS[name], language)


@dataclass(frozen=True, slots=True)
class Sold:
    """A line: its sum is count x price, rounded to a hundredth."""

    name: str
    count: Decimal
    price: Decimal

    @property
    def sum(self) -> Decimal:
        return (self.count * self.price).quantize(CENT, ROUND_HALF_UP)


def sold(stock: Stock, n: int, rng: random.Random, *, whole: bool = False) -> list[Sold]:
    lines = []
    for product in stock.products(n, rng):
        count = Decimal(rng.choices((1, 2, 3, 4, 5), weights=(8, 4, 2, 1, 1))[0])
        if not whole and rng.random() < 0.15:
            count = Decimal(rng.randint(120, 2900)).scaleb(-3)
        price = words.product_price(rng, product, stock.language).quantize(CENT)
        lines.append(Sold(said(product.names, stock.language), count, price))
    return lines


def wrong(total: Decimal, rng: random.Random) -> Decimal:
    """Another amount that looks like it: off by some whole units."""
    return total + rng.choice((1, 2, 5, 10, 30, 100))


def receipt(split: Split, rng: random.Random, size: Size | None) -> Scene:
    """The layouts: 0 a name, and below it count x price and sum; 1 all in a row; 2 a table with a head;
    3 names and sums only.
    """
    layout, face, language = layouts("receipt", 4, PAPER_FACES, split, rng)
    stock = Stock(split, face, language)
    page = Page.blank(at_least(size, LEAST_RECEIPT, rng), paper(rng))
    sheet = Sheet.of(page, face, rng.randint(*PX), rng, top=2.2)
    most = (sheet.lines_left - 11) // (2 if layout == 0 else 1)
    lines = sold(stock, rng.randint(2, max(2, min(10, most))), rng)
    if layout == 3:
        lines = [Sold(line.name, Decimal(1), line.price) for line in lines]
    data = receipt_data(lines, stock, rng, priced=layout != 3)
    sheet.spread(11 + len(lines) * (2 if layout == 0 else 1), rng)
    side = "centre" if rng.random() < 0.7 else "left"
    sheet.head(data["shop"], "shop", scale=rng.uniform(1.1, 1.7), side=side)
    if data["address"]:
        sheet.head(data["address"], "address", side=side)
    if data["inn"]:
        after = sheet.left + width_of(label("inn", language) + "  ", face, sheet.px)
        sheet.row(Part(label("inn", language), sheet.left), Part(data["inn"], after, name="inn"))
    when = []
    if data["date"]:
        date = words.printed_day(words.from_iso(data["date"]), language)
        when.append(Part(date, sheet.left, name="date"))
    if data["time"]:
        when.append(Part(data["time"], sheet.right, "right", "time"))
    if when:
        sheet.row(*when)
    sheet.rule(rng)
    print_lines(sheet, lines, layout, language)
    sheet.rule(rng)
    print_totals(sheet, data, language, rng)
    page = photo(page if size else sheet.cut(), rng)
    jobs = [
        *extract(page, data, rng, "receipt", profile="receipt"),
        *some(list(receipt_questions(data, lines, language, rng)), 4, rng),
    ]
    return scene_of("receipt", page, jobs, rng)


def receipt_data(
    lines: Sequence[Sold], stock: Stock, rng: random.Random, *, priced: bool
) -> dict[str, Any]:
    """The profile's fields, null where the receipt does not have them."""
    language, net = stock.language, sum((line.sum for line in lines), Decimal(0))
    discount = (net / rng.choice((10, 20))).quantize(CENT) if rng.random() < 0.3 else None
    total = net - (discount or 0)
    total = wrong(total, rng) if rng.random() < WRONG_TOTALS else total

    def maybe(value: Any, chance: float) -> Any:
        return value if rng.random() < chance else None

    return {
        "shop": said(stock.shops(1, rng)[0], language),
        "address": maybe(words.address(rng, language), 0.6),
        "inn": maybe(words.inn(rng), 0.5),
        "date": maybe(words.iso(words.day(rng)), 0.85),
        "time": maybe(f"{rng.randint(8, 22):02}:{rng.randint(0, 59):02}", 0.7),
        "lines": [
            {
                "name": line.name,
                "count": line.count if priced else None,
                "price": line.price if priced else None,
                "sum": line.sum,
            }
            for line in lines
        ],
        "discount": discount,
        "total": total,
        "tax": maybe((total / 6).quantize(CENT), 0.4),
        "payment": maybe(said(rng.choice(PAYMENTS[:2]), language), 0.6),
    }


def print_lines(sheet: Sheet, lines: Sequence[Sold], layout: int, language: Language) -> None:
    left, right, px = sheet.left, sheet.right, sheet.px
    keys = ("name", "count", "price", "sum")
    prices, totals = (
        [words.amount(v, language) for v in column]
        for column in ([line.price for line in lines], [line.sum for line in lines])
    )
    at_price = right - widest([*totals, label("sum", language)], sheet)
    at_count = at_price - widest([*prices, label("price", language)], sheet)
    columns = (left, at_count, at_price, right)
    if layout == 2:
        heads = [
            Part(label(key, language), x, "right") for key, x in zip(keys, columns, strict=True)
        ]
        sheet.row(Part(heads[0].text, left), *heads[1:])
    for n, line in enumerate(lines):
        count = str(line.count).replace(".", "," if language == "ru" else ".")
        price, total = prices[n], totals[n]
        name = Part(line.name, left, name=f"lines[{n}].name")
        ending = Part(total, right, "right", f"lines[{n}].sum")
        across = width_of(f"{count} x ", sheet.face, px), width_of(price, sheet.face, px)
        match layout:
            case 0:
                sheet.row(name)
                sheet.row(*product(count, price, left + 2 * px, across[0], n), ending)
            case 1:
                x = columns[2] - sum(across)
                sheet.row(name, *product(count, price, x, across[0], n), ending)
            case 2:
                middle = zip(("count", "price"), (count, price), columns[1:3], strict=True)
                parts = [Part(text, x, "right", f"lines[{n}].{key}") for key, text, x in middle]
                sheet.row(name, *parts, ending)
            case _:
                sheet.row(name, ending)


def widest(texts: Sequence[str], sheet: Sheet) -> float:
    """Pixels of the widest text, and of two letters beside it."""
    return max(width_of(f"{text}00", sheet.face, sheet.px) for text in texts)


def product(count: str, price: str, x: float, across: float, n: int) -> tuple[Part, Part]:
    """ "2 x" and "49.90", beside each other."""
    return (
        Part(f"{count} x", x, name=f"lines[{n}].count"),
        Part(price, x + across, name=f"lines[{n}].price"),
    )


def print_totals(
    sheet: Sheet, data: Mapping[str, Any], language: Language, rng: random.Random
) -> None:
    for key, scale in (("discount", 1.0), ("total", rng.uniform(1.0, 1.3)), ("tax", 1.0)):
        if data[key] is not None:
            sheet.pair(label(key, language), words.amount(data[key], language), key, scale=scale)
    if data["payment"]:
        sheet.pair(label("payment", language), data["payment"], "payment")
    if sheet.lines_left > 1 and rng.random() < 0.6:
        sheet.head(label("thanks", language))


QUESTIONS: Mapping[str, Mapping[Language, Sequence[str]]] = {
    "total": {
        "ru": ("Какая итоговая сумма?", "Сколько всего заплатили?"),
        "en": ("What is the total?", "How much was paid in all?"),
        "zh": ("总金额是多少？", "一共付了多少钱？"),
    },
    "sum": {
        "ru": ("На какую сумму куплен товар «{name}»?", "Какая сумма в строке «{name}»?"),
        "en": ('What is the amount for "{name}"?', 'How much did "{name}" come to?'),
        "zh": ("“{name}”的金额是多少？", "“{name}”这一行多少钱？"),
    },
    "lines": {
        "ru": ("Сколько разных товаров в чеке?", "Сколько позиций куплено?"),
        "en": ("How many different items were bought?", "How many items are listed?"),
        "zh": ("买了几种商品？", "小票上有几种商品？"),
    },
    "shop": {
        "ru": ("Как называется магазин?", "Из какого магазина чек?"),
        "en": ("What is the name of the shop?", "Which shop is it from?"),
        "zh": ("商店叫什么名字？", "这是哪家商店的小票？"),
    },
    "dearest": {
        "ru": ("На что потрачено больше всего?",),
        "en": ("Which item has the largest amount?",),
        "zh": ("哪种商品的金额最高？",),
    },
    "bought": {
        "ru": ("Есть ли в чеке товар «{name}»?", "Куплен ли товар «{name}»?"),
        "en": ('Is "{name}" on the receipt?', 'Was "{name}" bought?'),
        "zh": ("小票上有“{name}”吗？", "买了“{name}”吗？"),
    },
    "adds-up": {
        "ru": ("Сходится ли итог с суммой строк?",),
        "en": ("Does the total agree with the amounts of the lines?",),
        "zh": ("合计与各行金额相符吗？",),
    },
    "two": {
        "ru": ("Сколько стоят вместе «{a}» и «{b}»?",),
        "en": ('How much do "{a}" and "{b}" come to together?',),
        "zh": ("“{a}”和“{b}”一共多少钱？",),
    },
}  # fmt: skip


def receipt_questions(
    data: Mapping[str, Any], lines: Sequence[Sold], language: Language, rng: random.Random
) -> Iterator[Job]:
    """In the language of the receipt."""

    def words_for(key: str, **given: str) -> str:
        return rng.choice(QUESTIONS[key][language]).format(**given)

    line = rng.choice(lines)
    yield ask(words_for("total"), data["total"], language, "receipt-total")
    yield ask(words_for("sum", name=line.name), line.sum, language, "receipt-line")
    yield ask(words_for("lines"), len(lines), language, "receipt-count")
    yield ask(words_for("shop"), data["shop"], language, "receipt-shop")
    dearest = max(lines, key=lambda line: line.sum)
    if sum(line.sum == dearest.sum for line in lines) == 1:
        names = [line.name for line in lines]
        yield ask(words_for("dearest"), dearest.name, language, "receipt-dearest", choices=names)
    others = [said(p.names, language) for p in words.PRODUCTS]
    others = [name for name in others if name not in {line.name for line in lines}]
    name, there = (line.name, True) if rng.random() < 0.5 else (rng.choice(others), False)
    yield ask(words_for("bought", name=name), there, language, "receipt-bought")
    net = sum((line.sum for line in lines), Decimal(0))
    is_right = data["total"] == net - (data["discount"] or 0)
    if data["discount"] is None:
        yield ask(words_for("adds-up"), is_right, language, "receipt-adds-up")
    a, b = rng.sample(lines, 2)
    steps = [f"{a.name}: {a.sum}", f"{b.name}: {b.sum}", f"{a.sum} + {b.sum} = {a.sum + b.sum}"]
    question = words_for("two", a=a.name, b=b.name)
    yield solve(steps, str(a.sum + b.sum), language, "receipt-two", question=question)


def invoice(split: Split, rng: random.Random, size: Size | None) -> Scene:
    """The layouts: 0 labels and values side by side, 1 the same below each other, the table last."""
    layout, face, language = layouts("invoice", 2, PAPER_FACES, split, rng)
    stock = Stock(split, face, language)
    page = Page.blank(at_least(size, LEAST_INVOICE, rng), paper(rng))
    sheet = Sheet.of(page, face, rng.randint(11, 12), rng)
    lines = sold(stock, rng.randint(1, 5), rng, whole=True)
    data = invoice_data(lines, stock, rng)
    sheet.spread(15 + len(lines), rng)
    number = Part(data["number"], sheet.right, "right", "number", round(sheet.px * 1.3))
    sheet.row(Part(label("invoice", language), sheet.left, px=round(sheet.px * 1.3)), number)
    sheet.rule(rng)
    for key in ("issued", "due", "seller", "seller_inn", "iban", "buyer", "buyer_inn"):
        if data[key] is None:
            continue
        text = data[key]
        if key in ("issued", "due"):
            text = words.printed_day(words.from_iso(text), language)
        title = label("inn" if key.endswith("inn") else key, language)
        if layout == 0:
            sheet.pair(title, text, key)
        else:
            after = sheet.left + 0.36 * sheet.room
            sheet.row(Part(f"{title}:", sheet.left), Part(text, after, name=key))
    sheet.rule(rng)
    print_lines(sheet, lines, 2, language)
    sheet.rule(rng)
    tax = f"{label('tax', language)} {data['tax_percent']}%"
    sheet.pair(label("net", language), words.amount(data["net"], language), "net")
    sheet.pair(tax, words.amount(data["tax"], language), "tax")
    total = f"{label('total', language)}, {data['currency']}"
    sheet.pair(total, words.amount(data["total"], language), "total", scale=1.15)
    page = photo(page if size else sheet.cut(), rng, 0.7)
    jobs = [
        *extract(page, data, rng, "invoice", profile="invoice"),
        ask(rng.choice(QUESTIONS["total"][language]), data["total"], language, "invoice-total"),
    ]
    return scene_of("invoice", page, jobs, rng)


def invoice_data(lines: Sequence[Sold], stock: Stock, rng: random.Random) -> dict[str, Any]:
    language, net = stock.language, sum((line.sum for line in lines), Decimal(0))
    percent = rng.choice((5, 10, 20))
    tax = (net * percent / 100).quantize(CENT, ROUND_HALF_UP)
    total = net + tax
    total = wrong(total, rng) if rng.random() < WRONG_TOTALS else total
    issued = words.day(rng)
    due = (issued[0], issued[1], min(28, issued[2] + rng.choice((5, 7, 10))))
    seller, buyer = stock.shops(2, rng)
    is_russian = language == "ru"
    return {
        "number": words.random_code(rng),
        "issued": words.iso(issued),
        "due": words.iso(due) if rng.random() < 0.6 else None,
        "seller": said(seller, language),
        "seller_inn": words.inn(rng) if is_russian or rng.random() < 0.3 else None,
        "iban": words.iban(rng) if not is_russian and rng.random() < 0.6 else None,
        "buyer": said(buyer, language),
        "buyer_inn": words.inn(rng) if is_russian and rng.random() < 0.6 else None,
        "lines": [
            {"name": line.name, "count": line.count, "price": line.price, "sum": line.sum}
            for line in lines
        ],
        "currency": {"ru": "RUB", "en": rng.choice(("USD", "EUR")), "zh": "CNY"}[language],
        "net": net,
        "tax_percent": Decimal(percent),
        "tax": tax,
        "total": total,
    }


KINDS: Mapping[str, tuple[Callable[[Split, random.Random, Size | None], Scene], float]] = {
    "receipt": (receipt, 3.0),
    "invoice": (invoice, 1.0),
}
