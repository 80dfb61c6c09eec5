"""Tasks in the server: each request that a task makes waits its turn like any client's own.

Main path: queued -> task.run in a thread, on a model whose requests go through `Answers`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fastapi import Request as HttpRequest

from qvl.errors import QvlError, as_fault
from qvl.serve.answers import unless_left
from qvl.serve.errors import Refusal
from qvl.serve.serving import Asked, Serving
from qvl.serve.tasks import Run
from qvl.tasks.task import Result, Seen, Task
from qvl.types import Completion, Delta, Request
from qvl.vlm.chat_model import ChatModel, ModelInfo


def queued(serving: Serving) -> Run:
    """Computes tasks for clients; what a client that leaves has asked for is given up.

    A task counts as one request of its key, however often it asks the model.
    """
    # of its own: whoever reads bodies must not wait for tasks
    threads = ThreadPoolExecutor(serving.limits.running + serving.limits.queued, "qvl-task")

    async def run(http: HttpRequest, task: Task[Any], seen: Sequence[Seen]) -> Result:
        loop = asyncio.get_running_loop()
        asked = Asked(http, http.state.key, loop.time() + serving.limits.request_s, [])
        serving.admission.count(asked.key)
        going: set[Future[list[Completion]]] = set()
        has_left = False

        def whole(requests: Sequence[Request]) -> list[Completion]:
            if has_left:
                raise CancelledError
            own = [serving.own(request, asked) for request in requests]
            answers = serving.answers.whole(own, asked.key, asked.until_s, is_counted=True)
            future = asyncio.run_coroutine_threadsafe(answers, loop)
            going.add(future)
            return future.result()

        async def found() -> Result:
            model = Queued(serving.model, whole)
            return await loop.run_in_executor(threads, computed, task, model, seen)

        try:
            return await unless_left(http.receive, found())
        finally:
            has_left = True
            for future in going:
                future.cancel()

    return run


def computed(task: Task[Any], model: ChatModel, seen: Sequence[Seen]) -> Result:
    try:
        return task.run(model, seen)
    except (QvlError, Refusal, TimeoutError, CancelledError):
        raise
    except Exception as error:
        raise as_fault(error, task.name) from error


@dataclass(frozen=True, slots=True)
class Queued:
    """A model as tasks see it in the server; `whole` answers requests that are asked together."""

    model: ChatModel
    whole: Callable[[Sequence[Request]], list[Completion]]

    @property
    def info(self) -> ModelInfo:
        return self.model.info

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        return [completion for request in requests for completion in self.whole([request])]

    def results(self, requests: Iterable[Request]) -> Generator[Completion | QvlError, None, None]:
        for request in requests:
            try:
                yield from self.whole([request])
            except QvlError as err:
                yield err

    def stream(self, request: Request) -> Generator[Delta, None, None]:
        """In one piece."""
        (completion,) = self.whole([request])
        yield Delta(completion.text, completion, completion.reasoning)

    def close(self) -> None:
        """The model is the server's to close."""
