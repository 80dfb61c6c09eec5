"""What can be said of extracted values without a second look: sums, dates, check digits.

The checksums are our own: each is a few lines of a published formula, and python-stdnum, which has
them but for passports' lines, is LGPL and brings two hundred other numbers along.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

EXACT = 0.005  # sums of printed amounts
ROUNDED = 0.0101  # products and shares, which are printed rounded to a hundredth
YEARS = range(1900, 2101)


@dataclass(frozen=True, slots=True)
class Check:
    """A value, "lines[0].sum", and the rule that it was held against; `message` says what is wrong."""

    field: str
    rule: str
    ok: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of RULES: what it holds `field` against, "lines.sum" for that of every line."""

    rule: str
    field: str
    of: tuple[str, ...] = ()
    less: tuple[str, ...] = ()


def checked(data: Mapping[str, Any], rules: Sequence[Rule]) -> tuple[Check, ...]:
    """Each rule where it applies: what is null is not checked."""
    return tuple(check for rule in rules for check in RULES[rule.rule](data, rule))


def is_inn(text: str) -> bool:
    """A Russian taxpayer's number of 10 or 12 digits, the last one or two of which check the others.

    Order of the Federal Tax Service of 29.06.2012, ММВ-7-6/435.
    """
    weights = (3, 7, 2, 4, 10, 3, 5, 9, 4, 6, 8)
    digits = _digits(text)
    checks = {10: 1, 12: 2}.get(len(digits), 0)
    return checks > 0 and all(
        digits[at] == sum(w * d for w, d in zip(weights[-at:], digits, strict=False)) % 11 % 10
        for at in range(len(digits) - checks, len(digits))
    )


def is_ean13(text: str) -> bool:
    """A GTIN-13: all digits weighted 1, 3, 1, 3, ... make a multiple of ten (GS1, 7.9)."""
    digits = _digits(text)
    return len(digits) == 13 and (sum(digits[::2]) + 3 * sum(digits[1::2])) % 10 == 0


def is_iban(text: str) -> bool:
    """A bank account's number by ISO 13616: country, two check digits, up to 30 characters, mod 97."""
    plain = _plain(text).upper()
    if not re.fullmatch(r"[A-Z]{2}[0-9]{2}[A-Z0-9]{10,30}", plain):
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def is_luhn(text: str) -> bool:
    """Up to 19 digits with Luhn's check digit, as bank cards have (ISO/IEC 7812-1)."""
    digits = _digits(text)
    doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
    return 1 < len(digits) < 20 and (sum(doubled) + sum(digits[::-2])) % 10 == 0


def is_date(text: str) -> bool:
    """A day by ISO 8601 that can stand on a paper of our time."""
    try:
        return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", text)) and (
            date.fromisoformat(text).year in YEARS
        )
    except ValueError:
        return False


def mrz_faults(first: str, second: str) -> tuple[str, ...]:
    """Which parts of a passport's two lines do not fit their check digits (ICAO 9303-4, 4.2.2).

    "lines" if they are not two lines of 44 characters.
    """
    first, second = _plain(first), _plain(second)
    if not all(re.fullmatch(r"[A-Z0-9<]{44}", line) for line in (first, second)):
        return ("lines",)
    parts = {
        "number": (second[0:9], second[9]),
        "birth": (second[13:19], second[19]),
        "expiry": (second[21:27], second[27]),
        "personal number": (second[28:42], second[42]),
        "composite": (second[0:10] + second[13:20] + second[21:43], second[43]),
    }
    return tuple(name for name, (part, digit) in parts.items() if not _fits_mrz(part, digit))


def _fits_mrz(part: str, digit: str) -> bool:
    values = (0 if c == "<" else int(c, 36) for c in part)
    total = sum(value * (7, 3, 1)[at % 3] for at, value in enumerate(values))
    return digit == str(total % 10) or (digit == "<" and not part.strip("<"))


def _plain(text: str) -> str:
    return re.sub(r"[\s-]", "", text)


def _digits(text: str) -> list[int]:
    """The digits of a number printed with spaces or dashes; none if there is anything else."""
    plain = _plain(text)
    return [int(c) for c in plain] if plain.isascii() and plain.isdigit() else []


