"""A model that says what a test gives it, with what likelihood, and keeps what it was asked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterable, Mapping

from qvl.errors import QvlError
from qvl.types import (
    Completion,
    Delta,
    FinishReason,
    Image,
    ImageInfo,
    Message,
    Provenance,
    Request,
    Sampling,
    Text,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)
from qvl.vlm.chat_model import ModelInfo, completed

WIDTH_PX, HEIGHT_PX = 400, 200  # of every picture; the model sees them at half of it


class Scripted:
    """A ChatModel; the script is the answers in turn, or a function of the request."""

    def __init__(
        self,
        *script: str | Completion | QvlError | Callable[[Request], str | Completion],
        generation: str = "qwen3_vl",
    ) -> None:
        self.asked: list[Request] = []
        self._script = script
        self._generation = generation
        self.info = ModelInfo(
            name="scripted",
            revision=None,
            generation=generation,
            parameters=0,
            token_bytes=0,
            dtype="fp32",
            device="cpu",
            max_positions=4096,
            at_once=1,
        )

    @property
    def words(self) -> list[str]:
        """The text of each request's last message."""
        return [words_of(request) for request in self.asked]

    def results(self, requests: Iterable[Request]) -> Generator[Completion | QvlError, None, None]:
        for request in requests:
            self.asked.append(request)
            said = self._script[min(len(self.asked), len(self._script)) - 1]
            if callable(said):
                said = said(request)
            if isinstance(said, str):
                said = completion(said, request, generation=self._generation)
            yield said

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        return completed(self.results(requests))

    def stream(self, request: Request) -> Generator[Delta, None, None]:
        (said,) = self.generate([request])
        yield from (Delta("", reasoning=letter) for letter in said.reasoning)
        yield from (Delta(letter) for letter in said.text)
        yield Delta("", said)

    def close(self) -> None:
        pass


def text_of(message: Message) -> str:
    return "".join(part.text for part in message.content if isinstance(part, Text))


def words_of(request: Request) -> str:
    """What the request's last message says."""
    return text_of(request.messages[-1])


def likely(*tokens: tuple[str, float]) -> tuple[TokenLogprob, ...]:
    """Of texts and their probabilities."""
    return tuple(TokenLogprob(text.encode(), math.log(p)) for text, p in tokens)


def chosen(request: Request, probabilities: Mapping[str, float]) -> Completion:
    """The likeliest of the choices that the request leaves, each of which is one token."""
    assert request.response_format is not None
    left = json.loads(request.response_format.value)
    ranked = sorted(probabilities.items(), key=lambda one: -one[1])
    said, probability = next(one for one in ranked if one[0] in left)
    best = tuple((name.encode(), math.log(p)) for name, p in ranked)
    place = TokenLogprob(said.encode(), math.log(probability), best)
    return completion(said, request, logprobs=(place,))


def completion(
    text: str,
    request: Request | None = None,
    *,
    finish_reason: FinishReason = "stop",
    logprobs: tuple[TokenLogprob, ...] = (),
    reasoning: str = "",
    tool_calls: tuple[ToolCall, ...] = (),
    generation: str = "qwen3_vl",
) -> Completion:
    parts = [part for m in request.messages for part in m.content] if request else []
    images = tuple(
        ImageInfo(
            name=part.name,
            sha256="",
            width_px=WIDTH_PX,
            height_px=HEIGHT_PX,
            resized_width_px=WIDTH_PX // 2,
            resized_height_px=HEIGHT_PX // 2,
            tokens=4,
        )
        for part in parts
        if isinstance(part, Image)
    )
    return Completion(
        text=text,
        finish_reason=finish_reason,
        token_ids=(),
        confidence=1.0,
        usage=Usage(prompt_tokens=1, completion_tokens=1, image_tokens=0),
        timings=Timings(first_token_s=0.0, total_s=0.0),
        provenance=Provenance(
            model="scripted",
            revision=None,
            generation=generation,
            dtype="fp32",
            device="cpu",
            seed=None,
            sampling=Sampling(),
            images=images,
            version="0",
        ),
        logprobs=logprobs,
        reasoning=reasoning,
        tool_calls=tool_calls,
    )
