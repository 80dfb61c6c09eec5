"""Loops are seen soon, and what merely repeats is left alone."""

from __future__ import annotations

import random
import re

import pytest

from embedded import tokenizer
from qvl.engine.loops import FEWEST_IN_TABLE, LoopDetector
from qvl.types import Message, Request, ResponseFormat, Sampling
from qvl.vlm.local import LocalModel
from repetitive_tables import tables

TABLES = tables()
# what models repeat: a letter, a word, a phrase, a sentence, an object, reasoning
PHRASES = (
    "!", "的", "а", "na ", "...", "🙂", "haha", "и так далее, ", "and so on, ", "非常", "等等，",
    "кот", "very ", "\n", " -", "white cup ", "красный, ", "红色，", "\\n", "<b>", "()", "1", "10, ",
    "Кружка белая. ", "The cup is white. ", "杯子是白色的。", "I see a cup.\n", "Вижу кружку.\n",
    "I'm sorry. ", "Извините. ", "对不起。", "Wait, ", "Подождите, ", "等一下，", "Hmm.\n\n",
    "a cup, a plate, ", "кружка, тарелка, ", "杯子、盘子、", "№ 5; ", "- item\n", "* пункт\n",
    "1. One\n", "So, yes. ", "Итак, да. ", "所以，是的。", '{"a":1},', "[0,0],", "(10,20),", "x = x = ",
    "\\frac{1}{2} ", "**Note** ", "#tag ",
)  # fmt: skip


def found_after(tokens: list[int]) -> int | None:
    """How many tokens were pushed when the loop was seen."""
    detector = LoopDetector(lambda token_id: b"a")
    return next((n for n, token in enumerate(tokens, 1) if detector.push(token)), None)


@pytest.mark.parametrize("period", range(1, 65))
def test_a_loop_of_any_period_is_seen_in_its_fourth_round(period: int) -> None:
    rng = random.Random(period)
    before = [rng.randrange(5000) for _ in range(37)]
    pattern = [5000 + n for n in range(period)]
    seen = found_after(before + pattern * 200)
    assert seen == len(before) + max(4 * period, 64)


def test_a_table_whose_rows_begin_alike_is_no_loop() -> None:
    rows = [[1, 2, 3, 1, 2, 3, 1, 2, 100 + n, 4] for n in range(200)]
    assert found_after([token for row in rows for token in row]) is None


def test_a_row_of_dashes_is_no_loop() -> None:
    assert found_after([7] * 60 + list(range(100, 200)) + [7] * 60) is None


def test_a_loop_that_breaks_off_is_counted_anew() -> None:
    assert found_after([1, 2, 3] * 20 + [9] + [1, 2, 3] * 20) is None


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_phrase_said_over_and_over_is_stopped_within_128_tokens(phrase: str) -> None:
    words = tokenizer()
    before = words.encode_text("На столе стоит белая кружка, рядом с ней лежит ложка.\n")
    detector = LoopDetector(words.token_bytes)
    assert not any(detector.push(token) for token in before)
    loop = words.encode_text(phrase * 200)[:128]
    assert any(detector.push(token) for token in loop)


def test_there_are_fifty_of_each() -> None:
    assert len(set(PHRASES)) >= 50
    assert len(TABLES) >= 50


@pytest.mark.parametrize("name", TABLES)
def test_a_table_whose_cells_repeat_is_left_alone(name: str) -> None:
    words = tokenizer()
    detector = LoopDetector(words.token_bytes)
    assert not any(detector.push(token) for token in words.encode_text(TABLES[name]))


@pytest.mark.parametrize("row", ["| нет | 0 |\n", "0 0 0 0\n", "да\tнет\n", "<tr><td>no</td></tr>"])
def test_a_table_without_an_end_is_a_loop_too(row: str) -> None:
    words = tokenizer()
    detector = LoopDetector(words.token_bytes)
    loop = enumerate(words.encode_text(row * 800), 1)
    seen = next(n for n, token in loop if detector.push(token))
    assert FEWEST_IN_TABLE <= seen <= FEWEST_IN_TABLE + 2


def test_loops_and_tables_through_the_door() -> None:
    """What a grammar forces the embedded model to say, token after token."""
    model = LocalModel()
    forced = [f"({re.escape(phrase)}){{200}}" for phrase in PHRASES[10:14]]
    kept = [TABLES["a board without numbers"], TABLES["equal rows, ru"]]
    asked = [*forced, *(re.escape(table) for table in kept)]
    told = model.generate(
        Request(
            messages=(Message.user("?"),),
            response_format=ResponseFormat("regex", pattern),
            sampling=Sampling(max_new_tokens=1000, temperature=0),
        )
        for pattern in asked
    )
    assert [answer.finish_reason for answer in told] == ["loop"] * 4 + ["stop"] * 2
    assert all(answer.usage.completion_tokens <= 128 for answer in told[:4])
    assert [answer.text for answer in told[4:]] == kept
