"""Positions as every Qwen-VL generation must have them: slow and plain, a loop over single tokens."""

from __future__ import annotations

import numpy as np


def mrope_positions(layout, merge=2):
    """Positions [3, n] and the next one, of a layout of ("text", n) and ("span", (t, h, w)) items.

    t, h, w are in patches, before the merge. The rule: a span's token at (i, r, c) is at start + (i, r, c),
    and what follows starts at the largest of all numbers so far, plus one. An item ("span", size, step)
    has its times at start + step * i, as 32-bit numbers, without their fraction.
    """
    tokens = []
    following = 0
    for kind, size, *step in layout:
        if kind == "text":
            tokens += [(following + i,) * 3 for i in range(size)]
        else:
            time, height, width = size
            for i in range(time):
                if step:
                    i = int(np.float32(i) * np.float32(step[0]))
                for row in range(height // merge):
                    for column in range(width // merge):
                        tokens.append((following + i, following + row, following + column))
        following = max((max(token) for token in tokens), default=-1) + 1
    return np.array(tokens, np.int64).reshape(-1, 3).T, following
