"""Tool calls out of an answer: `<tool_call>`, one JSON object of a name and arguments, `</tool_call>`.

Read by a linear search, never by a pattern; what cannot be read stays text.
"""

from __future__ import annotations

import json
from typing import NoReturn

from qvl.engine.stream import undecided
from qvl.types import ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def split_calls(answer: str) -> tuple[str, tuple[ToolCall, ...], tuple[str, ...]]:
    """The answer without its calls, the calls, and a note for each that stays in the text.

    With a call goes the line break before it, which the template puts there. A last call need not be
    closed if its JSON is whole.
    """
    text, calls, notes = "", [], []
    rest = answer
    while OPEN in rest:
        before, _, rest = rest.partition(OPEN)
        block, closed, rest = rest.partition(CLOSE)
        call = _read(block)
        if call is None:
            notes.append(
                f"a tool call that cannot be read stays in the text: {block.strip()!r:.80}"
            )
            text += before + OPEN + block + closed
        else:
            calls.append(call)
            text += before.removesuffix("\n")
    return text + rest, tuple(calls), tuple(notes)


def certain_text(answer: str) -> str:
    """How the text of `split_calls` begins, whatever follows this beginning of an answer."""
    done = 0
    while (opened := answer.find(OPEN, done)) >= 0 and (closed := answer.find(CLOSE, opened)) >= 0:
        done = closed + len(CLOSE)
    if opened >= 0:
        return split_calls(answer[:opened].removesuffix("\n"))[0]
    held = undecided(answer[done:], (OPEN, "\n" + OPEN))
    return split_calls(answer[: len(answer) - held])[0]


def _read(block: str) -> ToolCall | None:
    try:
        match json.loads(block, parse_constant=_refuse):
            case {"name": str(name), "arguments": dict(arguments)}:
                return ToolCall(name, arguments)
    except (ValueError, RecursionError):
        pass
    return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
