"""What goes into the engine and what comes out of it, and what it keeps of a request in between.

In: EngineRequest, with every choice resolved to a number. Out: events; each request that was added
ends with exactly one Finished. Shape suffixes as in `models.batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from qvl.engine.blocks import BLOCK_TOKENS, block_key
from qvl.engine.lookup import Lookup
from qvl.engine.loops import LoopDetector
from qvl.engine.stream import Detokenizer
from qvl.errors import EngineError, PromptTooLongError, QvlError
from qvl.models.batch import VisionFeatures
from qvl.models.config import ModelConfig
from qvl.models.qwen_vl import QwenVL
from qvl.models.rope import stretch
from qvl.structured.grammar import Grammar
from qvl.types import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """As `types.Sampling`, with nothing left open; temperature 0 is greedy, top_k 0 keeps all.

    `allowed_ids` empty allows every id; `logprobs` is how many of the likeliest ids to tell.
    """

    max_new_tokens: int
    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_ids: tuple[int, ...] = ()
    logprobs: int = 0
    stop_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    stop_loops: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineImage:
    """Patches of one picture and the place of its visual tokens in the prompt.

    A temporal patch of a video is one, too. `rows` may be a function that makes them, called when
    the features are computed. `content` names all that the features depend on; pictures of equal
    content are encoded once, one without (""), and what stands after it, is computed anew each time.
    """

    rows: np.ndarray | Tensor | Callable[[], np.ndarray]  # float32 [S, C] in merge order
    grid: tuple[int, int, int]  # time, rows, columns, in patches
    start: int  # index in the prompt's ids of its first visual token
    tokens: int
    content: str = ""

    @property
    def stop(self) -> int:
        return self.start + self.tokens


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The prompt has opened it: what follows up to the token `closing[0]` is no part of the answer.

    The rest of `closing` is what the template says before the answer, and is said for the model. All
    of it is, when the reasoning has `limit` tokens or runs in a loop.
    """

    closing: tuple[int, ...]
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineRequest:
    """`next_position` is the rotary position of the first generated token, on all three axes.

    Requests of a lower `priority` go first; it may be BACKGROUND (`types`). Requests of different `salt` share no computed tokens,
    so that none can tell by the time it takes what another has asked. From `deadline_s` on
    (time.monotonic) the request is given up. `grammar` constrains the answer, as `stop` of `params`
    ends it: what comes after the `reasoning`, where there is one, within which no request ends by
    itself.
    """

    id: str
    ids: Sequence[int] | np.ndarray | Tensor  # [T]
    positions: np.ndarray | Tensor  # int64 [3, T]
    next_position: int
    params: SamplingParams
    images: tuple[EngineImage, ...] = ()  # in the order of their tokens
    priority: int = 0
    salt: str = ""
    deadline_s: float | None = None
    grammar: Grammar | None = None
    reasoning: Reasoning | None = None
    adapter: str = ""  # the name of one of the engine's


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token, the probability that the model gave it, and the text certain by now.

    The text may belong to earlier tokens; a stop id has none, nor has what closes the reasoning.
    `best` are the likeliest ids with the logarithms of their probabilities, as many as were asked for.
    """

    request_id: str
    token_id: int
    probability: float | None  # None where there was no choice
    text: str
    best: tuple[tuple[int, float], ...] = ()
    is_reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request: the rest of its text, and either a reason or an error.

    `cached_tokens` of its prompt were computed for an earlier request.
    """

    request_id: str
    text: str = ""
    reason: FinishReason | None = None
    error: QvlError | None = None
    cached_tokens: int = 0
    is_reasoning: bool = False


Event = Token | Finished


