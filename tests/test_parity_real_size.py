"""Ours equals transformers at the published size: Qwen2-VL-2B and Qwen3-VL-2B with random weights.

All widths, depths, head counts and rotary sections are those of the published config.json files;
only the vocabulary is cut to VOCAB, which saves 1 GB in fp32 and touches nothing but the head. Weights are
drawn in bf16 and computed in fp32. One model at a time: 8 GB of memory and 4 GB of temporary disk.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import oracle
import tiny
from qvl.loading.model import load_model
from qvl.types import Message

VISION_TOLERANCE = 1e-4
LOGITS_TOLERANCE = 1e-3  # of the largest logit
NEW_TOKENS = 8
SHARDS = 4

REAL: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "tie_word_embeddings": True,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision": {"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": 1536},
    },
    "qwen3_vl": {
        "tie_word_embeddings": True,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [24, 20, 20],
            "rope_type": "default",
        },
        "vision": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": 2048,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    },
}
PARAMETERS = {"qwen2_vl": 2_208_985_600, "qwen3_vl": 2_127_532_032}  # as published
PUBLISHED_VOCAB = 151_936
VOCAB = 16_384


@pytest.fixture
def folder() -> Iterator[Path]:
    """Gone at once, where tmp_path would stay for three runs."""
    with TemporaryDirectory() as temporary:
        yield Path(temporary)


def random_tensor(name: str, shape: torch.Size, draw: torch.Generator) -> torch.Tensor:
    """bf16: norms around one, everything else so small that the layers keep their inputs' scale."""
    values = torch.randn(shape, generator=draw)
    is_norm = ("norm" in name or "ln_q" in name) and name.endswith("weight")
    return (1 + 0.1 * values if is_norm else 0.02 * values).bfloat16()


def write_checkpoint(folder: Path, generation: str) -> int:
    """The shapes and names of transformers' own model; returns the number of parameters."""
    import transformers

    tiny.save_tiny(folder, generation)  # for the tokenizer and the pixel rules
    (folder / "model.safetensors").unlink()
    config = tiny.config_json(generation, vocab_size=VOCAB, **REAL[generation])
    (folder / "config.json").write_text(json.dumps(config))
    name = tiny.NAMES[generation]
    with torch.device("meta"):
        model = getattr(transformers, f"{name}ForConditionalGeneration")(
            getattr(transformers, f"{name}Config")(**config)
        )
    shapes = {name: p.shape for name, p in model.named_parameters()}
    draw = torch.Generator().manual_seed(0)
    shards: dict[str, str] = {}
    for part in range(SHARDS):
        file = f"model-{part + 1:05}-of-{SHARDS:05}.safetensors"
        tensors = {n: random_tensor(n, shapes[n], draw) for n in sorted(shapes)[part::SHARDS]}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        shards |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(shape.numel() for shape in shapes.values())


@pytest.mark.slow
@pytest.mark.parametrize("generation", REAL)
def test_ours_equals_transformers_at_the_published_size(
    generation: str, folder: Path, record_property: Callable[[str, object], None]
) -> None:
    cut = (PUBLISHED_VOCAB - VOCAB) * REAL[generation]["hidden_size"]
    assert write_checkpoint(folder, generation) == PARAMETERS[generation] - cut

    loaded = load_model(folder, dtype="fp32")
    question = Message.user(oracle.picture(320, 192, seed=1), "Describe the picture.")
    prompt = oracle.prompt_of(loaded, [question])
    found = oracle.ours(loaded, prompt)
    (tokens,) = oracle.our_greedy(loaded, [prompt], new_tokens=NEW_TOKENS, token_budget=2048)
    inputs = oracle.their_inputs(prompt, loaded.config.image_token_id)
    never = oracle.never_generated(loaded)
    del loaded  # before the other one takes as much memory
    gc.collect()

    reference = oracle.load_theirs(folder, generation)
    expected = oracle.theirs(reference, inputs)
    same, lead = oracle.their_greedy(reference, inputs, new_tokens=NEW_TOKENS, never=never)

    pairs = zip(found.vision, expected.vision, strict=True)
    scale = expected.logits_tv.abs().max().item()
    logits = oracle.largest_difference(found.logits_tv, expected.logits_tv)
    measured = {
        "vision": max(oracle.largest_difference(*pair) for pair in pairs),
        "logits": logits,
        "logits of largest": logits / scale,
        "spread": expected.logits_tv.std(1).min().item(),
        "lead": lead,
    }
    for name, value in measured.items():
        record_property(name, value)
    print(f"\n{generation}, {len(prompt.ids)} tokens: {measured}")  # noqa: T201
    assert measured["vision"] <= VISION_TOLERANCE
    assert measured["logits of largest"] <= LOGITS_TOLERANCE
    assert measured["spread"] > 100 * logits  # or the greedy tokens would be chance
    assert tokens == same
    assert len(tokens) == NEW_TOKENS
