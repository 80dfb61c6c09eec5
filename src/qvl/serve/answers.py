"""From a model's streams, which are read in threads, to asyncio and server-sent events.

Main path: Answers.deltas -> admission -> a thread per answer (_read) -> a queue -> the route, which
sends them on as they come (EventStream) or waits for all. Whoever stops reading, because the client
left or the time is over, makes the threads leave their streams within a step of the engine.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing, suppress
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qvl.errors import as_fault
from qvl.serve import spans
from qvl.serve.admission import Admission
from qvl.serve.errors import Refusal
from qvl.serve.limits import CHARACTERS_PER_TOKEN, CHOICES, TOKENS_PER_PICTURE, Limits
from qvl.serve.metrics import Metrics
from qvl.types import Completion, Delta, Request, Text
from qvl.vlm.chat_model import ChatModel, characters_of

T = TypeVar("T")
Piece = tuple[int, Delta]  # and the number of the answer it is of


class ClientLeftError(Exception):
    """There is nobody to answer any more."""


class Answers:
    """Computes requests of one client at a time each, as many at once as the admission lets in."""

    def __init__(
        self, model: ChatModel, admission: Admission, metrics: Metrics, limits: Limits
    ) -> None:
        self._model = model
        self._admission = admission
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(max(limits.running, CHOICES), "qvl-answer")
        self._queues: set[asyncio.Queue[Piece | Exception]] = set()

    async def deltas(
        self, requests: Sequence[Request], key: str, until_s: float
    ) -> AsyncGenerator[Piece, None]:
        """Pieces of the answers to the choices of one request of a key, each answer's in order.

        The first piece comes when the first answer is being computed, so what is wrong with a request
        is known by then; it and the last of each answer may be empty. Raises the first error, and
        TimeoutError when there is more to come at `until_s` of the loop's clock.
        """
        with self._admission.taken(key):
            async with aclosing(self._deltas(requests, until_s)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _deltas(
        self, requests: Sequence[Request], until_s: float, *, has_begun: bool = False
    ) -> AsyncGenerator[Piece, None]:
        asked_s = time.monotonic()
        count, tokens = len(requests), sum(map(tokens_of, requests))
        async with asyncio.timeout_at(until_s):
            await self._admission.enter(
                choices=count,
                tokens=tokens,
                priority=requests[0].priority,
                has_begun=has_begun,
            )
        began_s = time.monotonic()
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        left, reading = threading.Event(), count

        def tell(item: Piece | Exception) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server has stopped
                loop.call_soon_threadsafe(queue.put_nowait, item)

        def ended(_: object) -> None:
            nonlocal reading
            reading -= 1
            if not reading:
                self._admission.leave(count, time.monotonic() - began_s)

        self._queues.add(queue)
        for number, request in enumerate(requests):
            done = loop.run_in_executor(self._threads, self._read, number, request, left, tell)
            done.add_done_callback(ended)
        unfinished, last_s = count, [0.0] * count
        try:
            while unfinished:
                async with asyncio.timeout_at(until_s):
                    item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                number, delta = item
                if delta.completion is not None:
                    unfinished -= 1
                    self._metrics.finished(delta.completion, began_s - asked_s)
                    spans.answered(delta.completion, self._metrics.model_name, began_s - asked_s)
                elif delta.text or delta.reasoning:
                    now_s = time.monotonic()
                    if last_s[number]:
                        self._metrics.between_tokens_s.observe(now_s - last_s[number])
                    last_s[number] = now_s
                yield number, delta
        finally:
            left.set()
            self._queues.discard(queue)

    async def whole(
        self, requests: Sequence[Request], key: str, until_s: float
    ) -> list[Completion]:
        """All answers to the choices of one request. Raises as `deltas`."""
        return await _whole(self.deltas(requests, key, until_s))

    async def part(self, request: Request, until_s: float, *, has_begun: bool) -> Completion:
        """The answer to one of the requests that something makes which is taken already.

        `has_begun` as for `Admission.enter`. Raises as `deltas`.
        """
        (completion,) = await _whole(self._deltas([request], until_s, has_begun=has_begun))
        return completion

    def give_up(self, why: Callable[[], Refusal]) -> None:
        """End whatever waits or is being computed with an error."""
        self._admission.give_up(why)
        for queue in self._queues:
            queue.put_nowait(why())

    def close(self, *, wait: bool) -> None:
        self._threads.shutdown(wait=wait, cancel_futures=True)

    def _read(
        self,
        number: int,
        request: Request,
        left: threading.Event,
        tell: Callable[[Piece | Exception], None],
    ) -> None:
        """In a thread: one answer, until it is whole or nobody reads it any more."""
        if left.is_set():
            return
        try:
            has_begun = False
            with closing(self._model.stream(request)) as deltas:
                for delta in deltas:
                    if left.is_set():
                        break
                    if delta.text or delta.reasoning or delta.completion or not has_begun:
                        tell((number, delta))
                    has_begun = True
        except Exception as error:  # noqa: BLE001 - the edge of one request: the others go on
            tell(as_fault(error, request.id))


async def _whole(deltas: AsyncGenerator[Piece, None]) -> list[Completion]:
    found: dict[int, Completion] = {}
    async with aclosing(deltas) as pieces:
        async for number, delta in pieces:
            if delta.completion is not None:
                found[number] = delta.completion
    return [found[number] for number in sorted(found)]


def tokens_of(request: Request) -> int:
    """About how many tokens a request is, by what can be seen without reading it."""
    parts = [part for message in request.messages for part in message.content]
    pictures = sum(not isinstance(part, Text) for part in parts)
    read = characters_of(request) // CHARACTERS_PER_TOKEN + pictures * TOKENS_PER_PICTURE
    return read + request.tokens_allowed()


async def unless_left(receive: Receive, work: Awaitable[T]) -> T:
    """What `work` gives; when the client leaves it is cancelled. Raises ClientLeftError then."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeftError
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events as they come, and a comment where nothing came for `ping_s` seconds.

    `events` raises nothing and is closed in any case. At `until_s` of the loop's clock the connection is
    given up: what is left then waits for a client that does not read.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[str, None],
        *,
        ping_s: float,
        until_s: float,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(headers=dict(headers))
        del self.headers["content-length"]
        self._events = events
        self._ping_s = ping_s
        self._until_s = until_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        await unless_left(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        sent_s = time.monotonic()

        async def write(text: str) -> None:
            nonlocal sent_s
            sent_s = time.monotonic()
            body = text.encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})

        async def ping() -> None:
            while True:
                await asyncio.sleep(max(0.0, sent_s + self._ping_s - time.monotonic()))
                if time.monotonic() - sent_s >= self._ping_s:
                    await write(": ping\n\n")

        async with asyncio.timeout_at(self._until_s):
            pinging = asyncio.ensure_future(ping())
            try:
                async with aclosing(self._events) as events:
                    async for event in events:
                        await write(event)
            finally:
                pinging.cancel()
                await asyncio.gather(pinging, return_exceptions=True)
            # the last thing that is done: a client that has it all may leave
            await send({"type": "http.response.body", "body": b"", "more_body": False})
