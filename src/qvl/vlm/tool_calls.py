"""Tool calls out of an answer: `<tool_call>`, one JSON object of a name and arguments, `</tool_call>`.

Read by a linear search, never by a pattern; what cannot be read stays text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from qvl.engine.stream import undecided
from qvl.errors import InvalidParamError, nearest
from qvl.types import Request, Tool, ToolCall
from qvl.vlm.answer_json import read_json

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def offered_tools(request: Request) -> tuple[Tool, ...]:
    """The tools that a model is told of: none where `tool_choice` forbids a call.

    Raises InvalidParamError for a choice that is no tool's name.
    """
    choice, tools = request.tool_choice, request.tools
    if choice == "none":
        return ()
    if choice == "required" and not tools:
        raise InvalidParamError(
            "tool_choice is 'required', and no tool is offered", hint="give tools, or leave it out"
        )
    names = [tool.name for tool in tools]
    if choice not in ("auto", "required", *names):
        offered = f"offered are {', '.join(names)}" if names else "no tool is offered"
        raise InvalidParamError(
            f"tool_choice is {choice!r:.80}, which is no tool of the request",
            hint=nearest(choice, ["auto", "none", "required", *names]) or offered,
        )
    return tools


def demanded_tools(request: Request) -> tuple[Tool, ...]:
    """Those one of which must be called, maybe none. Raises InvalidParamError as `offered_tools`,
    and beside a form that the answer must have.
    """
    tools = offered_tools(request)
    if not tools or request.tool_choice == "auto":
        return ()
    if request.response_format is not None:
        raise InvalidParamError(
            "an answer cannot be a tool call and have a form of its own",
            hint="leave out response_format or tool_choice",
        )
    return tuple(t for t in tools if request.tool_choice in ("required", t.name))


@dataclass(slots=True)
class CallReader:
    """Pieces of an answer in; its text, as far as it is certain, and the calls taken out of it.

    With a call goes the line break before it, which the template puts there. A last call need not be
    closed if its JSON is whole. A CLOSE within a string is a part of it, unless that string comes to
    nothing: what cannot be read ends at its first CLOSE. `notes` tell of each call that stays in the
    text.
    """

    calls: list[ToolCall] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _held: str = ""  # maybe the beginning of OPEN; within a call, all of it
    _block: int | None = None  # where in it the JSON of the call begins
    _searched: int = 0  # where the search for its CLOSE goes on
    _first_end: int | None = None  # behind the first CLOSE, if it seems to be a part of a string

    def push(self, piece: str) -> str:
        """The text that is certain by now and was not returned before."""
        self._held += piece
        text = ""
        while True:
            if self._block is None:
                at = self._held.find(OPEN)
                if at < 0:
                    return text + self._release(
                        len(self._held) - undecided(self._held, (OPEN, "\n" + OPEN))
                    )
                text += self._release(at - self._held.endswith("\n", 0, at))
                self._block = self._searched = self._held.index(OPEN) + len(OPEN)
            at = self._held.find(CLOSE, self._searched)
            if at < 0:
                self._searched = max(self._block, len(self._held) - len(CLOSE) + 1)
                return text
            self._searched = at + len(CLOSE)
            block = self._held[self._block : at]
            call = _read(block)
            if call is None and _ends_in_string(block):
                self._first_end = self._first_end or self._searched
                continue
            text += self._taken(call, self._searched)

    def finish(self) -> str:
        """The rest of the text."""
        text = ""
        while self._block is not None:
            call = _read(self._held[self._block :])
            text += self._taken(call, len(self._held)) + self.push("")
        return text + self._release(len(self._held))

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _taken(self, call: ToolCall | None, end: int) -> str:
        """What of a call that ends there stays in the text: nothing if it was read."""
        first_end, self._block, self._first_end = self._first_end, None, None
        if call is not None:
            self._release(end)
            self.calls.append(call)
            return ""
        said = self._release(first_end or end)
        block = said.partition(OPEN)[2].removesuffix(CLOSE).strip()
        self.notes.append(f"a tool call that cannot be read stays in the text: {block!r:.80}")
        return said


def _read(block: str) -> ToolCall | None:
    try:
        match read_json(block):
            case {"name": str(name), "arguments": dict(arguments)}:
                return ToolCall(name, arguments)
    except (ValueError, RecursionError):
        pass
    return None


def _ends_in_string(block: str) -> bool:
    """JSON so far, and in the middle of a string: what looks like a mark may be a part of it."""
    try:
        json.loads(block)
    except json.JSONDecodeError as err:
        return err.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        pass
    return False
