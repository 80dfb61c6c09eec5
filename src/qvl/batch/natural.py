"""The order of names that a person expects: 2 before 10."""

from __future__ import annotations

import re

_DIGITS = re.compile(r"([0-9]+)")


def natural_key(name: str) -> tuple[tuple[str | tuple[int, str], ...], str]:
    """To sort by: runs of digits by their number, letters without their case; then by all signs."""
    parts = _DIGITS.split(name.casefold())
    # at odd places stand digits, so only like is compared with like
    key = tuple((int(p[:300]), p) if i % 2 else p for i, p in enumerate(parts))
    return key, name
