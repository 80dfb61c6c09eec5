"""/v1/chat/completions: a body becomes a `Request`, completions and deltas become OpenAI's objects.

Main path: ChatBody.request -> Request; whole (one object) or chunks (a stream of them).
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from qvl.serve.answers import Piece
from qvl.serve.content import Content, Nested, check_parts, check_pictures, parts_of, thoughts_of
from qvl.serve.errors import to_json
from qvl.serve.fields import (
    CalledFunction,
    Form,
    NamedTool,
    Sampled,
    StructuredOutputs,
    Tools,
    call_of,
    check_choice,
    form_of,
    tool_of,
    top_logprobs,
)
from qvl.serve.limits import MESSAGES, TOP_LOGPROBS
from qvl.types import (
    Completion,
    Message,
    Request,
    Text,
    TokenLogprob,
    ToolCall,
    Usage,
    choices,
)

ShapeFields = dict[
    str, Any
]  # what a body says of the `Shape` of its answers, and their ids' prefix
# what OpenAI's clients know; a loop was cut short, and so was reasoning without an end
FINISH = {"stop": "stop", "length": "length", "loop": "length", "reasoning": "length"}
NOTES = {
    "loop": "the model repeated itself without end, and was stopped",
    "reasoning": "the tokens ended before the model had reasoned to its answer",
}


class SystemMessage(Nested):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Nested):
    role: Literal["user"]
    content: Content
    name: str | None = None


class SentCall(Nested):
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class AssistantMessage(Nested):
    """As the answer's own object, so that it can be sent back as it is."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[SentCall], Field(fail_fast=True)] | None = None
    audio: None = None
    function_call: None = None
    annotations: list[object] | None = None
    parsed: object = None  # the content, as `parse` of OpenAI's client adds it


class ToolMessage(Nested):
    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]
Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MESSAGES, fail_fast=True)]


class ChatBody(Sampled):
    messages: Messages
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS)] | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: Form | None = None
    structured_outputs: StructuredOutputs | None = None
    thinking_token_budget: int | None = None

    def request(self, ignored: list[str]) -> Request:
        """Names in `ignored` what has no effect. Raises QvlError, Refusal."""
        self.check_stream(ignored)
        limit = (
            self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        )
        logprobs = top_logprobs(self.logprobs, self.top_logprobs)
        tools = tuple(tool_of(tool.function) for tool in self.tools or ())
        choice = self.tool_choice
        named = choice.function.name if isinstance(choice, NamedTool) else choice or "auto"
        form = form_of(self.response_format, self.structured_outputs)
        if tools and form is not None and named == "auto":
            ignored.append("tools")  # the form leaves no room for a call
        return Request(
            messages=messages_of(self.messages),
            sampling=replace(
                self.sampling(max_tokens=limit, logprobs=logprobs),
                thinking_tokens=self.thinking_token_budget,
            ).checked(),
            tools=tools,
            tool_choice=check_choice(named, tools),
            response_format=form,
            priority=self.priority or 0,
        )

    def requests(self, ignored: list[str]) -> list[Request]:
        return choices(self.request(ignored), self.n or 1)

    def shape(self) -> ShapeFields:
        return {
            "prefix": "chatcmpl",
            "top_logprobs": (self.top_logprobs or 0) if self.logprobs else None,
            "several_calls": self.parallel_tool_calls is not False,
            "usage_at_end": bool(self.stream_options and self.stream_options.include_usage),
        }

    def whole(self, found: Sequence[Completion], shape: Shape) -> dict[str, Any]:
        return whole(found, shape)

    def events(self, pieces: AsyncIterator[Piece], shape: Shape) -> AsyncIterator[str]:
        return data_events(chunks(pieces, self.n or 1, shape))


def messages_of(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Raises QvlError, Refusal for what cannot be shown."""
    check_parts([message.content for message in messages], "messages")
    found: list[Message] = []
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        parts = parts_of(message.content, f"{place}.content")
        match message:
            case SystemMessage():
                found.append(Message("system", parts))
            case UserMessage():
                found.append(Message("user", parts))
            case ToolMessage():
                found.append(Message("tool", parts))
            case AssistantMessage():
                calls = tuple(
                    call_of(c.function.name, c.function.arguments, f"{place}.tool_calls[{i}]")
                    for i, c in enumerate(message.tool_calls or ())
                )
                reasoning = message.reasoning or message.reasoning_content
                if message.refusal:
                    parts += (Text(message.refusal),)
                found.append(
                    Message("assistant", parts, reasoning or thoughts_of(message.content), calls)
                )
    check_pictures(found, "messages")
    return joined_system(found)


def joined_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """With the first system messages as one: models take one, clients send what developers add."""
    count = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    if count < 2:
        return tuple(messages)
    content = list(messages[0].content)
    for message in messages[1:count]:
        content += [Text("\n\n"), *message.content]
    return (replace(messages[0], content=tuple(content)), *messages[count:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How the answers to one request are shown: what its objects have in common."""

    model: str
    fingerprint: str
    id: str
    created: int = field(default_factory=lambda: int(time.time()))
    warnings: tuple[str, ...] = ()
    top_logprobs: int | None = None  # None: no logprobs at all
    several_calls: bool = True
    usage_at_end: bool = False

    def head(self, kind: str, found: Sequence[Completion] = ()) -> dict[str, Any]:
        """With what there is to be warned of, as far as answers are `found`."""
        warnings = [*self.warnings, *dict.fromkeys(w for c in found for w in c.provenance.unseen)]
        head = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }
        return {**head, "warnings": warnings} if warnings else head


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"


