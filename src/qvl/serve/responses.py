"""/v1/responses, OpenAI's newer form of the same: items in, items out, events while they are made.

Nothing is stored: a response cannot be asked for again or gone on with by its id.
Main path: ResponseBody.request -> Request; whole (the object) or events (a stream).
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from qvl.serve.answers import Piece
from qvl.serve.chat import (
    Shape,
    ShapeFields,
    calls_of,
    cost_field,
    joined_system,
    logprobs_object,
    meta_of,
    new_id,
)
from qvl.serve.content import Content, Nested, check_parts, check_pictures, parts_of
from qvl.serve.errors import to_json
from qvl.serve.fields import (
    Body,
    Function,
    ObjectForm,
    TextForm,
    ToolName,
    call_of,
    check_choice,
    form_of,
    schema_form,
    tool_of,
    top_logprobs,
)
from qvl.serve.limits import DEFAULT_MAX_TOKENS, MESSAGES, TOOLS, TOP_LOGPROBS
from qvl.types import (
    Completion,
    Message,
    Request,
    ResponseFormat,
    Sampling,
    Text,
    ToolCall,
)

Status = Literal["in_progress", "completed", "incomplete"]


class MessageItem(Nested):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: str | None = None
    status: Status | None = None
    phase: str | None = None


class CallItem(Nested):
    type: Literal["function_call"]
    call_id: str
    name: ToolName
    arguments: str
    id: str | None = None
    status: Status | None = None


class OutputItem(Nested):
    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: str | None = None
    status: Status | None = None


class ReasoningText(Nested):
    type: Literal["reasoning_text", "summary_text"]
    text: str


ReasoningTexts = Annotated[list[ReasoningText], Field(fail_fast=True)]


class ReasoningItem(Nested):
    type: Literal["reasoning"]
    id: str | None = None
    summary: ReasoningTexts | None = None
    content: ReasoningTexts | None = None
    encrypted_content: None = None
    status: Status | None = None


Item = MessageItem | CallItem | OutputItem | ReasoningItem


class SchemaText(Nested):
    type: Literal["json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class TextOptions(Nested):
    format: Annotated[TextForm | ObjectForm | SchemaText, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class FunctionTool(Function):
    type: Literal["function"]


class NamedChoice(Nested):
    type: Literal["function"]
    name: ToolName


class ResponseBody(Body):
    input: str | Annotated[list[Item], Field(min_length=1, max_length=MESSAGES, fail_fast=True)]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS)] | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    store: bool | None = None
    background: Literal[False] | None = None
    previous_response_id: None = None
    # none of the choices of OpenAI's own API that OpenAI's route lacks, but of ours
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None

    def request(self, ignored: list[str]) -> Request:
        """Names in `ignored` what has no effect. Raises QvlError, Refusal."""
        if self.store:
            ignored.append("store")
        limit = DEFAULT_MAX_TOKENS if self.max_output_tokens is None else self.max_output_tokens
        tools = tuple(map(tool_of, self.tools or ()))
        choice = self.tool_choice
        named = choice.name if isinstance(choice, NamedChoice) else choice or "auto"
        form = self._form()
        if tools and form is not None and named == "auto":
            ignored.append("tools")  # the form leaves no room for a call
        sampling = Sampling(
            max_new_tokens=limit,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            logprobs=top_logprobs(self.top_logprobs is not None, self.top_logprobs),
        )
        return Request(
            messages=self._messages(),
            sampling=sampling.checked(),
            tools=tools,
            tool_choice=check_choice(named, tools),
            response_format=form,
        )

    def requests(self, ignored: list[str]) -> list[Request]:
        return [self.request(ignored)]

    def shape(self) -> ShapeFields:
        return {
            "prefix": "resp",
            "top_logprobs": self.top_logprobs,
            "several_calls": self.parallel_tool_calls is not False,
        }

    def whole(self, found: Sequence[Completion], shape: Shape) -> dict[str, Any]:
        return response(self, shape, found[0], Output().items(found[0], shape))

    async def events(self, pieces: AsyncIterator[Piece], shape: Shape) -> AsyncIterator[str]:
        """Each with its number, in the order that OpenAI's clients expect."""
        number = 0
        async for event in _events(pieces, self, shape):
            told = to_json({**event, "sequence_number": number})
            yield f"event: {event['type']}\ndata: {told}\n\n"
            number += 1

    def _form(self) -> ResponseFormat | None:
        form = self.text.format if self.text else None
        return schema_form(form.schema_) if isinstance(form, SchemaText) else form_of(form)

    def _messages(self) -> tuple[Message, ...]:
        found = [Message("system", (Text(self.instructions),))] if self.instructions else []
        if isinstance(self.input, str):
            return (*found, Message.user(self.input))
        contents = [i.content for i in self.input if isinstance(i, MessageItem)]
        outputs = [i.output for i in self.input if isinstance(i, OutputItem)]
        check_parts([*contents, *outputs], "input")
        reasoning = ""
        for number, item in enumerate(self.input):
            place = f"input[{number}]"
            match item:
                case MessageItem():
                    role = "system" if item.role == "developer" else item.role
                    parts = parts_of(item.content, f"{place}.content")
                    thought = reasoning if role == "assistant" else ""
                    found.append(Message(role, parts, thought))
                case CallItem():
                    call = call_of(item.name, item.arguments, place)
                    _add_call(found, call, reasoning)
                case OutputItem():
                    parts = parts_of(item.output, f"{place}.output")
                    found.append(Message("tool", parts))
                case ReasoningItem():
                    reasoning = "".join(t.text for t in item.content or item.summary or ())
                    continue
            reasoning = ""
        check_pictures(found, "input")
        return joined_system(found)


