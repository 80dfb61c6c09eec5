"""Generated schemas over drawn pictures: what the embedded model extracts is valid JSON, every time."""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal

import jsonschema
import pytest

from qvl import VLM, Image, Sampling
from qvl.errors import AnswerFormError
from qvl.scenes import draw
from qvl.tasks.extract import Extract, Extraction
from qvl.tasks.task import results
from schemas import generated

LIMIT = 400  # tokens: no generated schema asks for an answer of as many
SLICE = 1000
ALL: Counter[str] = Counter()  # of the slices so far


def pictures(count: int) -> list[Image]:
    found = []
    for number in range(count):
        file = io.BytesIO()
        draw("object", "held-out", number, (128, 96)).pictures[0].save(file, "PNG")
        found.append(Image(file.getvalue(), f"scene {number}"))
    return found


def cases(numbers: range) -> Iterator[tuple[Extract, list[Image]]]:
    drawn = pictures(40)
    for number in numbers:
        sampling = Sampling(max_new_tokens=LIMIT, temperature=number % 2 * 1.0, seed=number)
        language = ("en", "ru", "zh")[number % 3]
        task = Extract(schema=schema_of(number), language=language, sampling=sampling)
        yield task, [drawn[number % len(drawn)]]


def schema_of(number: int) -> str:
    return json.dumps(generated(random.Random(number)), ensure_ascii=False)


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with closing(VLM()) as opened:
        yield opened


@pytest.mark.parametrize(
    "numbers",
    [
        range(200),
        *(
            pytest.param(range(first, first + SLICE), marks=pytest.mark.slow)
            for first in range(0, 10_000, SLICE)
        ),
    ],
    ids=lambda numbers: f"{numbers.start}-{numbers.stop}",
)
def test_what_is_extracted_is_valid(vlm: VLM, numbers: range) -> None:
    """An answer that was cut is an error, and rare."""
    counts: Counter[str] = Counter()
    formats = jsonschema.FormatChecker(("date",))
    for number, found in zip(numbers, results(vlm.model, cases(numbers)), strict=True):
        if isinstance(found, AnswerFormError) and "its JSON was whole" in found.message:
            counts["cut"] += 1
            continue
        assert isinstance(found, Extraction), found
        schema = json.loads(schema_of(number), parse_float=Decimal)
        answer = json.loads(found.completion.text, parse_float=Decimal)
        jsonschema.Draft202012Validator(schema, format_checker=formats).validate(answer)
        assert found.data == json.loads(found.completion.text)
        counts["valid"] += 1
    ALL.update(counts)
    print(f"extractions {numbers.start} to {numbers.stop}: {dict(counts)}; so far {dict(ALL)}")  # noqa: T201 - a figure to see
    assert counts["valid"] > 0.99 * len(numbers)


def test_what_is_cut_is_an_error(vlm: VLM) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    cut = Extract(schema=schema, sampling=Sampling(max_new_tokens=2))
    (found,) = results(vlm.model, [(cut, pictures(1))])
    assert isinstance(found, AnswerFormError)
    assert "cut before its JSON was whole" in found.message
