"""Classification: its probabilities are those of the model's own tokens, computed by hand as well."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oracle import ours, prompt_of
from qvl import VLM, Image, Sampling
from qvl.cli.tasks import hints, read
from qvl.errors import AnswerFormError, InvalidParamError
from qvl.tasks.choice import odds
from qvl.tasks.classify import Classify
from qvl.tasks.prompts import wording
from qvl.tasks.task import Flag, from_json, question, results, run_task
from qvl.types import Request, ResponseFormat
from qvl.vlm.local import LocalModel
from scripted import Scripted, chosen, completion, likely, words_of

PICTURES = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.png"))
SEEN = [Image(b"", "a.png")]


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM()


def asked(words: str, picture: int = 0) -> Request:
    return question([Image.of(PICTURES[picture])], words, Sampling(max_new_tokens=64))


def by_hand(model: LocalModel, request: Request, answers: list[str]) -> dict[str, float]:
    """Every answer's tokens, each the likeliest that its text goes on with, by whole forward passes;
    then the product, where answers part, of a token's share among those that the answers go on with.
    """
    loaded = model._loaded
    prompt = prompt_of(loaded, request.messages)
    pieces = [model._token_bytes(i) for i in range(loaded.tokenizer.vocab_size)]

    def after(ids: tuple[int, ...]) -> torch.Tensor:
        at = prompt.next_position + np.arange(len(ids))
        longer = replace(
            prompt,
            ids=np.concatenate([prompt.ids, ids]).astype(np.int64),
            positions=np.concatenate([prompt.positions, np.tile(at, (3, 1))], axis=1),
        )
        return ours(loaded, longer).logits_tv[-1].log_softmax(-1)

    routes: dict[str, tuple[int, ...]] = {}
    for answer in answers:
        ids: tuple[int, ...] = ()
        rest = answer.encode()
        while rest:
            logprobs = after(ids)
            fits = [i for i, piece in enumerate(pieces) if piece and rest.startswith(piece)]
            ids = (*ids, max(fits, key=lambda i: float(logprobs[i])))
            rest = rest[len(pieces[ids[-1]]) :]
        ending = after(ids)
        routes[answer] = (*ids, max(model.end_ids, key=lambda i: float(ending[i])))
    found = {}
    for answer, route in routes.items():
        share = 1.0
        for at, token in enumerate(route):
            there = {r[at] for r in routes.values() if r[:at] == route[:at] and len(r) > at}
            if len(there) > 1:
                logprobs = after(route[:at])
                total = sum(math.exp(logprobs[i]) for i in there)
                share *= math.exp(logprobs[token]) / total
        found[answer] = share
    return found


SHOWS = "The picture shows "
COMPARED = [
    # parting at the first token, likely or not
    ("What is in the picture?", ["cup", "croissant", "car", "cross", "крест", "星形"]),
    ("Что на картинке?", ["круассан", "чашка", "звезда"]),
    # parting later, some where others go on together
    (
        "Describe the picture.",
        [f"{SHOWS}{what}." for what in ("6 croissants", "5 croissants", "6 cats", "a croissant")],
    ),
    # one that is the beginning of another
    ("What is in the picture?", ["croissant", "croissants", "croissant 6"]),
    (
        "描述这张图片。",
        ["图中有6个牛角面包。", "图中有5个牛角面包。", "图中有一个牛角面包。", "图中没有"],
    ),
]


@pytest.mark.parametrize(("words", "answers"), COMPARED)
def test_probabilities_are_those_computed_by_hand(vlm: VLM, words: str, answers: list[str]) -> None:
    found = odds(vlm.model, asked(words), answers).probabilities
    local = vlm.model
    assert isinstance(local, LocalModel)
    assert sum(found.values()) == pytest.approx(1)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert found == pytest.approx(by_hand(local, asked(words), answers), abs=2e-4)


@pytest.mark.slow
def test_probabilities_are_how_often_each_is_said(vlm: VLM) -> None:
    answers = ["cup", "croissant", "car"]
    words = wording("classify", "one", "en", labels=", ".join(answers))
    found = odds(vlm.model, asked(words), answers).probabilities
    drawn = Sampling(max_new_tokens=16, temperature=1.0, top_k=1000, top_p=1.0, seed=3)
    form = ResponseFormat("choice", json.dumps(answers))
    times = 800
    request = replace(asked(words), sampling=drawn, response_format=form)
    told = vlm.generate(
        replace(request, sampling=replace(drawn, seed=number)) for number in range(times)
    )
    said = Counter(one.text for one in told)
    for answer, probability in found.items():
        assert said[answer] / times == pytest.approx(probability, abs=0.06)  # over three deviations


def test_the_order_of_the_answers_changes_no_number(vlm: VLM) -> None:
    answers = COMPARED[2][1]
    first = odds(vlm.model, asked("Describe the picture."), answers).probabilities
    for other in itertools.islice(itertools.permutations(answers), 5, 24, 6):
        again = odds(vlm.model, asked("Describe the picture."), other).probabilities
        assert again == pytest.approx(first, rel=1e-3)


def test_an_answer_that_is_not_among_the_likeliest_is_asked_for_alone() -> None:
    """And what is nothing beside the likeliest is no more asked for."""
    probabilities = {"a": 0.6, "b": 0.3, "c": 1e-3, "d": 1e-7, "e": 1e-8}

    def tell(request: Request) -> Any:
        told = chosen(request, probabilities)
        return replace(told, logprobs=(replace(told.logprobs[0], best=told.logprobs[0].best[:2]),))

    model = Scripted(tell)
    found = odds(model, asked("?"), "abcde").probabilities
    assert found == pytest.approx(
        {"a": 0.6 / 0.901, "b": 0.3 / 0.901, "c": 1e-3 / 0.901, "d": 0, "e": 0}, abs=1e-5
    )
    assert len(model.asked) == 3


def test_a_model_that_tells_no_probabilities_is_refused() -> None:
    model = Scripted(lambda request: completion("cup", request))
    with pytest.raises(InvalidParamError, match="probabilities"):
        Classify(labels=("cup", "car")).run(model, SEEN)


def test_one_class_and_its_threshold() -> None:
    model = Scripted(lambda request: chosen(request, {"cup": 0.2, "car": 0.1, "x": 0.5}))
    labels = ("car", "cup: a vessel for drinking")
    found = Classify(labels=labels).run(model, SEEN)
    assert (found.text, found.labels, found.flags) == ("cup", ("cup",), ())
    assert list(found.probabilities) == ["cup", "car"]
    assert found.probabilities == pytest.approx({"cup": 2 / 3, "car": 1 / 3})
    assert words_of(model.asked[-1]) == (
        "Which of these fits the picture best: car, cup (a vessel for drinking)? "
        "Answer with one of them."
    )
    unsure = Classify(labels=labels, threshold=0.7, language="de").run(model, SEEN)
    assert (unsure.text, unsure.labels, unsure.flags) == ("cup", (), ("unsure",))
    assert words_of(model.asked[-1]).endswith("Answer with one of them.")


def test_several_classes() -> None:
    def tell(request: Request) -> Any:
        return chosen(
            request,
            {"да": 0.6, "нет": 0.2} if "чашка" in words_of(request) else {"да": 0.1, "нет": 0.3},
        )

    model = Scripted(tell)
    found = Classify(labels=("машина", "чашка: для питья"), multi=True, language="ru").run(
        model, SEEN
    )
    assert (found.text, found.labels, found.flags) == ("чашка", ("чашка",), ())
    assert found.probabilities == pytest.approx({"чашка": 0.75, "машина": 0.25})
    assert words_of(model.asked[-1]) == (
        "Подходит ли к картинке вот это: чашка (для питья)? Ответь «да» или «нет»."
    )
    none = Classify(labels=("машина",), multi=True, language="ru").run(model, SEEN)
    assert (none.text, none.labels) == ("-", ())


def test_alone_as_among_others(vlm: VLM) -> None:
    task = Classify(labels=("croissant", "car", "cup"))
    found = list(results(vlm.model, ((task, [Image.of(path)]) for path in PICTURES[:4])))
    for path, together in zip(PICTURES, found, strict=False):
        alone: Any = run_task(vlm.model, task, [Image.of(path)])
        assert alone.text == together.text  # type: ignore[union-attr]
        assert alone.probabilities == pytest.approx(together.probabilities, rel=1e-3)  # type: ignore[union-attr]


def test_labels_come_by_commas_by_flags_or_in_a_file(tmp_path: Path) -> None:
    kind, how = hints(Classify)["labels"], Flag(is_file=True)
    assert read("labels", ["cup, car"], how, kind) == ("cup", "car")
    assert read("labels", ["cup: one, round", "car"], how, kind) == ("cup: one, round", "car")
    lines = tmp_path / "labels.txt"
    lines.write_text("cup: one, round\n\n car\n", "utf-8")
    assert read("labels", [str(lines)], how, kind) == ("cup: one, round", "car")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"labels": []}, "too few"),
        ({"labels": ["cup"]}, "too few"),
        ({"labels": ["cup", "cup: again"]}, "same"),
        ({"labels": ["cup", " "]}, "no name"),
        ({"labels": ["cup", "car"], "threshold": 1.5}, "threshold"),
        ({"labels": [], "multi": True}, "too few"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidParamError, match=word):
        from_json(Classify, options)


def test_tokens_that_spell_no_answer_are_an_error_of_the_item() -> None:
    model = Scripted(lambda request: completion("cat", request, logprobs=likely(("Ġcat", 0.9))))
    found = run_task(model, Classify(labels=("cat", "dog")), SEEN)
    assert isinstance(found, AnswerFormError)
