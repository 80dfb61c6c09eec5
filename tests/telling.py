"""A model that says what a test makes it say, and how likely each token of it was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace

from qvl.types import (
    Completion,
    Delta,
    FinishReason,
    ImageInfo,
    Provenance,
    Request,
    Text,
    Timings,
    TokenLogprob,
    Usage,
)
from qvl.vlm.chat_model import ModelInfo

INFO = ModelInfo("told", None, "qwen3_vl", 0, 0, "fp32", "cpu", 4096, 4)
PICTURE = ImageInfo(
    name="a.png",
    sha256="0",
    width_px=400,
    height_px=200,
    resized_width_px=384,
    resized_height_px=192,
    tokens=8,
)


def completion(
    text: str,
    request: Request,
    *,
    tokens: Sequence[tuple[str, float]] = (),
    reason: FinishReason = "stop",
) -> Completion:
    """`tokens` are (text, probability); without them it tells no probabilities."""
    return Completion(
        text=text,
        finish_reason=reason,
        token_ids=(),
        confidence=1.0,
        usage=Usage(prompt_tokens=1, completion_tokens=1, image_tokens=0),
        timings=Timings(first_token_s=0.0, total_s=0.0),
        provenance=Provenance(
            model="told",
            revision=None,
            generation="qwen3_vl",
            dtype="fp32",
            device="cpu",
            seed=None,
            sampling=request.sampling,
            images=(PICTURE,),
            version="0",
        ),
        logprobs=tuple(TokenLogprob(t.encode(), math.log(p)) for t, p in tokens),
    )


def chosen(request: Request, probabilities: Mapping[str, float]) -> Completion:
    """The likeliest of the choices that the request leaves, each of which is one token."""
    assert request.response_format is not None
    left = json.loads(request.response_format.value)
    ranked = sorted(probabilities.items(), key=lambda one: -one[1])
    said, probability = next(one for one in ranked if one[0] in left)
    best = tuple((name.encode(), math.log(p)) for name, p in ranked)
    place = TokenLogprob(said.encode(), math.log(probability), best)
    return replace(completion(said, request), logprobs=(place,))


def words_of(request: Request) -> str:
    """What the request's user asks."""
    return "".join(part.text for part in request.messages[-1].content if isinstance(part, Text))


class Telling:
    """A ChatModel whose answer to a request is what `tell` makes of it; `asked` are all requests."""

    info = INFO

    def __init__(self, tell: Callable[[Request], str | Completion]) -> None:
        self.tell = tell
        self.asked: list[Request] = []

    def results(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        for request in requests:
            self.asked.append(request)
            told = self.tell(request)
            yield completion(told, request) if isinstance(told, str) else told

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        return list(self.results(requests))

    def stream(self, request: Request) -> Generator[Delta, None, None]:
        (told,) = self.generate([request])
        yield Delta(told.text, told)

    def close(self) -> None:
        pass
