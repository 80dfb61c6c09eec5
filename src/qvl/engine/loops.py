"""When a model says the same thing over and over, and will not stop by itself."""

from __future__ import annotations

import numpy as np

LONGEST_PERIOD = 64
REPEATS = 4  # of a pattern, before it counts as a loop
FEWEST_TOKENS = 64  # a row of dashes or of empty table cells is no loop yet


class LoopDetector:
    """Tokens in; True when the last ones are one pattern of at most LONGEST_PERIOD, repeated."""

    def __init__(self) -> None:
        self._periods = np.arange(1, LONGEST_PERIOD + 1)
        self._enough = np.maximum((REPEATS - 1) * self._periods, FEWEST_TOKENS - self._periods)
        self._last = np.full(LONGEST_PERIOD, -1)  # newest first
        # for each period, how many tokens in a row equalled the one a period before
        self._equal = np.zeros(LONGEST_PERIOD, np.int64)

    def push(self, token_id: int) -> bool:
        self._equal = np.where(self._last == token_id, self._equal + 1, 0)
        self._last = np.concatenate(([token_id], self._last[:-1]))
        return bool((self._equal >= self._enough).any())
