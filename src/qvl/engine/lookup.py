"""Guesses at the next tokens, looked up in what was said before: prompt lookup, or n-gram drafts.

A draft costs one forward pass over a few tokens more, and each of its tokens that the model would
have said anyway saves a pass (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding). What is
said stays the same: the engine keeps only the tokens that its own sampling confirms.
"""

from __future__ import annotations

from collections.abc import Sequence

LENGTHS = (3, 2)  # of the ends that are looked up, the longest first
WORTHWHILE = 0.3  # share of drafted tokens that must be right
PAUSE_TOKENS = 64  # without drafts where they are not


class Lookup:
    """Drafts for one sequence, whose list of tokens grows under it."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        # an end -> the index after where it stood last
        self._after: dict[tuple[int, ...], int] = {}
        self._indexed = 0
        self._right = 1.0  # share of late, with the newest weighing most
        self._resume_at = 0

    def draft(self, most: int) -> tuple[int, ...]:
        """At most so many tokens that followed the last time that the sequence ended like now."""
        tokens, count = self._tokens, len(self._tokens)
        if most <= 0 or count < self._resume_at:
            return ()
        for index in range(self._indexed, count):
            for length in LENGTHS:
                if index >= length:
                    self._after[tuple(tokens[index - length : index])] = index
        self._indexed = count
        for length in LENGTHS:
            found = self._after.get(tuple(tokens[count - length :]))
            if found is not None:
                return tuple(tokens[found : found + most])
        return ()

    def judge(self, drafted: int, right: int) -> None:
        """How many tokens of the last draft were right; when too few are, there is a pause."""
        self._right += 0.2 * (right / drafted - self._right)
        if self._right < WORTHWHILE:
            self._right = 1.0
            self._resume_at = len(self._tokens) + PAUSE_TOKENS
