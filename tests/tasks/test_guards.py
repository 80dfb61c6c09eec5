"""Guards: what is empty or in another language is asked for once more, and flagged if it stays so."""

from __future__ import annotations

import json

import pytest

from qvl.errors import AnswerFormError
from qvl.tasks import TASKS
from qvl.tasks.ask import Ask
from qvl.tasks.describe import Describe
from qvl.tasks.ground import Found
from qvl.tasks.guards import answered
from qvl.tasks.task import from_json, question
from qvl.types import FinishReason, Image, ResponseFormat, Sampling
from scripted import Scripted, completion

PICTURE = Image(b"", "cup.png")
RU, EN = "Белая кружка стоит на столе.", "A white mug stands on a wooden table."
# the options without which a task of one picture is none
NEEDED = {
    "ask": {"question": "?"},
    "service": {"question": "?"},
    "ground": {"phrases": ["?"]},
    "extract": {"schema": "name"},
}
CHOOSING = {"classify", "moderate"}  # one of given answers, by the probabilities of its tokens
MAY_BE_EMPTY = ("ocr",)  # nothing is written in the picture: flagged, and not asked about again


def asked(*script: str, form: ResponseFormat | None = None, language: str | None = "ru"):
    model = Scripted(*script)
    request = question([PICTURE], "Опиши картинку.", Sampling(), form=form)
    return answered(model, request, language=language), model


def test_a_good_answer_is_asked_for_once() -> None:
    told, model = asked(RU)
    assert (told.text, told.flags, len(model.asked)) == (RU, (), 1)


@pytest.mark.parametrize(
    ("script", "text", "flags"),
    [
        ([EN, RU], RU, ()),
        ([EN, EN], EN, ("language",)),
        ([EN, ""], EN, ("language",)),
        (["", RU], RU, ()),
        ([" \n", EN], EN, ("language",)),
        (["", ""], "", ("empty",)),
    ],
)
def test_a_wrong_answer_is_asked_for_once_more_and_then_flagged(
    script: list[str], text: str, flags: tuple[str, ...]
) -> None:
    told, model = asked(*script)
    assert (told.text, told.flags) == (text, flags)
    assert len(model.asked) == len(told.completions) == 2
    added = "Отвечай только на русском языке." if script[0] == EN else "Не оставляй ответ пустым."
    assert model.words == ["Опиши картинку.", f"Опиши картинку. {added}"]


def test_a_question_of_ones_own_is_answered_in_its_language() -> None:
    model = Scripted(RU)
    for task in (Ask(question="Что стоит на столе?"), Describe(prompt="Что на картинке?")):
        found = task.run(model, [PICTURE])
        assert (found.text, found.language, found.flags) == (RU, "ru", ())
    asked = Ask(question="Это кружка?", answer_as="bool").run(Scripted("да"), [PICTURE])
    assert asked.value is True


def test_without_a_language_any_is_right() -> None:
    told, model = asked(EN, language=None)
    assert (told.flags, len(model.asked)) == ((), 1)


@pytest.mark.parametrize(
    ("reason", "text", "flags", "asks"),
    [
        ("length", RU, ("cut",), 1),
        ("loop", RU, ("loop",), 1),
        ("length", EN, ("cut", "language"), 2),
        ("reasoning", "", ("reasoning_exhausted", "empty"), 1),
    ],
)
def test_how_an_answer_ended_is_flagged(
    reason: FinishReason, text: str, flags: tuple[str, ...], asks: int
) -> None:
    model = Scripted(lambda request: completion(text, request, finish_reason=reason))
    told = answered(model, question([PICTURE], "?", Sampling()), language="ru")
    assert (told.flags, len(model.asked)) == (flags, asks)


def test_of_json_the_strings_are_what_has_a_language() -> None:
    form = ResponseFormat("json_schema", '{"type": "object"}')
    right = json.dumps({"title": RU, "keywords": ["стол"], "in_stock": True}, ensure_ascii=False)
    wrong = json.dumps({"title": EN, "keywords": ["mug"]})
    assert asked(right, form=form)[0].flags == ()
    told, _ = asked(wrong, right, form=form)
    assert (told.fields()["title"], told.flags) == (RU, ())
    assert asked(wrong, form=form)[0].flags == ("language",)


@pytest.mark.parametrize(
    ("reason", "message"),
    [("length", "cut"), ("loop", "repeated"), ("reasoning", "began"), ("stop", "no JSON object")],
)
def test_json_that_is_not_whole_is_an_error_that_says_why(
    reason: FinishReason, message: str
) -> None:
    model = Scripted(lambda request: completion('{"a": [1', request, finish_reason=reason))
    told = answered(model, question([PICTURE], "?", Sampling()))
    with pytest.raises(AnswerFormError, match=message):
        told.fields()


@pytest.mark.parametrize("reason", ["stop", "length", "loop", "reasoning"])
@pytest.mark.parametrize("name", sorted(TASKS.keys() - CHOOSING))
def test_no_task_takes_an_empty_answer_for_one(name: str, reason: FinishReason) -> None:
    task = from_json(TASKS[name], {"language": "ru", **NEEDED.get(name, {})})
    model = Scripted(lambda request: completion("", request, finish_reason=reason))
    try:
        found = task.run(model, [PICTURE] * task.least)
    except AnswerFormError:
        return
    if isinstance(found, Found):
        assert found.missing == ("?",)
        return
    assert "empty" in found.flags
    asked_again = reason != "reasoning" and name not in MAY_BE_EMPTY
    assert len(found.completions) == 1 + asked_again
