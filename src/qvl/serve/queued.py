"""Tasks in the server: each request that a task makes waits its turn like any client's own.

Main path: queued -> read_body and task.run in a thread, on a model whose requests go through `Answers`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from fastapi import Request as HttpRequest

from qvl.errors import QvlError, as_fault
from qvl.processing.pdf import pages_for
from qvl.serve.answers import unless_left
from qvl.serve.errors import Refusal
from qvl.serve.serving import Asked, Serving
from qvl.serve.tasks import MODEL, Run
from qvl.tasks.body import read_body
from qvl.tasks.task import Task, as_row
from qvl.types import Completion, Delta, Request
from qvl.vlm.chat_model import ChatModel, ModelInfo


def queued(serving: Serving) -> Run:
    """Computes tasks for clients; what a client that leaves has asked for is given up.

    A task counts as one request of its key, however often it asks the model.
    """
    most = serving.limits.running + serving.limits.queued
    # of its own: whoever reads bodies must not wait for tasks
    threads = ThreadPoolExecutor(most, "qvl-task")
    at_work = 0

    async def run(
        http: HttpRequest, task: type[Task[Any]], body: Mapping[str, Any]
    ) -> dict[str, Any]:
        nonlocal at_work
        if at_work >= most:
            raise serving.admission.overloaded()
        loop = asyncio.get_running_loop()
        until_s = loop.time() + serving.limits.request_s
        adapter = serving.adapter_of(body.get(MODEL))
        asked = Asked(http, http.state.key, until_s, [], adapter)
        options = {key: value for key, value in body.items() if key != MODEL}
        parts: set[Future[Completion]] = set()
        has_left = False

        def answer(request: Request) -> Completion:
            part = serving.answers.part(
                serving.own(request, asked), asked.until_s, has_begun=bool(parts)
            )
            future = asyncio.run_coroutine_threadsafe(part, loop)
            parts.add(future)
            if has_left:  # after all that there were have been given up
                future.cancel()
            return future.result()

        async def row() -> dict[str, Any]:
            model = Queued(serving.model, answer)
            # the context tells whose trace it belongs to
            context = copy_context()
            return await loop.run_in_executor(
                threads, lambda: context.run(computed, task, options, model)
            )

        at_work += 1
        try:
            with serving.admission.taken(asked.key):
                async with asyncio.timeout_at(asked.until_s):
                    return await unless_left(http.receive, row())
        finally:
            at_work -= 1
            has_left = True
            for future in tuple(parts):
                future.cancel()

    return run


def computed(task: type[Task[Any]], body: Mapping[str, Any], model: ChatModel) -> dict[str, Any]:
    """The row of a task's result."""
    try:
        asked, seen = read_body(task, body, paths=False)
        seen = pages_for(task.most, seen)
        asked.check_seen(seen)
        return as_row(", ".join(one.name for one in seen), asked.run(model, seen))
    except (QvlError, Refusal, TimeoutError, CancelledError):
        raise
    except Exception as error:
        raise as_fault(error, task.name) from error


@dataclass(frozen=True, slots=True)
class Queued:
    """A model as tasks see it in the server; `answer` waits for its turn."""

    model: ChatModel
    answer: Callable[[Request], Completion]

    @property
    def info(self) -> ModelInfo:
        return self.model.info

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        return [self.answer(request) for request in requests]

    def results(self, requests: Iterable[Request]) -> Generator[Completion | QvlError, None, None]:
        for request in requests:
            try:
                yield self.answer(request)
            except QvlError as err:
                yield err

    def stream(self, request: Request) -> Generator[Delta, None, None]:
        """In one piece."""
        completion = self.answer(request)
        yield Delta(completion.text, completion, completion.reasoning)

    def close(self) -> None:
        """The model is the server's to close."""
