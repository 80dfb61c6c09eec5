"""What shops do not want in texts: markup, emoji, addresses, telephone numbers, prices, words, capitals.

Every pattern is bounded, or begins where a run of signs does and never goes back in it, so the time is
linear in the text, whoever wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import ne

from qvl.xmp import NO_XML

_PICTOGRAM = "\U0001f000-\U0001faff\u2600-\u27bf\u2b00-\u2bff\u231a\u231b\u23e9-\u23fa\u3030\u303d\u3297\u3299"
_TOP = "com|net|org|info|biz|shop|store|online|site|io|co|ru|su|by|kz|ua|uz|cn|de|fr|es|it|pl|tr|uk|eu|us|рф"
_MONEY = r"₽|€|\$|£|¥|₸|₴|元|руб\w{0,3}\.?|р\.|долл\w{0,4}\.?|тенге|rub|usd|eur|gbp|cny|kzt"
DETECTORS: Mapping[str, re.Pattern[str]] = {
    "html": re.compile(
        r"<[a-z/!?][^<>]{0,2000}>|<(?=[a-z/!?])|&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,30});",
        re.I,
    ),
    "emoji": re.compile(
        f"[{_PICTOGRAM}][{_PICTOGRAM}\ufe0f\u200d\u20e3]*|[\ufe0f\u20e3]|[\U000e0020-\U000e007f]+"
    ),
    "url": re.compile(
        rf"(?:https?://|www\.)\S{{1,2000}}|(?<![\w@-])[\w-]{{1,63}}\.(?:{_TOP})(?!\w)(?:/\S{{0,2000}})?",
        re.I,
    ),
    "email": re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}\.\w{2,24}|(?<![\w.])@[a-z]\w{3,31}", re.I),
    "phone": re.compile(
        r"(?<![\w+])(?:\+\d{1,3}|[78])[ \-.(]{0,3}\d{3,4}[ \-.)]{0,3}\d{2,4}[ \-.]?\d{2}[ \-.]?\d{2}(?!\d)"
        r"|(?<![\w(])\(\d{3,5}\)[ \-]?\d{1,3}[ \-]?\d{2}[ \-]?\d{2}(?!\d)"
        r"|(?<!\d)\d{3}-\d{3}-\d{4}(?!\d)|(?<!\d)1[3-9]\d{9}(?!\d)",
        re.A,
    ),
    "price": re.compile(
        rf"[$€£¥₽₸]\s?\d[\d\s.,]{{0,15}}|\d[\d\s.,]{{0,15}}(?:{_MONEY})(?!\w)", re.I
    ),
}
_WORD = re.compile(r"[^\W_]+|[^\w\s]")
_END = re.compile(r"(?<![.!?…])[.!?…]++(?=\s++[^a-zа-яё]|\s*+\Z)|[。！？]+|\n")
_LOOSE = " \n,;:–—-"  # what no text ends with
LEAST_LETTERS = 10  # of fewer, a share of capitals says nothing


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a text that breaks a rule: text[start:end]."""

    rule: str
    start: int
    end: int


def spans(
    text: str, rules: Iterable[str], forbidden: Iterable[str] = (), signs: str = ""
) -> list[Span]:
    """All that breaks the rules (of DETECTORS), the forbidden words (see `matches`) and signs, in order."""
    found = [Span("control", m.start(), m.end()) for m in NO_XML.finditer(text)]
    for rule in rules:
        found += [Span(rule, m.start(), m.end()) for m in DETECTORS[rule].finditer(text)]
    if signs:
        found += [Span("sign", m.start(), m.end()) for m in _one_of(signs).finditer(text)]
    found += [Span("forbidden", start, end) for start, end in matches(text, tuple(forbidden))]
    return sorted(found, key=lambda span: (span.start, span.end))


@lru_cache(64)
def _one_of(signs: str) -> re.Pattern[str]:
    return re.compile(f"[{re.escape(signs)}]")


def without(text: str, found: Iterable[Span]) -> str:
    """The text with a space in place of each span."""
    kept, at = [], 0
    for span in found:
        if span.start > at:
            kept.append(text[at : span.start])
        at = max(at, span.end)
    return " ".join([*kept, text[at:]])


