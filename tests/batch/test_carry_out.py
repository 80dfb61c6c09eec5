"""A run carried out: each item's words are its own, whatever happens to the run or to its neighbours."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qvl import scenes
from qvl.batch import carry_out as course
from qvl.batch.asked import Asked, seed_of
from qvl.batch.carry_out import RETRIED_LEAST, carry_out
from qvl.batch.guards import Guards
from qvl.errors import EngineError, InvalidParamError, RemoteError
from qvl.runs.record import Item, Source
from qvl.runs.run import Run
from qvl.tasks.describe import Describe
from qvl.tasks.task import as_row
from qvl.types import Image, Request, Sampling
from qvl.vlm.local import LocalModel
from scripted import Scripted, words_of

COUNT = 6
NEVER: Callable[[], int] = lambda: 0  # noqa: E731 - a function without a name of its own


@pytest.fixture(scope="module")
def sprout() -> LocalModel:
    return LocalModel()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number in range(COUNT):
        paths.append(folder / f"{number}.png")
        scenes.draw("object", "train", number).pictures[0].save(paths[-1])
    return paths


def items(paths: Sequence[Path], **columns: str) -> list[Item]:
    return [
        Item(id=path.name, row=path.name, sources=(Source(str(path)),), columns=columns)
        for path in paths
    ]


def asked(**options: Any) -> Asked:
    given = {"language": "ru", "sampling": {"temperature": 0.9}, **options}
    return Asked(task="describe", options=given, seed=7)


def begun(folder: Path, some: Sequence[Item]) -> Run:
    return Run.create(folder, {"made": "here"}, some)


def told(run: Run) -> dict[str, Any]:
    """What came of each item, but for how long it took and what was found computed."""
    rows = {}
    for one in run.finished():
        row = json.loads(json.dumps(one.outcome.out)) if one.outcome else None
        if row and "meta" in row:
            del row["meta"]["timings"], row["usage"]["cached_tokens"]
        rows[one.item.id] = row
    return rows


def answered(run: Run, model: Any) -> None:
    carry_out(run, model, partial(asked().row, model), stops=NEVER)


def carried(folder: Path, some: Sequence[Item], model: Any, what: Asked | None = None) -> Any:
    with begun(folder, some) as run:
        carry_out(run, model, partial((what or asked()).row, model), stops=NEVER)
        return told(run)


@pytest.fixture(scope="module")
def whole(
    sprout: LocalModel, pictures: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Of a run that nothing happened to."""
    return carried(tmp_path_factory.mktemp("whole") / "run", items(pictures), sprout)


def test_each_answer_is_that_of_the_task_alone(
    sprout: LocalModel, pictures: list[Path], whole: dict[str, Any]
) -> None:
    assert len({row["text"] for row in whole.values()}) > 1
    for path in pictures:
        sampling = Sampling(temperature=0.9, seed=seed_of(7, path.name))
        alone = as_row(
            path.name,
            Describe(language="ru", sampling=sampling).run(sprout, [Image.of(path)]),
        )
        assert whole[path.name]["text"] == alone["text"]
        assert whole[path.name]["meta"]["seed"] == sampling.seed


def test_other_orders_and_shards_say_the_same(
    sprout: LocalModel, pictures: list[Path], whole: dict[str, Any], tmp_path: Path
) -> None:
    shuffled = random.Random(3).sample(pictures, len(pictures))
    assert carried(tmp_path / "a", items(shuffled), sprout) == whole
    halves = [carried(tmp_path / name, items(part), sprout)
              for name, part in (("b", pictures[:2]), ("c", pictures[2:]))]  # fmt: skip
    assert halves[0] | halves[1] == whole


