"""Tiny random checkpoints of each generation, in the layout of the hub, for the tests.

save_tiny writes one whole folder (weights, config, tokenizer, pixel rules, generation defaults) and
returns the transformers model with the same weights: the oracle.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

from qvl.loading.config import model_config
from qvl.models.config import ModelConfig
from qvl.models.qwen_vl import QwenVL
from qvl.processing.tokenizer import SPLIT_PATTERN

NAMES = {  # what transformers calls them
    "qwen2_vl": "Qwen2VL",
    "qwen2_5_vl": "Qwen2_5_VL",
    "qwen3_vl": "Qwen3VL",
    "qwen3_vl_moe": "Qwen3VLMoe",
}
GENERATIONS = tuple(NAMES)
QWEN3 = ("qwen3_vl", "qwen3_vl_moe")
VOCAB_SIZE = 320  # some rows more than the tokenizer has tokens, as in the published models

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ADDED = (  # of Qwen3-VL, not special: they stay in decoded text
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
MERGES = ("h e", "l l", "Ġ t", "o n", "i n", "e r", "he ll", "hell o", "Ġt he")


def _byte_characters() -> list[str]:
    """GPT-2's characters for the bytes: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]


def tokenizer_json(generation: str) -> dict[str, Any]:
    """A byte-level BPE of a few merges in the family's form, with its control tokens."""
    words = _byte_characters() + [merge.replace(" ", "", 1) for merge in MERGES]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": len(words) + i, "content": token, "special": token in SPECIAL, **flags}
            for i, token in enumerate(SPECIAL + (ADDED if generation in QWEN3 else ()))
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": SPLIT_PATTERN},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": False,
                    "use_regex": False,
                },
            ],
        },
        "post_processor": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {word: i for i, word in enumerate(words)},
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }


def token_id(generation: str, token: str) -> int:
    added = tokenizer_json(generation)["added_tokens"]
    return next(entry["id"] for entry in added if entry["content"] == token)


def config_json(
    generation: str, *, vision: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """config.json as the hub has it: flat before Qwen3-VL, then nested.

    `vision` changes keys of vision_config; other changes go to the decoder's keys, or to the top
    where that is where the published file has them.
    """
    text: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-06,
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": token_id(generation, "<|endoftext|>"),
        "eos_token_id": token_id(generation, "<|im_end|>"),
    }
    top: dict[str, Any] = {
        "model_type": generation,
        "tie_word_embeddings": False,
        "image_token_id": token_id(generation, "<|image_pad|>"),
        "video_token_id": token_id(generation, "<|video_pad|>"),
        "vision_start_token_id": token_id(generation, "<|vision_start|>"),
        "vision_end_token_id": token_id(generation, "<|vision_end|>"),
    }
    if generation not in QWEN3:
        text |= {
            "rope_theta": 1000000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            "use_sliding_window": False,
            "sliding_window": 32768,
            "max_window_layers": 3,
        }
        top |= {
            "architectures": [f"{NAMES[generation]}ForConditionalGeneration"],
            "torch_dtype": "bfloat16",
        }
        vision_config = {
            "depth": 3,
            "num_heads": 2,
            "in_chans": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        }
        if generation == "qwen2_vl":
            vision_config |= {"embed_dim": 32, "mlp_ratio": 4, "hidden_size": 64}
        else:
            vision_config |= {
                "hidden_size": 32,
                "out_hidden_size": 64,
                "intermediate_size": 44,
                "hidden_act": "silu",
                "window_size": 112,
                "fullatt_block_indexes": [1],
                "tokens_per_second": 2,
            }
    else:
        text |= {
            "model_type": f"{generation}_text",
            "head_dim": 24,
            "attention_bias": False,
            "rope_theta": 5000000,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [6, 3, 3],
                "rope_type": "default",
            },
            "dtype": "bfloat16",
        }
        top |= {
            "architectures": [f"{NAMES[generation]}ForConditionalGeneration"],
        }
        vision_config = {
            "model_type": generation,
            "deepstack_visual_indexes": [0, 1],
            "depth": 3,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 32,
            "in_channels": 3,
            "intermediate_size": 48,
            "num_heads": 2,
            "num_position_embeddings": 36,
            "out_hidden_size": 64,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        }
    if generation == "qwen3_vl_moe":
        text |= {
            "moe_intermediate_size": 24,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    text |= {key: value for key, value in changes.items() if key not in top}
    top |= {key: value for key, value in changes.items() if key in top}
    if generation in QWEN3:  # as published: transformers 4.57 reads the inner one, 5 the outer
        text["tie_word_embeddings"] = top.get("tie_word_embeddings", False)
    top["vision_config"] = vision_config | (vision or {})
    return {**top, "text_config": text} if generation in QWEN3 else {**top, **text}


def tiny_config(generation: str, **changes: Any) -> ModelConfig:
    return model_config(config_json(generation, **changes))


def preprocessor_json(generation: str) -> dict[str, Any]:
    patch_px = 16 if generation in QWEN3 else 14
    token_px = (2 * patch_px) ** 2
    rules: dict[str, Any] = {"patch_size": patch_px, "merge_size": 2, "temporal_patch_size": 2}
    if generation not in QWEN3:
        mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
        rules |= {"min_pixels": 4 * token_px, "max_pixels": 256 * token_px}
    else:
        mean, std = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
        rules |= {"size": {"shortest_edge": 4 * token_px, "longest_edge": 256 * token_px}}
    return {**rules, "image_mean": mean, "image_std": std}


def generation_json(generation: str) -> dict[str, Any]:
    stop = [token_id(generation, "<|im_end|>"), token_id(generation, "<|endoftext|>")]
    sampling: dict[str, float] = {"temperature": 0.01, "top_p": 0.001, "top_k": 1}
    if generation in QWEN3:
        sampling = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.0}
    return {"do_sample": True, "eos_token_id": stop, "pad_token_id": stop[1], **sampling}


