"""Generated schemas over drawn pictures: what the embedded model extracts is valid JSON, every time."""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal

import jsonschema
import pytest

from qvl import VLM, Image, Sampling
from qvl.errors import AnswerFormError
from qvl.tasks.extract import Extract, Extraction
from qvl.tasks.task import results
from qvl.training.scenes import draw
from schemas import generated

LIMIT = 96  # tokens of an answer


def pictures(count: int) -> list[Image]:
    found = []
    for number in range(count):
        file = io.BytesIO()
        draw("held-out", random.Random(number), size=(128, 96)).picture.save(file, "PNG")
        found.append(Image(file.getvalue(), f"scene {number}"))
    return found


def cases(count: int) -> Iterator[tuple[Extract, list[Image]]]:
    drawn = pictures(40)
    for number in range(count):
        sampling = Sampling(
            max_new_tokens=LIMIT,
            temperature=number % 2 * 1.0,
            seed=number,
        )
        schema = json.dumps(generated(random.Random(number)), ensure_ascii=False)
        language = ("en", "ru", "zh")[number % 3]
        task = Extract(schema=schema, language=language, sampling=sampling)
        yield task, [drawn[number % len(drawn)]]


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_what_is_extracted_is_valid_and_what_is_cut_is_an_error(count: int) -> None:
    counts: Counter[str] = Counter()
    formats = jsonschema.FormatChecker(("date",))
    for (task, _), found in zip(cases(count), results(VLM().model, cases(count)), strict=True):
        if isinstance(found, AnswerFormError) and "its JSON was whole" in found.message:
            counts["cut"] += 1
            continue
        assert isinstance(found, Extraction), found
        schema = json.loads(str(task.schema), parse_float=Decimal)
        answer = json.loads(found.completion.text, parse_float=Decimal)
        jsonschema.Draft202012Validator(schema, format_checker=formats).validate(answer)
        assert found.data == json.loads(found.completion.text)
        counts["valid"] += 1
    print(f"{count} extractions: {dict(counts)}, 0 of another form")  # noqa: T201 - a figure to see
    assert counts["valid"] > 0.6 * count
    assert counts["cut"] > 0