def _add_call(messages: list[Message], call: ToolCall, reasoning: str) -> None:
    """To the assistant's turn that it is of, if that is the last."""
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant" or reasoning:
        messages.append(Message("assistant", (), reasoning, (call,)))
        return
    calls = (*last.tool_calls, call)
    messages[-1] = Message("assistant", last.content, last.reasoning, calls)


@dataclass(slots=True)
class Output:
    """The items of a response, under the ids that its events have named."""

    reasoning_id: str = field(default_factory=lambda: new_id("rs"))
    message_id: str = field(default_factory=lambda: new_id("msg"))

    def reasoning(self, text: str) -> dict[str, Any]:
        content = [{"type": "reasoning_text", "text": text}]
        item = {"id": self.reasoning_id, "type": "reasoning", "summary": [], "content": content}
        return {**item, "status": "completed"}

    def message(self, content: Sequence[dict[str, Any]], status: Status) -> dict[str, Any]:
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": list(content),
        }

    def items(self, completion: Completion, shape: Shape) -> list[dict[str, Any]]:
        items = [self.reasoning(completion.reasoning)] if completion.reasoning else []
        calls, _ = calls_of(completion, several=shape.several_calls)
        if completion.text or not calls:
            part = text_part(completion.text, completion, shape)
            items.append(self.message([part], status_of(completion)))
        return [*items, *map(call_item, calls)]


def text_part(text: str, completion: Completion | None, shape: Shape) -> dict[str, Any]:
    said = completion.logprobs if completion else ()
    logprobs = logprobs_object(said, shape.top_logprobs)
    told = logprobs["content"] if logprobs else []
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": told}


def call_item(call: ToolCall) -> dict[str, Any]:
    return {
        "id": new_id("fc"),
        "type": "function_call",
        "call_id": new_id("call"),
        "name": call.name,
        "arguments": json.dumps(call.arguments, ensure_ascii=False),
        "status": "completed",
    }


def status_of(completion: Completion) -> Status:
    return "completed" if completion.finish_reason == "stop" else "incomplete"


