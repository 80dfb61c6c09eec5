"""What goes into the engine and what comes out of it, and what it keeps of a request in between.

In: EngineRequest, with every choice resolved to a number. Out: events; each request that was added
ends with exactly one Finished. Shape suffixes as in `models.batch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from qvl.engine.cache import KVCache
from qvl.engine.stream import Detokenizer
from qvl.errors import EngineError, PromptTooLongError, QvlError
from qvl.models.batch import VisionFeatures
from qvl.models.config import ModelConfig
from qvl.types import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """As `types.Sampling`, with nothing left open; temperature 0 is greedy, top_k 0 keeps all."""

    max_new_tokens: int
    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    stop_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineImage:
    """Patches of one picture and the place of its visual tokens in the prompt."""

    rows: np.ndarray | Tensor  # float32 [S, C] in merge order
    grid: tuple[int, int, int]  # time, rows, columns, in patches
    start: int  # index in the prompt's ids of its first visual token
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineRequest:
    """`next_position` is the rotary position of the first generated token, on all three axes."""

    id: str
    ids: Sequence[int] | np.ndarray | Tensor  # [T]
    positions: np.ndarray | Tensor  # int64 [3, T]
    next_position: int
    params: SamplingParams
    images: tuple[EngineImage, ...] = ()  # in the order of their tokens


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token, the probability that the model gave it, and the text certain by now.

    The text may belong to earlier tokens; a stop id has none.
    """

    request_id: str
    token_id: int
    probability: float
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request: the rest of its text, and either a reason or an error."""

    request_id: str
    text: str = ""
    reason: FinishReason | None = None
    error: QvlError | None = None


Event = Token | Finished


@dataclass(slots=True, eq=False, kw_only=True)
class RequestState:
    """A request in the engine: `num_computed` of its `tokens` have keys and values in the cache."""

    id: str
    params: SamplingParams
    tokens: list[int]  # the prompt's, then the generated ones
    prompt_tokens: int
    max_tokens: int  # of prompt and generation together
    positions_3t: Tensor  # of the prompt
    next_position: int
    images: tuple[EngineImage, ...]  # until the prompt is computed
    vision_at_v: Tensor  # indexes of the visual tokens, ascending
    detokenizer: Detokenizer
    cache: KVCache = field(default_factory=KVCache)
    num_computed: int = 0
    vision: VisionFeatures | None = None  # from the first visual token until the prompt is computed

    @property
    def output_ids(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]

    def positions(self, start: int, stop: int) -> Tensor:
        """Rotary positions [3, stop - start]: the prompt's own, then next_position counted on."""
        generated = torch.arange(max(start, self.prompt_tokens), max(stop, self.prompt_tokens))
        generated += self.next_position - self.prompt_tokens
        return torch.cat([self.positions_3t[:, start:stop], generated.expand(3, -1)], dim=1)

    def visual_range(self, start: int, stop: int) -> tuple[int, int]:
        """The rows of the request's visual features that belong to tokens start .. stop."""
        bounds = torch.searchsorted(self.vision_at_v, torch.tensor([start, stop])).tolist()
        return bounds[0], bounds[1]

    def advance(self, stop: int) -> None:
        """Tokens up to `stop` are in the cache; past the prompt, its pictures are not needed."""
        self.num_computed = stop
        if stop >= self.prompt_tokens:
            self.images, self.vision = (), None

    def accept(self, token_id: int) -> tuple[str, FinishReason | None]:
        """Append a generated token: the text that is certain by now, and why the request ends."""
        self.tokens.append(token_id)
        if token_id in self.params.stop_ids:
            return "", "stop"
        text = self.detokenizer.push(token_id)
        if self.detokenizer.is_stopped:
            return text, "stop"
        return text, "length" if len(self.tokens) >= self.max_tokens else None


def new_state(
    request: EngineRequest, config: ModelConfig, detokenizer: Detokenizer
) -> RequestState:
    """A state with nothing computed.

    Raises PromptTooLongError, and EngineError when ids, positions and pictures do not fit together.
    """
    ids_t, positions_3t = torch.as_tensor(request.ids), torch.as_tensor(request.positions)
    total, limit = len(ids_t), config.decoder.max_positions
    if total >= limit:
        raise PromptTooLongError(
            f"the prompt has {total} tokens, the model's context is {limit}",
            hint="shorten the text, or give fewer or smaller pictures",
        )
    if total == 0 or positions_3t.shape != (3, total):
        raise EngineError(
            f"request {request.id!r} has {total} tokens and positions of shape"
            f" {tuple(positions_3t.shape)}"
        )
    return RequestState(
        id=request.id,
        params=request.params,
        tokens=ids_t.tolist(),
        prompt_tokens=total,
        max_tokens=min(total + request.params.max_new_tokens, limit),
        positions_3t=positions_3t,
        next_position=request.next_position,
        images=request.images,
        vision_at_v=visual_places(request, ids_t, config),
        detokenizer=detokenizer,
    )


def visual_places(request: EngineRequest, ids_t: Tensor, config: ModelConfig) -> Tensor:
    """Indexes int64 [V] of the visual tokens; raises EngineError unless pictures and ids agree."""
    for image in request.images:
        t, h, w = image.grid
        if (len(image.rows), image.tokens) != (t * h * w, t * h * w // config.vision.merge**2):
            raise EngineError(
                f"request {request.id!r}: a picture of {t}x{h}x{w} patches has {len(image.rows)}"
                f" patch rows and {image.tokens} visual tokens"
            )
    places = [torch.arange(i.start, i.start + i.tokens) for i in request.images]
    claimed_v = torch.cat([torch.empty(0, dtype=torch.int64), *places])
    actual_v = (ids_t == config.image_token_id).nonzero().squeeze(1)
    if not torch.equal(claimed_v, actual_v):
        raise EngineError(
            f"request {request.id!r}: {len(claimed_v)} visual tokens of its pictures and"
            f" {len(actual_v)} image tokens of its ids are not at the same places"
        )
    return actual_v
