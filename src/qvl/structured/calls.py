"""A tool that must be called: the whole answer as a grammar of calls whose arguments fit their schemas.

In the form that Qwen3-VL's template gives calls: `<tool_call>`, a line of JSON, `</tool_call>`, each
on a line; both marks are single tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qvl.errors import InvalidParamError
from qvl.structured.schema import parse_schema
from qvl.types import Tool


def calls_grammar(
    tools: Sequence[Tool], *, marks: tuple[int, int], options: dict[str, str], several: bool
) -> str:
    """In llguidance's Lark; `options` are how its JSON is written.

    Each tool has a rule of its own, so that a `$ref` in its schema means what it says. Raises
    InvalidParamError, which names the tool, for parameters that could not be kept exactly.
    """
    opening, closing = (f"<[{token_id}]>" for token_id in marks)
    names = " | ".join(f"call_{number}" for number in range(len(tools)))
    lines = [
        'start: call ("\\n" call)*' if several else "start: call",
        f'call: {opening} "\\n" ({names}) "\\n" {closing}',
    ]
    for number, tool in enumerate(tools):
        head = json.dumps(f'{{"name": "{tool.name}", "arguments": ')
        schema = json.dumps({"x-guidance": options, **_parameters(tool)})
        lines.append(f'call_{number}: {head} arguments_{number} "}}"')
        lines.append(f"arguments_{number}: %json {schema}")
    return "\n".join(lines)


def _parameters(tool: Tool) -> dict[str, Any]:
    """The schema of the arguments, which are an object whatever it says."""
    try:
        schema = parse_schema(json.dumps(dict(tool.parameters), allow_nan=False))
    except InvalidParamError as err:
        raise InvalidParamError(
            f"parameters of the tool {tool.name!r}: {err.message}", hint=err.hint
        ) from err
    except (TypeError, ValueError, RecursionError) as err:
        raise InvalidParamError(
            f"the parameters of the tool {tool.name!r} are not JSON", hint="use plain JSON values"
        ) from err
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise InvalidParamError(
            f"the parameters of the tool {tool.name!r} are of type {kind!r:.80}, not 'object'",
            hint="name its arguments in `properties`",
        )
    return {**schema, "type": "object"}
