"""How right an answer is, as plain functions of what was told and what is true.

None of them draws at random, keeps a total, or takes a look at the truth to decide how an answer is to
be read. The source of each formula stands in its docstring.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
PixelBox = Sequence[float]  # x1, y1, x2, y2
BINS = 15
HAN = "\u3400-\u9fff"
_TOKEN = re.compile(rf"[{HAN}]|[^\W{HAN}]+")
_LETTER = re.compile(rf"[^\W{HAN}]")  # what a word goes on with; Chinese has no gaps between words


def normal(text: str) -> str:
    """As texts are compared: NFKC, one case, ё as е, single spaces, no punctuation at the end."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("ё", "е")
    return " ".join(folded.split()).rstrip(".,!?:;。、 ")


def exact(told: str, true: str) -> bool:
    """Whether the two are the same text once both are `normal`, as VQA and GQA take short answers."""
    return normal(told) == normal(true)


def says(text: str, fact: str) -> bool:
    """Whether the fact stands in the text as whole words: "3" does not in "13 cups"."""
    text, fact = normal(text), normal(fact)
    before = rf"(?<!{_LETTER.pattern})" if _LETTER.match(fact[:1]) else ""
    after = rf"(?!{_LETTER.pattern})" if _LETTER.match(fact[-1:]) else ""
    return re.search(f"{before}{re.escape(fact)}{after}", text) is not None


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many things were told, how many are true, and how many are both; sums pool several items."""

    common: int = 0
    told: int = 0
    true: int = 0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(self.common + other.common, self.told + other.told, self.true + other.true)

    @property
    def f1(self) -> float:
        """2 PR / (P + R) = 2 common / (told + true), van Rijsbergen 1979; 1 where there is nothing."""
        return 2 * self.common / (self.told + self.true) if self.told + self.true else 1.0


def overlap(told: Iterable[Hashable], true: Iterable[Hashable]) -> Overlap:
    """Of two bags: what comes twice must be told twice."""
    left, right = Counter(told), Counter(true)
    return Overlap((left & right).total(), left.total(), right.total())


def token_f1(told: str, true: str) -> float:
    """F1 over the bag of words, Rajpurkar et al. 2016 (SQuAD); a Chinese character is a word.

    Unlike there, articles count: two of the three languages have none.
    """
    return overlap(_TOKEN.findall(normal(told)), _TOKEN.findall(normal(true))).f1


def set_f1(told: Iterable[Hashable], true: Iterable[Hashable]) -> float:
    """F1 over two sets (Dice 1945)."""
    return overlap(set(told), set(true)).f1


def fields(value: Any) -> Counter[tuple[str, str]]:
    """The single values of JSON with their dotted names, Kim et al. 2022 (Donut).

    What is empty or null is left out, the order of lists does not count, and all numbers are written
    as floats, so that 16 is 16.00.
    """
    return Counter(_leaves(value, ""))


def _leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    match value:
        case dict():
            for key, inner in value.items():
                yield from _leaves(inner, f"{name}.{key}" if name else str(key))
        case list() | tuple():
            for inner in value:
                yield from _leaves(inner, name)
        case None:
            return
        case int() | float() if not isinstance(value, bool):
            yield name, str(float(value))
        case _:
            if said := str(value).strip():
                yield name, said


def field_overlap(told: Any, true: Any) -> Overlap:
    return overlap(fields(told).elements(), fields(true).elements())


def field_f1(told: Any, true: Any) -> float:
    """TP / (TP + (FP + FN) / 2) over pairs of name and value, Kim et al. 2022 (Donut).

    A wrong value is one too many and one too few.
    """
    return field_overlap(told, true).f1


def edits(told: str, true: str) -> int:
    """Insertions, deletions and replacements of characters from one to the other, Levenshtein 1966."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(told, true)


def cer(told: Iterable[str], true: Iterable[str]) -> float:
    """Character error rate: edit distance / length of the reference, pooled over all pairs.

    As jiwer 4 has it: no folding of any kind, more than 1 if much too much was told; with nothing to
    read at all, the number of characters that were told.
    """
    wrong = length = 0
    for said, right in zip(told, true, strict=True):
        wrong += edits(said, right)
        length += len(right)
    return wrong / max(1, length)


