"""Ours equals transformers on the same random checkpoint: pixels, vision, logits, greedy tokens."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

import oracle
import tiny
from qvl.loading.model import load_model
from qvl.types import Image, Message, Text

VISION_TOLERANCE = 1e-4
LOGITS_TOLERANCE = 1e-3
NEW_TOKENS = 64

# name -> generation, naming, changes of the configuration in tests/tiny.py
Case = tuple[str, str, dict[str, Any]]
CASES: dict[str, Case] = {
    "qwen2-untied-gqa2": ("qwen2_vl", "hub", {}),
    "qwen2-tied-gqa4-deeper": (
        "qwen2_vl",
        "newer",
        {
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
            "num_hidden_layers": 4,
            "vision": {"depth": 5, "embed_dim": 64, "num_heads": 4, "mlp_ratio": 2},
        },
    ),
    "qwen2-no-gqa-published-mrope": (
        "qwen2_vl",
        "hub",
        {
            "hidden_size": 256,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "num_hidden_layers": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            "vision": {"depth": 2, "hidden_size": 256},
        },
    ),
    "qwen2.5-untied-gqa2": ("qwen2_5_vl", "hub", {}),
    "qwen2.5-tied-gqa4-deeper": (
        "qwen2_5_vl",
        "newer",
        {
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
            "num_hidden_layers": 4,
            "vision": {
                "depth": 5,
                "hidden_size": 64,
                "num_heads": 4,
                "fullatt_block_indexes": [0, 3],
            },
        },
    ),
    "qwen3-moe-untied-gqa2": ("qwen3_vl_moe", "newer", {}),
    "qwen3-moe-no-gqa-more-experts": (
        "qwen3_vl_moe",
        "hub",
        {
            "num_key_value_heads": 4,
            "num_hidden_layers": 4,
            "num_experts": 16,
            "num_experts_per_tok": 5,
            "moe_intermediate_size": 40,
        },
    ),
    "qwen3-untied-gqa2": ("qwen3_vl", "newer", {}),
    "qwen3-tied-gqa4-three-deepstack-levels": (
        "qwen3_vl",
        "hub",
        {
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
            "num_hidden_layers": 4,
            "vision": {
                "depth": 6,
                "hidden_size": 64,
                "num_heads": 4,
                "num_position_embeddings": 2304,
                "deepstack_visual_indexes": [0, 3, 5],
            },
        },
    ),
    "qwen3-no-gqa-published-mrope": (
        "qwen3_vl",
        "hub",
        {
            "head_dim": 128,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "num_hidden_layers": 2,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [24, 20, 20],
                "rope_type": "default",
            },
            "vision": {"depth": 2, "deepstack_visual_indexes": [1]},
        },
    ),
}


def pil(image: Image) -> PILImage.Image:
    assert isinstance(image.source, bytes)
    return PILImage.open(io.BytesIO(image.source))


ONE = (oracle.picture(224, 96, seed=1),)
SEVERAL = (  # none square: wide, made larger, made smaller
    oracle.picture(300, 80, seed=2),
    oracle.picture(33, 51, seed=3),
    oracle.picture(600, 900, seed=4),
)
CONVERSATIONS: tuple[tuple[tuple[Image, ...], tuple[Message, ...]], ...] = (
    (ONE, (Message.user(*ONE, "Describe the picture. Опиши. 描述"),)),
    (
        SEVERAL,
        (
            Message("system", (Text("You compare pictures."),)),
            Message.user("The first: ", SEVERAL[0], " the second:", SEVERAL[1], "Alike?"),
            Message("assistant", (Text("No, they are not."),)),
            Message.user(SEVERAL[2], "And this one?\n"),
        ),
    ),
)


@pytest.mark.parametrize("case", CASES)
def test_ours_equals_transformers(
    case: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Tokens come from the engine, both conversations at once and in parts of 64 tokens."""
    from transformers import Qwen2VLImageProcessorPil

    generation, naming, changes = CASES[case]
    tiny.save_tiny(tmp_path, generation, naming=naming, **changes)  # type: ignore[arg-type]
    loaded = load_model(tmp_path, dtype="fp32")
    reference = oracle.load_theirs(tmp_path, generation)
    processor = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    prompts = [oracle.prompt_of(loaded, messages) for _, messages in CONVERSATIONS]
    never = oracle.never_generated(loaded)
    measured = {"vision": 0.0, "logits": 0.0, "spread": math.inf, "lead": math.inf}
    expected_tokens = []
    for (pictures, _), prompt in zip(CONVERSATIONS, prompts, strict=True):
        pixels = processor([pil(image) for image in pictures], return_tensors="np")
        grids = [image.patches.grid for image in prompt.images]
        assert np.array_equal(grids, pixels["image_grid_thw"])
        assert np.array_equal(oracle.rows_of(prompt).numpy(), pixels["pixel_values"])

        inputs = oracle.their_inputs(prompt, loaded.config.image_token_id)
        expected, found = oracle.theirs(reference, inputs), oracle.ours(loaded, prompt)
        assert len(found.vision) == 1 + len(loaded.config.vision.deepstack_after)
        for ours_vd, theirs_vd in zip(found.vision, expected.vision, strict=True):
            measured["vision"] = max(
                measured["vision"], oracle.largest_difference(ours_vd, theirs_vd)
            )
        assert measured["vision"] <= VISION_TOLERANCE
        logits = oracle.largest_difference(found.logits_tv, expected.logits_tv)
        measured["logits"] = max(measured["logits"], logits)
        assert measured["logits"] <= LOGITS_TOLERANCE
        # nearly constant logits would make the tolerance say nothing
        measured["spread"] = min(measured["spread"], expected.logits_tv.std(1).min().item())
        assert measured["spread"] > 100 * LOGITS_TOLERANCE

        tokens, lead = oracle.their_greedy(reference, inputs, new_tokens=NEW_TOKENS, never=never)
        assert len(tokens) == NEW_TOKENS
        expected_tokens.append(tokens)
        measured["lead"] = min(measured["lead"], lead)
    generated = oracle.our_greedy(loaded, prompts, new_tokens=NEW_TOKENS, token_budget=64)
    assert generated == expected_tokens

    for name, value in measured.items():
        record_property(name, value)
    print(f"\n{case}: " + ", ".join(f"{name} {value:.2e}" for name, value in measured.items()))  # noqa: T201
