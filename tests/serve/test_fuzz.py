"""Bodies made from the API's own document, good and bad: no answer is the server's fault, and each
status is one that the document names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace

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
from served import Running, running

CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]
SEED = 20261122


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


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    model = Brief(LocalModel())
    with running(model) as here:
        yield here
    model.close()


def fuzzed(server: Running, share: dict[str, int]) -> tuple[Counter[str], Counter[int]]:
    """So many cases of each path (of others: "other"); how many of each path and status there were."""
    paths: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    document = schemathesis.openapi.from_dict(server.app.openapi())
    session = requests.Session()
    for found in document.get_all_operations():
        operation = found.ok()  # pyrefly: ignore[missing-attribute]
        modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        for mode in modes if operation.method != "get" else modes[:1]:
            count = share.get(operation.path, share["other"]) // len(modes)

            @seed(SEED)
            @settings(
                max_examples=count,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(mode))
            def check(case: schemathesis.Case) -> None:
                answer = case.call(base_url=server.url, session=session, timeout=60)
                paths[case.operation.path] += 1
                statuses[answer.status_code] += 1
                case.validate_response(answer, checks=CHECKS)

            check()
    session.close()
    return paths, statuses


def test_what_the_document_allows_is_answered_as_it_says(server: Running) -> None:
    paths, statuses = fuzzed(server, {"other": 20, "/v1/chat/completions": 60})
    assert len(paths) >= 13
    assert not [status for status in statuses if status >= 500]
    assert {200, 400, 404} <= set(statuses)


@pytest.mark.slow
def test_many_thousands_of_bodies(server: Running) -> None:
    share = {
        "other": 40,
        "/v1/chat/completions": 10_400,
        "/v1/responses": 5_200,
        "/v1/completions": 3_200,
        "/tokenize": 2_400,
        "/detokenize": 800,
    }
    paths, statuses = fuzzed(server, share)
    print(f"{sum(paths.values())} cases, {dict(paths)}, statuses {dict(statuses)}")  # noqa: T201
    assert sum(paths.values()) >= 20_000
    assert not [status for status in statuses if status >= 500]
