"""A conversation as template text, people's text and pictures, per generation.

Main path: render -> one formatter of _FORMATTERS -> segments, which `prompt` turns into token ids.

The formatters say what the checkpoints' own templates say, in Python, so that no template of a
checkpoint is run and people's text stays apart from control tokens. `<|im_start|>ROLE\\n`, the
content, `<|im_end|>\\n`, for every message; the generations differ in this:

|                                   | qwen2_vl             | qwen3_vl             | its Thinking editions   |
|-----------------------------------|----------------------|----------------------|-------------------------|
| no system message                 | DEFAULT_SYSTEM       | nothing is said      | nothing is said         |
| system message not in first place | said                 | dropped: refused     | said                    |
| picture in system or assistant    | shown                | dropped: refused     | shown                   |
| tools, calls, results             | none: refused        | said                 | said                    |
| the assistant's own reasoning     | left out             | left out             | said since the last     |
|                                   |                      |                      | user message, then not  |
| the answer begins with            |                      |                      | `<think>\\n`             |

Qwen2.5-VL says what Qwen2-VL says; dense models and mixtures of Qwen3-VL are alike. Qwen2-VL and
Qwen2.5-VL were not trained to call tools, and their templates have no form for them.
qwen_vl (the first Qwen-VL-Chat) is as qwen2_vl, with a numbered line for each picture. qwen_vl_base
(Qwen-VL, which only goes on with a text) has these lines too, and nothing around the messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qvl.errors import ConfigError, InvalidParamError
from qvl.types import Image, Message, Part, Text, Tool, Video

DEFAULT_SYSTEM = "You are a helpful assistant."
MAX_TOOLS = 64
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# what Qwen3-VL's published templates say around the tools, word for word
_BEFORE_TOOLS = (
    "# Tools\n\n"
    "You may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n"
    "<tools>"
)
_AFTER_TOOLS = (
    "\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n"
    '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
FIRST = ("qwen_vl", "qwen_vl_base")


@dataclass(frozen=True, slots=True)
class Literal_:  # noqa: N801 - not typing's Literal
    """Template text: the control tokens in it are meant as such."""

    text: str


@dataclass(frozen=True, slots=True)
class UserText:
    """Anybody's text, the assistant's history too: characters and never control tokens."""

    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    image: Image


@dataclass(frozen=True, slots=True)
class Clip:
    video: Video


Segment = Literal_ | UserText | Picture | Clip


def render(
    messages: Sequence[Message],
    *,
    generation: str,
    tools: Sequence[Tool] = (),
    thinks: bool = False,
    add_generation_prompt: bool = True,
) -> tuple[Segment, ...]:
    """The segments of a conversation, in order; `thinks` for a Thinking edition.

    Raises InvalidParamError for what the generation's template cannot say, ConfigError for an
    unknown generation.
    """
    formatter = _FORMATTERS.get((generation, thinks))
    if formatter is None:
        known = ", ".join(name for name, thinking in _FORMATTERS if not thinking)
        edition = f"a Thinking edition of {generation!r}" if thinks else repr(generation)
        raise ConfigError(f"no chat template for {edition}", hint=f"known: {known}")
    check_conversation(messages, tools)
    segments = list(formatter(messages, tools))
    if add_generation_prompt and generation != "qwen_vl_base":
        segments.append(Literal_("<|im_start|>assistant\n" + ("<think>\n" if thinks else "")))
    return tuple(segments)


def check_conversation(messages: Sequence[Message], tools: Sequence[Tool]) -> None:
    """Raises InvalidParamError for what no model of any generation takes."""
    if not messages:
        raise InvalidParamError("the conversation has no messages", hint="give at least one")
    for number, message in enumerate(messages, 1):
        _check_message(message, number)
    _check_tools(tools)


def vision_marks(generation: str) -> tuple[str, str, str]:
    """The control tokens before a picture, for each of its visual tokens, and after it."""
    if generation in FIRST:
        return "<img>", "<imgpad>", "</img>"
    return "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"


def _check_message(message: Message, number: int) -> None:
    if message.role not in ("system", "user", "assistant", "tool"):
        raise InvalidParamError(
            f"message {number} has the role {message.role!r:.40}",
            hint="roles are system, user, assistant and tool",
        )
    if message.role != "assistant" and (message.reasoning or message.tool_calls):
        raise InvalidParamError(
            f"message {number} has reasoning or tool calls and the role {message.role!r}",
            hint="only the assistant reasons and calls",
        )
    for call in message.tool_calls:
        _check_tool_name(call.name)


def _check_tools(tools: Sequence[Tool]) -> None:
    if len(tools) > MAX_TOOLS:
        raise InvalidParamError(f"{len(tools)} tools are offered, at most {MAX_TOOLS} can be")
    for tool in tools:
        _check_tool_name(tool.name)
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise InvalidParamError("two tools have the same name", hint="give each its own")


def _check_tool_name(name: object) -> None:
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise InvalidParamError(
            f"a tool is called {name!r:.80}",
            hint="names are 1 to 64 letters, digits, dashes and underscores",
        )


def _refuse_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> None:
    if tools or any(m.role == "tool" or m.tool_calls for m in messages):
        raise InvalidParamError(
            "this generation's template has no tools",
            hint="use a Qwen3-VL model, or describe the functions in a message and ask for JSON",
        )


def _qwen2_vl(messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[Segment]:
    _refuse_tools(messages, tools)
    if messages[0].role != "system":
        yield Literal_(f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n")
    for number, message in enumerate(messages, 1):
        yield from _turn(message, number)


def _qwen3_vl(messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[Segment]:
    for number, message in enumerate(messages, 1):
        if message.role == "system" and number > 1:
            raise InvalidParamError(
                f"message {number} has the role 'system', which Qwen3-VL takes first only",
                hint="put it first, or say it in a user message",
            )
        shows = any(isinstance(part, Image | Video) for part in message.content)
        if shows and message.role in ("system", "assistant"):
            raise InvalidParamError(
                f"message {number} has a picture or a video and the role {message.role!r}, "
                "which Qwen3-VL does not take",
                hint="put it into a user message",
            )
    return _qwen3_turns(messages, tools, reasoning_from=len(messages) + 1)


def _qwen3_vl_thinking(messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[Segment]:
    asked = [number for number, message in enumerate(messages, 1) if message.role == "user"]
    return _qwen3_turns(messages, tools, reasoning_from=max(asked, default=len(messages)) + 1)


def _qwen_vl(messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[Segment]:
    return _numbered(_qwen2_vl(messages, tools))


def _qwen_vl_base(messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[Segment]:
    return _numbered(_plain(messages, tools))


def _plain(messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[Segment]:
    _refuse_tools(messages, tools)
    for number, message in enumerate(messages, 1):
        if number > 1:
            yield Literal_("\n")
        for part in message.content:
            yield _content(part, number)


def _numbered(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Each picture on a line of its own, counted over the conversation."""
    number = 0
    for segment in segments:
        if not isinstance(segment, Picture):
            yield segment
            continue
        number += 1
        yield Literal_(f"Picture {number}: ")
        yield segment
        yield Literal_("\n")


