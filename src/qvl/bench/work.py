"""The requests that are timed, and the timing of them by our engine.

Every picture is noise that no run has seen before, so that nothing is found in a cache unless a
workload is about caches. Answers have a fixed length: the tokens that would end them are forbidden.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from PIL import Image as PILImage

from qvl.types import Completion, Image, Message, Request, Sampling, Text

QUESTION = (
    "Describe this picture for a catalogue in two sentences: what it is, its colour, its shape."
)
RULE = (
    "Name what is in the picture, its colour, its material and its shape, and never guess a brand."
)
SIDE_PX = 448
_seeds = itertools.count()


@dataclass(frozen=True, slots=True)
class Timed:
    """Of requests run together: tokens of the prompt, seconds to the first token and tokens/s after
    it (medians over the requests), seconds in all.
    """

    requests: int
    prompt_tokens: int  # 0 where a server does not say
    first_token_s: float
    tokens_s: float
    total_s: float


Runner = Callable[[Sequence[Request]], Timed]


def picture() -> Image:
    pixels = np.random.default_rng(next(_seeds)).integers(0, 256, (SIDE_PX, SIDE_PX, 3))
    file = io.BytesIO()
    PILImage.fromarray(pixels.astype(np.uint8)).save(file, "PNG", compress_level=0)
    return Image(file.getvalue(), "noise")


def asked(
    new_tokens: int, never: Sequence[int], *, about: Image | None = None, text: str = QUESTION
) -> Request:
    """A request about a new picture, or the given one, answered with exactly `new_tokens` tokens."""
    sampling = Sampling(
        max_new_tokens=new_tokens,
        temperature=0.0,
        logit_bias=tuple((token_id, -100.0) for token_id in never),
        stop_loops=False,
    )
    return Request(messages=(Message.user(about or picture(), text),), sampling=sampling)


def under_rules(request: Request) -> Request:
    """The request under a system prompt of about 500 tokens, the same for all."""
    system = Message("system", (Text(" ".join([RULE] * 22)),))
    return replace(request, messages=(system, *request.messages))


def timed(completions: Sequence[Completion], total_s: float) -> Timed:
    return Timed(
        requests=len(completions),
        prompt_tokens=round(median(c.usage.prompt_tokens for c in completions)),
        first_token_s=median(c.timings.first_token_s for c in completions),
        tokens_s=median(
            (c.usage.completion_tokens - 1) / (c.timings.total_s - c.timings.first_token_s)
            for c in completions
        ),
        total_s=total_s,
    )


def run_ours(generate: Callable[[Sequence[Request]], list[Completion]]) -> Runner:
    def run(requests: Sequence[Request]) -> Timed:
        began = time.perf_counter()
        completions = generate(requests)
        return timed(completions, time.perf_counter() - began)

    return run