def test_a_bad_item_at_any_place_changes_no_other(
    sprout: LocalModel, pictures: list[Path], whole: dict[str, Any], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    for place in range(COUNT + 1):
        some = [*pictures[:place], bad, *pictures[place:]]
        rows = carried(tmp_path / str(place), items(some), sprout)
        assert rows.pop("bad.png")["error"]["code"] == "image_decode"
        assert rows == whole


def test_stopped_at_any_place_and_resumed_is_never_stopped(
    sprout: LocalModel, pictures: list[Path], whole: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with begun(folder, items(pictures)):
        pass
    pending = COUNT
    for most in (1, 2, 9):
        with Run.open(folder) as run:
            given = iter([0] * (most + 1))  # the run looks before each item that it begins
            carry_out(
                run, sprout, partial(asked().row, sprout), stops=lambda given=given: next(given, 1)
            )
            assert run.counts().pending < pending
            pending = run.counts().pending
    assert pending == 0
    assert told(Run.read(folder)) == whole


class Failing(Scripted):
    """Fails so often for each picture, then answers."""

    def __init__(self, times: int, error: Exception) -> None:
        self.left: dict[str, int] = {}
        super().__init__(self.say)
        self.times, self.error = times, error

    def say(self, request: Request) -> str:
        left = self.left.setdefault(request.id, self.times)
        if left:
            self.left[request.id] -= 1
            raise self.error
        return "Чашка."


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(course, "LOOK_S", 0.0)


@pytest.mark.usefixtures("no_pauses")
def test_what_may_go_better_is_tried_three_times(pictures: list[Path], tmp_path: Path) -> None:
    few = items(pictures[:5])  # a small run has ten attempts more than items
    with begun(tmp_path / "a", few) as run:
        answered(run, Failing(2, RemoteError("busy")))
        outcomes = [one.outcome for one in run.finished()]
    assert [(one.ok, one.attempt) for one in outcomes if one] == [(True, 3)] * 5
    with begun(tmp_path / "b", items(pictures)) as run:
        answered(run, Failing(3, RemoteError("busy")))
        attempts = [one.outcome.attempt for one in run.finished() if one.outcome]
        assert dict(run.counts().errors) == {"remote": COUNT}
    assert sum(attempts) == COUNT + RETRIED_LEAST
    with begun(tmp_path / "c", items(pictures)) as run:
        answered(run, Failing(1, InvalidParamError("no")))
        assert [one.outcome.attempt for one in run.finished() if one.outcome] == [1] * COUNT


@pytest.mark.usefixtures("no_pauses")
def test_a_model_that_only_fails_ends_the_run_and_no_bad_item_does(
    pictures: list[Path], tmp_path: Path
) -> None:
    many = [replace(one, id=f"{n}-{one.id}") for n in range(12) for one in items(pictures)]
    with begun(tmp_path / "a", many) as run:
        with pytest.raises(EngineError, match="broken"):
            answered(run, Failing(10**6, EngineError("broken")))
        assert run.counts().pending > 0
    missing = items([tmp_path / f"{n}.png" for n in range(course.BREAKER + 10)])
    with begun(tmp_path / "b", missing) as run:
        answered(run, LocalModel())
        assert dict(run.counts().errors) == {"input_not_found": len(missing)}


def test_a_text_with_a_forbidden_word_is_asked_for_again(
    pictures: list[Path], tmp_path: Path
) -> None:
    def say(request: Request) -> str:
        return "Хорошая чашка." if "не принят" in words_of(request) else "Лучшая чашка."

    model = Scripted(say)
    rules = replace(asked(), guards=Guards(forbidden=("лучш*",)))
    rows = carried(tmp_path / "a", items(pictures[:1]), model, rules)
    assert rows["0.png"]["text"] == "Хорошая чашка."
    assert rows["0.png"]["flags"] == []
    assert "Лучшая" in model.words[1]
    rules = replace(asked(), guards=Guards(forbidden=("лучш*", "хорош*")))
    rows = carried(tmp_path / "b", items(pictures[:1]), Scripted(say), rules)
    assert rows["0.png"]["flags"] == ["forbidden"]
    assert rows["0.png"]["warnings"] == ["it has the word 'Лучшая'"]


def test_an_item_has_options_and_columns_of_its_own(pictures: list[Path]) -> None:
    (plain,) = items(pictures[:1], title='{x} "Роза"')
    task = asked(facts={"name": "{title}, {stem}"}).of(plain)
    assert isinstance(task, Describe)
    assert task.facts == {"name": '{x} "Роза", 0'}
    own = replace(plain, options={"language": "en", "seed": 5, "prompt": "What is {it}?"})
    task = asked().of(own)
    assert isinstance(task, Describe)
    assert (task.language, task.sampling.seed, task.prompt) == ("en", 5, "What is {it}?")
    with pytest.raises(InvalidParamError, match="no option 'colour'"):
        asked().of(replace(plain, options={"colour": "red"}))
    other = asked().of(replace(plain, options={"task": "ask", "prompt": "How many?"}))
    assert (other.name, other.language) == ("ask", "ru")
    with pytest.raises(InvalidParamError, match="no task 'describ'"):
        asked().of(replace(plain, options={"task": "describ"}))
    with pytest.raises(InvalidParamError, match="is to be asked of 'another'"):
        asked().row(Scripted("x"), replace(plain, options={"model": "another"}))
    question = Asked(task="ask", options={"question": "?"}, seed=1)
    assert question.of(own).question == "What is {it}?"  # type: ignore[attr-defined]
