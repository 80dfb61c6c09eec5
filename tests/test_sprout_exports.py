"""The embedded model in 4 bits answers as it does by itself."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from qvl.kernels.rounding import nearest
from qvl.loading import export as export_module
from qvl.loading.export import ExportName, export
from qvl.training.batches import ask, scored_scenes
from qvl.training.phrases import LANGUAGES
from qvl.types import Completion, Image, Message, Request, Sampling, Text
from qvl.vlm.chat_model import EMBEDDED_FOLDER
from qvl.vlm.local import LocalModel

KINDS = ("name", "colour", "count", "relation", "box", "read", "describe")
SAME = {"gptq": 0.95, "awq": 0.9}  # texts, each coordinate of a box among them


def asked(split: str, each: int) -> Iterator[tuple[Message, Message]]:
    """Questions about scenes, with their true answers."""
    rng = random.Random(split)
    for kind in KINDS:
        for number, scene in enumerate(scored_scenes(kind, split, each, 5)):
            question = ask(kind, scene, LANGUAGES[number % 3], rng)
            buffer = io.BytesIO()
            scene.picture.save(buffer, "PNG")
            picture = Image(buffer.getvalue(), f"{kind} {number}")
            yield (
                Message.user(picture, question.question),
                Message("assistant", (Text(question.answer),)),
            )


def answers(model: str) -> list[str]:
    greedy = Sampling(temperature=0, max_new_tokens=64)
    opened = LocalModel(model)
    try:
        questions = (Request(messages=(q,), sampling=greedy) for q, _ in asked("held-out", 9))
        found = list(opened.results(questions))
        return [one.text for one in found if isinstance(one, Completion)]
    finally:
        opened.close()


@pytest.mark.slow
def test_gptq_loses_less_of_the_logits_than_rounding_to_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    for name in ("gptq", "nearest"):
        made = export(EMBEDDED_FOLDER, tmp_path / name, "gptq", asked("train", 12))
        assert made.loss is not None
        losses.append(made.loss.kl)
        monkeypatch.setattr(export_module, "gptq", lambda weight, _, grid: nearest(weight, grid))
    assert losses[0] < 0.7 * losses[1], losses


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_in_four_bits_it_answers_the_same(kind: ExportName, tmp_path: Path) -> None:
    export(EMBEDDED_FOLDER, tmp_path / kind, kind, asked("train", 24))
    expected, found = answers("sprout"), answers(str(tmp_path / kind))
    same = sum(a == b for a, b in zip(expected, found, strict=True)) / len(expected)
    assert len(expected) == 63
    assert same >= SAME[kind], f"{kind}: {same:.1%} of {len(expected)} answers are the same"