def whole(completions: Sequence[Completion], shape: Shape) -> dict[str, Any]:
    """The chat.completion object of the answers to one request."""
    return {
        **shape.head("chat.completion", completions),
        "choices": [_choice(i, c, shape) for i, c in enumerate(completions)],
        "usage": usage_object([c.usage for c in completions]),
    }


def _choice(index: int, completion: Completion, shape: Shape) -> dict[str, Any]:
    calls, notes = calls_of(completion, several=shape.several_calls)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": completion.text if completion.text or not calls else None,
        "refusal": None,
    }
    if completion.reasoning:
        message |= reasoning_fields(completion.reasoning)
    if calls:
        message["tool_calls"] = [
            {"id": new_id("call"), "type": "function", "function": function_object(call)}
            for call in calls
        ]
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs_object(completion.logprobs, shape.top_logprobs),
        "finish_reason": finish_of(completion),
        "meta": meta_of(completion, notes, shape.model),
    }


async def data_events(objects: AsyncIterator[str]) -> AsyncIterator[str]:
    """Server-sent events of objects as JSON, and OpenAI's last one."""
    async for text in objects:
        yield f"data: {text}\n\n"
    yield "data: [DONE]\n\n"


async def chunks(pieces: AsyncIterator[Piece], count: int, shape: Shape) -> AsyncIterator[str]:
    """The chat.completion.chunk objects of `count` answers as JSON: a role for each, text as it comes,
    calls, why each ended, and the usage if it is asked for.
    """
    head = shape.head("chat.completion.chunk")
    usages: dict[int, Usage] = {}

    def chunk(index: int, delta: dict[str, Any], **more: Any) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        usage = {"usage": None} if shape.usage_at_end else {}
        return to_json({**head, "choices": [choice], **usage})

    for index in range(count):
        yield chunk(index, {"role": "assistant", "content": ""})
    head.pop("warnings", None)
    async for index, delta in pieces:
        if delta.reasoning:
            yield chunk(index, reasoning_fields(delta.reasoning))
        if delta.text:
            yield chunk(index, {"content": delta.text})
        if (completion := delta.completion) is not None:
            usages[index] = completion.usage
            calls, notes = calls_of(completion, several=shape.several_calls)
            for call in _call_deltas(calls):
                yield chunk(index, {"tool_calls": [call]})
            if len(usages) == 1 and completion.provenance.unseen:
                head["warnings"] = list(completion.provenance.unseen)
            yield chunk(
                index,
                {},
                logprobs=logprobs_object(completion.logprobs, shape.top_logprobs),
                finish_reason=finish_of(completion),
                meta=meta_of(completion, notes, shape.model),
            )
            head.pop("warnings", None)
    if shape.usage_at_end:
        yield to_json({**head, "choices": [], "usage": usage_object(in_order(usages))})


def _call_deltas(calls: Sequence[ToolCall]) -> Iterator[dict[str, Any]]:
    """Each call's id and name first, then its arguments."""
    for number, call in enumerate(calls):
        function = function_object(call)
        named = {"name": call.name, "arguments": ""}
        yield {"index": number, "id": new_id("call"), "type": "function", "function": named}
        yield {"index": number, "function": {"arguments": function["arguments"]}}


def calls_of(completion: Completion, *, several: bool) -> tuple[Sequence[ToolCall], list[str]]:
    """The calls that are told, and notes on the answer."""
    calls, notes = completion.tool_calls, list(completion.notes)
    if completion.finish_reason in NOTES:
        notes.append(NOTES[completion.finish_reason])
    if len(calls) > 1 and not several:
        notes.append(f"{len(calls) - 1} more tool calls are left out: parallel_tool_calls is false")
        calls = calls[:1]
    return calls, notes


def finish_of(completion: Completion) -> str:
    reason = FINISH.get(completion.finish_reason, "stop")
    return "tool_calls" if completion.tool_calls and reason == "stop" else reason


def reasoning_fields(text: str) -> dict[str, str]:
    """Under vLLM's name for it and the older one."""
    return {"reasoning": text, "reasoning_content": text}


def function_object(call: ToolCall) -> dict[str, str]:
    return {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}


def logprobs_object(said: Sequence[TokenLogprob], top: int | None) -> dict[str, Any] | None:
    if top is None:
        return None
    content = [
        {
            **_token(token.token, token.logprob),
            "top_logprobs": [_token(*best) for best in token.best[:top]],
        }
        for token in said
    ]
    return {"content": content, "refusal": None}


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}


def meta_of(completion: Completion, notes: Sequence[str], model: str) -> dict[str, Any]:
    """How an answer came to be, as in `qvl describe --json`; the model by the name it is served by."""
    return {
        "confidence": round(completion.confidence, 4),
        **asdict(replace(completion.provenance, model=model)),
        "timings": asdict(completion.timings),
        "notes": list(notes),
    }


def in_order(usages: Mapping[int, Usage]) -> list[Usage]:
    """Of answers that ended in any order."""
    return [usages[index] for index in sorted(usages)]


def usage_object(usages: Sequence[Usage], prompts: int = 1) -> dict[str, Any]:
    """Of all answers to so many prompts; those to one stand side by side, and it counts once."""
    read = usages[:: len(usages) // prompts]
    prompt, new = sum(u.prompt_tokens for u in read), sum(u.completion_tokens for u in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {
            "cached_tokens": sum(u.cached_tokens for u in read),
            "image_tokens": sum(u.image_tokens for u in read),
        },
        "completion_tokens_details": {"reasoning_tokens": sum(u.reasoning_tokens for u in usages)},
        **cost_field(usages),
    }


def cost_field(usages: Sequence[Usage]) -> dict[str, float]:
    """What they cost together, where that of each is known; as OpenRouter calls it."""
    costs = [usage.cost for usage in usages if usage.cost is not None]
    return {"cost": sum(costs)} if len(costs) == len(usages) else {}
