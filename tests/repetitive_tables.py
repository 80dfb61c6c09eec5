"""Tables whose cells repeat themselves, as documents have them."""

from __future__ import annotations

import random

WORDS = {
    "ru": ("да", "нет", "шт.", "в наличии", "итого", "не указано", "Молоко 3,2 %", "выходной"),
    "en": ("yes", "no", "pcs", "in stock", "total", "n/a", "Milk 3.2%", "closed"),
    "zh": ("是", "否", "件", "有货", "合计", "未注明", "牛奶3.2%", "休息"),
}


def tables() -> dict[str, str]:
    """At least fifty, by name."""
    found: dict[str, str] = {}
    for language in WORDS:
        found |= {f"{name}, {language}": text for name, text in of_language(language).items()}
    matrix = ["".join(f"{int(i == j)} " for j in range(12)) for i in range(12)]
    found |= {
        "a multiplication table": lines(range(1, 13), lambda n: [n * k for k in range(1, 13)]),
        "an identity matrix": "\n".join(matrix),
        "a matrix of zeros": "0 0 0 0 0 0 0 0\n" * 12,
        "a csv of zeros": "0,0,0,0,0,0\n" * 20,
        "a chessboard": lines([8, 7, 6, 5, 4, 3, 2, 1], lambda n: ["♙" if n in (2, 7) else "."] * 8),
        "a board without numbers": lines([1] * 8, lambda _: ["."] * 8),
        "a calendar": lines(range(0, 35, 7), lambda n: [n + k if n + k < 31 else "" for k in range(7)]),
        "a wide head": lines([1], lambda _: ["---"] * 30) + lines(range(3), lambda n: [n] * 30),
    }  # fmt: skip
    return found


def of_language(language: str) -> dict[str, str]:
    yes, no, unit, stock, total, none, item, closed = WORDS[language]
    rng = random.Random(language)
    rows = range(1, 41)
    return {
        "one value in all rows": lines(rows, lambda n: [n, stock, unit, "0,00"]),
        "mostly one value": lines(rows, lambda n: [n, yes if n % 7 else no, none]),
        "the same price": lines(rows, lambda n: [f"A-{n:03}", item, 1, unit, "89.90"]),
        "a timetable": lines(range(8, 48), lambda n: [f"{n // 2:02}:{n % 2 * 30:02}", *[closed] * 5]),
        "equal rows": lines([1] * 14, lambda _: [item, 1, unit, "89.90"]),
        "empty rows to fill in": lines([1] * 30, lambda _: [""] * 6),
        "numbered empty rows": lines(rows, lambda n: [n, "", "", "", ""]),
        "a wide row of one value": lines([1, 2], lambda n: [n, *[none] * 40]),
        "a checklist": "\n".join(f"- [ ] {item} {n}" for n in rows),
        "csv": "\n".join(f"{n};{item};{no};{no};{no};0" for n in rows),
        "tabs": "\n".join("\t".join([str(n), yes, yes, no, total]) for n in rows),
        "html": html(language, no),
        "json": "".join(f'{{"n":{n},"item":"{item}","in_stock":true}},' for n in rows),
        "a receipt": "\n".join(f"{item:.<30}{n % 3 + 1} x 89.90 {total}" for n in rows),
        "random values of two": lines(rows, lambda _: [rng.choice((yes, no)) for _ in range(8)]),
    }  # fmt: skip


def lines(rows, cells) -> str:
    return "".join(f"| {' | '.join(str(c) for c in cells(row))} |\n" for row in rows)


def html(language: str, value: str) -> str:
    row = "".join(f"<td>{value}</td>" for _ in range(4))
    return "".join(f"<tr><th>{language} {n}</th>{row}</tr>\n" for n in range(25))
