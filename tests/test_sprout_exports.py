"""The embedded model in 4 bits answers as it does by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qvl.kernels.rounding import nearest
from qvl.loading import export as export_module
from qvl.loading.export import ExportName, export
from qvl.scenes import draw
from qvl.scenes.asked import request_of
from qvl.scenes.scene import Split
from qvl.types import Completion, Message, Request, Sampling, Text
from qvl.vlm.chat_model import EMBEDDED_FOLDER
from qvl.vlm.local import LocalModel

KINDS = ("object", "copies", "pair", "tinted", "crowd", "shapes", "text-3")
FIRST_SEED = 50_000  # of scenes that no training has seen
SAME = {"gptq": 0.95, "awq": 0.9}  # texts, each coordinate of a box among them


def asked(split: Split, each: int) -> Iterator[tuple[Message, Message]]:
    """Questions about scenes, with their true answers."""
    for kind in KINDS:
        for seed in range(FIRST_SEED, FIRST_SEED + each):
            scene = draw(kind, split, seed)
            job = scene.jobs[seed % len(scene.jobs)]
            (question,) = request_of(job, scene).messages
            yield question, Message("assistant", (Text(job.answer),))


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