def response(
    body: ResponseBody,
    shape: Shape,
    completion: Completion | None,
    items: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The response object; without a completion it is in progress."""
    status: Status = "in_progress"
    details = None
    if completion is not None:
        status = status_of(completion)
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
    told: dict[str, Any] = {
        "id": shape.id,
        "object": "response",
        "created_at": shape.created,
        "completed_at": int(time.time()) if completion else None,
        "model": shape.model,
        "status": status,
        "error": None,
        "incomplete_details": details,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "output": list(items),
        "parallel_tool_calls": shape.several_calls,
        "previous_response_id": None,
        "store": False,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "text": (body.text or TextOptions(format=TextForm(type="text"))).model_dump(
            by_alias=True, exclude_none=True
        ),
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "tool_choice": body.tool_choice
        if isinstance(body.tool_choice, str | None)
        else body.tool_choice.model_dump(),
        "usage": usage_of(completion) if completion else None,
        "metadata": {},
    }
    told["tool_choice"] = told["tool_choice"] or "auto"
    warnings = [*shape.warnings, *(completion.provenance.unseen if completion else ())]
    if warnings:
        told["warnings"] = warnings
    if completion is not None:
        _, notes = calls_of(completion, several=shape.several_calls)
        told["meta"] = meta_of(completion, notes, shape.model)
    return told


def usage_of(completion: Completion) -> dict[str, Any]:
    usage = completion.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        **cost_field([usage]),
    }


async def _events(
    pieces: AsyncIterator[Piece], body: ResponseBody, shape: Shape
) -> AsyncIterator[dict[str, Any]]:
    begun = response(body, shape, None)
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    output, reasoning, text, index = Output(), "", "", 0
    async for _, delta in pieces:
        if delta.reasoning:
            place = {"item_id": output.reasoning_id, "output_index": 0, "content_index": 0}
            if not reasoning:
                item = {**output.reasoning(""), "content": [], "status": "in_progress"}
                yield {"type": "response.output_item.added", "output_index": 0, "item": item}
            reasoning += delta.reasoning
            yield {"type": "response.reasoning_text.delta", **place, "delta": delta.reasoning}
        ended = delta.completion
        if reasoning and not index and (delta.text or ended):
            index = 1
            for event in _reasoning_end(output, reasoning):
                yield event
        if delta.text or (ended and not text and not ended.tool_calls):
            if not text:
                for event in _message_begin(output, index, shape):
                    yield event
            text += delta.text
            place = {"item_id": output.message_id, "output_index": index, "content_index": 0}
            yield {
                "type": "response.output_text.delta",
                **place,
                "delta": delta.text,
                "logprobs": [],
            }
        if ended is not None:
            items = output.items(ended, shape)
            for place, item in enumerate(items[bool(reasoning) :], bool(reasoning)):
                for event in _item_end(item, place):
                    yield event
            kind = f"response.{status_of(ended)}"
            yield {"type": kind, "response": response(body, shape, ended, items)}


def _reasoning_end(output: Output, text: str) -> Iterator[dict[str, Any]]:
    place = {"item_id": output.reasoning_id, "output_index": 0, "content_index": 0}
    yield {"type": "response.reasoning_text.done", **place, "text": text}
    item = output.reasoning(text)
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}


def _message_begin(output: Output, index: int, shape: Shape) -> Iterator[dict[str, Any]]:
    item = output.message([], "in_progress")
    yield {"type": "response.output_item.added", "output_index": index, "item": item}
    place = {"item_id": output.message_id, "output_index": index, "content_index": 0}
    part = text_part("", None, shape)
    yield {"type": "response.content_part.added", **place, "part": part}


def _item_end(item: dict[str, Any], index: int) -> Iterator[dict[str, Any]]:
    """The last events of a message, all events of a call."""
    place = {"item_id": item["id"], "output_index": index}
    if item["type"] == "message":
        (part,) = item["content"]
        inside = {**place, "content_index": 0}
        text, logprobs = part["text"], part["logprobs"]
        yield {"type": "response.output_text.done", **inside, "text": text, "logprobs": logprobs}
        yield {"type": "response.content_part.done", **inside, "part": part}
    else:
        arguments, name = item["arguments"], item["name"]
        begun = {**item, "arguments": "", "status": "in_progress"}
        yield {"type": "response.output_item.added", "output_index": index, "item": begun}
        yield {
            "type": "response.function_call_arguments.delta",
            **place,
            "delta": arguments,
        }
        yield {
            "type": "response.function_call_arguments.done",
            **place,
            "name": name,
            "arguments": arguments,
        }
    yield {"type": "response.output_item.done", "output_index": index, "item": item}
