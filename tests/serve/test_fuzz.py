"""Bodies made from the API's own document, good and bad: no answer is the server's fault, and each
status is one that the document names.

Making a body takes ten times as long as answering it, so the many are cut into parts, each of which
runs on its own (`-m slow -k part7`), has bodies of its own, and tells how far it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    response_schema_conformance,
    status_code_conformance,
)

from qvl.errors import QvlError
from qvl.types import Completion, Delta, Request
from qvl.vlm.chat_model import ModelInfo
from qvl.vlm.local import LocalModel
from served import Running, StandIn, data_url, png, running

CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]
SEED = 20261122
PARTS, CASES = 20, 1000  # of the many
PICTURE = data_url(png(1, (32, 32)))
ADDRESSES = {"url", "image_url", "file_data", "images"}  # of pictures, which no generator hits on


@dataclass(frozen=True, slots=True)
class Brief:
    """The embedded model, which says two tokens at most: here it is what is asked that counts."""

    model: LocalModel

    @property
    def info(self) -> ModelInfo:
        return self.model.info

    def results(self, requests: Iterable[Request]) -> Generator[Completion | QvlError, None, None]:
        raise NotImplementedError

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        raise NotImplementedError

    def stream(self, request: Request) -> Generator[Delta, None, None]:
        short = replace(request.sampling, max_new_tokens=min(2, request.tokens_allowed()))
        return self.model.stream(replace(request, sampling=short))

    def prompt_ids(self, request: Request) -> list[int]:
        return self.model.prompt_ids(request)

    def text_ids(self, text: str) -> list[int]:
        return self.model.text_ids(text)

    def text_of(self, ids: Iterable[int]) -> str:
        return self.model.text_of(ids)

    def close(self) -> None:
        self.model.close()


@dataclass(frozen=True, slots=True)
class Prepared(Brief):
    """The embedded model as far as the prompt; what it says then stands in for its own words."""

    words: StandIn = field(default_factory=StandIn)

    def stream(self, request: Request) -> Generator[Delta, None, None]:
        prompt = self.model._prepare(request).prompt
        images = tuple(image.info for image in prompt.images if image.info is not None)
        for delta in self.words.stream(request):
            if (said := delta.completion) is not None:
                how = replace(said.provenance, images=images, generation=self.info.generation)
                delta = replace(delta, completion=replace(said, provenance=how))
            yield delta


@pytest.fixture(scope="module")
def model() -> Iterator[LocalModel]:
    made = LocalModel()
    yield made
    made.close()


def with_pictures(value: Any, key: str = "") -> Any:
    """A body with a real picture wherever the document allows any text as its address."""
    if isinstance(value, dict):
        return {name: with_pictures(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [with_pictures(inner, key) for inner in value]
    return PICTURE if isinstance(value, str) and key in ADDRESSES else value


@dataclass(slots=True)
class Counted:
    """Cases by path and by status."""

    paths: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)

    def __str__(self) -> str:
        return f"{self.paths.total()} cases, statuses {dict(sorted(self.statuses.items()))}"


def fuzzed(
    server: Running,
    share: dict[str, int],
    first_seed: int = SEED,
    tell: Callable[[Counted], None] = lambda _: None,
) -> Counted:
    """So many cases of each path (of others: "other"), half of them good, half bad."""
    counted = Counted()
    document = schemathesis.openapi.from_dict(server.app.openapi())
    session = requests.Session()
    for found in document.get_all_operations():
        operation = found.ok()  # pyrefly: ignore[missing-attribute]
        modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        for mode in modes if operation.body else modes[:1]:  # any text is a good path
            count = share.get(operation.path, share["other"]) // len(modes)

            @seed(first_seed)
            @settings(
                max_examples=count,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(mode))
            def check(case: schemathesis.Case) -> None:
                if len(str(case.body)) % 2:  # as good as a coin
                    case.body = with_pictures(case.body)
                answer = case.call(base_url=server.url, session=session, timeout=60)
                counted.paths[case.operation.path] += 1
                counted.statuses[answer.status_code] += 1
                tell(counted)
                case.validate_response(answer, checks=CHECKS)

            check()
    session.close()
    return counted


def test_what_the_document_allows_is_answered_as_it_says(model: LocalModel, tmp_path: Path) -> None:
    with running(Brief(model), kept=tmp_path) as server:
        counted = fuzzed(server, {"other": 20, "/v1/chat/completions": 60})
    assert len(counted.paths) >= 13
    assert not [status for status in counted.statuses if status >= 500]
    assert {200, 400, 404} <= set(counted.statuses)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS), ids=lambda part: f"part{part}")
def test_many_thousands_of_bodies(
    model: LocalModel, part: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    share = {
        "other": 30,  # nearly all of them tasks
        "/v1/chat/completions": 260,
        "/v1/responses": 240,
        "/v1/completions": 140,
        "/tokenize": 60,
    }

    def tell(counted: Counted) -> None:
        if counted.paths.total() % 100 == 0:
            with capsys.disabled():
                print(f"part {part}: {counted}", flush=True)  # noqa: T201

    with running(Prepared(model), kept=tmp_path) as server:
        counted = fuzzed(server, share, SEED + 1 + part, tell)
    with capsys.disabled():
        print(f"part {part}, whole: {counted}, {dict(counted.paths)}")  # noqa: T201
    assert counted.paths.total() >= CASES
    assert not [status for status in counted.statuses if status >= 500]
