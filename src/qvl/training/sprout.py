"""The shape of `sprout` and its folder in the hub's layout, which transformers loads too."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from qvl.models.config import DecoderConfig, ModelConfig, VisionConfig
from qvl.models.qwen_vl import QwenVL
from qvl.processing.patches import PixelRules
from qvl.training.vocabulary import token_id

# Qwen3-VL's conversation form, for programs that take templates from the folder; ours is processing.chat
CHAT_TEMPLATE = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.content is string -%}{{ m.content }}{%- else -%}{%- for part in m.content -%}"
    "{%- if part.type == 'text' -%}{{ part.text }}"
    "{%- elif part.type in ('image', 'image_url') -%}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
PATCH_PX, MERGE = 16, 2
RULES = PixelRules(
    patch_px=PATCH_PX,
    merge=MERGE,
    temporal_patch=2,
    min_px=128 * 128,
    max_px=384 * 384,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
# of a video's frames together; more than 16 of them are made smaller
VIDEO_PX = 16 * 192 * 192
VISION = VisionConfig(
    depth=6, width=256, heads=4, mlp_width=1024, out_width=256, patch_px=PATCH_PX, merge=MERGE,
    temporal_patch=2, norm="layer", mlp="gelu_tanh", patch_bias=True, pos_grid=16,
    deepstack_after=(1, 3),
)  # fmt: skip


def sprout_config(tokenizer: Tokenizer) -> ModelConfig:
    """A small Qwen3-VL over the tokenizer's vocabulary."""
    decoder = DecoderConfig(
        layers=4, hidden=256, heads=4, kv_heads=2, head_dim=64, mlp_width=768,
        vocab_size=tokenizer.get_vocab_size(), norm_eps=1e-6, rope_theta=100_000.0,
        mrope_section=(12, 10, 10), mrope_interleaved=True, qkv_bias=False, qk_norm=True,
        tied_head=True, max_positions=4096,
    )  # fmt: skip
    return ModelConfig(
        generation="qwen3_vl",
        vision=VISION,
        decoder=decoder,
        image_token_id=token_id(tokenizer, "<|image_pad|>"),
        video_token_id=token_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=token_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=token_id(tokenizer, "<|vision_end|>"),
    )


def initialise(model: QwenVL) -> None:
    """Normal weights of std 0.02; projections back into the residual stream scaled down by depth."""
    depth = model.config.decoder.layers
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv3d | nn.Embedding):
            residual = name.endswith(("o_proj", "down_proj", "attn.proj", "mlp.linear_fc2"))
            nn.init.normal_(module.weight, std=0.02 / (2 * depth) ** 0.5 if residual else 0.02)
        if isinstance(module, nn.Linear | nn.Conv3d) and module.bias is not None:
            nn.init.zeros_(module.bias)


def config_json(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, object]:
    """config.json as transformers writes it for Qwen3-VL."""
    vision, decoder = config.vision, config.decoder
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "dtype": "bfloat16",
        "tie_word_embeddings": decoder.tied_head,
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
        "vision_config": {
            "model_type": "qwen3_vl_vision",
            "depth": vision.depth,
            "hidden_size": vision.width,
            "num_heads": vision.heads,
            "intermediate_size": vision.mlp_width,
            "out_hidden_size": vision.out_width,
            "patch_size": vision.patch_px,
            "spatial_merge_size": vision.merge,
            "temporal_patch_size": vision.temporal_patch,
            "num_position_embeddings": vision.pos_grid**2,
            "deepstack_visual_indexes": list(vision.deepstack_after),
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": vision.in_channels,
        },
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": decoder.vocab_size,
            "hidden_size": decoder.hidden,
            "intermediate_size": decoder.mlp_width,
            "num_hidden_layers": decoder.layers,
            "num_attention_heads": decoder.heads,
            "num_key_value_heads": decoder.kv_heads,
            "head_dim": decoder.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": decoder.max_positions,
            "rms_norm_eps": decoder.norm_eps,
            "rope_theta": decoder.rope_theta,
            "rope_scaling": {
                "rope_type": "default",
                "mrope_section": list(decoder.mrope_section),
                "mrope_interleaved": decoder.mrope_interleaved,
            },
            "attention_bias": decoder.qkv_bias,
            "tie_word_embeddings": decoder.tied_head,
            "bos_token_id": token_id(tokenizer, "<|endoftext|>"),
            "eos_token_id": token_id(tokenizer, "<|im_end|>"),
        },
    }


def save_sprout(folder: Path, model: QwenVL, tokenizer: Tokenizer) -> None:
    """The folder in the hub's layout: config, processor, tokenizer, bf16 weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    weights = {name: value.bfloat16().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = [token_id(tokenizer, "<|im_end|>"), token_id(tokenizer, "<|endoftext|>")]
    rules = {
        "patch_size": RULES.patch_px,
        "temporal_patch_size": RULES.temporal_patch,
        "merge_size": RULES.merge,
        "image_mean": list(RULES.mean),
        "image_std": list(RULES.std),
    }
    documents = {
        "config.json": config_json(config, tokenizer),
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessorFast",
            **rules,
            "size": {"shortest_edge": RULES.min_px, "longest_edge": RULES.max_px},
        },
        "video_preprocessor_config.json": {
            "video_processor_type": "Qwen3VLVideoProcessor",
            **rules,
            "size": {"shortest_edge": RULES.min_px, "longest_edge": VIDEO_PX},
        },
        "generation_config.json": {
            "do_sample": False,
            "eos_token_id": ends,
            "pad_token_id": ends[1],
        },
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2TokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": config.decoder.max_positions,
        },
    }
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE + "\n", encoding="utf-8")
    (folder / "model.safetensors").chmod(0o644)
    for name, document in documents.items():
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
