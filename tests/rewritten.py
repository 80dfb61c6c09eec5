"""A model that answers what a test tells it to, in completions of the embedded model."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import replace

from qvl.errors import QvlError
from qvl.types import Completion, Delta, FinishReason, Request
from qvl.vlm.chat_model import ChatModel, ModelInfo


class Rewritten:
    """A ChatModel: `answers` in turn take the place of what `model` says, all else is as it was.

    `asked` are the requests. With another `generation` it is one that writes places in its own way.
    """

    def __init__(
        self, model: ChatModel, *answers: str, generation: str = "", ends: FinishReason = "stop"
    ) -> None:
        self.model, self.answers, self.ends = model, list(answers), ends
        self.info: ModelInfo = replace(model.info, generation=generation or model.info.generation)
        self.asked: list[Request] = []

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        return [self._said(request) for request in requests]

    def results(self, requests: Iterable[Request]) -> Generator[Completion | QvlError, None, None]:
        yield from map(self._said, requests)

    def stream(self, request: Request) -> Generator[Delta, None, None]:
        raise NotImplementedError

    def close(self) -> None: ...

    def _said(self, request: Request) -> Completion:
        self.asked.append(request)
        short = replace(request, sampling=replace(request.sampling, max_new_tokens=1))
        (told,) = self.model.generate([replace(short, response_format=None)])
        how = replace(told.provenance, generation=self.info.generation)
        return replace(told, text=self.answers.pop(0), finish_reason=self.ends, provenance=how)
