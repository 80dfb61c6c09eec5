"""Servers that answer alike, over HTTP: which one is asked, how often again, what its refusals mean.

Main path: Servers.chat -> _begun, tried up to ATTEMPTS times by tenacity -> the data of the answer's
events (httpx2 reads the SSE). Asked again is what may go better the next time: no connection, statuses
408, 409, 429 and 5xx, an answer that breaks off before its first event; after that, never.

Of several servers one that failed is left alone for a while, each time it fails again for twice as long,
and in between it is asked one thing at a time, until it has answered. One that is only silent costs
those that wait for it SILENT_S, not READ_S, and the second and third time they are asked more.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)
from tenacity.stop import stop_base

import qvl
from qvl.errors import (
    DeadlineError,
    InputError,
    InvalidParamError,
    ModelError,
    PromptTooLongError,
    QvlError,
    RemoteError,
    RemoteKeyError,
    RemoteRefusedError,
    UnknownModelError,
    nearest,
)

log = logging.getLogger(__name__)
PER_SERVER = 8  # requests in flight
ATTEMPTS = 3
READ_S, CONNECT_S = 600.0, 5.0  # as OpenAI's own client has it
CARDS_WAIT = httpx2.Timeout(10, connect=CONNECT_S)
# of several servers: how long one may be silent, at the first, second and third try of a request, so
# that servers that are all slow have the time they need
SILENT_S = (60.0, 240.0, READ_S)
REST_S, LONGEST_REST_S = 30.0, 480.0  # a server that failed is left alone, while there are others
LONGEST_WAIT_S = 60.0  # a longer Retry-After is not waited for
MAX_EVENT_BYTES = 4 << 20
MAX_ANSWER_BYTES = 64 << 20
MAX_REFUSAL_BYTES = 64 << 10
MAX_NAMES_SHOWN = 10
T = TypeVar("T")
_JITTER = wait_random_exponential(multiplier=1, max=4)  # from 0 up to 1, 2, 4 s


class Card(BaseModel):
    """What /v1/models says of a model; `owned_by` is the software in vLLM, SGLang and llama.cpp."""

    id: str
    owned_by: str | None = None
    max_model_len: int | None = None


class _Cards(BaseModel):
    data: list[Card]


@dataclass(frozen=True, slots=True)
class Asking:
    """Who waits for an answer: until when (time.monotonic), and whether anybody still does."""

    deadline_s: float | None = None
    left: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        if self.left.is_set():
            raise RemoteError("nobody waits for the answer any more")
        if self.deadline_s is not None and time.monotonic() >= self.deadline_s:
            raise DeadlineError("the server has not answered in the time that was given")

    @property
    def left_s(self) -> float:
        """At least a moment, since a time-out of 0 is none."""
        until_s = READ_S if self.deadline_s is None else self.deadline_s - time.monotonic()
        return max(until_s, 0.001)


@dataclass(slots=True, eq=False)
class _Server:
    url: str
    busy: int = 0
    failures: int = 0  # since it answered last
    rests_until_s: float = 0.0

    @property
    def is_awake(self) -> bool:
        return self.rests_until_s <= time.monotonic()

    def answered(self) -> None:
        self.failures, self.rests_until_s = 0, 0.0

    def failed(self, since_s: float) -> None:
        """Of requests that were in flight together, the first to fail counts."""
        if self.rests_until_s <= since_s:
            self.failures += 1
        rest_s = min(REST_S * 2 ** (self.failures - 1), LONGEST_REST_S)
        self.rests_until_s = max(self.rests_until_s, time.monotonic() + rest_s)


class _AgainError(Exception):
    """What failed and may go better the next time, in `after_s` seconds if the server said so."""

    def __init__(self, error: QvlError, after_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.after_s = after_s


class Servers:
    """One model on one server or more. Safe to use from several threads."""

    def __init__(self, model: str, urls: Sequence[str], key: str | None) -> None:
        headers = {"User-Agent": f"qvl/{qvl.__version__}", "Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._key = key
        self._model = model
        self._servers = [_Server(url) for url in urls]
        self._freed = threading.Condition()
        self._closed = threading.Event()
        self._client = httpx2.Client(
            headers=headers, limits=httpx2.Limits(max_connections=None), follow_redirects=False
        )

    @property
    def slots(self) -> int:
        return PER_SERVER * len(self._servers)

    def close(self) -> None:
        """Nothing is asked any more; what is being read ends with its next piece."""
        self._closed.set()
        with self._freed:
            self._freed.notify_all()
            is_idle = not any(server.busy for server in self._servers)
        if is_idle:  # else the last one does, whose connections nobody else may close
            self._client.close()

    def _check(self, asking: Asking) -> None:
        if self._closed.is_set():
            raise RemoteError("the model is closed")
        asking.check()

    def cards(self, asking: Asking | None = None) -> list[Card]:
        """The models that a server says it has; none where it does not say.

        Raises RemoteError where no server answers, RemoteKeyError for the key.
        """
        asking = asking or Asking()
        try:
            listed = self._retried(lambda: self._listed(asking), asking)
            return _Cards.model_validate_json(listed).data
        except RemoteKeyError:
            raise
        except (ValidationError, RemoteRefusedError):
            return []

    @contextmanager
    def chat(self, body: bytes, asking: Asking) -> Iterator[Iterator[str]]:
        """The data of each event of an answer, up to its [DONE].

        Raises RemoteError, also while it is read, DeadlineError, and for what the server says is
        wrong with the request the error of our tree that has the same code.
        """
        with ExitStack() as kept:
            silences = iter(SILENT_S if len(self._servers) > 1 else ())
            yield self._retried(
                lambda: self._begun(kept, body, asking, next(silences, READ_S)), asking
            )

    def _retried(self, ask: Callable[[], T], asking: Asking) -> T:
        stop = stop_after_attempt(ATTEMPTS) | _StopBeforeLongPause()
        if asking.deadline_s is not None:
            stop |= stop_before_delay(asking.left_s)
        retrying = Retrying(
            stop=stop,
            wait=self._pause_s,
            retry=retry_if_exception_type(_AgainError),
            sleep=lambda pause_s: self._sleep(pause_s, asking),
            reraise=True,
        )
        try:
            return retrying(ask)
        except _AgainError as err:
            raise err.error from err

    def _pause_s(self, state: RetryCallState) -> float:
        failed = state.outcome and state.outcome.exception()
        if len(self._servers) > 1 and any(server.is_awake for server in self._servers):
            return 0.0
        if isinstance(failed, _AgainError) and failed.after_s is not None:
            return failed.after_s
        return _JITTER(state)

    def _sleep(self, pause_s: float, asking: Asking) -> None:
        """Raises as soon as nobody waits any more, or the model is closed."""
        until_s = time.monotonic() + pause_s
        while (left_s := until_s - time.monotonic()) > 0:
            self._check(asking)
            self._closed.wait(min(left_s, 0.5))

    def _begun(
        self, kept: ExitStack, body: bytes, asking: Asking, silent_s: float
    ) -> Iterator[str]:
        with ExitStack() as tried:
            server = tried.enter_context(self._taken(asking))
            with self._judged(server, asking):
                source = tried.enter_context(
                    self._client.sse(
                        f"{server.url}/chat/completions",
                        method="POST",
                        content=body,
                        headers={"Content-Type": "application/json"},
                        timeout=_timeout(asking, silent_s),
                        max_event_size=MAX_EVENT_BYTES,
                    )
                )
                self._accept(source.response, server, asking)
                events = (event.data for event in source)
                first = next(events, None)
                if first is None:
                    raise _AgainError(_broken(server.url))
            kept.enter_context(tried.pop_all())
        return self._told(first, events, server, asking)

    def _told(
        self, first: str, events: Iterator[str], server: _Server, asking: Asking
    ) -> Iterator[str]:
        """What is left of an answer that has begun."""
        data: str | None = first
        try:
            while data is not None:
                asking.check()
                if data.strip() == "[DONE]":
                    return
                if '"error"' in data and (said := _error_in(data, "error")):
                    words = self._clean(said["message"])
                    raise RemoteError(f"{server.url} failed while it answered: {words}")
                yield data
                with self._judged(server, asking):
                    data = next(events, None)
        except _AgainError as err:
            raise err.error from err
        raise _broken(server.url)

    def _listed(self, asking: Asking) -> bytes:
        server = self._least_busy() or self._servers[0]
        with (
            self._judged(server, asking),
            self._client.stream("GET", f"{server.url}/models", timeout=CARDS_WAIT) as response,
        ):
            self._accept(response, server, asking)
            return response.read()

    def _accept(self, response: httpx2.Response, server: _Server, asking: Asking) -> None:
        """Raises unless the answer begins as one; limits what is read of it."""
        response.stream = _Limited(response.stream, lambda: self._check(asking))
        if (coding := response.headers.get("content-encoding", "identity")) != "identity":
            raise RemoteError(  # unpacked, it could be of any size
                f"the answer is packed as {coding!r:.20}",
                hint="no coding was asked for: look there",
            )
        if not response.is_success:
            raise self._refusal(response, server, asking)

    @contextmanager
    def _taken(self, asking: Asking) -> Iterator[_Server]:
        """The least busy of the servers that are awake, or of all if none is; waits for room."""
        with self._freed:
            while (server := self._least_busy()) is None:
                self._check(asking)
                self._freed.wait(min(asking.left_s, 1.0))
            self._check(asking)
            server.busy += 1
        try:
            yield server
        finally:
            with self._freed:
                server.busy -= 1
                self._freed.notify()
                is_last = self._closed.is_set() and not any(s.busy for s in self._servers)
            if is_last:
                self._client.close()

    def _least_busy(self) -> _Server | None:
        candidates = [s for s in self._servers if s.is_awake] or self._servers
        is_one_well = not all(server.failures for server in candidates)
        free = [
            server
            for server in candidates
            if server.busy < (1 if server.failures and is_one_well else PER_SERVER)
        ]
        return min(free, key=lambda server: server.busy, default=None)

    @contextmanager
    def _judged(self, server: _Server, asking: Asking) -> Iterator[None]:
        """The faults of HTTP in the block as ours; a server that failed rests."""
        url, began_s = server.url, time.monotonic()
        try:
            yield
            server.answered()
        except _AgainError as err:
            if err.after_s is None:
                server.failed(began_s)
            else:
                server.rests_until_s = time.monotonic() + err.after_s
            raise
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as err:
            server.failed(began_s)
            asking.check()
            hint = "start the server, or correct the address"
            reason = f": {err!s:.100}" if str(err) else f" within {CONNECT_S:g} s"
            raise _AgainError(
                RemoteError(f"no server answers at {url}{reason}", hint=hint)
            ) from err
        except httpx2.ReadTimeout as err:
            asking.check()
            server.failed(began_s)
            silent = RemoteError(f"{url} was silent for too long", hint="look at its load")
            if len(self._servers) > 1:
                raise _AgainError(silent) from err
            raise silent from err  # asked again, a slow server would only be slower
        except httpx2.SSEError as err:
            raise RemoteError(
                f"{url} answers with something else than a stream of events, or with one too large",
                hint="is it a server of OpenAI's chat API? give the address up to its /v1",
            ) from err
        except httpx2.HTTPError as err:
            server.failed(began_s)
            raise _AgainError(_broken(url)) from err

    def _refusal(self, response: httpx2.Response, server: _Server, asking: Asking) -> Exception:
        """The error of an answer with a bad status, or why to ask again."""
        url, status = server.url, response.status_code
        said = _refused_with(response)
        words = self._clean(said.get("message"))
        phrase = _phrase(status) + (f": {words}" if said else "")
        again = response.headers.get("x-should-retry")
        is_busy = status in (408, 409, 429) or status >= 500
        if again == "true" or (is_busy and again != "false"):
            after_s = _retry_after_s(response.headers)
            hint = "ask again later" if status == 429 else "look into the server's log"
            if after_s is not None and after_s > LONGEST_WAIT_S:
                hint = f"it asks to be left alone for {after_s:.0f} s"
            error = RemoteError(f"{url} answers with status {status}{phrase}", hint=hint)
            return _AgainError(error, after_s)
        if is_busy:
            return RemoteError(f"{url} answers with status {status}{phrase}")
        if status in (401, 403):
            what = "does not take the key" if self._key else "wants a key"
            return RemoteKeyError(
                f"{url} {what} (status {status})",
                hint="put the right one into the environment as QVL_REMOTE_KEY",
            )
        if response.is_redirect:
            return RemoteRefusedError(
                f"{url} sends to another address (status {status})",
                hint="give that address itself: a key is not sent on",
            )
        if status in (404, 410) and said and response.request.method == "POST":
            return self._unknown(url, words, asking)
        kind = _KINDS.get(str(said.get("code")))
        if "context length" in words or "context size" in words:
            kind = PromptTooLongError
        if kind is not None:
            return kind(words, hint=f"said by {url}")
        hint = "is the address right, up to its /v1?" if status in (404, 405) else None
        return RemoteRefusedError(
            f"{url} refuses the request (status {status}): {words}", hint=hint
        )

    def _unknown(self, url: str, words: str, asking: Asking) -> QvlError:
        """For a server that knows no such model: the names that it does know, nearest first."""
        try:
            names = [card.id for card in self.cards(asking)]
        except QvlError:
            names = []
        if not names or self._model in names:
            return RemoteRefusedError(f"{url} refuses the request (status 404): {words}")
        shown = ", ".join(names[:MAX_NAMES_SHOWN]) + (", ..." if names[MAX_NAMES_SHOWN:] else "")
        return UnknownModelError(
            f"{url} has no model {self._model!r}",
            hint=" ".join(filter(None, [nearest(self._model, names), f"it has {shown}"])),
        )

    def _clean(self, message: object) -> str:
        """What a server said, fit for a message: short, one line, without our key."""
        text = message if isinstance(message, str) else "it does not say why"
        if self._key:
            text = text.replace(self._key, "(key)")
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return text if len(text) <= 200 else text[:200] + "..."


class _Limited(httpx2.SyncByteStream):
    """The bytes of an answer: not too many, and only as long as somebody waits for them."""

    def __init__(self, stream: Any, check: Callable[[], None]) -> None:
        self._stream = stream
        self._check = check

    def __iter__(self) -> Iterator[bytes]:
        received = 0
        for piece in self._stream:
            self._check()
            received += len(piece)
            if received > MAX_ANSWER_BYTES:
                raise RemoteError(f"the answer has more than {MAX_ANSWER_BYTES >> 20} MiB")
            yield piece

    def close(self) -> None:
        self._stream.close()


def _kinds(kind: type[QvlError]) -> Iterator[type[QvlError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)


# what is wrong with a request has the same code here and on a server of ours; some also on OpenAI's
_KINDS = {
    kind.code: kind for top in (InputError, InvalidParamError, ModelError) for kind in _kinds(top)
}


def _timeout(asking: Asking, silent_s: float) -> httpx2.Timeout:
    left_s = asking.left_s
    return httpx2.Timeout(min(READ_S, silent_s, left_s), connect=min(CONNECT_S, left_s), pool=None)


class _StopBeforeLongPause(stop_base):
    """The one that a server asks for, where there is no other to ask."""

    def __call__(self, retry_state: RetryCallState) -> bool:
        return retry_state.upcoming_sleep > LONGEST_WAIT_S


def _broken(url: str) -> RemoteError:
    return RemoteError(f"{url} broke off its answer", hint="look into the server's log")


def _phrase(status: int) -> str:
    try:
        return f" ({HTTPStatus(status).phrase})"
    except ValueError:
        return ""


def _refused_with(response: httpx2.Response) -> dict[str, Any]:
    """The error object of a refusal, empty where there is none."""
    text = b""
    for piece in response.iter_bytes():
        text += piece
        if len(text) > MAX_REFUSAL_BYTES:
            return {}
    return _error_in(text, "error") or _error_in(text)


def _error_in(text: str | bytes, key: str | None = None) -> dict[str, Any]:
    """What has a message, under that key or at the top; Google puts it into a list."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if isinstance(said, list) and said:
        said = said[0]
    if isinstance(said, dict) and key:
        said = said.get(key)
        said = {"message": said} if isinstance(said, str) else said
    return said if isinstance(said, dict) and "message" in said else {}


def _retry_after_s(headers: httpx2.Headers) -> float | None:
    """How long the server asks to be left alone; a number of (milli)seconds, or a date."""
    try:
        if "retry-after-ms" in headers:
            wait_s = float(headers["retry-after-ms"]) / 1000
        else:
            wait_s = float(headers["retry-after"])
    except KeyError:
        return None
    except ValueError:
        try:
            until = parsedate_to_datetime(headers.get("retry-after", ""))
            wait_s = (until - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, wait_s) if wait_s == wait_s else None
