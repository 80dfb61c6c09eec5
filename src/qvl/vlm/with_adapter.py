"""A model of which every request asks for one of its adapters."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace

from qvl.errors import QvlError
from qvl.types import Completion, Delta, Request
from qvl.vlm.chat_model import ChatModel, ModelInfo


@dataclass(frozen=True, slots=True)
class WithAdapter:
    """`model`, asked for `adapter`; closing this closes the model."""

    model: ChatModel
    adapter: str

    @property
    def info(self) -> ModelInfo:
        return self.model.info

    def results(self, requests: Iterable[Request]) -> Generator[Completion | QvlError, None, None]:
        return self.model.results(replace(r, adapter=self.adapter) for r in requests)

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        return self.model.generate(replace(r, adapter=self.adapter) for r in requests)

    def stream(self, request: Request) -> Generator[Delta, None, None]:
        return self.model.stream(replace(request, adapter=self.adapter))

    def close(self) -> None:
        self.model.close()
