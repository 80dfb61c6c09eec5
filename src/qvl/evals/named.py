"""Which of the known kinds of objects a text names, in Russian, English or Chinese.

Known are the forms of `scenes.kinds`: in Russian the nominative, genitive and accusative, and what
stands after numbers; the other cases are not in that table and not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache

from qvl.evals.scores import HAN, normal
from qvl.scenes.kinds import Kind, by_key
from qvl.scenes.objects import SHAPE_KINDS
from qvl.scenes.phrases import COLOURS

NUMERALS = r"\d一二两三四五六七八九十"
NO_NAMES = ("画面",)  # words with a name in them


def named(text: str) -> frozenset[str]:
    """Keys of the kinds; of two that share a form, the first in the table stands for both.

    The longest name counts where one lies in another: a "hot dog" is no dog.
    """
    pattern, keys = _table()
    return frozenset(keys[hit] for hit in pattern.findall(normal(text)) if hit in keys)


def invented(text: str, there: Iterable[str], true_text: str) -> frozenset[str]:
    """What the text names that neither is `there`, by its key, nor is named by the true text.

    The latter, as that may name more than things: a pattern of stars, the category "toys". CHAIR of
    Rohrbach et al. 2018 counts the same, over COCO's categories.
    """
    _, keys = _table()
    known = {one.key: one for one in _kinds()}
    allowed = {keys[form] for key in there if key in known for form in _forms(known[key])}
    return named(text) - named(true_text) - allowed


def _kinds() -> list[Kind]:
    return [*by_key().values(), *SHAPE_KINDS]


def _forms(kind: Kind) -> Iterator[str]:
    said = (kind.en, kind.en_plural, kind.zh, kind.ru, kind.ru_gen, kind.ru_acc, kind.ru_few,
            kind.ru_plural, kind.ru_gen_plural)  # fmt: skip
    return (normal(form) for form in said if form)


@cache
def _table() -> tuple[re.Pattern[str], dict[str, str]]:
    """What finds a form, the longest first, and the key that each stands for."""
    keys: dict[str, str] = {}
    for kind in _kinds():
        for form in _forms(kind):
            keys.setdefault(form, kind.key)
    longest_first = sorted((*keys, *NO_NAMES), key=lambda form: (-len(form), form))
    # "一碗米饭": what counts things after a number is no bowl
    measures = {kind.zh_measure for kind in _kinds()}
    signs = "|".join(
        rf"(?<![{NUMERALS}]){form}" if form in measures else form
        for form in longest_first
        if re.match(f"[{HAN}]", form)
    )
    others = [re.escape(form) for form in longest_first if not re.match(f"[{HAN}]", form)]
    letter = rf"[^\W{HAN}]"
    # "orange" is a colour before a name and after "colour:"
    colours = {colour.said(language) for colour in COLOURS for language in ("ru", "en")}
    words = "|".join(
        rf"(?<!colour: ){form}(?! (?:{'|'.join(others)}))" if form in colours else form
        for form in others
    )
    return re.compile(rf"(?<!{letter})(?:{words})(?!{letter})|{signs}"), keys