def hf_model(generation: str, *, seed: int = 0, **changes: Any) -> Any:
    """The transformers model of config_json(generation, **changes), all its weights random."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    name = NAMES[generation]
    kind = "Qwen2_5_VL" if name == "Qwen2_5_VL" else name
    config = getattr(transformers, f"{kind}Config")(**config_json(generation, **changes))
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).float().eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # the library's own start has zero biases and unit norms, which would hide a mix-up
        for key, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=draw)
            is_norm = "norm" in key or "ln_q" in key
            parameter.copy_(1 + 0.1 * values if is_norm and key.endswith("weight") else values / 10)
    return model


def save_tiny(
    folder: Path,
    generation: str,
    *,
    shards: bool = False,
    naming: Literal["hub", "newer"] = "hub",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Any:
    """Write a whole checkpoint folder; returns the transformers model with the same weights.

    naming "hub": tensors as save_pretrained names them, config.json as published. naming "newer":
    the raw state dict's names (a tied head is stored too), config.json as transformers 5 writes it.
    """
    from safetensors.torch import save_file

    model = hf_model(generation, seed=seed, **changes).to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    if naming == "hub":
        model.save_pretrained(folder, max_shard_size="100KB" if shards else "1GB")
        _write(folder / "config.json", config_json(generation, **changes))
    else:
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        names = sorted(tensors)
        parts = [names[i::3] for i in range(3)] if shards else [names]
        files = [
            f"model-{i + 1:05}-of-{len(parts):05}.safetensors" if shards else "model.safetensors"
            for i in range(len(parts))
        ]
        for part, file in zip(parts, files, strict=True):
            save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
        if shards:
            weight_map = {n: file for part, file in zip(parts, files, strict=True) for n in part}
            _write(folder / "model.safetensors.index.json", {"weight_map": weight_map})
        model.config.save_pretrained(folder)
    _write(folder / "preprocessor_config.json", preprocessor_json(generation))
    _write(folder / "generation_config.json", generation_json(generation))
    _write(folder / "tokenizer.json", tokenizer_json(generation))
    return model


LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "vocab_size": 8192,
    "tie_word_embeddings": True,
    "vision": {"out_hidden_size": 1024},
}


def save_large(folder: Path) -> int:
    """A bf16 checkpoint of zeros in two shards of about equal size; returns its weights' bytes."""
    from safetensors.torch import save_file

    save_tiny(folder, "qwen3_vl")
    config = config_json("qwen3_vl", **LARGE)
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in QwenVL(model_config(config)).named_parameters()}
    weights, shards = 0, {}
    total = sum(shape.numel() for shape in shapes.values())
    for name, shape in shapes.items():
        shards[name] = f"part-{weights * 2 // total}.safetensors"
        weights += shape.numel()
    for file in set(shards.values()):
        names = [name for name in shapes if shards[name] == file]
        save_file({n: torch.zeros(shapes[n], dtype=torch.bfloat16) for n in names}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return 2 * weights


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
