"""The public `VLM`: a local model together with the tasks that it can do.

>>> from qvl import VLM
>>> VLM().describe("cup.jpg", language="ru")
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from qvl.errors import QvlError
from qvl.tasks.describe import Describe, Description, describe
from qvl.types import Completion, Delta, Image, Request, Sampling, Video
from qvl.vlm.local import LocalModel


class VLM(LocalModel):
    """`VLM()` is the embedded model; `VLM("Qwen/Qwen3-VL-2B-Instruct")` or a folder, any other.

    generate, results, stream and close are LocalModel's; the variants with an `a` do the same
    for async code. Several answers to one request: `generate(qvl.types.choices(request, n))`.
    """

    def describe(
        self,
        picture: str | Path | bytes | Video,
        *,
        language: str = "en",
        style: str = "plain",
        prompt: str | None = None,
        sampling: Sampling | None = None,
        boxes: bool = False,
    ) -> Description:
        """What is in one picture or video; see `qvl.tasks.describe.Describe`. Raises QvlError."""
        task = Describe(
            languages=(language,),
            style=style,
            prompt=prompt,
            sampling=sampling or Sampling(),
            boxes=boxes,
        )
        shown = picture if isinstance(picture, Video) else Image.of(picture)
        result = next(describe(self, [shown], task))
        if isinstance(result, QvlError):
            raise result
        return result[language]

    async def adescribe(
        self,
        picture: str | Path | bytes | Video,
        *,
        language: str = "en",
        style: str = "plain",
        prompt: str | None = None,
        sampling: Sampling | None = None,
        boxes: bool = False,
    ) -> Description:
        return await asyncio.to_thread(
            self.describe,
            picture,
            language=language,
            style=style,
            prompt=prompt,
            sampling=sampling,
            boxes=boxes,
        )

    async def agenerate(self, requests: Iterable[Request]) -> list[Completion]:
        return await asyncio.to_thread(self.generate, list(requests))

    async def astream(self, request: Request) -> AsyncIterator[Delta]:
        """As `stream`; leaving the loop early stops the generation."""
        deltas = self.stream(request)
        try:
            while (delta := await asyncio.to_thread(next, deltas, None)) is not None:
                yield delta
        finally:
            deltas.close()
