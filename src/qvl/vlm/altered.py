"""A model of which every request is changed on its way: another adapter, some words more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from dataclasses import dataclass

from qvl.errors import QvlError
from qvl.types import Completion, Delta, Request
from qvl.vlm.chat_model import ChatModel, ModelInfo


@dataclass(frozen=True, slots=True)
class Altered(ABC):
    """`model`, asked what `altered` makes of each request; closing this closes the model."""

    model: ChatModel

    @abstractmethod
    def altered(self, request: Request) -> Request: ...

    @property
    def info(self) -> ModelInfo:
        return self.model.info

    def results(self, requests: Iterable[Request]) -> Generator[Completion | QvlError, None, None]:
        return self.model.results(map(self.altered, requests))

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        return self.model.generate(map(self.altered, requests))

    def stream(self, request: Request) -> Generator[Delta, None, None]:
        return self.model.stream(self.altered(request))

    def close(self) -> None:
        self.model.close()
