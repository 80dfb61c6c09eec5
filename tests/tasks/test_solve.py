"""Solving: steps and an answer in form, TeX kept, arithmetic computed anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qvl import VLM, Sampling
from qvl.errors import AnswerFormError
from qvl.tasks.solve import Solution, Solve, with_tex
from qvl.types import Image
from scripted import Scripted

PICTURE = Image(b"", "task.png")
EXAMPLE = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.png"))[0]


def solved(steps: list[str], answer: str, language: str = "en") -> Solution:
    said = json.dumps({"steps": steps, "answer": answer}, ensure_ascii=False)
    return Solve(language=language).run(Scripted(said), [PICTURE])


def test_steps_whose_arithmetic_does_not_hold_are_marked() -> None:
    found = solved(["There are 3 + 4 = 8 cups.", "Twice that: 2 * 7 = 14.", "14 - 2 = 11"], "11")
    assert (found.wrong_steps, found.flags) == ((1, 3), ("wrong_step",))
    assert found.text == (
        "There are 3 + 4 = 8 cups.\nTwice that: 2 * 7 = 14.\n14 - 2 = 11\nAnswer: 11"
    )


def test_a_right_solution_has_no_flag() -> None:
    found = solved(["Всего 3 + 4 = 7 чашек."], "7", "ru")
    assert (found.flags, found.answer, found.steps) == ((), "7", ("Всего 3 + 4 = 7 чашек.",))
    assert found.text.endswith("\nОтвет: 7")


@pytest.mark.parametrize(
    ("steps", "answer", "flags"),
    [
        (["3 + 4 = 7"], "7 cups", ()),
        (["3 + 4 = 7"], "8", ("underived_answer",)),
        (["1000 + 500 = 1500"], "1 500", ()),
        (["1000 + 500 = 1500"], "1,500", ()),
        (["3 / 2 = 1.5"], "1,5", ()),
        (["Both angles are equal."], "yes", ()),
        ([], "8", ()),
    ],
)
def test_a_number_that_no_step_comes_to_is_flagged(
    steps: list[str], answer: str, flags: tuple[str, ...]
) -> None:
    assert solved(steps, answer).flags == flags


@pytest.mark.parametrize(
    "written",
    [
        r"\frac{1}{2}",
        r"\beta + \times",
        r"2 \times 3 \neq 7",
        r"\left( \frac{a}{b} \right)",
        r"\theta \to \tan \tau",
        r"\nabla \rho \text{ if } \triangle",
    ],
)
def test_tex_is_kept_also_where_json_took_its_backslash(written: str) -> None:
    assert with_tex(written) == written
    careless = json.loads(f'"{written}"', strict=False) if _is_json(written) else written
    assert with_tex(careless) == written


def _is_json(written: str) -> bool:
    """Whether all of its backslashes are ones that JSON takes for escapes."""
    try:
        json.loads(f'"{written}"')
    except ValueError:
        return False
    return True


def test_a_solution_s_tex_is_kept() -> None:
    said = r'{"steps": ["$\frac{1}{2} \times 4 = 2$"], "answer": "$\frac{4}{2}$"}'
    found = Solve().run(Scripted(said), [PICTURE])
    assert (found.steps, found.answer) == ((r"$\frac{1}{2} \times 4 = 2$",), r"$\frac{4}{2}$")
    assert found.flags == ()


def test_lines_and_tabs_stay() -> None:
    assert with_tex("one\ntwo\tthree\nend\ttable") == "one\ntwo\tthree\nend\ttable"


def test_the_question_replaces_the_picture_s() -> None:
    assert Solve(language="ru").words() == (
        "Реши задачу на картинке. Ответь в JSON: шаги с вычислениями, затем окончательный ответ."
    )
    words = Solve(question="How much more in 2023?").words()
    assert words.startswith("How much more in 2023? Answer as JSON")


@pytest.mark.parametrize("language", ["ru", "en", "zh"])
def test_the_embedded_model_answers_in_form_or_says_that_it_was_cut(language: str) -> None:
    vlm = VLM()
    try:
        found = vlm.solve(EXAMPLE, language=language, sampling=Sampling(temperature=0))
    except AnswerFormError:
        return
    assert found.text.splitlines()[-1].endswith(found.answer)
