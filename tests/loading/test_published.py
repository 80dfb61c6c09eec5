"""Every published size, without its weights: as many parameters as published, and every tensor of
the files, in each naming, becomes exactly one of ours."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from qvl.loading.catalogue import find
from qvl.loading.checkpoint import Checkpoint, StoredTensor, match
from qvl.loading.config import model_config
from qvl.loading.model import empty_model

# hidden, layers, heads, kv heads, MLP, vocabulary, tied; the tower: depth, width, MLP; deepstack
SIZES: dict[str, tuple[int, int, int, int, int, int, bool, int, int, int, tuple[int, ...]]] = {
    "Qwen2-VL-2B": (1536, 28, 12, 2, 8960, 151936, True, 32, 1280, 5120, ()),
    "Qwen2-VL-7B": (3584, 28, 28, 4, 18944, 152064, False, 32, 1280, 5120, ()),
    "Qwen2-VL-72B": (8192, 80, 64, 8, 29568, 152064, False, 32, 1280, 5120, ()),
    "Qwen2.5-VL-3B": (2048, 36, 16, 2, 11008, 151936, True, 32, 1280, 3420, ()),
    "Qwen2.5-VL-7B": (3584, 28, 28, 4, 18944, 152064, False, 32, 1280, 3420, ()),
    "Qwen2.5-VL-32B": (5120, 64, 40, 8, 27648, 152064, False, 32, 1280, 3456, ()),
    "Qwen2.5-VL-72B": (8192, 80, 64, 8, 29568, 152064, False, 32, 1280, 3456, ()),
    "Qwen3-VL-2B": (2048, 28, 16, 8, 6144, 151936, True, 24, 1024, 4096, (5, 11, 17)),
    "Qwen3-VL-4B": (2560, 36, 32, 8, 9728, 151936, True, 24, 1024, 4096, (5, 11, 17)),
    "Qwen3-VL-8B": (4096, 36, 32, 8, 12288, 151936, False, 27, 1152, 4304, (8, 16, 24)),
    "Qwen3-VL-32B": (5120, 64, 64, 8, 25600, 151936, False, 27, 1152, 4304, (8, 16, 24)),
    "Qwen3-VL-30B-A3B": (2048, 48, 32, 4, 768, 151936, False, 27, 1152, 4304, (8, 16, 24)),
    "Qwen3-VL-235B-A22B": (4096, 94, 64, 4, 1536, 151936, False, 27, 1152, 4304, (8, 16, 24)),
}


def published(size: str) -> tuple[str, dict[str, Any]]:
    """The generation, and what the published config.json says of shapes."""
    hidden, layers, heads, kv, mlp, vocab, tied, depth, width, vision_mlp, after = SIZES[size]
    generation = "qwen2_5_vl" if "2.5" in size else "qwen2_vl" if "Qwen2-" in size else "qwen3_vl"
    vision: dict[str, Any] = {"depth": depth, "num_heads": 16}
    text: dict[str, Any] = {"head_dim": 128}
    if generation == "qwen2_vl":
        vision |= {"embed_dim": width, "hidden_size": hidden, "mlp_ratio": vision_mlp // width}
        text = {}
    else:
        vision |= {"hidden_size": width, "out_hidden_size": hidden, "intermediate_size": vision_mlp}
    if generation == "qwen2_5_vl":
        vision["fullatt_block_indexes"] = [7, 15, 23, 31]
        text = {}
    if generation == "qwen3_vl":
        vision |= {"deepstack_visual_indexes": list(after), "num_position_embeddings": 2304}
    if "-A" in size:
        generation = "qwen3_vl_moe"
        text |= {"moe_intermediate_size": mlp, "num_experts": 128, "num_experts_per_tok": 8}
    section = [24, 20, 20] if generation in tiny.QWEN3 else [16, 24, 24]
    rope: dict[str, Any] = {"mrope_section": section, "rope_type": "default", "type": "default"}
    if generation in tiny.QWEN3:
        rope["mrope_interleaved"] = True
    return generation, tiny.config_json(
        generation,
        vision=vision,
        tie_word_embeddings=tied,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        intermediate_size=mlp,
        vocab_size=vocab,
        rope_scaling=rope,
        **text,
    )


def theirs(generation: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of transformers' own class, as its raw state dict has them."""
    import transformers

    name = tiny.NAMES[generation]
    with torch.device("meta"):
        made = getattr(transformers, f"{name}Config")(**config)
        model = getattr(transformers, f"{name}ForConditionalGeneration")._from_config(made)
    head = () if config["tie_word_embeddings"] else ("lm_head.weight",)
    names = [n for n, _ in model.named_parameters() if n != "lm_head.weight"]
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    return {n: shapes[n] for n in (*names, *head)}


def as_on_the_hub(
    generation: str, shapes: dict[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The published files: shorter prefixes before Qwen3-VL, experts the other way round after it."""
    hub = {}
    for name, shape in shapes.items():
        if generation not in tiny.QWEN3:
            name = name.replace("model.visual.", "visual.").replace(".language_model.", ".")
        hub[name] = (shape[0], shape[2], shape[1]) if ".experts." in name else shape
    return hub


def of_the_base_model(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix("model."): shape for name, shape in shapes.items()}


def one_by_one(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Each expert's matrices apart, as quantised files have them."""
    single = {}
    for name, shape in shapes.items():
        head, _, last = name.rpartition(".")
        if not head.endswith(".experts"):
            single[name] = shape
            continue
        experts, outputs, inputs = shape
        parts = {"down_proj": outputs} if last == "down_proj" else {}
        for part, rows in (parts or dict.fromkeys(("gate_proj", "up_proj"), outputs // 2)).items():
            for expert in range(experts):
                single[f"{head}.{expert}.{part}.weight"] = (rows, inputs)
    return single


@pytest.mark.parametrize("size", SIZES)
def test_every_published_tensor_becomes_one_of_ours(size: str) -> None:
    generation, values = published(size)
    model = empty_model(model_config(values))
    ours = {name: tuple(p.shape) for name, p in model.named_parameters()}
    entry = find(f"Qwen/{size}-Instruct")
    assert entry is not None
    assert sum(math.prod(shape) for shape in ours.values()) == entry.parameters
    raw = theirs(generation, values)
    namings = [raw, as_on_the_hub(generation, raw), of_the_base_model(raw)]
    if generation == "qwen3_vl_moe":
        namings.append(one_by_one(raw))
    for shapes in namings:
        tensors = {n: StoredTensor(n, "", "BF16", shape, 0, 0) for n, shape in shapes.items()}
        found = match(Checkpoint(Path(), tensors, {}), ours, generation)  # raises for any left over
        assert found.keys() == ours.keys()
        assert {stored.name for stored in found.values()} == shapes.keys()