def matches(text: str, patterns: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Where the patterns stand. A pattern is words in a row, whatever their case, ё as е; of a word
    only the beginning or the end counts where it has a "*" there, and "#" is any number.
    """
    if not patterns:
        return
    known, begun, open_ended = _compiled(patterns)
    found = list(_WORD.finditer(text))
    words = [folded(one[0]) for one in found]
    for at, word in enumerate(words):
        for parts in (*known.get(word, ()), *begun.get(word[:1], ()), *open_ended):
            end = at + len(parts)
            if end <= len(words) and all(
                test(one) for test, one in zip(parts, words[at:end], strict=True)
            ):
                yield found[at].start(), found[end - 1].end()


def folded(word: str) -> str:
    return word.casefold().replace("ё", "е")


_Test = Callable[[str], bool]


_Patterns = dict[str, list[list[_Test]]]


@lru_cache(64)
def _compiled(patterns: tuple[str, ...]) -> tuple[_Patterns, _Patterns, list[list[_Test]]]:
    """Patterns by their first word, those of whose first word the beginning counts by its first letter,
    and all others, which may begin anywhere.
    """
    known: _Patterns = {}
    begun: _Patterns = {}
    anywhere: list[list[_Test]] = []
    for pattern in patterns:
        words = re.findall(r"\*?[^\W_]+\*?|[^\w\s]", folded(pattern))
        parts = [_test(word) for word in words]
        if not words:
            continue
        first = words[0]
        if first == "#" or first.startswith("*"):
            anywhere.append(parts)
        elif first.endswith("*"):
            begun.setdefault(first[0], []).append(parts)
        else:
            known.setdefault(first, []).append(parts)
    return known, begun, anywhere


def _test(word: str) -> _Test:
    core = word.strip("*") or word
    if word == "#":
        return str.isdecimal
    if word.startswith("*") and word.endswith("*") and len(word) > 2:
        return lambda one: core in one
    if word.endswith("*") and core != word:
        return lambda one: one.startswith(core)
    if word.startswith("*") and core != word:
        return lambda one: one.endswith(core)
    return lambda one: one == core


def capitals(text: str) -> float:
    """The share of capitals of the letters that have two cases; 0 of a few letters."""
    lower = text.lower()
    # sign by sign where one becomes two, as İ does
    pairs = lower if len(lower) == len(text) else map(str.lower, text)
    high = sum(map(ne, text, pairs))
    low = sum(map(str.islower, text))
    return high / (high + low) if high + low >= LEAST_LETTERS else 0.0


def with_fewer_capitals(text: str, most: float) -> str:
    """Words all of capitals keep their first one; if that is not enough, the text keeps its first one."""
    told = re.sub(
        r"[^\W\d_]{2,}", lambda m: m[0][0] + m[0][1:].lower() if m[0].isupper() else m[0], text
    )
    return told if capitals(told) <= most else text[:1] + text[1:].lower()


def sentences(text: str) -> list[tuple[int, int]]:
    """Where each begins and ends, all of the text together; after an abbreviation the sentence goes on."""
    ends = [match.end() for match in _END.finditer(text)]
    if not ends or ends[-1] < len(text):
        ends.append(len(text))
    return list(zip([0, *ends], ends, strict=False))


def cut(text: str, most: int, least: int = 0) -> str:
    """At most so many characters of it: to the end of a sentence, else of a word, else of none.

    A sentence's end counts from half of what there is room for, and from `least`.
    """
    if len(text) <= most:
        return text
    ends = [end for _, end in sentences(text) if max(least, most // 2) <= end <= most]
    if ends:
        return text[: ends[-1]].rstrip()
    spaces = [m.start() for m in re.finditer(r"\s", text[: most + 1])]
    at = next((at for at in reversed(spaces) if at >= max(least, 1)), most)
    whole = text[:at].rstrip(_LOOSE)
    told = re.sub(r"(?:[\s,;:–—-]+[a-zа-яё]{1,2})+\Z", "", whole[-80:])  # "..., with a"
    return whole[:-80] + told or text[:most]
