"""Values as the JSON of an answer, and as they are once it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any


def dumped(value: Any) -> str:
    """Compact JSON as a grammar writes it; a Decimal keeps its digits, 40.00."""
    match value:
        case Decimal():
            return str(value)
        case Mapping():
            return "{" + ",".join(f"{json.dumps(k)}:{dumped(v)}" for k, v in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(dumped, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def plain(value: Any) -> Any:
    """The value as JSON is read: Decimals are floats, tuples lists."""
    match value:
        case Decimal():
            return float(value)
        case Mapping():
            return {key: plain(one) for key, one in value.items()}
        case list() | tuple():
            return [plain(one) for one in value]
    return value