@dataclass(slots=True, eq=False, kw_only=True)
class RequestState:
    """A request in the engine: `num_computed` of its `tokens` have keys and values in `blocks`."""

    id: str
    model: QwenVL  # with its adapter
    rank: tuple[int, int]  # priority, number of its arrival: the lowest goes first
    deadline_s: float | None
    params: SamplingParams
    tokens: list[int]  # the prompt's, then the generated ones
    prompt_tokens: int
    max_tokens: int  # of prompt and generation together
    positions_3t: Tensor  # of the prompt
    next_position: int
    stretch: int  # of positions, see models.rope
    images: tuple[EngineImage, ...]
    detokenizer: Detokenizer  # of the answer
    thoughts: Detokenizer
    salt: str
    loops: LoopDetector | None
    grammar: Grammar | None
    closing: tuple[int, ...]  # the tokens that must be said before the answer
    thinks_until: int  # as many tokens in all
    lookup: Lookup
    keys: list[bytes] = field(default_factory=list)  # of the full blocks, as far as asked for
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    cached_tokens: int | None = None  # when it began first
    features: dict[int, VisionFeatures] = field(default_factory=dict)  # by index of the picture

    @property
    def output_ids(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]

    @property
    def is_reasoning(self) -> bool:
        """The next token is not yet the answer's."""
        return bool(self.closing)

    def positions(self, start: int, stop: int) -> Tensor:
        """Rotary positions [3, stop - start]: the prompt's own, then next_position counted on."""
        generated = torch.arange(max(start, self.prompt_tokens), max(stop, self.prompt_tokens))
        generated += self.next_position - self.prompt_tokens
        return torch.cat([self.positions_3t[:, start:stop], generated.expand(3, -1)], dim=1)

    def pictures(self, start: int, stop: int) -> Iterator[tuple[int, EngineImage]]:
        """The pictures, with their index, that have tokens within start .. stop."""
        for index, image in enumerate(self.images):
            if image.start < stop and image.stop > start:
                yield index, image

    def content(self, index: int) -> str:
        """What names a picture's content here; one without a name is like no other."""
        content = self.images[index].content or f"{self.rank[1]}/{index}"
        return f"{self.model.tower_adapter}|{self.salt}|{content}"

    def block_keys(self, count: int) -> list[bytes]:
        """The keys of the first `count` blocks, whose tokens must all be there."""
        for index in range(len(self.keys), count):
            start = index * BLOCK_TOKENS
            stop = start + BLOCK_TOKENS
            first = f"{self.stretch}|{self.model.adapter}|{self.salt}".encode()
            before = self.keys[-1] if self.keys else first
            inside = [(self.content(i), start - p.start) for i, p in self.pictures(start, stop)]
            self.keys.append(block_key(before, self.tokens[start:stop], inside))
        return self.keys[:count]

    def advance(self, stop: int) -> None:
        """Tokens up to `stop` are in the cache; the features of pictures before are let go."""
        self.num_computed = stop
        passed = [i for i in self.features if self.images[i].stop <= stop]
        for index in passed:
            del self.features[index]

    def restart(self) -> list[int]:
        """Forget what is computed; returns the blocks that it held."""
        blocks, self.blocks = self.blocks, []
        self.num_computed = 0
        self.features.clear()
        return blocks

    def accept(self, token_id: int) -> tuple[str, FinishReason | None]:
        """Append a generated token: the text that is certain by now, and why the request ends.

        Raises EngineError when the grammar fails.
        """
        self.tokens.append(token_id)
        if self.is_reasoning:
            return self._think(token_id), "reasoning" if self._is_full else None
        if token_id in self.params.stop_ids:
            return "", "stop"
        text = self.detokenizer.push(token_id)
        if self.grammar is not None:
            self.grammar.accept(token_id)
        is_complete = self.grammar is not None and self.grammar.is_complete
        if self.detokenizer.is_stopped or is_complete:
            return text, "stop"
        if self.loops is not None and self.loops.push(token_id):
            return text, "loop"
        return text, "length" if self._is_full else None

    def _think(self, token_id: int) -> str:
        """The text, certain by now, of a token before the answer."""
        if token_id == self.closing[0]:
            self.closing = self.closing[1:]
            self.thinks_until = 0  # the rest of it follows at once
            self.loops = self.loops and self.loops.anew()  # the answer has loops of its own
            return self.thoughts.finish()
        if self.loops is not None and self.loops.push(token_id):
            self.thinks_until = 0
        return self.thoughts.push(token_id)

    @property
    def _is_full(self) -> bool:
        return len(self.tokens) >= self.max_tokens

    def forced(self) -> list[int]:
        """The ids that follow without a choice, maybe none."""
        if self.is_reasoning:
            return list(self.closing) if len(self.tokens) >= self.thinks_until else []
        return [] if self.grammar is None else self.grammar.forced()

    def finish(self) -> str:
        """The rest of the text, of the answer or the reasoning, whichever was being said."""
        return (self.thoughts if self.is_reasoning else self.detokenizer).finish()


