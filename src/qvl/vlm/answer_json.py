"""JSON as models write it, so read that nothing comes of it which JSON cannot say again."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


def read_json(text: str) -> Any:
    """Raises ValueError for what is no JSON, RecursionError for what is too deep."""
    return json.loads(text, parse_constant=refuse, parse_float=finite)


def finite(text: str) -> float:
    """Raises ValueError for a number such as 1e999, which Python reads as infinity."""
    number = float(text)
    if math.isinf(number):
        refuse(text)
    return number


def refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number that JSON can say")
