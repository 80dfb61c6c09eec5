"""Notices an engine that has stopped making steps: a kernel that hangs, a device that is gone.

Who waits for it is then told to come back later, new requests are refused and /readyz is red, so that
whoever runs the server can start it anew; all is as before once the engine goes on.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol, runtime_checkable

from qvl.serve.admission import Admission
from qvl.serve.answers import Answers
from qvl.serve.errors import Refusal

log = logging.getLogger(__name__)
LOOKS = 10  # at the engine, within the time that a step may take


@runtime_checkable
class HasSteps(Protocol):
    """A model that says how far its engine is: our own does, a remote one keeps time limits of its own."""

    @property
    def steps(self) -> int:
        """That have ended."""
        ...

    @property
    def at_work(self) -> int:
        """Requests that the engine has."""
        ...


class Watchdog:
    """`step_s` is how long a step may take."""

    def __init__(
        self, model: object, admission: Admission, answers: Answers, *, step_s: float
    ) -> None:
        self._model = model if isinstance(model, HasSteps) else None
        self._admission = admission
        self._answers = answers
        self._step_s = step_s
        self.is_stalled = False

    async def watch(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        if self._model is None:
            return
        steps, since_s = self._model.steps, loop.time()
        while True:
            await asyncio.sleep(self._step_s / LOOKS)
            if self._model.steps != steps or not self._model.at_work:
                steps, since_s = self._model.steps, loop.time()
                self._go_on()
            elif loop.time() - since_s >= self._step_s:
                self._stop()

    def _stop(self) -> None:
        if not self.is_stalled:
            log.error("the engine has made no step for %g s: requests are given up", self._step_s)
        self.is_stalled = True
        if self._admission.closed is None:  # it may drain
            self._admission.closed = stalled
        self._answers.give_up(stalled)

    def _go_on(self) -> None:
        if not self.is_stalled:
            return
        log.warning("the engine makes steps again")
        self.is_stalled = False
        if self._admission.closed is stalled:
            self._admission.closed = None


def stalled() -> Refusal:
    return Refusal(
        503,
        "engine_stalled",
        "the model has stopped computing",
        hint="try again after the time of Retry-After",
        retry_after_s=30,
    )