_FORMATTERS: dict[
    tuple[str, bool], Callable[[Sequence[Message], Sequence[Tool]], Iterator[Segment]]
] = {
    ("qwen_vl", False): _qwen_vl,
    ("qwen_vl_base", False): _qwen_vl_base,
    ("qwen2_vl", False): _qwen2_vl,
    ("qwen2_5_vl", False): _qwen2_vl,
    ("qwen3_vl", False): _qwen3_vl,
    ("qwen3_vl", True): _qwen3_vl_thinking,
    ("qwen3_vl_moe", False): _qwen3_vl,
    ("qwen3_vl_moe", True): _qwen3_vl_thinking,
}


def _qwen3_turns(
    messages: Sequence[Message], tools: Sequence[Tool], *, reasoning_from: int
) -> Iterator[Segment]:
    """The turns; from message `reasoning_from` on the assistant's reasoning is said."""
    if tools:
        yield Literal_("<|im_start|>system\n")
        if messages[0].role == "system":
            yield from _parts(messages[0], 1)
            yield Literal_("\n\n")
        yield Literal_(_BEFORE_TOOLS)
        for tool in tools:
            yield Literal_("\n")
            yield UserText(_tool_json(tool))
        yield Literal_(_AFTER_TOOLS + "<|im_end|>\n")
    roles = [*(message.role for message in messages), None]
    for number, message in enumerate(messages, 1):
        if message.role == "assistant":
            # an answer that ends the conversation is shown with its reasoning, if only an empty one
            reasons = number == len(messages) or message.reasoning != ""
            yield from _assistant(message, number, reasons=reasons and number >= reasoning_from)
        elif message.role == "tool":  # results in a row share one turn
            if number == 1 or roles[number - 2] != "tool":
                yield Literal_("<|im_start|>user")
            yield Literal_("\n<tool_response>\n")
            yield from _parts(message, number)
            yield Literal_("\n</tool_response>")
            if roles[number] != "tool":
                yield Literal_("<|im_end|>\n")
        elif not (tools and number == 1 and message.role == "system"):
            yield from _turn(message, number)


