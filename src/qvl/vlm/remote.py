"""A model of a remote server behind the door: requests to OpenAI's chat API, its answers to completions.

Main path: RemoteModel.results -> stream -> openai_request.chat_body -> servers.Servers.chat (the only
one that knows HTTP) -> openai_answer.Answer -> Completion. Every answer is streamed, so that a
long one meets no time limit on its way, and one that nobody waits for ends at once.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import replace

import qvl
from qvl.errors import (
    EngineError,
    InvalidParamError,
    OfflineError,
    QvlError,
    RemoteError,
    UsageError,
)
from qvl.settings import Price
from qvl.types import Completion, Delta, Provenance, Request, Timings, Usage
from qvl.vlm.chat_model import ModelInfo, completed
from qvl.vlm.openai_answer import Answer, Thoughts
from qvl.vlm.openai_request import Body, chat_body
from qvl.vlm.remote_form import RemoteForm, arguments_fit, remote_form
from qvl.vlm.remote_name import guessed_generation, parse_remote_name
from qvl.vlm.servers import Asking, Servers
from qvl.vlm.tool_calls import CallReader, demanded_tools, offered_tools

log = logging.getLogger(__name__)
KEY_NAMES = ("QVL_REMOTE_KEY", "OPENAI_API_KEY")
READ_AHEAD = 8  # requests whose pictures are read while the servers have no room for more


class RemoteModel:
    """A model of a server that speaks OpenAI's chat API: vLLM, SGLang, llama.cpp, Gemini, hosted Qwen.

    `name` is `openai:MODEL@URL`, or has several URLs joined by commas: servers of the same model, of
    which the least busy is asked, and one that fails is left alone for a while. The key is taken
    from the environment. Safe to call from several threads.

    A completion has what the server tells: no token ids, counts and probabilities where it gives them
    (`notes` say what is missing), a cost where `prices` have the model and tokens were counted.
    `stop_loops` is up to the server. Raises UsageError for a name of another form, OfflineError when
    `offline`, RemoteError where no server answers.
    """

    def __init__(
        self,
        name: str,
        *,
        offline: bool | None = None,
        prices: Mapping[str, Price] | None = None,
    ) -> None:
        parsed = parse_remote_name(name)
        if offline:
            raise OfflineError(
                "a remote model needs the network, and --offline forbids it",
                hint="leave out --offline, or name a model on this machine",
            )
        self._model = parsed.model
        self._price = (prices or {}).get(parsed.model)
        if self._price is None:
            log.info("cost unknown: the settings have no price of %r", parsed.model)
        self._servers = Servers(parsed.model, parsed.urls, remote_key())
        self._asked: set[Future[Completion | QvlError]] = set()  # add and discard are atomic
        cards = self._servers.cards()
        own = [card for card in cards if card.id == parsed.model]
        # vLLM, SGLang, llama.cpp and our own server say there what they are
        self._kind = next((card.owned_by or "" for card in (*own, *cards)), "")
        self._guess = guessed_generation(parsed.model)
        if self._guess is None:
            log.warning(
                "%r is not a name of a Qwen-VL: boxes in its answers are read as Qwen3-VL's",
                parsed.model,
            )
        self._info = ModelInfo(
            name=name,
            revision=None,
            generation=self._guess or "qwen3_vl",
            parameters=0,
            token_bytes=0,
            dtype="remote",
            device="remote",
            max_positions=next((card.max_model_len or 0 for card in own), 0),
            at_once=self._servers.slots,
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    def close(self) -> None:
        """Give up what is still asked for; who waits for it gets a RemoteError at once."""
        self._servers.close()
        for future in tuple(self._asked):
            _settle(future, RemoteError("the model was closed before the server had answered"))

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        """All completions, in order; raises the first error."""
        return completed(self.results(requests))

    def results(self, requests: Iterable[Request]) -> Generator[Completion | QvlError, None, None]:
        """One result per request, in their order; as many at once as the servers have room for."""
        waiting = iter(requests)
        left = threading.Event()
        asked: deque[Future[Completion | QvlError]] = deque()
        most = self._servers.slots + READ_AHEAD
        try:
            while True:
                while len(asked) < most and (request := next(waiting, None)) is not None:
                    asked.append(self._ask(request, left))
                if not asked:
                    return
                yield asked.popleft().result()
        finally:  # left early: a consumer that stopped, an interrupt
            left.set()

    def stream(self, request: Request) -> Generator[Delta, None, None]:
        """Text as it comes, whole characters only; the last delta carries the completion."""
        return self._stream(request, threading.Event())

    def _ask(self, request: Request, left: threading.Event) -> Future[Completion | QvlError]:
        """Its result, from a thread that the end of the program does not wait for."""
        future: Future[Completion | QvlError] = Future()
        self._asked.add(future)
        future.add_done_callback(self._asked.discard)

        def ask() -> None:
            _settle(future, self._result(request, left))

        threading.Thread(target=ask, name="qvl-remote", daemon=True).start()
        return future

    def _result(self, request: Request, left: threading.Event) -> Completion | QvlError:
        try:
            for delta in self._stream(request, left):
                if delta.completion is not None:
                    return delta.completion
        except QvlError as error:
            return error
        except Exception as error:
            log.debug("request %r failed", request.id, exc_info=error)
            fault = EngineError(f"request {request.id!r} failed while it was asked")
            fault.__cause__ = error
            return fault
        return EngineError(f"request {request.id!r} ended without a completion")

    def _stream(self, request: Request, left: threading.Event) -> Generator[Delta, None, None]:
        began_s = time.monotonic()
        wait_s = request.deadline_s
        asking = Asking(None if wait_s is None else began_s + wait_s, left)
        form, body, answer = self._prepared(request)
        shown = thought = 0
        first_token_s = None
        with self._servers.chat(_encoded(body), asking) as events:
            for data in events:
                answer.take(data)
                text = "" if form and form.is_wrapped else answer.text[shown:]
                reasoning = answer.reasoning[thought:]
                if first_token_s is None and (answer.text or answer.reasoning):
                    first_token_s = time.monotonic() - began_s
                if text or reasoning:
                    yield Delta(text, reasoning=reasoning)
                shown, thought = shown + len(text), thought + len(reasoning)
        total_s = time.monotonic() - began_s
        answer.finish()
        text = self._read(request, form, answer)
        completion = Completion(
            id=request.id,
            text=text,
            reasoning=answer.reasoning,
            tool_calls=answer.tool_calls,
            notes=(*body.notes, *_missing(answer), *(answer.calls.notes if answer.calls else ())),
            finish_reason=answer.reason or "stop",
            token_ids=(),
            # those of a wrapping are not the answer's, and one may hold a part of both
            logprobs=() if form and form.is_wrapped else tuple(answer.tokens),
            confidence=answer.confidence,
            usage=self._priced(answer, body),
            timings=Timings(first_token_s=first_token_s or total_s, total_s=total_s),
            provenance=Provenance(
                model=self._info.name,
                revision=None,
                generation=self._info.generation,
                dtype=self._info.dtype,
                device=self._info.device,
                seed=body.sampling.seed,
                sampling=body.sampling,
                images=body.images,
                videos=body.videos,
                version=qvl.__version__,
            ),
        )
        yield Delta(text[shown:], completion, answer.reasoning[thought:])

    def _priced(self, answer: Answer, body: Body) -> Usage:
        usage = answer.count(sum(image.tokens for image in body.images))
        if self._price is None or answer.usage is None:
            return usage
        return replace(usage, cost=self._price.of(usage))

    def _prepared(self, request: Request) -> tuple[RemoteForm | None, Body, Answer]:
        """Read the pictures and make the body; nothing is sent."""
        if request.adapter:
            raise InvalidParamError(
                f"a remote model has no adapter {request.adapter!r} here",
                hint="ask for it by its name on the server, as that of a model",
            )
        asked = request.response_format
        form = None if asked is None else remote_form(asked, self._kind)
        body = chat_body(request, model=self._model, server_kind=self._kind, generation=self._guess)
        body.fields.update(form.fields if form else {})
        answer = Answer(
            Thoughts(may_be_open="thinking" in self._model.lower()),
            CallReader() if offered_tools(request) else None,
            logprobs_asked=request.sampling.logprobs,
        )
        return form, body, answer

    def _read(self, request: Request, form: RemoteForm | None, answer: Answer) -> str:
        """The text. Raises RemoteError for an answer that is not what was demanded.

        One that was cut, by its length or by a stop string, need not be whole, but half of a wrapping
        is nothing.
        """
        if answer.reason == "reasoning":
            return ""
        is_cut = answer.reason != "stop" or bool(request.sampling.stop)
        demanded = {tool.name: dict(tool.parameters) for tool in demanded_tools(request)}
        if demanded and not is_cut:
            if not answer.tool_calls:
                raise RemoteError("the answer calls no tool, and a call was demanded")
            for call in answer.tool_calls:
                if call.name not in demanded or not arguments_fit(
                    demanded[call.name], call.arguments
                ):
                    raise RemoteError(
                        f"the answer's call of {call.name!r:.80} does not fit its tool"
                    )
        if form and (form.is_wrapped or not is_cut) and not answer.tool_calls:
            return form.read(answer.text)
        return answer.text


def remote_key() -> str | None:
    """The key for remote servers. Raises UsageError, without showing it, for one that is none."""
    for name in KEY_NAMES:
        key = os.environ.get(name, "").strip()
        if key:
            if not key.isascii() or not key.isprintable() or " " in key:
                raise UsageError(f"{name} holds something that is not a key", hint="copy it again")
            return key
    return None


def _settle(future: Future[Completion | QvlError], result: Completion | QvlError) -> None:
    with suppress(InvalidStateError):  # closing the model may come between
        future.set_result(result)


def _encoded(body: Body) -> bytes:
    try:
        return json.dumps(body.fields, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as err:
        raise InvalidParamError(
            "the text has a lone surrogate", hint="it is no character: read the text as UTF-8"
        ) from err
    except ValueError as err:
        raise InvalidParamError("the json_schema has a number that JSON cannot say") from err


def _missing(answer: Answer) -> list[str]:
    """What the server has not told."""
    notes = []
    if answer.usage is None:
        notes.append("the server does not count tokens")
    if not answer.logprobs:
        notes.append("the server tells no probabilities: the confidence is not known")
    return notes
