"""Many requests through one model, a bounded number of tokens at a time.

Main path: Engine.step -> _schedule -> _compute -> _forward (vision, model, sample) -> _settle.
One rule covers prompts, parts of prompts and generation: a request has `num_computed` of its
tokens computed, each step brings it nearer to all of them, and when it is there its next token is
sampled. The rule is that of vLLM V1 (vllm/v1/core/sched/scheduler.py).
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from qvl.engine.cache import CachedAttention, Span
from qvl.engine.request import EngineRequest, Event, Finished, RequestState, Token, new_state
from qvl.engine.sampler import sample
from qvl.engine.stream import Detokenizer
from qvl.errors import EngineError, OutOfMemoryError, QvlError
from qvl.models.batch import ForwardBatch, VisionFeatures
from qvl.models.config import ModelConfig
from qvl.models.qwen_vl import QwenVL
from qvl.types import FinishReason

log = logging.getLogger(__name__)

Sampled = tuple[int, float]  # token id, the model's probability of it


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Tokens start .. stop of one request, the part that a step computes."""

    state: RequestState
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        """Nothing of the request is left to compute, so its next token can be sampled."""
        return self.stop == len(self.state.tokens)

    @property
    def has_visual(self) -> bool:
        first, last = self.state.visual_range(self.start, self.stop)
        return last > first


