"""A streamed answer of OpenAI's chat API, chunk by chunk: text, reasoning, tool calls, probabilities.

Main path: Answer.take for each chunk, then Answer.finish. Every chunk is checked by a schema; what is
no answer is a RemoteError.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)

from qvl.engine.stream import undecided
from qvl.errors import RemoteError
from qvl.types import FinishReason, TokenLogprob, ToolCall, Usage
from qvl.vlm.tool_calls import CLOSE, OPEN, CallReader

THINK, THOUGHT = "<think>", "</think>"


Count = Annotated[int, Field(ge=0, le=1 << 53)]


class _Wire(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)  # what more a server says is left unread


class _Top(_Wire):
    token: str
    logprob: Annotated[float, AfterValidator(lambda logprob: min(logprob, 0.0))]  # when rounded up
    spelt: list[Annotated[int, Field(ge=0, le=255)]] | None = Field(None, alias="bytes")

    @property
    def said(self) -> bytes:
        return self.token.encode(errors="replace") if self.spelt is None else bytes(self.spelt)


class _Logprob(_Top):
    top_logprobs: list[_Top] | None = None


class _Logprobs(_Wire):
    content: list[_Logprob] | None = None


class _Function(_Wire):
    name: str | None = None
    arguments: str | None = None


class _CallPiece(_Wire):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(_Wire):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_CallPiece] | None = None


class _Choice(_Wire):
    index: int = 0
    delta: _Delta = _Delta()
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _PromptDetails(_Wire):
    cached_tokens: Count | None = None
    image_tokens: Count | None = None


class _CompletionDetails(_Wire):
    reasoning_tokens: Count | None = None


class _Usage(_Wire):
    prompt_tokens: Count
    completion_tokens: Count = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Chunk(_Wire):
    choices: list[_Choice]
    usage: _Usage | None = None


@dataclass(slots=True)
class Thoughts:
    """Reasoning apart from the answer, where a server leaves its `<think>` block in the content.

    With `may_be_open` (a Thinking edition, whose template says `<think>` itself) all up to `</think>`
    is reasoning; as that is not known before it comes, the text is held back until then.
    """

    may_be_open: bool
    _state: str = "start"  # then "open" or "thinking", then "answer"
    _held: str = ""
    _is_first: bool = True  # of the reasoning, or of the answer after it, no more than line breaks

    @property
    def is_thinking(self) -> bool:
        return self._state == "thinking"

    def push(self, piece: str) -> tuple[str, str]:
        """(reasoning, text) that are certain by now and were not returned before."""
        self._held += piece
        if self._state == "start":
            begun = self._held.lstrip()
            if len(begun) < len(THINK) and THINK.startswith(begun):
                return "", ""
            if begun.startswith(THINK):
                self._state, self._held = "thinking", begun.removeprefix(THINK)
            else:
                self._state, self._is_first = ("open" if self.may_be_open else "answer"), False
        reasoning = ""
        if self._state in ("open", "thinking"):
            thought, mark, rest = self._held.partition(THOUGHT)
            if not mark and self._state == "open":
                return "", ""
            if not mark:
                certain = len(thought) - undecided(thought, (THOUGHT,))
                thought, rest = thought[:certain], thought[certain:]
            self._held, reasoning = rest, self._shown(thought)
            if not mark:
                return reasoning, ""
            self._state, self._is_first = "answer", True
        text, self._held = self._shown(self._held), ""
        return reasoning, text

    def finish(self, reason: FinishReason) -> tuple[str, str]:
        """The rest: of a Thinking edition that was cut before any `</think>`, all was reasoning."""
        rest, self._held = self._held, ""
        if self._state == "thinking" or (self._state == "open" and reason == "length"):
            return rest, ""
        return "", rest

    def _shown(self, text: str) -> str:
        if self._is_first:
            text = text.lstrip("\n")
            self._is_first = not text
        return text


@dataclass(slots=True)
class _Call:
    index: int | None
    id: str | None
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class Answer:
    """What has come of an answer so far; `calls` reads those that a server leaves in the content."""

    thoughts: Thoughts
    calls: CallReader | None
    logprobs_asked: int = 0
    text: str = ""
    reasoning: str = ""
    reason: FinishReason | None = None
    tokens: list[TokenLogprob] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of all tokens, reasoning too
    usage: _Usage | None = None
    _made: list[_Call] = field(default_factory=list)

    def take(self, data: str) -> None:
        """Raises RemoteError for a chunk that is none."""
        try:
            chunk = _Chunk.model_validate_json(data)
        except ValidationError as err:
            what = "something that is not JSON"
            if err.errors(include_input=False)[0]["type"] != "json_invalid":
                what = "JSON that is no piece of an answer"
            hint = "is it a server of OpenAI's chat API? look into its log"
            raise RemoteError(f"the server sent {what}", hint=hint) from err
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices:
            if choice.index == 0:
                self._take(choice)

    def finish(self) -> None:
        """The rest of text and reasoning. Raises RemoteError for an answer without an end."""
        if self.reason is None:
            raise RemoteError("the server ended its answer without a reason")
        reasoning, text = self.thoughts.finish(self.reason)
        self._add(reasoning, text)
        if self.calls:
            self.text += self.calls.finish()
            for call in self._made:
                # one that cannot be read stays in the text, as of a model that is run here
                self.text += self.calls.push(f"{OPEN}\n{_as_said(call)}\n{CLOSE}")
            self.text += self.calls.finish()
        if self.reason == "length" and self.reasoning and not self.text and not self.tool_calls:
            self.reason = "reasoning"

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(self.calls.calls) if self.calls else ()

    @property
    def confidence(self) -> float:
        return sum(map(math.exp, self.logprobs)) / max(1, len(self.logprobs))

    def count(self, image_tokens: int) -> Usage:
        """As the server has counted; `image_tokens` where it does not count those."""
        usage = self.usage or _Usage(prompt_tokens=0)
        prompt = usage.prompt_tokens_details or _PromptDetails()
        said = usage.completion_tokens_details or _CompletionDetails()
        return Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            image_tokens=image_tokens if prompt.image_tokens is None else prompt.image_tokens,
            cached_tokens=prompt.cached_tokens or 0,
            reasoning_tokens=said.reasoning_tokens or 0,
        )

    def _take(self, choice: _Choice) -> None:
        delta = choice.delta
        thought, text = delta.reasoning or delta.reasoning_content or "", ""
        if thought:
            self.thoughts.may_be_open = False
        is_answer = not thought and not self.thoughts.is_thinking
        if delta.content:
            inside, text = self.thoughts.push(delta.content)
            if inside and not self.reasoning:  # so was all before
                self.tokens.clear()
                is_answer = False
            thought += inside
        self._add(thought, text)
        for piece in delta.tool_calls or ():
            self._take_call(piece)
        told = choice.logprobs.content if choice.logprobs else None
        for token in told or ():
            self.logprobs.append(token.logprob)
            if self.logprobs_asked and is_answer:
                best = (token.top_logprobs or [])[: self.logprobs_asked]
                best_said = tuple((top.said, top.logprob) for top in best)
                self.tokens.append(TokenLogprob(token.said, token.logprob, best_said))
        if choice.finish_reason:
            self.reason = _reason(choice.finish_reason)

    def _add(self, reasoning: str, text: str) -> None:
        self.reasoning += reasoning
        self.text += self.calls.push(text) if self.calls else text

    def _take_call(self, piece: _CallPiece) -> None:
        """Go on with the call of that index; another id begins another one, whatever its index."""
        if self.calls is None:
            raise RemoteError("the server calls a tool, and none was offered")
        same = [call for call in self._made if call.index == piece.index]
        if not same or (piece.id and same[-1].id and piece.id != same[-1].id):
            same = [_Call(piece.index, piece.id)]
            self._made += same
        call = same[-1]
        function = piece.function or _Function()
        call.name = call.name or function.name or ""
        call.arguments += function.arguments or ""


def _as_said(call: _Call) -> str:
    name = json.dumps(call.name, ensure_ascii=False)
    return f'{{"name": {name}, "arguments": {call.arguments.strip() or "{}"}}}'


def _reason(said: str) -> FinishReason:
    match said:
        case "stop" | "tool_calls" | "function_call":
            return "stop"
        case "length":
            return "length"
        case "content_filter":
            raise RemoteError("the server's filter withholds the answer")
    raise RemoteError(f"the server ended its answer because of {said!r:.40}")
