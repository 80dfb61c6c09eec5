"""Our own engine behind the door: pictures and messages to prompts, engine events to completions.

Main path: LocalModel.results -> _prepare (processing.prompt) -> _enter (Engine.add) -> _step ->
_completion.
Requests of all threads share one engine; whoever waits makes its steps.
"""

from __future__ import annotations

import itertools
import math
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import torch

import qvl
from qvl.engine.engine import Engine
from qvl.engine.request import (
    EngineImage,
    EngineRequest,
    Event,
    Finished,
    Reasoning,
    SamplingParams,
    Token,
)
from qvl.errors import (
    EngineClosedError,
    EngineError,
    InvalidParamError,
    QvlError,
    UnknownModelError,
    UsageError,
    as_fault,
    nearest,
)
from qvl.loading.adapted import adapted
from qvl.loading.adapter import read_adapter
from qvl.loading.generation import GenerationDefaults
from qvl.loading.machine import usable_cores
from qvl.loading.model import (
    CheckpointFolder,
    LoadedModel,
    free_bytes,
    load_model,
    local_folder,
)
from qvl.models.qwen_vl import QwenVL
from qvl.processing.patches import Patches
from qvl.processing.prompt import Prompt, PromptImage, build_prompt
from qvl.processing.tokenizer import Tokenizer
from qvl.structured.grammar import Grammar, Grammars
from qvl.types import (
    NEW_TOKENS,
    Completion,
    Delta,
    DType,
    FinishReason,
    Provenance,
    Request,
    Sampling,
    Timings,
    TokenLogprob,
    Usage,
)
from qvl.vlm.chat_model import (
    EMBEDDED,
    EMBEDDED_FOLDER,
    REMOTE,
    ModelInfo,
    characters_of,
    check_asked,
    check_length,
    completed,
    refuse_later,
)
from qvl.vlm.tool_calls import CLOSE, OPEN, CallReader, demanded_tools, offered_tools
from qvl.vlm.turns import Turns

IN_FLIGHT = 8  # requests computed together; each holds its pictures
READ_AHEAD = 8  # requests whose pictures are read while those in flight are computed
READERS = 2
# of pictures and videos that one call holds, and what one that is not read yet may become of it
HELD_BYTES, UNREAD_BYTES = 2 << 30, 256 << 20
MIN_CACHE_TOKENS = 8192
FALLBACK_BYTES = 4 << 30  # taken for free memory where the system does not say
# what a model of Qwen2-VL finds is told by special tokens, which stay in the text for `tasks.boxes`
GROUNDING = tuple(
    f"<|{what}_{side}|>" for what in ("object_ref", "box", "quad") for side in ("start", "end")
)
SMALLEST = 1e-30  # what a probability is at least, so that it has a logarithm
T = TypeVar("T")


@dataclass(slots=True)
class _Answer:
    """One request on its way: what was asked, and what has come of it so far."""

    key: str
    request: Request
    prompt: Prompt
    sampling: Sampling
    began_s: float
    grammar: Grammar | None
    thinking: Reasoning | None
    calls: CallReader | None  # where tools were offered
    first_token_s: float | None = None
    text: str = ""  # as far as it is certain
    reasoning: str = ""
    reasoning_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    tokens: list[Token] = field(
        default_factory=list
    )  # of the answer, if their logprobs are asked for
    cached_tokens: int = 0
    reason: FinishReason | None = None
    error: QvlError | None = None
    held_bytes: int = field(init=False)  # of pictures and videos

    def __post_init__(self) -> None:
        patches = [image.patches for image in self.prompt.images]
        arrays = [p.rows if isinstance(p, Patches) else p.blocks for p in patches]
        self.held_bytes = sum(array.nbytes for array in arrays)

    @property
    def is_finished(self) -> bool:
        return self.reason is not None or self.error is not None

    def take(self, event: Event) -> None:
        if event.is_reasoning:
            self.reasoning += event.text
        else:
            self.text += self.calls.push(event.text) if self.calls else event.text
        if isinstance(event, Finished):
            self.text += self.calls.finish() if self.calls else ""
            self.cached_tokens = event.cached_tokens
            self.reason, self.error = event.reason, event.error  # last: who waits looks at these
            return
        if self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.began_s
        self.token_ids.append(event.token_id)
        self.reasoning_tokens += event.is_reasoning
        if event.probability is not None:
            self.probabilities.append(event.probability)
        if self.sampling.logprobs and not event.is_reasoning:
            self.tokens.append(event)


