"""/tokenize and /detokenize: what a prompt costs before it is sent, its visual tokens counted too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Protocol, runtime_checkable

from pydantic import Field, model_validator

from qvl.serve.chat import Messages, messages_of
from qvl.serve.fields import Body, TokenId, Tools, tool_of
from qvl.types import Request


@runtime_checkable
class Tokenizes(Protocol):
    """A model whose tokenizer is here: our own is, that of a remote one is not."""

    def prompt_ids(self, request: Request) -> list[int]: ...

    def text_ids(self, text: str) -> list[int]: ...

    def text_of(self, ids: Iterable[int]) -> str: ...


class TokenizeBody(Body):
    """Either a text alone, or messages as /v1/chat/completions takes them."""

    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either a prompt or messages")
        return self

    def request(self) -> Request:
        """Of the messages. Raises QvlError, Refusal."""
        tools = tuple(tool_of(tool.function) for tool in self.tools or ())
        return Request(messages=messages_of(self.messages or ()), tools=tools)


class DetokenizeBody(Body):
    tokens: Annotated[list[TokenId], Field(max_length=200_000, fail_fast=True)]
