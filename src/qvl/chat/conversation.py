"""Turns of a conversation, each answered as a stream; tools that the model calls run in between.

Main path: Conversation.say -> ChatModel.stream -> calls, each approved and run -> the next stream.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qvl.errors import EngineError
from qvl.types import Completion, Delta, Message, Part, Request, Sampling, Text, Tool, ToolCall
from qvl.vlm.chat_model import ChatModel

MOST_ROUNDS = 8  # of calls within a turn; after them the model has to answer without tools
MOST_RESULT = 20_000  # characters of what a tool says that the model is told


@dataclass(frozen=True, slots=True)
class Function:
    """A tool and what runs it: arguments by name -> what the model is told. It may raise anything."""

    tool: Tool
    run: Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True, slots=True)
class Called:
    """A call, and what the model was told of it."""

    call: ToolCall
    said: str


@dataclass(slots=True, kw_only=True)
class Conversation:
    """`messages` is the whole history, which may begin with a system message. No function is run
    unless `approve` says so.
    """

    model: ChatModel
    messages: list[Message] = field(default_factory=list)
    functions: Sequence[Function] = ()
    approve: Callable[[ToolCall], bool] = lambda _: False
    sampling: Sampling = field(default_factory=Sampling)

    def say(self, *parts: Part | str) -> Generator[Delta | Called, None, None]:
        """The answers to one more turn as they come, and the calls between them. Raises QvlError.

        A turn that ends early, by an error or because nobody reads on, stays with what was said of
        its last answer; without a word of that it is taken back.
        """
        begin = len(self.messages)
        self.messages.append(Message.user(*parts))
        try:
            for number in range(MOST_ROUNDS + 1):
                completion = yield from self._answer(can_call=number < MOST_ROUNDS)
                if not completion.tool_calls:
                    return
                yield from self._call_all(completion.tool_calls)
        except BaseException:
            if self.messages[-1].role != "assistant" or self.messages[-1].tool_calls:
                del self.messages[begin:]
            raise

    def _answer(self, *, can_call: bool) -> Generator[Delta, None, Completion]:
        tools = tuple(function.tool for function in self.functions) if can_call else ()
        request = Request(messages=tuple(self.messages), sampling=self.sampling, tools=tools)
        said, done = "", None
        try:
            for delta in self.model.stream(request):
                said, done = said + delta.text, delta.completion
                yield delta
        except BaseException:
            if said:
                self.messages.append(Message("assistant", (Text(said),)))
            raise
        if done is None:
            raise EngineError("the stream ended without a completion")
        text = (Text(done.text),) if done.text else ()
        self.messages.append(Message("assistant", text, done.reasoning, done.tool_calls))
        return done

    def _call_all(self, calls: Sequence[ToolCall]) -> Generator[Called, None, None]:
        for call in calls:
            said = self._result_of(call)
            if len(said) > MOST_RESULT:
                said = f"{said[:MOST_RESULT]}\n(cut: there are {len(said)} characters in all)"
            self.messages.append(Message("tool", (Text(said),)))
            yield Called(call, said)

    def _result_of(self, call: ToolCall) -> str:
        known = {function.tool.name: function for function in self.functions}
        if call.name not in known:
            return f"error: there is no tool {call.name!r}, only {', '.join(known)}"
        if not self.approve(call):
            return "error: the user does not allow this call"
        try:
            return known[call.name].run(call.arguments)
        except Exception as err:  # noqa: BLE001 - somebody else's code: the model is told
            return f"error: {type(err).__name__}: {err}"
