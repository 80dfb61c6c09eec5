from __future__ import annotations

import pytest
import torch

import low_rank
import tiny
from oracle import largest_difference, ours, picture, prompt_of, their_inputs, theirs
from qvl.loading.adapted import adapted, merge
from qvl.loading.adapter import read_adapter
from qvl.loading.model import LoadedModel, load_model
from qvl.types import Message, Text

CLOSE = 1e-4
KINDS = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "r": 8},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"^model\.visual\.blocks\.1\.attn\.qkv": 7},
        "alpha_pattern": {"layers.1.self_attn.k_proj": 3, "down_proj": 9, "linear_fc[12]": 5},
    },
}
MESSAGES = [Message("user", (picture(120, 90, seed=1), Text("what is on the right?")))]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Of each generation the folder, and ours of it in fp32."""
    folders = {g: tmp_path_factory.mktemp(g) / "model" for g in tiny.GENERATIONS}
    for generation, folder in folders.items():
        tiny.save_tiny(folder, generation)
    return {g: (folder, load_model(folder, dtype="fp32")) for g, folder in folders.items()}


def with_model(loaded: LoadedModel, model) -> LoadedModel:
    import dataclasses

    return dataclasses.replace(loaded, model=model)


def logits(loaded: LoadedModel, model=None) -> torch.Tensor:
    prompt = prompt_of(loaded, MESSAGES)
    return ours(loaded if model is None else with_model(loaded, model), prompt).logits_tv


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("generation", tiny.GENERATIONS)
def test_unmerged_merged_and_peft_say_the_same(checkpoints, tmp_path, generation, kind):
    folder, loaded = checkpoints[generation]
    peft = low_rank.peft_model(tiny.hf_model(generation), generation, **KINDS[kind])
    adapter = read_adapter(low_rank.save_peft(peft, tmp_path / "adapter"), loaded.config)
    prompt = prompt_of(loaded, MESSAGES)
    plain = ours(loaded, prompt)
    view = adapted(loaded.model, adapter)
    computed = ours(with_model(loaded, view), prompt)
    expected = theirs(peft.base_model.model, their_inputs(prompt, loaded.config.image_token_id))
    for a, b in zip(computed.vision, expected.vision, strict=True):
        assert largest_difference(a, b) < CLOSE
    assert largest_difference(computed.logits_tv, expected.logits_tv) < CLOSE
    assert largest_difference(computed.logits_tv, plain.logits_tv) > 0.1
    assert torch.equal(ours(loaded, prompt).logits_tv, plain.logits_tv)  # the base is what it was
    own = load_model(folder, dtype="fp32")
    merge(own.model, adapter)
    assert largest_difference(ours(own, prompt).logits_tv, computed.logits_tv) < CLOSE