def iou(one: PixelBox, other: PixelBox) -> float:
    """Intersection over union of two boxes, Everingham et al. 2010; a box inside out is empty."""
    both = _area(
        (
            max(one[0], other[0]),
            max(one[1], other[1]),
            min(one[2], other[2]),
            min(one[3], other[3]),
        )
    )
    either = _area(one) + _area(other) - both
    return both / either if either > 0 else 0.0


def _area(box: PixelBox) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def time_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two spans of time, Caba Heilbron et al. 2015 (ActivityNet)."""
    return iou((one[0], 0.0, one[1], 1.0), (other[0], 0.0, other[1], 1.0))


def matched(told: Sequence[T], true: Sequence[T], fits: Callable[[T, T], bool]) -> int:
    """The most pairs that fit, each of what is told and of what is true in one pair at most.

    Kuhn 1955, by augmenting paths.
    """
    partner: dict[int, int] = {}  # of what is true, by its place: which of what was told

    def finds(one: int, tried: set[int]) -> bool:
        for at, right in enumerate(true):
            if at in tried or not fits(told[one], right):
                continue
            tried.add(at)
            if at not in partner or finds(partner[at], tried):
                partner[at] = one
                return True
        return False

    return sum(finds(one, set()) for one in range(len(told)))


def found(told: Sequence[T], true: Sequence[T], fits: Callable[[T, T], bool]) -> float:
    """`matched` / the larger number of the two: neither what is missing nor what is too much is free.

    1 where there is nothing and nothing was told.
    """
    most = max(len(told), len(true))
    return matched(told, true, fits) / most if most else 1.0


def boxes_found(told: Sequence[PixelBox], true: Sequence[PixelBox], least: float = 0.5) -> float:
    """acc@0.5 of Yu et al. 2016 (RefCOCO), whose expressions have one box each; of several, `found`."""
    return found(told, true, lambda one, other: iou(one, other) >= least)


def macro_f1(
    told: Sequence[Hashable], true: Sequence[Hashable], labels: Iterable[Hashable] | None = None
) -> float:
    """The mean over classes of F1, as scikit-learn has it with zero_division=0.

    The classes are those that are true somewhere, unless `labels` says them. Raises ValueError where
    there is none.
    """
    classes = set(true if labels is None else labels)
    if not classes:
        raise ValueError("no class to take a mean over")
    pairs = list(zip(told, true, strict=True))
    total = 0.0
    for one in classes:
        both = sum(a == one == b for a, b in pairs)
        sizes = sum(a == one for a, _ in pairs) + sum(b == one for _, b in pairs)
        total += 2 * both / sizes if sizes else 0.0
    return total / len(classes)


def in_order(places: Sequence[float | None]) -> float:
    """The share of pairs of events that are told in their order (Kendall 1938; Lapata 2006 for texts).

    `places` has, for each event in true order, where it was told, None if it was not. One event alone
    has no order: 1.
    """
    pairs = list(combinations(places, 2))
    right = sum(a is not None and b is not None and a < b for a, b in pairs)
    return right / len(pairs) if pairs else 1.0


def calibration_error(
    confidence: Sequence[float],
    right: Sequence[float],
    *,
    bins: int = BINS,
    adaptive: bool = False,
) -> float:
    """Expected calibration error: sum over bins of n_b / n |mean right - mean confidence|.

    Bins of equal width, (i / bins, (i + 1) / bins], as in Guo et al. 2017; `adaptive` ones hold equally
    many answers, as in Nguyen and O'Connor 2015. Raises ValueError where there is no answer.
    """
    if not len(confidence) == len(right) > 0:
        raise ValueError("as many answers as confidences are needed, and at least one")
    order = np.argsort(np.asarray(confidence, float), kind="stable")
    sure, truth = np.asarray(confidence, float)[order], np.asarray(right, float)[order]
    if adaptive:
        bounds = np.linspace(0, len(sure), bins + 1).round().astype(int)[1:-1]
    else:
        bounds = np.searchsorted(sure, np.arange(1, bins) / bins, side="right")
    parts = zip(np.split(sure, bounds), np.split(truth, bounds), strict=True)
    return sum(abs(a.sum() - b.sum()) for a, b in parts) / len(sure)
