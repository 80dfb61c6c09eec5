"""The words that an item is asked with: its task is run against a model that only listens."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass

from qvl.batch.asked import Asked
from qvl.batch.media import seen
from qvl.errors import QvlError
from qvl.runs.record import Item
from qvl.types import Completion, Delta, Request, Text
from qvl.vlm.chat_model import ModelInfo


def words_of(asked: Asked, item: Item, generation: str) -> str:
    """What is said of the pictures in the first request about an item to a model of the generation."""
    parts = first_request(asked, item, generation).messages[-1].content
    return "\n".join(part.text for part in parts if isinstance(part, Text))


def first_request(asked: Asked, item: Item, generation: str) -> Request:
    """What a model of the generation is asked first about an item. Raises QvlError, as the task does."""
    try:
        asked.of(item).run(_Listener(generation), seen(item))
    except _HeardError as heard:
        return heard.request
    raise AssertionError("a task asks nothing")


class _HeardError(BaseException):
    """Past every edge at which a task's errors stop."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.request = request


@dataclass(frozen=True, slots=True)
class _Listener:
    generation: str

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            name="", revision=None, generation=self.generation, parameters=0, token_bytes=0,
            dtype="", device="", max_positions=0, at_once=1,
        )  # fmt: skip

    def results(self, requests: Iterable[Request]) -> Generator[Completion | QvlError, None, None]:
        raise _HeardError(next(iter(requests)))

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        raise _HeardError(next(iter(requests)))

    def stream(self, request: Request) -> Generator[Delta, None, None]:
        raise _HeardError(request)

    def close(self) -> None:
        pass
