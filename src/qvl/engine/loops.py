"""When a model says the same thing over and over, and will not stop by itself."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

LONGEST_PERIOD = 64
REPEATS = 4  # of a pattern, before it counts as a loop
FEWEST_TOKENS = 64  # a row of dashes is no loop yet
# Rows and cells of a table may well be equal. Only where this many tokens were, nobody filled it in.
FEWEST_IN_TABLE = 1024
# a cell's border (Markdown, tabs, HTML), or the end of a line that holds numbers and no letters
_TABLE = re.compile(
    rb"\||\t|</t[dhr]>|\A(?=.*[0-9])[^A-Za-z\x80-\xff]*\n[^A-Za-z\x80-\xff]*\Z", re.S
)


class LoopDetector:
    """Tokens in; True when the last ones are one pattern of at most LONGEST_PERIOD, repeated.

    `token_bytes` gives the bytes of a token id.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._periods = np.arange(1, LONGEST_PERIOD + 1)
        self._enough = np.maximum((REPEATS - 1) * self._periods, FEWEST_TOKENS - self._periods)
        self._last = np.full(LONGEST_PERIOD, -1)  # newest first
        # for each period, how many tokens in a row equalled the one a period before
        self._equal = np.zeros(LONGEST_PERIOD, np.int64)

    def anew(self) -> LoopDetector:
        """One that has seen nothing."""
        return LoopDetector(self._token_bytes)

    def push(self, token_id: int) -> bool:
        self._equal = np.where(self._last == token_id, self._equal + 1, 0)
        self._last = np.concatenate(([token_id], self._last[:-1]))
        repeated = self._equal >= self._enough
        if not repeated.any():
            return False
        period = int(self._periods[repeated][0])
        pattern = b"".join(self._token_bytes(int(i)) for i in self._last[:period][::-1])
        in_table = _TABLE.search(pattern) is not None
        return not in_table or bool(self._equal[period - 1] + period >= FEWEST_IN_TABLE)
