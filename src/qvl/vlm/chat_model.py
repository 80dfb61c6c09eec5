"""What every way of reaching a model offers."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from qvl.errors import InvalidParamError, PromptTooLongError, QvlError, UnknownModelError
from qvl.types import (
    MAX_PICTURES,
    TEXT_PER_POSITION,
    Completion,
    Delta,
    Image,
    Request,
    Text,
    Video,
)

EMBEDDED = "sprout"
EMBEDDED_FOLDER = Path(str(files("qvl.vlm"))) / "sprout"
REMOTE = "openai:"  # what the names of remote models begin with
# name prefixes of backends that are planned; refused in one plain line until they are built
LATER = {"hf:": "a model run through transformers"}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is loaded: the name it was asked by, its commit, and how it runs; `token_bytes` of weights
    are read for each generated token, and it works at `at_once` requests together. Of a remote model
    a number that is not known is 0.
    """

    name: str
    revision: str | None
    generation: str
    parameters: int
    token_bytes: int
    dtype: str
    device: str
    max_positions: int
    at_once: int


class ChatModel(Protocol):
    """A model behind one door; tasks, batch, server and evaluation know no more than this.

    Who closes `results` or `stream` early gives up what was asked.
    """

    @property
    def info(self) -> ModelInfo: ...

    def results(self, requests: Iterable[Request]) -> Generator[Completion | QvlError, None, None]:
        """One result per request, in their order; an error of one harms no other."""
        ...

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        """All completions, in order; raises the first error."""
        ...

    def stream(self, request: Request) -> Generator[Delta, None, None]:
        """Text as it comes, maybe in empty deltas; the last one carries the completion."""
        ...

    def close(self) -> None:
        """Give up what is still computed, whoever waits for it, and what the model holds."""
        ...


def completed(results: Iterable[Completion | QvlError]) -> list[Completion]:
    """All completions, in order; raises the first error."""
    completions = []
    for result in results:
        if isinstance(result, QvlError):
            raise result
        completions.append(result)
    return completions


def check_asked(request: Request) -> None:
    """Raises InvalidParamError where nothing is asked, or too much is shown; nothing is read for it."""
    parts = [part for message in request.messages for part in message.content]
    if request.messages and all(isinstance(part, Text) and part.text == "" for part in parts):
        raise InvalidParamError(
            "nothing is said or shown in the request", hint="give it a text or a picture"
        )
    shown = sum(isinstance(part, Image | Video) for part in parts)
    if shown > MAX_PICTURES:
        raise InvalidParamError(
            f"the request has {shown} pictures, the limit is {MAX_PICTURES}",
            hint="ask about fewer at once",
        )


def characters_of(request: Request) -> int:
    """About how long all is that a model would read of it as text."""
    messages = request.messages
    texts = [part.text for m in messages for part in m.content if isinstance(part, Text)]
    texts += [message.reasoning for message in messages]
    texts += [str(call.arguments) for message in messages for call in message.tool_calls]
    for tool in request.tools:
        texts += [tool.description, str(tool.parameters)]
    return sum(map(len, texts))


def check_length(characters: int, context: int) -> None:
    """Raises PromptTooLongError for a text that no tokenizer need see; a context of 0 is not known."""
    if context and characters > TEXT_PER_POSITION * context:
        raise PromptTooLongError(
            f"the text has {characters} characters, over {TEXT_PER_POSITION} for each of the"
            f" {context} tokens of the model's context",
            hint="shorten the text",
        )


def refuse_later(name: str) -> None:
    """Raise for the names of backends that do not exist yet."""
    for prefix, what in LATER.items():
        if name.startswith(prefix):
            raise UnknownModelError(
                f"{name!r} names {what}, which this version does not have yet",
                hint=f"use {EMBEDDED!r}, a model folder or a hub id such as "
                "Qwen/Qwen3-VL-2B-Instruct",
            )
