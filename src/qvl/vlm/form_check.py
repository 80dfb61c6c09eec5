"""Whether an answer has the form that was asked for, by Python's `re` and by jsonschema.

Run as a script it reads [kind, form, answer] as JSON and prints whether it has: a process that can be
killed, since there are patterns and schemas that take either of the two for ever.
"""

from __future__ import annotations

import json
import re
import sys
from decimal import Decimal
from typing import Any

from qvl.vlm.answer_json import finite, refuse


def fits(kind: str, form: Any, answer: str) -> bool | None:
    """None: the schema has a `$ref` that leads nowhere. `form`: a pattern, or a schema."""
    if kind == "regex":
        return re.fullmatch(form, answer) is not None
    from jsonschema import Draft202012Validator as Validator
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    # an empty registry: no reference is fetched from anywhere
    # and numbers are decimal: in floats 0.09 is no multiple of 0.01
    exact = json.loads(json.dumps(form), parse_float=Decimal)
    validator = Validator(exact, registry=Registry(), format_checker=Validator.FORMAT_CHECKER)
    try:
        said = json.loads(answer, parse_constant=refuse, parse_float=_exact)
        return validator.is_valid(said)
    except Unresolvable:
        return None
    except (ValueError, RecursionError, ArithmeticError):
        return False


def _exact(text: str) -> Decimal:
    finite(text)
    return Decimal(text)


if __name__ == "__main__":
    json.dump(fits(*json.load(sys.stdin)), sys.stdout)
