"""Many requests through one model, a bounded number of tokens at a time.

Main path: Engine.step -> _schedule -> _compute -> _forward (vision, model) -> _settle (sample).
One rule covers prompts, parts of prompts, generation and beginnings computed before: a request has
`num_computed` of its tokens computed, each step brings it nearer to all of them, and when it is
there its next token is sampled. Requests have one order, by priority and arrival; who stands later
gives up its blocks to who stands earlier, and begins again when there is room. The rule is that of
vLLM V1 (vllm/v1/core/sched/scheduler.py).
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from qvl.engine.blocks import BLOCK_TOKENS, BlockPool
from qvl.engine.cache import CachedAttention, KVCache, Span
from qvl.engine.graphs import SIZES, StaticDecode
from qvl.engine.request import EngineRequest, Event, Finished, RequestState, Token, new_state
from qvl.engine.sampler import Sampled, sample
from qvl.errors import DeadlineError, EngineError, OutOfMemoryError, QvlError, as_fault
from qvl.models.batch import ForwardBatch, VisionFeatures
from qvl.models.config import ModelConfig
from qvl.models.features import FeatureCache
from qvl.models.qwen_vl import QwenVL
from qvl.types import BACKGROUND, FinishReason

DRAFTING = 4  # requests at work, beyond which a pass has enough to do without guesses


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Tokens start .. stop of one request, the part that a step computes, and a guess at the next."""

    state: RequestState
    start: int
    stop: int
    draft: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        return self.stop + len(self.draft)

    @property
    def is_last(self) -> bool:
        """Nothing of the request is left to compute, so its next token can be sampled."""
        return self.stop == len(self.state.tokens)

    @property
    def is_decode(self) -> bool:
        """The last token alone, which was generated."""
        return self.is_last and self.end == self.start + 1 > self.state.prompt_tokens


@dataclass(frozen=True, slots=True)
class Logits:
    """What the model says after a chunk and after each token of its draft [1 + draft, vocab], and
    what of it may not be said after the chunk.
    """

    rows_rv: Tensor
    banned: Future[Tensor] | None  # None where the request has no grammar


