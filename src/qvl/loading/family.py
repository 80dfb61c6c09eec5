"""What the published checkpoints of each generation say, for files that leave a key out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from qvl.models.config import Generation

QWEN3 = ("qwen3_vl", "qwen3_vl_moe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallbacks:
    architectures: tuple[str, ...]
    vision_act: Literal["quick_gelu", "silu", "gelu_pytorch_tanh"]
    patch_px: int
    norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    min_px: int
    max_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    vision_heads: int = 16
    vision_mlp_ratio: int = 4
    merge: int = 2
    temporal_patch: int = 2
    position_rows: int = 2304
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    stop_tokens: tuple[str, ...] = ("<|im_end|>", "<|endoftext|>")


QWEN2_VL = Fallbacks(
    architectures=("Qwen2VLForConditionalGeneration", "Qwen2VLModel"),
    vision_act="quick_gelu",
    patch_px=14,
    norm_eps=1e-6,
    rope_theta=1e6,
    mrope_section=(16, 24, 24),
    min_px=3136,
    max_px=12_845_056,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
QWEN3_VL = Fallbacks(
    architectures=("Qwen3VLForConditionalGeneration", "Qwen3VLModel"),
    vision_act="gelu_pytorch_tanh",
    patch_px=16,
    norm_eps=1e-6,
    rope_theta=5e6,
    mrope_section=(24, 20, 20),
    min_px=65_536,
    max_px=16_777_216,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
FIRST_STOPS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")

FALLBACKS: Mapping[Generation, Fallbacks] = {
    "qwen2_vl": QWEN2_VL,
    "qwen2_5_vl": replace(
        QWEN2_VL,
        architectures=("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel"),
        vision_act="silu",
    ),
    "qwen3_vl": QWEN3_VL,
    "qwen3_vl_moe": replace(
        QWEN3_VL, architectures=("Qwen3VLMoeForConditionalGeneration", "Qwen3VLMoeModel")
    ),
}
