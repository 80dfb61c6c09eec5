"""/v1/completions, OpenAI's older route: each prompt is asked as a user's message of its own.

The models of this family are trained to answer, so a prompt is not gone on with as bare text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Annotated, Any

from pydantic import Field

from qvl.errors import InvalidParamError
from qvl.serve.answers import Piece
from qvl.serve.chat import (
    Shape,
    ShapeFields,
    calls_of,
    data_events,
    finish_of,
    in_order,
    meta_of,
    usage_object,
)
from qvl.serve.errors import to_json
from qvl.serve.fields import Form, Sampled, StructuredOutputs, form_of
from qvl.serve.limits import CHOICES, TOP_LOGPROBS
from qvl.types import Completion, Message, Request, TokenLogprob, Usage, choices

Prompts = Annotated[list[str], Field(min_length=1, max_length=CHOICES)]


class CompletionBody(Sampled):
    prompt: str | Prompts
    logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS)] | None = None
    response_format: Form | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def requests(self, ignored: list[str]) -> list[Request]:
        """`n` for each prompt, one after the other; names in `ignored` what has no effect.

        Raises InvalidParamError.
        """
        n, count = self.n or 1, len(self.prompts)
        if count * n > CHOICES:
            raise InvalidParamError(
                f"{count} prompts with n of {n} are {count * n} answers, the limit is {CHOICES}"
            )
        self.check_stream(ignored)
        logprobs = 0 if self.logprobs is None else max(1, self.logprobs)
        sampling = self.sampling(max_tokens=self.max_tokens, logprobs=logprobs)
        form = form_of(self.response_format, self.structured_outputs)
        base = Request(
            messages=(),
            sampling=sampling,
            response_format=form,
            priority=self.priority or 0,
        )
        return [
            request
            for prompt in self.prompts
            for request in choices(replace(base, messages=(Message.user(prompt),)), n)
        ]

    def shape(self) -> ShapeFields:
        return {
            "prefix": "cmpl",
            "top_logprobs": self.logprobs,
            "usage_at_end": bool(self.stream_options and self.stream_options.include_usage),
        }

    def whole(self, found: Sequence[Completion], shape: Shape) -> dict[str, Any]:
        return whole(found, shape, len(self.prompts))

    def events(self, pieces: AsyncIterator[Piece], shape: Shape) -> AsyncIterator[str]:
        return data_events(chunks(pieces, shape, len(self.prompts)))


def whole(completions: Sequence[Completion], shape: Shape, prompts: int) -> dict[str, Any]:
    return {
        **shape.head("text_completion"),
        "choices": [
            {"text": completion.text, **_end(index, completion, shape)}
            for index, completion in enumerate(completions)
        ],
        "usage": usage_object([c.usage for c in completions], prompts),
    }


async def chunks(pieces: AsyncIterator[Piece], shape: Shape, prompts: int) -> AsyncIterator[str]:
    head = shape.head("text_completion")
    usages: dict[int, Usage] = {}
    async for index, delta in pieces:
        if delta.text:
            choice = {"text": delta.text, "index": index, "logprobs": None, "finish_reason": None}
            yield to_json({**head, "choices": [choice]})
            head.pop("warnings", None)  # they are told once
        if delta.completion is not None:
            usages[index] = delta.completion.usage
            choice = {"text": "", **_end(index, delta.completion, shape)}
            yield to_json({**head, "choices": [choice]})
    if shape.usage_at_end:
        yield to_json({**head, "choices": [], "usage": usage_object(in_order(usages), prompts)})


def _end(index: int, completion: Completion, shape: Shape) -> dict[str, Any]:
    _, notes = calls_of(completion, several=True)
    return {
        "index": index,
        "logprobs": _logprobs(completion.logprobs, shape.top_logprobs),
        "finish_reason": finish_of(completion),
        "meta": meta_of(completion, notes, shape.model),
    }


def _logprobs(said: Sequence[TokenLogprob], top: int | None) -> dict[str, Any] | None:
    """In the older form: lists beside each other, offsets in characters of the tokens' text."""
    if top is None:
        return None
    tokens = [token.token.decode(errors="replace") for token in said]
    offsets = list(accumulate(map(len, tokens), initial=0))[: len(tokens)]
    return {
        "tokens": tokens,
        "token_logprobs": [token.logprob for token in said],
        "top_logprobs": [
            {best.decode(errors="replace"): logprob for best, logprob in token.best[:top]}
            for token in said
        ],
        "text_offset": offsets,
    }
