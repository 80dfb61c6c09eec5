"""Frozen shapes of the family's models: sizes and a few switches; `loading.config` fills them from config.json.

| switch          | Qwen2-VL          | Qwen2.5-VL        | Qwen3-VL          |
|-----------------|-------------------|-------------------|-------------------|
| norm            | layer             | rms               | layer             |
| mlp             | quick_gelu        | silu_gated        | gelu_tanh         |
| window          | 0 (none)          | 4                 | 0 (none)          |
| patch_bias      | no                | no                | yes               |
| pos_grid        | 0 (none)          | 0 (none)          | 48                |
| deepstack_after | ()                | ()                | (8, 16, 24)       |
| qkv_bias        | yes               | yes               | no                |
| qk_norm         | no                | no                | yes               |
| mrope_interleaved | no              | no                | yes               |

A mixture of experts (Qwen3-VL only) has `experts` MLPs in every decoder layer, each of `mlp_width`.

The first Qwen-VL ("qwen_vl") has another tower (`qwen_v1.py`; norm layer, mlp gelu, pos_grid 16); in
the decoder qkv_bias, and one axis of positions: mrope_section (64, 0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Generation = Literal["qwen_vl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"]
RESAMPLER_HEAD = 128  # width of a head in the first Qwen-VL's resampler


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    depth: int
    width: int
    heads: int
    mlp_width: int
    out_width: int  # hidden size of the decoder
    patch_px: int
    merge: int  # merge x merge patches become one visual token
    temporal_patch: int
    norm: Literal["layer", "rms"]
    mlp: Literal["quick_gelu", "gelu_tanh", "silu_gated", "gelu"]
    patch_bias: bool
    pos_grid: int  # side of the learned position table; 0 for none
    deepstack_after: tuple[int, ...]  # block indexes whose output also feeds the decoder
    window: int = 0  # side of an attention window in visual tokens; 0 for none
    full_attention_at: tuple[int, ...] = ()  # block indexes that have no windows
    in_channels: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]  # frequencies of time, row, column; sums to head_dim / 2
    mrope_interleaved: bool
    qkv_bias: bool
    qk_norm: bool
    tied_head: bool
    max_positions: int
    experts: int = 0  # MLPs in each layer, of which a token goes through a few; 0 for one MLP
    experts_per_token: int = 0
    stretch_from: int = 0  # tokens beyond which the first Qwen-VL stretches positions; 0: never


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """How a checkpoint stores those of its linear layers that it quantises."""

    method: Literal["gptq", "awq", "fp8"]
    bits: int
    group: int  # inputs that share a scale, -1 for all; fp8 has as many outputs share it
    zero_offset: int = 0  # zero point less what is stored for it
    act_order: bool = False  # groups are not neighbours


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    generation: Generation
    vision: VisionConfig
    decoder: DecoderConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    quantisation: Quantisation | None = None  # of the files