class LocalModel:
    """A loaded checkpoint. Safe to call from several threads: their requests share each step.

    `model` is "sprout" (the embedded model), a hub id or a folder. With few requests at work it
    guesses up to `draft_tokens` ahead, which changes no word. `adapters` are folders by the names that
    requests ask for them by. Raises ModelError when the checkpoint or an adapter cannot be used,
    OutOfMemoryError when it cannot fit.
    """

    def __init__(
        self,
        model: str = EMBEDDED,
        *,
        device: str = "auto",
        dtype: DType = "auto",
        revision: str | None = None,
        offline: bool | None = None,
        draft_tokens: int = 3,
        adapters: Mapping[str, str | Path] = MappingProxyType({}),
    ) -> None:
        self._process_id: int | None = os.getpid()  # None once it is closed
        folder = model_folder(model, revision=revision, offline=offline)
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))  # a container's quota
        loaded = load_model(folder.path, dtype=dtype, device=chosen_device(device))
        self._loaded = loaded
        self._turns = Turns()
        # a thread that computes keeps buffers and helpers of its own, so not everybody's does
        self._stepper = ThreadPoolExecutor(1, "qvl-step")
        self._first_thread: int | None = None
        self._grammars_lock = threading.Lock()
        self._made_grammars: Grammars | None = None
        self._keys = itertools.count()
        self._answers: dict[str, _Answer] = {}  # those that the engine still computes
        self._token_bytes = shown_bytes(loaded.tokenizer)
        self._adapters: dict[str, QwenVL] = {}
        self._engine = Engine(
            loaded.model,
            token_bytes=self._token_bytes,
            vocab_size=loaded.tokenizer.vocab_size,
            cache_tokens=cache_room(loaded),
            draft_tokens=draft_tokens,
            adapters=self._adapters,
        )
        for adapter, its_folder in adapters.items():
            self.add_adapter(adapter, its_folder)
        self._info = ModelInfo(
            name=folder.name,
            revision=folder.revision,
            generation=loaded.config.generation,
            parameters=loaded.parameters,
            token_bytes=loaded.model.token_bytes,
            dtype=loaded.dtype,
            device=loaded.device,
            max_positions=loaded.config.decoder.max_positions,
            at_once=IN_FLIGHT,
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names that a request may ask for."""
        return tuple(self._adapters)

    def add_adapter(self, name: str, folder: str | Path) -> None:
        """Let requests ask for the adapter of the folder by that name, instead of any before it.

        Raises InvalidParamError for a name that is none, ModelError for an unusable folder.
        """
        self._check_open()
        if not name or not name.isprintable():
            raise InvalidParamError(
                f"an adapter is named {name!r}", hint="give it a name that can be read"
            )
        loaded = self._loaded
        adapter = read_adapter(Path(folder).expanduser(), loaded.config, name=name)
        self._adapters[name] = adapted(loaded.model, adapter)

    def remove_adapter(self, name: str) -> None:
        """Forget it; requests that are being computed keep it until they end. Raises UnknownModelError."""
        self._check_adapter(name)
        del self._adapters[name]

    def _check_adapter(self, name: str) -> None:
        if name not in self._adapters:
            known = ", ".join(self._adapters) or "none"
            raise UnknownModelError(
                f"there is no adapter {name!r}",
                hint=nearest(name, self._adapters) or f"the model was opened with: {known}",
            )

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that end an answer."""
        return tuple(sorted(self._loaded.defaults.stop_ids))

    @property
    def cache_usage(self) -> float:
        """The share of the cache of keys and values that requests hold now."""
        return self._engine.cache_usage

    @property
    def preemptions(self) -> int:
        """How often a request gave up its place in the cache, to begin again."""
        return self._engine.preemptions

    @property
    def steps(self) -> int:
        """How many steps the engine has made."""
        return self._turns.steps

    @property
    def at_work(self) -> int:
        """How many requests the engine has."""
        return len(self._answers)

    def close(self) -> None:
        """Free the weights; what is being computed ends with an error, and nothing can be asked."""
        if self._process_id != os.getpid():  # closed before, or somebody else's
            return
        self._process_id = None
        with self._turns.visit():
            self._end_all("the model was closed")
            self._stepper.shutdown()
            self._adapters.clear()
            del self._engine, self._loaded

    def _check_open(self) -> None:
        if self._process_id is None:
            raise EngineClosedError("the model was closed", hint="open it again")
        if self._process_id != os.getpid():  # the threads that compute are not here
            raise EngineClosedError(
                "the model was opened by another process, which this one was forked from",
                hint="open the model after the fork",
            )

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        """All completions, in order; raises the first error."""
        return completed(self.results(requests))

    def results(self, requests: Iterable[Request]) -> Generator[Completion | QvlError, None, None]:
        """One result per request, in their order; requests are taken in as room becomes free.

        Pictures of the next requests are read by threads while the model computes, as far as there
        is room for them.
        """
        self._check_open()
        waiting = iter(requests)
        ahead: deque[Future[_Answer | QvlError]] = deque()  # being read
        front: deque[_Answer | QvlError] = deque()  # in the engine, or ended
        readers = ThreadPoolExecutor(READERS, "qvl-read")
        try:
            while True:
                while (
                    len(ahead) < READ_AHEAD
                    and has_room(ahead, front)
                    and (request := next(waiting, None)) is not None
                ):
                    ahead.append(readers.submit(self._prepared, request))
                while ahead and len(front) < IN_FLIGHT and (ahead[0].done() or not front):
                    front.append(self._entered(ahead.popleft().result()))
                if not front:
                    return
                if is_over(front[0]):
                    yield self._outcome(front.popleft())
                else:
                    first = front[0]
                    self._until(
                        lambda first=first: (
                            is_over(first)
                            or (len(front) < IN_FLIGHT and bool(ahead) and ahead[0].done())
                        )
                    )
        finally:  # left early: a consumer that stopped, an interrupt
            readers.shutdown(wait=False, cancel_futures=True)
            self._abandon([a for a in front if isinstance(a, _Answer)])

    def stream(self, request: Request) -> Generator[Delta, None, None]:
        """Text as it comes, whole characters only; the last delta carries the completion.

        There is a delta for each step of the engine, if only an empty one, so whoever reads can leave.
        """
        self._check_open()
        answer = self._prepare(request)
        self._enter(answer)
        shown = thought = 0
        try:
            while not answer.is_finished:
                made = self._turns.steps
                self._until(lambda made=made: answer.is_finished or self._turns.steps != made)
                text, reasoning = answer.text[shown:], answer.reasoning[thought:]
                yield Delta(text, reasoning=reasoning)
                shown, thought = shown + len(text), thought + len(reasoning)
        finally:
            self._abandon([answer])
        result = self._outcome(answer)
        if isinstance(result, QvlError):
            raise result
        # another thread may have made the last steps
        yield Delta(result.text[shown:], result, result.reasoning[thought:])

    def _prepared(self, request: Request) -> _Answer | QvlError:
        try:
            return self._prepare(request)
        except Exception as error:  # noqa: BLE001 - the edge of one request: the others go on
            return as_fault(error, request.id)

    def _entered(self, prepared: _Answer | QvlError) -> _Answer | QvlError:
        if isinstance(prepared, QvlError):
            return prepared
        try:
            self._enter(prepared)
        except Exception as error:  # noqa: BLE001 - the edge of one request: the others go on
            return as_fault(error, prepared.request.id)
        return prepared

    def prompt_ids(self, request: Request) -> list[int]:
        """The ids that the model would read, one for each visual token. Raises as `stream` does."""
        self._check_open()
        return self._prompt(request).ids.tolist()

    def text_ids(self, text: str) -> list[int]:
        """The ids of a text alone, which holds no control tokens. Raises InvalidParamError."""
        return self._loaded.tokenizer.encode_text(text)

    def text_of(self, ids: Iterable[int]) -> str:
        """The text of ids without special tokens. Raises InvalidParamError for an unknown id."""
        return self._loaded.tokenizer.decode(ids)

    def _prompt(self, request: Request) -> Prompt:
        loaded = self._loaded
        check_asked(request)
        check_length(characters_of(request), loaded.config.decoder.max_positions)
        return build_prompt(
            request.messages,
            tokenizer=loaded.tokenizer,
            rules=loaded.rules,
            generation=loaded.template,
            image_token_id=loaded.config.image_token_id,
            tools=offered_tools(request),
            thinks=loaded.thinks,
            video_rules=loaded.video_rules,
        )

    def _prepare(self, request: Request) -> _Answer:
        """Read the pictures and make the prompt; touches nothing that is shared."""
        began_s = time.monotonic()
        loaded = self._loaded
        if request.adapter:
            self._check_adapter(request.adapter)
        sampling = resolved(request.sampling.checked(), loaded.defaults)
        check_token_ids(sampling, loaded.tokenizer.vocab_size)
        tools, demanded = offered_tools(request), demanded_tools(request)
        prompt = self._prompt(request)
        room = min(self._engine.cache_tokens, loaded.config.decoder.max_positions) - len(prompt.ids)
        most = request.tokens_allowed(reasoning_room=room if loaded.thinks else None)
        sampling = replace(sampling, max_new_tokens=most)
        thinking = reasoning_of(sampling, most, loaded)
        grammar = None
        if demanded:
            marks = (loaded.tokenizer.encode_control(OPEN), loaded.tokenizer.encode_control(CLOSE))
            several = request.tool_choice == "required"
            grammar = self._grammars().compile_calls(
                demanded, marks=marks, several=several, tenant=request.tenant
            )
        elif request.response_format is not None:
            grammar = self._grammars().compile(request.response_format, tenant=request.tenant)
        key = str(next(self._keys))
        calls = CallReader() if tools else None
        return _Answer(key, request, prompt, sampling, began_s, grammar, thinking, calls)

    def _grammars(self) -> Grammars:
        """Made when the first form is asked for; needs the `grammar` extra."""
        with self._grammars_lock:
            if self._made_grammars is None:
                tokenizer, defaults = self._loaded.tokenizer, self._loaded.defaults
                try:
                    self._made_grammars = Grammars(
                        token_bytes=tokenizer.token_bytes,
                        encode=tokenizer.encode_text,
                        vocab_size=tokenizer.vocab_size,
                        end_ids=defaults.stop_ids,
                    )
                except ModuleNotFoundError as err:
                    raise UsageError(
                        "answers of a given form need the package llguidance",
                        hint="pip install 'qvl[grammar]'",
                    ) from err
            return self._made_grammars

    def _enter(self, answer: _Answer) -> None:
        """Hand a prepared request to the engine."""
        prompt, wait_s = answer.prompt, answer.request.deadline_s
        engine_request = EngineRequest(
            id=answer.key,
            ids=prompt.ids,
            positions=prompt.positions,
            next_position=prompt.next_position,
            params=engine_params(answer.sampling, self._loaded.defaults.stop_ids),
            images=tuple(engine_image(image) for image in prompt.images),
            priority=answer.request.priority,
            salt=answer.request.tenant,
            deadline_s=None if wait_s is None else answer.began_s + wait_s,
            grammar=answer.grammar,
            reasoning=answer.thinking,
            adapter=answer.request.adapter,
        )
        with self._turns.visit():
            self._engine.add(engine_request)
            self._answers[answer.key] = answer

    def _until(self, over: Callable[[], bool]) -> None:
        """Steps of the engine, for everybody who waits, until `over`, whichever thread makes them."""
        self._turns.until(lambda: not self._answers or over(), self._step)

    def _step(self) -> None:
        try:
            events = self._stepped()
        except BaseException:  # an interrupt empties the engine: nobody may wait for ever
            self._end_all("the engine was interrupted")
            raise
        for event in events:
            self._answers[event.request_id].take(event)
            if isinstance(event, Finished):
                del self._answers[event.request_id]

    def _stepped(self) -> list[Event]:
        """What a step of the engine tells; the first thread that needs one makes its own itself."""
        if self._first_thread is None:
            self._first_thread = threading.get_ident()
        if self._first_thread == threading.get_ident():
            return self._engine.step()
        step = self._stepper.submit(self._engine.step)
        try:
            return step.result()
        except BaseException:  # an interrupt of this thread, not of the one that computes
            wait([step])
            self._engine.abort_all()
            raise

    def _end_all(self, why: str) -> None:
        for answer in self._answers.values():
            answer.error = EngineError(why, hint="ask again")
        self._answers.clear()

    def _abandon(self, answers: Iterable[_Answer]) -> None:
        held = [answer for answer in answers if answer.key in self._answers]
        if not held:  # they have ended: no need to wait for a step
            return
        with self._turns.visit():
            for answer in held:
                if self._answers.pop(answer.key, None) is not None:
                    self._engine.abort(answer.key)

    def _outcome(self, answer: _Answer | QvlError) -> Completion | QvlError:
        if isinstance(answer, QvlError):
            return answer
        return answer.error or self._completion(answer)

    def _completion(self, answer: _Answer) -> Completion:
        if answer.reason is None:
            raise EngineError("a request ended without a reason")
        images = tuple(i.info for i in answer.prompt.images if i.info is not None)
        videos = answer.prompt.videos
        total_s = time.monotonic() - answer.began_s
        return Completion(
            id=answer.request.id,
            text=answer.text,
            reasoning=answer.reasoning,
            tool_calls=tuple(answer.calls.calls) if answer.calls else (),
            notes=tuple(answer.calls.notes) if answer.calls else (),
            finish_reason=answer.reason,
            token_ids=tuple(answer.token_ids),
            logprobs=tuple(self._logprob(token) for token in answer.tokens),
            confidence=sum(answer.probabilities) / max(1, len(answer.probabilities)),
            usage=Usage(
                prompt_tokens=len(answer.prompt.ids),
                completion_tokens=len(answer.token_ids),
                image_tokens=sum(seen.tokens for seen in (*images, *videos)),
                cached_tokens=answer.cached_tokens,
                reasoning_tokens=answer.reasoning_tokens,
            ),
            timings=Timings(first_token_s=answer.first_token_s or total_s, total_s=total_s),
            provenance=Provenance(
                model=self._info.name,
                revision=self._info.revision,
                generation=self._info.generation,
                dtype=self._info.dtype,
                device=self._info.device,
                seed=answer.sampling.seed,
                sampling=answer.sampling,
                images=images,
                videos=videos,
                version=qvl.__version__,
                adapter=answer.request.adapter,
            ),
        )

    def _logprob(self, said: Token) -> TokenLogprob:
        spelt = self._token_bytes
        best = tuple((spelt(token_id), logprob) for token_id, logprob in said.best)
        logprob = 0.0 if said.probability is None else math.log(max(said.probability, SMALLEST))
        return TokenLogprob(spelt(said.token_id), logprob, best)


def is_over(answer: _Answer | QvlError) -> bool:
    return isinstance(answer, QvlError) or answer.is_finished


def has_room(
    ahead: Iterable[Future[_Answer | QvlError]], front: Iterable[_Answer | QvlError]
) -> bool:
    """Whether one more request may be read beside these; one alone always may."""
    unread = [future for future in ahead if not future.done()]
    read = [*front, *(future.result() for future in ahead if future.done())]
    held_bytes = sum(answer.held_bytes for answer in read if isinstance(answer, _Answer))
    needed_bytes = held_bytes + (len(unread) + 1) * UNREAD_BYTES
    return needed_bytes <= HELD_BYTES or not (unread or read)


def model_folder(name: str, *, revision: str | None, offline: bool | None) -> CheckpointFolder:
    """Where the model of that name lies on this machine, after a download if need be."""
    refuse_later(name)
    if name.startswith(REMOTE):
        raise UnknownModelError(
            f"a name that begins with {REMOTE!r} is a remote server's, whose files are not here",
            hint=f"use {EMBEDDED!r}, a model folder or a hub id",
        )
    if name == EMBEDDED:
        return CheckpointFolder(EMBEDDED_FOLDER, EMBEDDED, None)
    found = local_folder(name, revision)
    if found is not None:
        return found
    from qvl.loading.hub import fetch_checkpoint  # its library takes a while to import

    try:
        return fetch_checkpoint(name, revision=revision, offline=offline)
    except UnknownModelError as err:
        if err.hint:
            raise
        hint = nearest(name, [EMBEDDED]) or "`qvl models list` shows the published ones"
        raise UnknownModelError(err.message, hint=hint) from err


def cache_room(loaded: LoadedModel) -> int:
    """How many tokens of keys and values to have room for: a quarter of the memory that is free now.

    At most what all requests in flight can fill, at least one long prompt. On a CPU the room costs
    memory only as far as it is used.
    """
    decoder = loaded.config.decoder
    numbers = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim
    token_bytes = numbers * loaded.model.dtype.itemsize
    fits = (free_bytes(torch.device(loaded.device)) or FALLBACK_BYTES) // 4 // token_bytes
    return max(MIN_CACHE_TOKENS, min(fits, IN_FLIGHT * decoder.max_positions))


def engine_image(image: PromptImage) -> EngineImage:
    patches = image.patches
    return EngineImage(
        # a long video's rows together may be larger than the model
        rows=patches.rows if isinstance(patches, Patches) else lambda: patches.rows,
        grid=patches.grid,
        start=image.start,
        tokens=image.tokens,
        content=image.sha256,
    )


def reasoning_of(sampling: Sampling, most: int, loaded: LoadedModel) -> Reasoning | None:
    """How long a Thinking edition may reason of `most` tokens, and what ends that; None for any other model.

    Raises InvalidParamError for a budget where nothing is reasoned; ConfigError for a tokenizer that
    does not know the marks.
    """
    asked, tokenizer = sampling.thinking_tokens, loaded.tokenizer
    if asked is not None and not loaded.thinks:
        raise InvalidParamError(
            "thinking_tokens is given, and this model does not reason before it answers",
            hint="leave it out, or take a Thinking edition",
        )
    if not loaded.thinks:
        return None
    limit = pick(asked, max(1, most * 3 // 4))
    return Reasoning((tokenizer.encode_control("</think>"), *tokenizer.encode_text("\n\n")), limit)


def shown_bytes(tokenizer: Tokenizer) -> Callable[[int], bytes]:
    """The bytes that a token adds to an answer: as the tokenizer has it, and the marks of GROUNDING.

    A model may have rows for more ids than its tokenizer has tokens; those add none.
    """
    marks = {tokenizer.control[m]: m.encode() for m in GROUNDING if m in tokenizer.control}

    def spelt(token_id: int) -> bytes:
        if token_id >= tokenizer.vocab_size:
            return b""
        return marks.get(token_id) or tokenizer.token_bytes(token_id)

    return spelt


def chosen_device(name: str) -> str:
    """ "auto" is the first CUDA device where there is one, else the CPU."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolved(asked: Sampling, defaults: GenerationDefaults) -> Sampling:
    """The sampling with nothing left open: asked values first, then the checkpoint's.

    A checkpoint that is greedy by its own top_k of 1 (Qwen2-VL) loses that limit when a
    temperature is asked for, which would do nothing otherwise. Greedy needs no seed; otherwise one
    is drawn when none is given, and reported.
    """
    own_temperature = defaults.temperature if defaults.do_sample else 0.0
    temperature = own_temperature if asked.temperature is None else asked.temperature
    keep_limits = asked.temperature is None or defaults.top_k != 1
    sampling = replace(
        asked,
        temperature=temperature,
        top_p=pick(asked.top_p, defaults.top_p if keep_limits else 1.0),
        top_k=pick(asked.top_k, defaults.top_k if keep_limits else None),
        min_p=pick(asked.min_p, 0.0),
        repetition_penalty=pick(asked.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=pick(asked.presence_penalty, defaults.presence_penalty),
    )
    if temperature == 0:
        return replace(sampling, seed=None)
    return replace(sampling, seed=pick(asked.seed, secrets.randbits(63)))


def check_token_ids(sampling: Sampling, vocab_size: int) -> None:
    """Raises InvalidParamError for an id that the tokenizer does not have."""
    biased = (token_id for token_id, _ in sampling.logit_bias)
    for token_id in (*biased, *sampling.allowed_token_ids, *sampling.stop_token_ids):
        if not 0 <= token_id < vocab_size:
            raise InvalidParamError(
                f"the token id {token_id} is not one of the model's 0 to {vocab_size - 1}"
            )


def pick(asked: T | None, default: T) -> T:
    return default if asked is None else asked


def engine_params(sampling: Sampling, stop_ids: Iterable[int]) -> SamplingParams:
    return SamplingParams(
        max_new_tokens=pick(sampling.max_new_tokens, NEW_TOKENS),
        seed=sampling.seed or 0,
        temperature=pick(sampling.temperature, 0.0),
        top_k=sampling.top_k or 0,
        top_p=pick(sampling.top_p, 1.0),
        min_p=pick(sampling.min_p, 0.0),
        repetition_penalty=pick(sampling.repetition_penalty, 1.0),
        presence_penalty=pick(sampling.presence_penalty, 0.0),
        frequency_penalty=pick(sampling.frequency_penalty, 0.0),
        logit_bias=sampling.logit_bias,
        allowed_ids=sampling.allowed_token_ids,
        logprobs=sampling.logprobs,
        stop_ids=frozenset((*stop_ids, *sampling.stop_token_ids)),
        stop=sampling.stop,
        stop_loops=sampling.stop_loops,
    )
