"""Random low-rank adapters: of PEFT, around the tiny models of transformers, and our own."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from qvl.models.lora import Adapter, LowRank
from qvl.models.qwen_vl import QwenVL

# of each generation: what PEFT is told to adapt, language and tower alike
TARGETS = {
    "qwen2_vl": ["q_proj", "v_proj", "up_proj", "down_proj", "qkv", "fc1", "merger.mlp.0"],
    "qwen2_5_vl": [
        "q_proj",
        "k_proj",
        "o_proj",
        "gate_proj",
        "down_proj",
        "attn.proj",
        "merger.mlp.2",
    ],
    "qwen3_vl": ["k_proj", "v_proj", "gate_proj", "up_proj", "lm_head", "qkv", "linear_fc2"],
    "qwen3_vl_moe": ["q_proj", "k_proj", "v_proj", "o_proj", "attn.proj", "linear_fc1"],
}


def peft_model(theirs: Any, generation: str, *, seed: int = 0, **options: Any) -> Any:
    """The transformers model within PEFT, all numbers of the adapter random: none are zero."""
    import peft

    asked: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": TARGETS[generation],
        **options,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the library says of its own ways
        model = peft.get_peft_model(theirs, peft.LoraConfig(**asked)).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=draw)
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.3 * values)
            elif "lora_" in name:
                parameter.copy_(values / 4)
    return model


def save_peft(model: Any, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def random_adapter(
    model: QwenVL, ends: Iterable[str], *, seed: int, rank: int = 4, size: float = 0.5, dora=False
) -> Adapter:
    """Of the plain model's linear layers whose paths end so."""
    draw = torch.Generator().manual_seed(seed)
    layers: dict[str, LowRank] = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and path.endswith(tuple(ends)):
            n, k = module.weight.shape
            a, b = torch.randn(rank, k, generator=draw), torch.randn(n, rank, generator=draw)
            magnitude = module.weight.float().norm(dim=1) * 1.2 if dora else None
            layers[path] = LowRank(a / k**0.5, size * b, 0.75, magnitude)
    return Adapter.of(f"random {seed}", layers)


def changed(layers: Mapping[str, LowRank], factor: float) -> dict[str, LowRank]:
    return {
        path: LowRank(low.a_rk, factor * low.b_nr, low.scale, low.magnitude_n)
        for path, low in layers.items()
    }
