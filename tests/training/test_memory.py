"""What a run is said to need is what it takes, with and without computing layers again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from qvl.loading.config import model_config
from qvl.models.config import ModelConfig
from qvl.training.memory import Estimate, estimate
from qvl.training.run import Recipe
from qvl.training.trainable import Method

WIDE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "vision": {"out_hidden_size": 512},
}
TOKENS = 4096
# in a process of its own, so that its peak is the run's: text alone, one pass of TOKENS
SCRIPT = """
import json, resource, sys
from pathlib import Path
import torch
from qvl.loading.model import read_parts
from qvl.training.memory import give_back_freed
from qvl.training.examples import Example
from qvl.training.passes import Loss, collate, recompute_layers
from qvl.training.trainable import load_base, make_trainable
import numpy as np
folder, method, recompute, tokens = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True", int(sys.argv[4])
parts = read_parts(folder)
def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def example(length):
    ids = np.arange(length) % 200
    targets = np.where(np.arange(length) % 4 == 0, 7, -100)
    return Example("x", ids, np.tile(np.arange(length), (3, 1)), targets, np.zeros_like(ids))
def steps(model, trained, length):
    loss = Loss(model)
    optim = torch.optim.AdamW([p for _, p in trained], fused=True)
    for _ in range(2):  # the means of the first are there in the second
        optim.zero_grad()
        loss(collate([example(length)])).backward()
        found = {n: p.grad.double().norm().item() for n, p in trained}
        optim.step()
    return found
give_back_freed()
before = peak()
model = load_base(folder, parts.config, "fp32", torch.device("cpu"))
trained = make_trainable(model, method, ("decoder",), rank=16)
if recompute:
    recompute_layers(model)
found = steps(model, trained, tokens)
print(json.dumps({"bytes": peak() - before, "norms": found}))
"""


def config() -> ModelConfig:
    return model_config(tiny.config_json("qwen3_vl", **WIDE))


def recipe(method: Method, *, recompute: bool) -> Recipe:
    return Recipe(
        method=method, sections=("decoder",), base="fp32", rank=16, alpha=32, steps=1, batch=1,
        tokens=TOKENS, rate=1e-4, warmup=1, weight_decay=0, clip=1, eval_every=0, patience=0, seed=0,
        recompute=recompute, model="", weights="", data="",
    )  # fmt: skip


def told(method: Method, *, recompute: bool) -> Estimate:
    return estimate(config(), recipe(method, recompute=recompute), tokens=TOKENS, patches=0)


def test_what_costs_more_is_told_so() -> None:
    plain, again = (told("lora", recompute=recompute) for recompute in (False, True))
    assert again.passes < 0.5 * plain.passes
    assert again.weights == plain.weights
    full = told("full", recompute=False)
    assert full.training > 10 * plain.training


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_told_is_what_is_taken(tmp_path: Path, method: Method) -> None:
    tiny.save_tiny(tmp_path, "qwen3_vl", **WIDE)
    taken, norms = {}, {}
    for recompute in (False, True):
        arguments = [str(tmp_path), method, str(recompute), str(TOKENS)]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout)
        taken[recompute], norms[recompute] = found["bytes"], found["norms"]
        estimated = told(method, recompute=recompute).total
        way = "layers computed again" if recompute else "all kept"
        print(f"{method}, {way}: {taken[recompute] >> 20} MiB, told {estimated >> 20} MiB")  # noqa: T201
        assert 0.6 < taken[recompute] / estimated < 1.1
    assert taken[True] < 0.6 * taken[False]
    assert norms[True] == pytest.approx(norms[False], rel=1e-6)