def values(data: Mapping[str, Any], path: str) -> list[tuple[str, Any]]:
    """What stands under "total" or, in every line, under "lines.sum", by the name of each."""
    name, _, rest = path.partition(".")
    found = data.get(name)
    if not rest:
        return [(name, found)]
    rows = found if isinstance(found, list) else []
    return [(f"{name}[{at}].{rest}", row.get(rest)) for at, row in enumerate(rows)]


def _each(is_valid: Callable[[str], bool], what: str) -> Callable[..., Iterator[Check]]:
    """The rule that every value of a field is valid by itself."""

    def check(data: Mapping[str, Any], rule: Rule) -> Iterator[Check]:
        for name, value in values(data, rule.field):
            if isinstance(value, str):
                ok = is_valid(value)
                yield Check(name, rule.rule, ok, "" if ok else f"{value!r} is no valid {what}")

    return check


def _sum(data: Mapping[str, Any], rule: Rule) -> Iterator[Check]:
    ((name, total),) = values(data, rule.field)
    parts = [value for path in rule.of for _, value in values(data, path)]
    less = [value or 0 for path in rule.less for _, value in values(data, path)]
    if total is not None and parts and None not in parts:
        yield _equal(name, rule, total, math.fsum(parts) - math.fsum(less), EXACT)


def _product(data: Mapping[str, Any], rule: Rule) -> Iterator[Check]:
    """Row by row; of "percent", a hundredth."""
    share = 0.01 if rule.rule == "percent" else 1.0
    factors = zip(*(values(data, path) for path in rule.of), strict=True)
    for (name, value), row in zip(values(data, rule.field), factors, strict=True):
        known = [factor for _, factor in row]
        if value is not None and None not in known:
            yield _equal(name, rule, value, share * math.prod(known), ROUNDED)


def _equal(name: str, rule: Rule, value: float, expected: float, tolerance: float) -> Check:
    ok = abs(value - expected) <= tolerance
    said = f"it is {value:.12g}, and should be {round(expected, 4):.12g}"
    return Check(name, rule.rule, ok, "" if ok else said)


def _order(data: Mapping[str, Any], rule: Rule) -> Iterator[Check]:
    """Days by ISO 8601, whose order is that of their texts."""
    ((name, later),), ((before, earlier),) = values(data, rule.field), values(data, rule.of[0])
    if later is not None and earlier is not None:
        ok = earlier <= later
        yield Check(name, rule.rule, ok, "" if ok else f"{later} is before {before}, {earlier}")


def _mrz(data: Mapping[str, Any], rule: Rule) -> Iterator[Check]:
    """A passport's lines by themselves, then the number and the days printed above them."""
    first, *printed = rule.of
    lines = data.get(first), data.get(rule.field)
    if None in lines:
        return
    faults = mrz_faults(*lines)  # type: ignore[arg-type] # both are texts
    said = f"wrong by their check digits: {', '.join(faults)}" if faults else ""
    yield Check(rule.field, rule.rule, not faults, said)
    second = _plain(lines[1])  # type: ignore[arg-type]
    there = second[:9].rstrip("<"), second[13:19], second[21:27]
    for name, said, skipped in zip(printed, there, (0, 2, 2), strict=True):  # days lack a century
        value = data.get(name)
        if value is not None and not faults:
            ok = _plain(value)[skipped:] == said
            message = "" if ok else f"{value!r} is not what the machine-readable lines say"
            yield Check(name, rule.rule, ok, message)


KINDS: Mapping[str, Callable[..., Iterator[Check]]] = {  # of one value alone
    "date": _each(is_date, f"day from {YEARS[0]} to {YEARS[-1]}"),
    "inn": _each(is_inn, "INN"),
    "ean13": _each(is_ean13, "EAN-13"),
    "iban": _each(is_iban, "IBAN"),
    "luhn": _each(is_luhn, "number by Luhn's check digit"),
}
RULES: Mapping[str, Callable[..., Iterator[Check]]] = {
    **KINDS,
    "sum": _sum,
    "product": _product,
    "percent": _product,
    "order": _order,
    "mrz": _mrz,
}
