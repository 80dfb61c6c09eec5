"""The embedded model in 4 bits answers as it does by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qvl.evals.drawn import Asked, asked_of, score
from qvl.kernels.rounding import nearest
from qvl.loading import export as export_module
from qvl.loading.export import ExportName, export
from qvl.scenes import draw
from qvl.scenes.asked import request_of, seen_of
from qvl.scenes.scene import Job, Scene, Split
from qvl.types import Completion, Message, Text
from qvl.vlm.chat_model import EMBEDDED_FOLDER
from qvl.vlm.local import LocalModel

KINDS = ("object", "copies", "pair", "tinted", "crowd", "shapes", "text-3")
FIRST_SEED = 50_000  # of scenes that no training has seen
EACH = 27
SURE = (
    -0.35
)  # log-probability of each token, 0.7: what a model is in doubt about may turn either way
SAME = 0.95  # of the texts that it is sure of, each coordinate of a box among them
LOST = 0.03  # of right answers; of so many, one in a hundred may turn by chance


def jobs(split: Split, each: int) -> Iterator[tuple[Scene, Job]]:
    for kind in KINDS:
        for seed in range(FIRST_SEED, FIRST_SEED + each):
            scene = draw(kind, split, seed)
            yield scene, scene.jobs[seed % len(scene.jobs)]


def conversations(each: int) -> Iterator[tuple[Message, Message]]:
    """Questions about scenes, with their true answers."""
    for scene, job in jobs("train", each):
        (question,) = request_of(job, scene).messages
        yield question, Message("assistant", (Text(job.answer),))


def answers(model: str, asked: list[Asked]) -> list[Completion]:
    opened = LocalModel(model)
    try:
        return opened.generate(
            replace(one.request, sampling=replace(one.request.sampling, logprobs=1))
            for one in asked
        )
    finally:
        opened.close()


@pytest.mark.slow
def test_gptq_loses_less_of_the_logits_than_rounding_to_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    for name in ("gptq", "nearest"):
        made = export(EMBEDDED_FOLDER, tmp_path / name, "gptq", conversations(12))
        assert made.loss is not None
        losses.append(made.loss.kl)
        monkeypatch.setattr(export_module, "gptq", lambda weight, _, grid: nearest(weight, grid))
    assert losses[0] < 0.7 * losses[1], losses


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_in_four_bits_it_answers_the_same(kind: ExportName, tmp_path: Path) -> None:
    export(EMBEDDED_FOLDER, tmp_path / kind, kind, conversations(24))
    asked = [asked_of(job, scene, seen_of(scene)) for scene, job in jobs("held-out", EACH)]
    expected, found = answers("sprout", asked), answers(str(tmp_path / kind), asked)
    sure = [
        one.text == other.text
        for one, other in zip(expected, found, strict=True)
        if min(token.logprob for token in one.logprobs) > SURE
    ]
    right = [
        sum(score(one, told).right for one, told in zip(asked, said, strict=True)) / len(asked)
        for said in (expected, found)
    ]
    told = f"{kind}: {sum(sure)} of {len(sure)} the same; right {right[0]:.3f}, then {right[1]:.3f}"
    print(told)  # noqa: T201 - the figure
    assert len(sure) >= 40
    assert sum(sure) >= SAME * len(sure), told
    assert right[1] >= right[0] - LOST, told