class Engine:
    """Requests in, events out. Not thread-safe: one thread adds, steps and aborts.

    `token_bytes` gives the bytes of a token id (empty for a special token); `vocab_size` is the
    tokenizer's, logits beyond it mean nothing. A step computes at most `token_budget` tokens, of
    the first `max_running` requests; the other requests wait. `cache_tokens` is the room for keys
    and values of all requests together, `feature_bytes` that for pictures no request needs now.
    With at most DRAFTING requests at work, each is ahead by `draft_tokens` where `lookup` has any.
    On a GPU steps of one token a request have fixed shapes, and there are no guesses. `adapters` are
    views of the model by name; requests of one adapter are computed together, those of none first.
    """

    def __init__(
        self,
        model: QwenVL,
        *,
        token_bytes: Callable[[int], bytes],
        vocab_size: int,
        token_budget: int = 2048,
        max_running: int = 64,
        cache_tokens: int = 1 << 16,
        feature_bytes: int = 256 << 20,
        draft_tokens: int = 3,
        adapters: Mapping[str, QwenVL] = MappingProxyType({}),
    ) -> None:
        self._model, self._adapters = model, adapters
        self._device = next(model.parameters()).device
        self._token_bytes = token_bytes
        self._banned_v = banned_ids(model.config, vocab_size).to(self._device)
        self._token_budget = token_budget
        self._max_running = max_running
        self._pool = BlockPool(-(-cache_tokens // BLOCK_TOKENS))
        self._cache = KVCache(self._pool.total + 1)  # the last takes what padding writes
        whole = {p.device.type for p in model.parameters()} == {"cuda"}  # no layer is streamed
        # chosen experts are asked for by the host
        fixed = whole and not model.config.decoder.experts
        self._static = StaticDecode(model, self._cache, self._device) if fixed else None
        self._draft_tokens = 0 if whole else draft_tokens
        self._features = FeatureCache(feature_bytes)
        self._numbers = itertools.count()
        self._masks = ThreadPoolExecutor(1, "qvl-grammar")
        self._requests: dict[str, RequestState] = {}
        self.preemptions = 0  # requests that gave up their blocks, to begin again

    @property
    def idle(self) -> bool:
        return not self._requests

    @property
    def cache_tokens(self) -> int:
        """For how many tokens the cache has room: of one request, and of all together."""
        return self._pool.total * BLOCK_TOKENS

    @property
    def cache_usage(self) -> float:
        """The share of the cache that requests hold."""
        return 1 - self._pool.free / self._pool.total

    def add(self, request: EngineRequest) -> None:
        """Take a request in; later steps report on it.

        Raises PromptTooLongError, OutOfMemoryError when the cache is too small for it, EngineError
        for an id in use, an adapter that is not here or parts that do not agree.
        """
        if request.id in self._requests:
            raise EngineError(f"a request with the id {request.id!r} is running already")
        model = self._adapters.get(request.adapter) if request.adapter else self._model
        if model is None:
            raise EngineError(f"request {request.id!r}: there is no adapter {request.adapter!r}")
        state = new_state(request, next(self._numbers), model, self._token_bytes)
        if state.max_tokens > self.cache_tokens:
            raise OutOfMemoryError(
                f"request {request.id!r} may need {state.max_tokens} tokens of cache,"
                f" there is room for {self.cache_tokens}",
                hint="ask for fewer new tokens, or give smaller pictures",
            )
        self._requests[request.id] = state

    def abort(self, request_id: str) -> Finished | None:
        """End a request and free what it holds: its last event, None if it is not in the engine."""
        state = self._requests.get(request_id)
        if state is None:
            return None
        try:
            return self._finish(state, "cancelled")
        except Exception as error:  # noqa: BLE001 - the edge of one request: the others go on
            return self._fail(state, as_fault(error, state.id))

    def abort_all(self) -> None:
        """Drop every request, without events, and whatever was worth finding again."""
        self._requests.clear()
        self._pool = BlockPool(self._pool.total)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Compute at most `token_budget` tokens and tell what came of it.

        A fault ends only the requests that cause it, one in what they have in common all of them.
        After anything else, such as KeyboardInterrupt, the engine is empty and usable.
        """
        events: list[Event] = []
        try:
            self._expire(events)
            chunks = self._schedule(events)
            chunks.sort(key=_adapter)
            for _, alike in itertools.groupby(chunks, key=_adapter):
                some = list(alike)
                for chunk, outcome in zip(some, self._compute(some), strict=True):
                    self._settle(chunk, outcome, events)
            return events
        except Exception as error:  # noqa: BLE001 - no request is to blame, and none may wait for ever
            lost = [Finished(name, error=as_fault(error, name)) for name in self._requests]
            self.abort_all()
            return events + lost
        except BaseException:
            self.abort_all()
            raise

    def _expire(self, events: list[Event]) -> None:
        """End the requests whose time is over."""
        now_s = time.monotonic()
        for state in list(self._requests.values()):
            try:
                if state.deadline_s is not None and state.deadline_s <= now_s:
                    message = f"request {state.id!r} was not finished in the time that it was given"
                    events.append(self._finish(state, error=DeadlineError(message)))
            except Exception as error:  # noqa: BLE001 - the edge of one request: the others go on
                events.append(self._fail(state, as_fault(error, state.id)))

    def _schedule(self, events: list[Event]) -> list[Chunk]:
        """Share budget and blocks out, first come first.

        A prompt is begun only when all before it are computed, and never delays an earlier request.
        While there are others, those in the background wait with what they have computed, but for one.
        One that begins like a prompt of this very step waits for it, to share its blocks.
        """
        order = sorted(self._requests.values(), key=lambda state: state.rank)
        others = sum(state.rank < (BACKGROUND,) for state in order)
        working = min(self._max_running, others + 1 if others else len(order))
        budget = self._token_budget
        chunks: list[Chunk] = []
        coming: set[bytes] = set()  # keys of the blocks that this step fills
        for index, state in enumerate(order[:working]):
            if budget <= 0:
                break
            try:
                chunk = self._chunk(state, order[index + 1 :], budget, coming)
            except Exception as error:  # noqa: BLE001 - the edge of one request: the others go on
                events.append(self._fail(state, as_fault(error, state.id)))
                continue
            if chunk is not None:
                chunks.append(chunk)
                budget -= chunk.end - chunk.start
        return chunks

    def _chunk(
        self, state: RequestState, later: Sequence[RequestState], budget: int, coming: set[bytes]
    ) -> Chunk | None:
        """What this step computes of a request, with the blocks for it; None if it has to wait."""
        if not state.blocks and not self._begin(state, later, coming):
            return None
        start = state.num_computed
        stop = min(len(state.tokens), start + budget)
        if not self._make_room(state, stop, later):
            return None
        coming.update(state.block_keys(stop // BLOCK_TOKENS)[start // BLOCK_TOKENS :])
        return Chunk(state, start, stop, self._draft(state, start, budget))

    def _draft(self, state: RequestState, start: int, budget: int) -> tuple[int, ...]:
        """A guess at what follows the request's last token, never at anybody's expense."""
        total = len(state.tokens)
        if start + 1 < total or len(self._requests) > DRAFTING:  # not generating, or enough to do
            return ()
        most = min(self._draft_tokens, budget - 1, state.max_tokens - total - 1)
        draft = state.lookup.draft(most)
        missing = -(-(total + len(draft)) // BLOCK_TOKENS) - len(state.blocks)
        if missing > self._pool.free:
            return ()
        state.blocks += self._pool.take(max(0, missing))
        return draft

    def _begin(
        self, state: RequestState, later: Sequence[RequestState], coming: set[bytes]
    ) -> bool:
        """Give a request the blocks that hold its beginning already; False if it has to wait."""
        keys = state.block_keys((len(state.tokens) - 1) // BLOCK_TOKENS)  # one token is left to do
        found = self._pool.find(keys)
        if len(found) < len(keys) and keys[len(found)] in coming:
            return False
        self._pool.hold(found)
        state.blocks, state.num_computed = found, len(found) * BLOCK_TOKENS
        if state.cached_tokens is None:
            state.cached_tokens = state.num_computed
        # all of it must fit now, lest two half computed requests take turns
        if self._make_room(state, len(state.tokens), later):
            return True
        self._pool.release(state.restart())
        return False

    def _make_room(self, state: RequestState, stop: int, later: Sequence[RequestState]) -> bool:
        """Blocks for the tokens up to `stop`, if need be from later requests, the last first."""
        missing = -(-stop // BLOCK_TOKENS) - len(state.blocks)
        if missing <= 0:  # nearly always, while generating
            return True
        if self._pool.free + sum(len(s.blocks) for s in later) < missing:
            return False
        for victim in reversed(later):
            if self._pool.free >= missing:
                break
            self.preemptions += bool(victim.blocks)
            self._pool.release(victim.restart())
        if self._pool.free < missing:  # blocks that several of the later ones shared
            return False
        state.blocks += self._pool.take(missing)
        return True

    def _compute(self, chunks: Sequence[Chunk]) -> list[Logits | QvlError | None]:
        """Per chunk: the logits after it, None for part of a prompt, or the fault of this request.

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

    def _forward(self, chunks: Sequence[Chunk]) -> list[Logits | None]:
        banned = {
            chunk.state.id: self._masks.submit(self._banned, chunk.state)
            for chunk in chunks
            if chunk.is_last and chunk.state.grammar is not None and not chunk.state.is_reasoning
        }
        self._encode_images(chunks)
        model = chunks[0].state.model  # of all of them
        plain = len(chunks) <= SIZES[-1] and all(chunk.is_decode for chunk in chunks)
        if self._static is not None and plain and model is self._model:
            logits = self._static([chunk.state for chunk in chunks])
        else:
            logits = model(pack(chunks, self._cache, self._device))
        counts = [1 + len(chunk.draft) if chunk.is_last else 0 for chunk in chunks]
        return [
            Logits(rows, banned.get(chunk.state.id)) if chunk.is_last else None
            for chunk, rows in zip(chunks, logits.split(counts), strict=True)
        ]

    def _banned(self, state: RequestState) -> Tensor:
        """bool [vocab]: ids that may not come next, of which no grammar allows those beyond its
        tokenizer. An answer does not end before it begins.
        """
        banned_v = self._banned_v
        if state.is_reasoning:
            banned_v = banned_v.clone()
            banned_v[list(state.params.stop_ids)] = True
        elif state.grammar is not None:
            banned_v = banned_v.clone()
            allowed_v = state.grammar.allowed()
            # not `|=`, which would copy the part onto itself once more
            banned_v[: len(allowed_v)].logical_or_(allowed_v.logical_not().to(self._device))
        return banned_v

    def _encode_images(self, chunks: Sequence[Chunk]) -> None:
        """Features of the pictures that this step reaches: kept ones, the others in one call."""
        missing: list[tuple[RequestState, int, str]] = []
        for state, start, stop in ((c.state, c.start, c.stop) for c in chunks):
            for index, _ in state.pictures(start, stop):
                name = state.content(index)
                if index not in state.features and (kept := self._features.get(name)) is not None:
                    state.features[index] = kept
                elif index not in state.features:
                    missing.append((state, index, name))
        if not missing:
            return
        new = {name: state.images[index] for state, index, name in missing}
        rows = [i.rows() if callable(i.rows) else i.rows for i in new.values()]
        rows_sc = torch.cat([torch.as_tensor(r).to(self._device) for r in rows])
        features = chunks[0].state.model.encode_images(rows_sc, [i.grid for i in new.values()])
        parts = features.split([i.tokens for i in new.values()])
        encoded = dict(zip(new, parts, strict=True))
        for state, index, name in missing:
            state.features[index] = encoded[name]
        for name, rows in encoded.items():
            self._features.put(name, rows)

    def _settle(self, chunk: Chunk, outcome: Logits | QvlError | None, events: list[Event]) -> None:
        """Count a chunk as computed, and tell what follows or what went wrong."""
        state = chunk.state
        if isinstance(outcome, QvlError):
            events.append(self._fail(state, outcome))
            return
        try:
            self._advance(state, chunk.start, chunk.stop)
            if outcome is not None:
                self._say(chunk, outcome, events)
        except Exception as error:  # noqa: BLE001 - the edge of one request: the others go on
            events.append(self._fail(state, as_fault(error, state.id)))

    def _advance(self, state: RequestState, start: int, stop: int) -> None:
        """Tokens start .. stop are in the cache, and the blocks that they fill can be found again."""
        state.advance(stop)
        keys = state.block_keys(stop // BLOCK_TOKENS)
        for index in range(start // BLOCK_TOKENS, len(keys)):
            self._pool.name(state.blocks[index], keys[index])

    def _say(self, chunk: Chunk, logits: Logits, events: list[Event]) -> None:
        """Sample the next token, and as long as that is what the draft guessed, the one after it."""
        state = chunk.state
        said: list[int] = []
        while tuple(said) == chunk.draft[: len(said)]:
            early = None if said else logits.banned  # made beside the forward pass
            sampled = sample(
                logits.rows_rv[len(said)],
                state.params,
                position=len(state.tokens),
                prompt_ids=state.tokens[: state.prompt_tokens],
                output_ids=state.output_ids,
                banned_v=self._banned(state) if early is None else early.result(),
            )
            self._accept(state, sampled, events)
            if state.id not in self._requests:
                return
            said = state.tokens[chunk.stop :]
        if chunk.draft:
            right = [a == b for a, b in zip(said, chunk.draft, strict=False)]
            count = [*right, False].index(False)
            state.lookup.judge(len(chunk.draft), count)
            self._advance(state, chunk.stop, chunk.stop + count)

    def _accept(self, state: RequestState, sampled: Sampled, events: list[Event]) -> None:
        """Take a token in, and after it those that there is no choice about."""
        tokens = [sampled]
        while tokens:
            token, thought = tokens.pop(0), state.is_reasoning
            text, reason = state.accept(token.token_id)
            events.append(
                Token(state.id, token.token_id, token.probability, text, token.best, thought)
            )
            if reason is not None:
                events.append(self._finish(state, reason))
                return
            if not tokens:
                tokens = [Sampled(token_id, None) for token_id in state.forced()]

    def _finish(
        self, state: RequestState, reason: FinishReason | None = None, error: QvlError | None = None
    ) -> Finished:
        self._pool.release(state.blocks)
        text, cached = state.finish(), state.cached_tokens or 0
        del self._requests[state.id]  # last: until then a fault is still the request's own
        return Finished(state.id, text, reason, error, cached, state.is_reasoning)

    def _fail(self, state: RequestState, fault: QvlError) -> Finished:
        """The last event of a request with a fault, which may have come amid any of its affairs.

        What it computed is not found again: it may be what the fault spoilt.
        """
        others = [s.blocks for s in self._requests.values() if s is not state]
        self._pool.recover(others, spoilt=state.blocks)
        for index in range(len(state.images)):
            self._features.drop(state.content(index))
        text = ""
        with contextlib.suppress(Exception):  # this may be the very fault
            text = state.finish()
        state.restart()  # the fault's traceback may hold it, but no features by it
        del self._requests[state.id]
        cached = state.cached_tokens or 0
        return Finished(state.id, text, None, fault, cached, state.is_reasoning)


def _adapter(chunk: Chunk) -> str:
    return chunk.state.model.adapter


def banned_ids(config: ModelConfig, vocab_size: int) -> Tensor:
    """bool [vocab]: ids that are never generated: visual ones, and those beyond the tokenizer."""
    banned_v = torch.arange(config.decoder.vocab_size) >= vocab_size
    pads = [config.image_token_id, config.video_token_id]
    banned_v[[*pads, config.vision_start_token_id, config.vision_end_token_id]] = True
    return banned_v


def pack(chunks: Sequence[Chunk], cache: KVCache, device: torch.device) -> ForwardBatch:
    """The chunks one after the other, with the visual rows that fall into each."""
    ids: list[int] = []
    wanted: list[int] = []
    features: list[VisionFeatures] = []
    places: list[Tensor] = []
    for chunk in chunks:
        state, offset = chunk.state, len(ids) - chunk.start
        ids += state.tokens[chunk.start : chunk.stop]
        if chunk.is_last:
            wanted += range(len(ids) - 1, len(ids) + len(chunk.draft))
        ids += chunk.draft
        for index, image in state.pictures(chunk.start, chunk.stop):
            first, last = max(chunk.start, image.start), min(chunk.stop, image.stop)
            whole = state.features[index]
            features.append(whole.part(first - image.start, last - image.start))
            places.append(torch.arange(first, last) + offset)
    spans = [Span(c.state.blocks, c.start, c.end, device) for c in chunks]
    positions = [c.state.positions(c.start, c.end) for c in chunks]
    stretches = [torch.full((c.end - c.start,), c.state.stretch) for c in chunks]
    return ForwardBatch(
        ids_t=torch.tensor(ids, device=device),
        positions_3t=torch.cat(positions, dim=1).to(device),
        attend=CachedAttention(cache, spans),
        wanted_b=torch.tensor(wanted, dtype=torch.int64, device=device),
        vision=VisionFeatures.joined(features) if features else None,
        vision_at_v=torch.cat(places).to(device) if places else None,
        stretch_t=torch.cat(stretches).to(device),
    )