def new_state(
    request: EngineRequest, number: int, model: QwenVL, token_bytes: Callable[[int], bytes]
) -> RequestState:
    """The state, with nothing computed, of the request that came as the engine's `number`th.

    Raises PromptTooLongError, and EngineError when ids, positions and pictures do not fit together.
    """
    ids_t, positions_3t = torch.as_tensor(request.ids), torch.as_tensor(request.positions)
    config = model.config
    total, limit = len(ids_t), config.decoder.max_positions
    if total >= limit:
        raise PromptTooLongError(
            f"the prompt has {total} tokens, the model's context is {limit}",
            hint="shorten the text, or give fewer or smaller pictures, or frames of a video",
        )
    if total == 0 or positions_3t.shape != (3, total):
        raise EngineError(
            f"request {request.id!r} has {total} tokens and positions of shape"
            f" {tuple(positions_3t.shape)}"
        )
    check_visual_places(request, ids_t, config)
    reasoning = request.reasoning
    tokens = ids_t.tolist()
    return RequestState(
        id=request.id,
        model=model,
        rank=(request.priority, number),
        deadline_s=request.deadline_s,
        params=request.params,
        tokens=tokens,
        lookup=Lookup(tokens),
        prompt_tokens=total,
        max_tokens=min(total + request.params.max_new_tokens, limit),
        positions_3t=positions_3t,
        next_position=request.next_position,
        stretch=stretch(total, start) if (start := config.decoder.stretch_from) else 1,
        images=request.images,
        detokenizer=Detokenizer(token_bytes, request.params.stop),
        thoughts=Detokenizer(token_bytes),
        salt=request.salt,
        loops=LoopDetector(token_bytes) if request.params.stop_loops else None,
        grammar=request.grammar,
        closing=reasoning.closing if reasoning else (),
        thinks_until=total + (reasoning.limit if reasoning else 0),
    )


def check_visual_places(request: EngineRequest, ids_t: Tensor, config: ModelConfig) -> None:
    """Raises EngineError unless pictures and ids agree about which tokens are visual."""
    for image in request.images:
        t, h, w = image.grid
        rows = t * h * w if callable(image.rows) else len(image.rows)
        if (rows, image.tokens) != (t * h * w, t * h * w // config.vision.merge**2):
            raise EngineError(
                f"request {request.id!r}: a picture of {t}x{h}x{w} patches has {rows}"
                f" patch rows and {image.tokens} visual tokens"
            )
    places = [torch.arange(i.start, i.stop) for i in request.images]
    claimed_v = torch.cat([torch.empty(0, dtype=torch.int64), *places])
    is_visual_t = (ids_t == config.image_token_id) | (ids_t == config.video_token_id)
    actual_v = is_visual_t.nonzero().squeeze(1)
    if not torch.equal(claimed_v, actual_v):
        raise EngineError(
            f"request {request.id!r}: {len(claimed_v)} visual tokens of its pictures and"
            f" {len(actual_v)} image and video tokens of its ids are not at the same places"
        )
