"""A conversation as template text, people's text and pictures, per generation.

Main path: render -> one formatter of _FORMATTERS -> segments, which `prompt` turns into token ids.

The formatters say what the checkpoints' own templates say, in Python, so that no template of a
checkpoint is run and people's text stays apart from control tokens. `<|im_start|>ROLE\\n`, the
content, `<|im_end|>\\n`, for every message; the generations differ in this:

|                                   | qwen2_vl                | qwen3_vl                |
|-----------------------------------|-------------------------|-------------------------|
| no system message                 | DEFAULT_SYSTEM is said  | nothing is said         |
| system message not in first place | said                    | dropped: refused here   |
| picture not in a user message     | shown                   | dropped: refused here   |

Qwen2.5-VL says what Qwen2-VL says; dense models and mixtures of Qwen3-VL are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from qvl.errors import ConfigError, InvalidParamError
from qvl.types import Image, Message, Part, Text, Video

DEFAULT_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True, slots=True)
class Literal_:  # noqa: N801 - not typing's Literal
    """Template text: `<|...|>` in it are control tokens."""

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
    messages: Sequence[Message], *, generation: str, add_generation_prompt: bool = True
) -> tuple[Segment, ...]:
    """The segments of a conversation, in order.

    Raises InvalidParamError for what the generation's template cannot say, ConfigError for an
    unknown generation.
    """
    if generation not in _FORMATTERS:
        raise ConfigError(
            f"no chat template for {generation!r}", hint=f"known: {', '.join(_FORMATTERS)}"
        )
    if not messages:
        raise InvalidParamError("the conversation has no messages", hint="give at least one")
    for number, message in enumerate(messages, 1):
        _check_role(message, number)
    segments = list(_FORMATTERS[generation](messages))
    if add_generation_prompt:
        segments.append(Literal_("<|im_start|>assistant\n"))
    return tuple(segments)


def _check_role(message: Message, number: int) -> None:
    if message.role == "tool":
        raise InvalidParamError(
            f"message {number} has the role 'tool', which is not yet supported",
            hint="put the tool's result into a user message",
        )
    if message.role not in ("system", "user", "assistant"):
        raise InvalidParamError(
            f"message {number} has the role {message.role!r:.40}",
            hint="roles are system, user and assistant",
        )


def _qwen2_vl(messages: Sequence[Message]) -> Iterator[Segment]:
    if messages[0].role != "system":
        yield Literal_(f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n")
    for number, message in enumerate(messages, 1):
        yield from _turn(message, number)


def _qwen3_vl(messages: Sequence[Message]) -> Iterator[Segment]:
    for number, message in enumerate(messages, 1):
        if message.role == "system" and number > 1:
            raise InvalidParamError(
                f"message {number} has the role 'system', which Qwen3-VL takes first only",
                hint="put it first, or say it in a user message",
            )
        if message.role != "user" and any(
            isinstance(part, Image | Video) for part in message.content
        ):
            raise InvalidParamError(
                f"message {number} has a picture or a video and the role {message.role!r}, "
                "which Qwen3-VL does not take",
                hint="put it into a user message",
            )
        yield from _turn(message, number)


_FORMATTERS: dict[str, Callable[[Sequence[Message]], Iterator[Segment]]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl,
}


def _turn(message: Message, number: int) -> Iterator[Segment]:
    yield Literal_(f"<|im_start|>{message.role}\n")
    for part in message.content:
        yield _content(part, number)
    yield Literal_("<|im_end|>\n")


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
