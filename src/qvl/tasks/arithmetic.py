"""Equations of plain numbers in a text, computed anew: are both sides the same?

Only what is certainly arithmetic counts: numbers, + - * / ^ and brackets, also as TeX writes them. An
unknown, a function or a word beside the numbers leaves the equation alone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from itertools import pairwise
from operator import add, mul, sub

MAX_CHARACTERS = 200
MAX_EXPONENT = 64
MAX_DIGITS = 60
_AS_PLAIN = {
    r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}": r"((\1)/(\2))",
    r"\\(?:times|cdot)(?![A-Za-z])|[×·∙⋅]": "*",
    r"\\div(?![A-Za-z])|÷": "/",
    r"\\(?:left|right)(?![A-Za-z])|\\[,;! ]|\$|\\[()\[\]]": " ",
    r"[−–]": "-",
    r"\\approx(?![A-Za-z])": "≈",
    r"\^\{([^{}]*)\}": r"^(\1)",
    r"(?<=[\d)]) : (?=[\d(])": "/",  # 10:30 without spaces may be a time
    r"(?<=\d)[ \u00a0\u202f](?=\d{3}(?!\d))": "",
}
_STEP_MARK = re.compile(r"^\s*(?:\d{1,2}[.)]|[-*•])\s+")
_PLAIN = r"(?:[-+*/^()\d\s]|\.(?=\d)|(?<=\d),(?=\d))*"
_FIRST, _LAST = re.compile(_PLAIN), re.compile(_PLAIN + "$")
# the end of what may stand before an expression that begins with a minus
_BEGIN = re.compile(r"(?:^|[:;,.!?(«$—、：，。；])\s*$")
# what makes the number behind it part of something else
_TAKEN = re.compile(
    r"(?:[A-Za-zА-яЁё_^√∑∫|%!}=]|[乘加减除以根号余]"
    r"|\b(?:sin|cos|tan|tg|log|lg|ln|mod|of|times|plus|minus|by|root|из|на|от|плюс|минус|корень)\s+)$"
)
_GOES_ON = re.compile(r"\s*[+*/^(\\!%√°-]|[A-Za-zА-яЁё](?![A-Za-zА-яЁё])")
_OPERATIONS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: add,
    ast.Sub: sub,
    ast.Mult: mul,
}


def is_wrong(step: str) -> bool:
    """An equation in the text does not hold, as far as its sides are plain numbers."""
    return any(not _holds(left, right) for left, right in _equations(step))


def value(expression: str) -> Fraction | None:
    """The value of plain arithmetic; None for anything else, and for what is too large."""
    if len(expression) > MAX_CHARACTERS:
        return None
    try:
        tree = ast.parse(expression.strip().replace("^", "**"), mode="eval")
        return _value(tree.body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _equations(text: str) -> Iterator[tuple[str, str]]:
    plain = _STEP_MARK.sub("", text)
    for pattern, replacement in _AS_PLAIN.items():
        plain = re.sub(pattern, replacement, plain)
    for left, right in pairwise(re.split(r"[=≈]", plain)):
        left, right = left[-2 * MAX_CHARACTERS :], right[: 2 * MAX_CHARACTERS]
        last, first = _LAST.search(left), _FIRST.match(right)
        if last is None or first is None:
            continue
        before, after = left[: last.start()], right[first.end() :]
        if _TAKEN.search(before + last[0][: len(last[0]) - len(last[0].lstrip())]):
            continue
        if _GOES_ON.match(after):
            continue
        sides = last[0].strip(), first[0].strip()
        if sides[0][:1] in ("+", "*", "/", "^") or (
            sides[0].startswith("-") and not _BEGIN.search(before)
        ):
            continue  # something unknown comes before the sign
        if all(re.search(r"\d", side) for side in sides):
            yield sides


def _holds(left: str, right: str) -> bool:
    """The comma may be a decimal point or stand between thousands: one reading must hold."""
    if not re.search(r"[-+*/^]", (left + right).lstrip("-")):
        return True  # two numbers: of what, is not said
    is_known = False
    for decimal in (".", ""):
        pair = left.replace(",", decimal), right.replace(",", decimal)
        ours, theirs = map(value, pair)
        if ours is not None and theirs is not None:
            if abs(ours - theirs) <= _rounding(*pair):
                return True
            is_known = True
    return not is_known


def _rounding(left: str, right: str) -> Fraction:
    """Half of the last place of a side that is one number with a fraction."""
    places = [re.fullmatch(r"-?\d+\.(\d+)", side.strip()) for side in (left, right)]
    return max(
        (Fraction(1, 2 * 10 ** len(found[1])) for found in places if found), default=Fraction(0)
    )


def _value(node: ast.expr) -> Fraction:
    """Raises ValueError for anything but arithmetic of numbers."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _checked(Fraction(str(number)))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _checked(_value(left) / _value(right))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATIONS:
            return _checked(_OPERATIONS[type(operator)](_value(left), _value(right)))
    raise ValueError("no arithmetic")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > MAX_EXPONENT:
        raise ValueError("the exponent is too large")
    return _checked(base ** int(exponent))


def _checked(number: Fraction) -> Fraction:
    if max(abs(number.numerator), number.denominator) > 10**MAX_DIGITS:
        raise ValueError("the number is too large")
    return number
