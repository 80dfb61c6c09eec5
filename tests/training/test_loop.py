"""Training resumed is training never stopped, and what it saves is a checkpoint of the product."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qvl.loading.model import load_model
from qvl.training.loop import rate_at, train
from qvl.training.muon import orthogonalised
from qvl.vlm.chat_model import EMBEDDED_FOLDER


@pytest.mark.slow
def test_resumed_is_never_stopped(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
        shutil.copy(EMBEDDED_FOLDER / "tokenizer.json", folder)
    settings = {"pictures": 2, "decay": 2, "seed": 3}
    train(whole, steps=4, **settings)
    train(parts, steps=4, stop_after=2, **settings)
    train(parts, steps=4, **settings)
    one, other = (load_file(folder / "state.safetensors") for folder in (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert load_model(whole / "sprout", dtype="bf16").config.generation == "qwen3_vl"


@pytest.mark.slow
def test_a_run_may_begin_from_a_checkpoint(tmp_path: Path) -> None:
    shutil.copy(EMBEDDED_FOLDER / "tokenizer.json", tmp_path)
    train(tmp_path, steps=1, pictures=2, decay=1, seed=3, start=EMBEDDED_FOLDER)
    before = load_file(EMBEDDED_FOLDER / "model.safetensors")
    after = load_file(tmp_path / "sprout" / "model.safetensors")
    name = "model.language_model.embed_tokens.weight"
    assert (before[name].float() - after[name].float()).abs().max() < 0.01


def test_the_rate_warms_up_stays_and_decays() -> None:
    rates = [rate_at(step, steps=100, warmup=10, decay=20) for step in range(100)]
    assert rates[0] == 0.1
    assert rates[9:80] == [1.0] * 71
    assert rates[90] == 0.5
    assert rates == rates[:10] + sorted(rates[10:], reverse=True)


def test_orthogonalised_has_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((48, 96), (96, 48), (64, 64)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
        assert values.min() > 0.3
        assert values.max() < 1.4