def _turn(message: Message, number: int) -> Iterator[Segment]:
    yield Literal_(f"<|im_start|>{message.role}\n")
    yield from _parts(message, number)
    yield Literal_("<|im_end|>\n")


def _assistant(message: Message, number: int, *, reasons: bool) -> Iterator[Segment]:
    parts = list(_parts(message, number))
    says = any(isinstance(part, Picture | Clip) or part.text for part in parts)
    yield Literal_("<|im_start|>assistant\n")
    if reasons:
        yield Literal_("<think>\n")
        yield UserText(message.reasoning.strip("\n"))
        yield Literal_("\n</think>\n\n")
        parts = _without_first_newlines(parts)
    yield from parts
    for index, call in enumerate(message.tool_calls):
        yield Literal_("\n" if says or index else "")
        yield Literal_('<tool_call>\n{"name": "')
        yield UserText(call.name)
        yield Literal_('", "arguments": ')
        yield UserText(_json(call.arguments, f"the arguments of {call.name!r}"))
        yield Literal_("}\n</tool_call>")
    yield Literal_("<|im_end|>\n")


def _without_first_newlines(parts: list[Segment]) -> list[Segment]:
    for index, part in enumerate(parts):
        if isinstance(part, Picture | Clip):
            return parts[index:]
        if text := part.text.lstrip("\n"):
            return [UserText(text), *parts[index + 1 :]]
    return []


def _parts(message: Message, number: int) -> Iterator[Segment]:
    return (_content(part, number) for part in message.content)


def _content(part: Part, number: int) -> Segment:
    match part:
        case Text(text=str(text)):
            return UserText(text)
        case Image():
            return Picture(part)
        case Video():
            return Clip(part)
    raise InvalidParamError(
        f"message {number} has a part of type {type(part).__name__!r}, not a text, an image or a "
        "video",
        hint="content is a tuple of Text, Image and Video",
    )


def _tool_json(tool: Tool) -> str:
    """A tool in OpenAI's form, which is what the templates are given."""
    function = {"name": tool.name, "description": tool.description}
    function |= {"parameters": dict(tool.parameters)}
    return _json({"type": "function", "function": function}, f"the tool {tool.name!r}")


def _json(value: Mapping[str, Any], what: str) -> str:
    """As transformers' `tojson` writes it: on one line, keys in their order, letters as they are."""
    try:
        return json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as err:
        raise InvalidParamError(f"{what} is not JSON", hint="use plain JSON values") from err
