"""The single values in a JSON text, where each stands, and how sure the model was of it."""

from __future__ import annotations

import json
import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from qvl.types import Completion

_DECODER = json.JSONDecoder()
_SPACE = " \t\n\r"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A text, number, bool or null of a JSON text, `text[start:end]`, called "lines[0].price"."""

    name: str
    value: str | int | float | bool | None
    start: int
    end: int


def leaves(text: str) -> list[Leaf]:
    """All of them, in order; the text is whole JSON."""
    return list(_leaves(text, _after_space(text, 0), ""))


def probability(completion: Completion, leaf: Leaf) -> float | None:
    """The product of the probabilities of all tokens that hold a part of the value, quotes included.

    That is how likely the model was to write this value there, before a grammar helped it; a product,
    since one digit that is a guess makes the whole value one. None if the model told none.
    """
    said = b"".join(token.token for token in completion.logprobs)
    at = said.find(completion.text.encode())  # a door may tell tokens around the text too
    if at < 0 or not completion.logprobs:
        return None
    start = at + len(completion.text[: leaf.start].encode())
    end = at + len(completion.text[: leaf.end].encode())
    total, place = 0.0, 0
    for token in completion.logprobs:
        if place < end and place + len(token.token) > start:
            total += token.logprob
        place += len(token.token)
    return math.exp(total)


def _leaves(text: str, at: int, name: str) -> Generator[Leaf, None, int]:
    """The leaves of the value that begins at `at`; returns where it ends."""
    opened = text[at]
    if opened not in "{[":
        value: Any
        value, end = _DECODER.raw_decode(text, at)
        yield Leaf(name, value, at, end)
        return end
    at, index = _after_space(text, at + 1), 0
    while text[at] not in "}]":
        inner = f"{name}[{index}]"
        if opened == "{":
            key, at = _DECODER.raw_decode(text, at)
            inner = f"{name}.{key}" if name else key
            at = _after_space(text, _after_space(text, at) + 1)  # past the colon
        at = _after_space(text, (yield from _leaves(text, at, inner)))
        if text[at] == ",":
            at = _after_space(text, at + 1)
        index += 1
    return at + 1


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at