class Engine:
    """Requests in, events out. Not thread-safe: one thread adds, steps and aborts.

    `token_bytes` gives the bytes of a token id (empty for a special token); `vocab_size` is the
    tokenizer's, logits beyond it mean nothing. A step computes at most `token_budget` tokens, of
    the oldest `max_running` requests; the other requests wait.
    """

    def __init__(
        self,
        model: QwenVL,
        *,
        token_bytes: Callable[[int], bytes],
        vocab_size: int,
        token_budget: int = 2048,
        max_running: int = 64,
    ) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._token_bytes = token_bytes
        self._banned_v = banned_ids(model.config, vocab_size).to(self._device)
        self._token_budget = token_budget
        self._max_running = max_running
        self._requests: dict[str, RequestState] = {}  # oldest first

    @property
    def idle(self) -> bool:
        return not self._requests

    def add(self, request: EngineRequest) -> None:
        """Take a request in; later steps report on it.

        Raises PromptTooLongError, and EngineError for an id in use or parts that do not agree.
        """
        if request.id in self._requests:
            raise EngineError(f"a request with the id {request.id!r} is running already")
        detokenizer = Detokenizer(self._token_bytes, request.params.stop)
        self._requests[request.id] = new_state(request, self._model.config, detokenizer)

    def abort(self, request_id: str) -> Finished | None:
        """End a request and free what it holds: its last event, None if it is not in the engine."""
        state = self._requests.get(request_id)
        return None if state is None else self._finish(state, "cancelled")

    def abort_all(self) -> None:
        """Drop every request, without events."""
        self._requests.clear()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Compute at most `token_budget` tokens and tell what came of it.

        A fault while computing ends only the requests that cause it. After anything else, such as
        KeyboardInterrupt, the engine is empty and usable.
        """
        try:
            chunks = self._schedule()
            outcomes = self._compute(chunks)
            return [e for c, o in zip(chunks, outcomes, strict=True) for e in self._settle(c, o)]
        except BaseException:
            self.abort_all()
            raise

    def _schedule(self) -> list[Chunk]:
        """Share the budget out, oldest first.

        So a prompt is begun only when all before it are computed, and never delays a request that
        generates already: those are older.
        """
        budget = self._token_budget
        chunks = []
        for state in islice(self._requests.values(), self._max_running):
            start = state.num_computed
            stop = min(len(state.tokens), start + budget)
            if stop > start:
                chunks.append(Chunk(state, start, stop))
            budget -= stop - start
        return chunks

    def _compute(self, chunks: Sequence[Chunk]) -> list[Sampled | QvlError | None]:
        """Per chunk: the token sampled, None for part of a prompt, or the fault of this request.

        When a step fails its halves are tried apart, down to the request that fails alone.
        Computing a chunk twice is harmless: until _settle, nothing counts as computed.
        """
        if not chunks:
            return []
        try:
            return list(self._forward(chunks))
        except Exception as error:  # noqa: BLE001 - the edge of one request: the others go on
            if len(chunks) == 1:
                return [as_fault(error, chunks[0].state.id)]
        # out of the except block, where the error would keep the failed step's tensors in memory
        middle = len(chunks) // 2
        return self._compute(chunks[:middle]) + self._compute(chunks[middle:])

    def _forward(self, chunks: Sequence[Chunk]) -> list[Sampled | None]:
        self._encode_images(chunks)
        logits = iter(self._model(pack(chunks, self._device)))
        return [self._sample(c.state, next(logits)) if c.is_last else None for c in chunks]

    def _sample(self, state: RequestState, logits_v: Tensor) -> Sampled:
        return sample(
            logits_v,
            state.params,
            position=len(state.tokens),
            prompt_ids=state.tokens[: state.prompt_tokens],
            output_ids=state.output_ids,
            banned_v=self._banned_v,
        )

    def _encode_images(self, chunks: Sequence[Chunk]) -> None:
        """Features of the requests that reach their first visual token, all in one call."""
        states = [c.state for c in chunks if c.has_visual and c.state.vision is None]
        images = [image for state in states for image in state.images]
        if not images:
            return
        rows_sc = torch.cat([torch.as_tensor(image.rows).to(self._device) for image in images])
        features = self._model.encode_images(rows_sc, [image.grid for image in images])
        first = 0
        for state in states:
            last = first + len(state.vision_at_v)
            state.vision = rows_of(features, first, last)
            first = last

    def _settle(self, chunk: Chunk, outcome: Sampled | QvlError | None) -> list[Event]:
        state = chunk.state
        if isinstance(outcome, QvlError):
            return [self._finish(state, error=outcome)]
        state.advance(chunk.stop)
        if outcome is None:
            return []
        token_id, probability = outcome
        text, reason = state.accept(token_id)
        token = Token(state.id, token_id, probability, text)
        return [token] if reason is None else [token, self._finish(state, reason)]

    def _finish(
        self,
        state: RequestState,
        reason: FinishReason | None = None,
        error: QvlError | None = None,
    ) -> Finished:
        del self._requests[state.id]
        return Finished(state.id, state.detokenizer.finish(), reason, error)


def banned_ids(config: ModelConfig, vocab_size: int) -> Tensor:
    """bool [vocab]: ids that are never generated: visual ones, and those beyond the tokenizer."""
    banned_v = torch.arange(config.decoder.vocab_size) >= vocab_size
    visual = (
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
    )
    banned_v[list(visual)] = True
    return banned_v


def pack(chunks: Sequence[Chunk], device: torch.device) -> ForwardBatch:
    """The chunks one after the other, with the visual rows that fall into each."""
    ids: list[int] = []
    wanted: list[int] = []
    features: list[VisionFeatures] = []
    places: list[Tensor] = []
    for chunk in chunks:
        state, offset = chunk.state, len(ids) - chunk.start
        ids += state.tokens[chunk.start : chunk.stop]
        if chunk.is_last:
            wanted.append(len(ids) - 1)
        if chunk.has_visual and state.vision is not None:
            first, last = state.visual_range(chunk.start, chunk.stop)
            features.append(rows_of(state.vision, first, last))
            places.append(state.vision_at_v[first:last] + offset)
    positions = [c.state.positions(c.start, c.stop) for c in chunks]
    return ForwardBatch(
        ids_t=torch.tensor(ids, device=device),
        positions_3t=torch.cat(positions, dim=1).to(device),
        attend=CachedAttention([Span(c.state.cache, c.start, c.stop) for c in chunks]),
        wanted_b=torch.tensor(wanted, dtype=torch.int64, device=device),
        vision=joined(features) if features else None,
        vision_at_v=torch.cat(places).to(device) if places else None,
    )


def rows_of(features: VisionFeatures, first: int, last: int) -> VisionFeatures:
    levels = tuple(level[first:last] for level in features.deepstack_vd)
    return VisionFeatures(features.rows_vd[first:last], levels)


def joined(features: Sequence[VisionFeatures]) -> VisionFeatures:
    levels = zip(*(f.deepstack_vd for f in features), strict=True)
    rows_vd = torch.cat([f.rows_vd for f in features])
    return VisionFeatures(rows_vd, tuple(torch.cat(level) for level in levels))


def as_fault(error: Exception, request_id: str) -> QvlError:
    """The error that a request ends with, free of the tensors that its traceback refers to."""
    log.debug("request %r failed while computing", request_id, exc_info=error)
    traceback.clear_frames(error.__traceback__)
    if isinstance(error, QvlError):
        return error
    fault: QvlError
    if is_out_of_memory(error):
        fault = OutOfMemoryError(
            f"memory ran out while computing request {request_id!r}",
            hint="run fewer requests at once, or give smaller pictures",
        )
    else:
        fault = EngineError(f"request {request_id!r} failed while computing")
    fault.__cause__ = error
    return fault


def is_out_of_memory(error: Exception) -> bool:
    # on CPU torch raises a plain RuntimeError that names its allocator
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )
