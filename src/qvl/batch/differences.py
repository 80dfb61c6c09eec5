"""How far a person's text is from the model's: what was taken away and added, word by word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

# a word, a sign of a script that is written without spaces, white space, or one other sign
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|\s+|\S"
)
MANY = 3000  # words; from here on, words that come often are no anchors, or it would take minutes


@dataclass(frozen=True, slots=True)
class Piece:
    kind: Literal["kept", "removed", "added"]
    text: str


@dataclass(frozen=True, slots=True)
class Difference:
    """`pieces` in order: the kept and removed ones together are the model's text, the kept and added ones
    the person's. `changed` is how many words were replaced, removed or added; `kept` is the share of
    words that were not, of the longer of the two.
    """

    pieces: tuple[Piece, ...]
    changed: int
    kept: float


def word_difference(model_text: str, reviewed_text: str) -> Difference:
    """What a person made of the model's text. Signs and white space are no words."""
    before, after = _WORD.findall(model_text), _WORD.findall(reviewed_text)
    often = len(before) + len(after) > MANY
    matcher = SequenceMatcher(None, before, after, autojunk=often)
    codes = matcher.get_opcodes()
    changed = sum(
        max(_words(before[a:b]), _words(after[c:d])) for op, a, b, c, d in codes if op != "equal"
    )
    longest = max(_words(before), _words(after))
    pieces: list[Piece] = []
    for op, a, b, c, d in codes:
        pieces += _pieces(op, "".join(before[a:b]), "".join(after[c:d]))
    return Difference(tuple(pieces), changed, 1 - changed / max(longest, changed, 1))


def _pieces(op: str, before: str, after: str) -> Iterator[Piece]:
    if op == "equal":
        yield Piece("kept", before)
        return
    if before:
        yield Piece("removed", before)
    if after:
        yield Piece("added", after)


def _words(pieces: list[str]) -> int:
    return sum(piece[0].isalnum() for piece in pieces)
