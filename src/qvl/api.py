"""The public `VLM`: a model behind its door, together with the tasks that it can do.

>>> from qvl import VLM
>>> VLM().describe("cup.jpg", language="ru")
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Concatenate, ParamSpec, TypeVar

from qvl.errors import QvlError
from qvl.tasks.ask import Ask
from qvl.tasks.classify import Classify
from qvl.tasks.compare import Compare
from qvl.tasks.describe import Describe
from qvl.tasks.extract import Extract
from qvl.tasks.ground import Ground
from qvl.tasks.moderate import Moderate
from qvl.tasks.ocr import Ocr
from qvl.tasks.service import Serve
from qvl.tasks.solve import Solve
from qvl.tasks.task import Result, Seen, Task
from qvl.tasks.video import Watch
from qvl.types import Completion, Delta, DType, Image, Request, Video
from qvl.vlm.chat_model import EMBEDDED, ModelInfo
from qvl.vlm.open_model import open_model
from qvl.vlm.with_adapter import WithAdapter

Shown = str | Path | bytes | Image | Video  # a path or an address, encoded bytes, or as `qvl.types`
P = ParamSpec("P")
R = TypeVar("R", bound=Result)


def _method(
    task: Callable[P, Task[R]],
) -> Callable[Concatenate[VLM, Shown | Sequence[Shown], P], R]:
    """A method of VLM that runs the task; its arguments are the task's options."""

    def run(self: VLM, shown: Shown | Sequence[Shown], *args: P.args, **options: P.kwargs) -> R:
        many = isinstance(shown, Sequence) and not isinstance(shown, str | bytes)
        return self.run(task(*args, **options), *(shown if many else [shown]))

    run.__doc__ = f"{task.__doc__}\n\nThe options are those of {task!r}. Raises QvlError."
    return run


class VLM:
    """`VLM()` is the embedded model; `VLM("Qwen/Qwen3-VL-2B-Instruct")` or a folder, any other;
    `VLM("openai:MODEL@URL")` a server's, see `qvl.vlm.remote.RemoteModel`.

    One method for each task; `run` takes a task of your own. `generate`, `results` and `stream` are
    for messages of your own; several answers to one request: `generate(qvl.types.choices(request, n))`.
    `adapters` are folders of LoRA or DoRA adapters by name: `using(name)`, or a request's `adapter`.
    The variants with an `a` do the same for async code. Safe to call from several threads.
    """

    def __init__(
        self,
        model: str = EMBEDDED,
        *,
        device: str = "auto",
        dtype: DType = "auto",
        revision: str | None = None,
        offline: bool | None = None,
        adapters: Mapping[str, str | Path] = MappingProxyType({}),
    ) -> None:
        self.model = open_model(
            model,
            device=device,
            dtype=dtype,
            revision=revision,
            offline=offline,
            adapters=adapters,
        )

    def using(self, adapter: str) -> VLM:
        """The same model, asked for one of its `adapters` in all that is asked of it."""
        vlm = copy.copy(self)
        vlm.model = WithAdapter(self.model, adapter)
        return vlm

    describe = _method(Describe)
    ask = _method(Ask)
    ocr = _method(Ocr)
    ground = _method(Ground)
    compare = _method(Compare)
    video = _method(Watch)
    solve = _method(Solve)
    service = _method(Serve)
    extract = _method(Extract)
    classify = _method(Classify)
    moderate = _method(Moderate)

    def run(self, task: Task[R], *shown: Shown) -> R:
        """What the task finds in the pictures and videos, all seen together. Raises QvlError.

        Of a PDF document a task that takes several pictures sees all pages, any other the first, as
        the result's `warnings` say; `qvl.types.Image` has a `page`.
        """
        from qvl.processing.pdf import pages_for  # brings numpy: not for `import qvl`

        seen = pages_for(task.most, [as_seen(one) for one in shown])
        task.check_seen(seen)
        return task.run(self.model, seen)

    async def arun(self, task: Task[R], *shown: Shown) -> R:
        return await asyncio.to_thread(self.run, task, *shown)

    @property
    def info(self) -> ModelInfo:
        return self.model.info

    def results(self, requests: Iterable[Request]) -> Generator[Completion | QvlError, None, None]:
        """One result per request, in their order; an error of one harms no other."""
        return self.model.results(requests)

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        """All completions, in order; raises the first error."""
        return self.model.generate(requests)

    async def agenerate(self, requests: Iterable[Request]) -> list[Completion]:
        return await asyncio.to_thread(self.generate, list(requests))

    def stream(self, request: Request) -> Generator[Delta, None, None]:
        """Text as it comes; the last delta carries the completion."""
        return self.model.stream(request)

    async def astream(self, request: Request) -> AsyncIterator[Delta]:
        """As `stream`; leaving the loop early stops the generation."""
        deltas = self.stream(request)
        try:
            while (delta := await asyncio.to_thread(next, deltas, None)) is not None:
                yield delta
        finally:
            deltas.close()

    def close(self) -> None:
        """Free the weights; the model cannot be used afterwards."""
        self.model.close()


def as_seen(shown: Shown) -> Seen:
    """A picture by path, address or bytes; what is an Image or a Video already stays as it is."""
    return shown if isinstance(shown, Image | Video) else Image.of(shown)
