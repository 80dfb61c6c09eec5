"""Random checkpoints with the published shapes and tensor names, for timing: how long a model takes
does not depend on what it has learnt.

The vocabulary is sprout's, widened to the published size. Tokens that are no plain ASCII text have a
sixteenth of an embedding; as the head is tied to it they are never the likeliest, so that a server
which streams text has some for every token. (None at all would be no number in engines whose norm
has no epsilon.)

    python -m benchmarks.checkpoints Qwen2-VL-2B FOLDER
    qvl bench --model FOLDER --dtype int8 --against transformers
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qvl.loading.config import model_config
from qvl.loading.names import RENAMES, parameter_name
from qvl.models.qwen_vl import QwenVL
from qvl.processing.chat import DEFAULT_SYSTEM
from qvl.processing.tokenizer import Tokenizer
from qvl.vlm.chat_model import EMBEDDED_FOLDER

SHARDS = 2
VISUAL = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
EMBEDDING = "model.language_model.embed_tokens.weight"
# other engines run this; each says the prompt that `processing/chat.py` says
TEMPLATE = """\
{%- for m in messages -%}
{%- if loop.first and m.role != 'system' -%}{{ 'SYSTEM' }}{%- endif -%}
{{- '<|im_start|>' + m.role + '\\n' -}}
{%- if m.content is string -%}{{ m.content }}{%- else -%}{%- for part in m.content -%}
{%- if part.type in ('image', 'image_url') -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
SYSTEM = {
    "qwen2_vl": f"<|im_start|>system\\n{DEFAULT_SYSTEM}<|im_end|>\\n",
    "qwen3_vl": "",
}
TEXT = {"hidden_act": "silu", "rms_norm_eps": 1e-06, "vocab_size": 151936}
CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2-VL-2B": {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "tie_word_embeddings": True,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        **TEXT,
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "hidden_size": 1536,
            "hidden_act": "quick_gelu",
            "in_chans": 3,
            "in_channels": 3,
            "mlp_ratio": 4,
            "model_type": "qwen2_vl",
            "num_heads": 16,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    },
    "Qwen3-VL-2B": {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "dtype": "bfloat16",
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 262144,
            "rope_theta": 5000000,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [24, 20, 20],
                "rope_type": "default",
            },
            "attention_bias": False,
            "tie_word_embeddings": True,
            **TEXT,
        },
        "vision_config": {
            "deepstack_visual_indexes": [5, 11, 17],
            "depth": 24,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 1024,
            "in_channels": 3,
            "intermediate_size": 4096,
            "model_type": "qwen3_vl",
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": 2048,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    },
}


def write_checkpoint(name: str, folder: Path) -> int:
    """A folder in the hub's layout, two bf16 shards; returns the bytes of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED_FOLDER / file, folder)
    generation = CONFIGS[name]["model_type"]
    template = TEMPLATE.replace("SYSTEM", SYSTEM[generation])
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer = Tokenizer.from_folder(folder)
    image, video, start, end = (tokenizer.encode_control(token) for token in VISUAL)
    config = CONFIGS[name] | {
        "image_token_id": image,
        "video_token_id": video,
        "vision_start_token_id": start,
        "vision_end_token_id": end,
    }
    defaults = {"do_sample": False, "eos_token_id": [tokenizer.encode_control("<|im_end|>")]}
    side = config["vision_config"]["patch_size"] * 2
    pixels = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "patch_size": side // 2,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 4 * side * side, "longest_edge": 16384 * side * side},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    for file, document in (
        ("config.json", config),
        ("generation_config.json", defaults),
        ("preprocessor_config.json", pixels),
    ):
        (folder / file).write_text(json.dumps(document), encoding="utf-8")
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in QwenVL(model_config(config)).named_parameters()}
    return write_weights(shapes, folder, generation)


def write_weights(shapes: dict[str, torch.Size], folder: Path, generation: str) -> int:
    parameters = sum(shape.numel() for shape in shapes.values())
    # a million random numbers over and over: no loader looks at them
    numbers = (torch.randn(2**20, generator=torch.Generator().manual_seed(0)) / 50).bfloat16()
    weight_map: dict[str, str] = {}
    placed = 0
    for name, shape in shapes.items():
        shard = placed * SHARDS // parameters
        weight_map[name] = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        placed += shape.numel()
    for file in sorted(set(weight_map.values())):
        names = [name for name in shapes if weight_map[name] == file]
        tensors = {name: filled(name, numbers, shapes[name]) for name in names}
        if EMBEDDING in tensors:
            scale = torch.full((len(tensors[EMBEDDING]), 1), 1 / 16, dtype=numbers.dtype)
            scale[plain_tokens(folder)] = 1
            tensors[EMBEDDING] *= scale
        stored = {published_name(name, generation): tensors[name] for name in names}
        save_file(stored, folder / file, metadata={"format": "pt"})
    weights_bytes = parameters * numbers.itemsize
    files = {published_name(name, generation): file for name, file in weight_map.items()}
    index = {"metadata": {"total_size": weights_bytes}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return weights_bytes


def plain_tokens(folder: Path) -> list[int]:
    """The tokens that are ASCII letters and signs, after a space or not; none is a control token."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    return [number for token, number in vocabulary.items() if token.lstrip("Ġ").isascii()]


def published_name(ours: str, generation: str) -> str:
    """What the hub's files of this generation call a parameter: `loading/names.py` backwards."""
    stored = ours
    if generation == "qwen2_vl":
        for published, here in RENAMES[generation].vision_parts:
            stored = stored.replace(here, published)
        stored = stored.removeprefix("model.").replace("language_model.", "model.", 1)
    assert parameter_name(stored, generation) == ours, stored
    return stored


def filled(name: str, numbers: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Norms of ones, so that hidden states keep their size; random numbers elsewhere."""
    if "norm" in name and name.endswith("weight"):
        return torch.ones(shape, dtype=numbers.dtype)
    times = -(-shape.numel() // len(numbers))
    return numbers.repeat(times)[: shape.numel()].reshape(shape)


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 2 or arguments[0] not in CONFIGS:
        raise SystemExit(f"{(__doc__ or '').strip()}\n\nThe models are {', '.join(CONFIGS)}.")
    name, folder = arguments
    written = write_checkpoint(name, Path(folder))
    print(f"{folder}: {name} with random weights, {written / 1e9:.2f} GB")


if __name__ == "__main__":
    main(sys.argv[1:])
