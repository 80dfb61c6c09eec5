"""A tiny random Qwen-VL (the first) as it was published: pickled shards, qwen.tiktoken, its config.json."""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from data.tiny_tokenizer import SENTENCES

WIDTH, HIDDEN, LAYERS, DEPTH, SIDE = 32, 256, 2, 2, 3  # SIDE: of the resampler's queries
START = 32  # tokens from which positions are stretched; 2048 in the published files
CONTROL_TOKENS = 3 + 205 + 6 + 3
PUBLISHED: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig"},
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "kv_channels": 128,
    "layer_norm_epsilon": 1e-06,
    "max_position_embeddings": 8192,
    "model_type": "qwen",
    "no_bias": True,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 2048,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "visual": {
        "heads": 16,
        "image_size": 448,
        "image_start_id": 151857,
        "layers": 48,
        "mlp_ratio": 4.9231,
        "output_dim": 4096,
        "patch_size": 14,
        "width": 1664,
    },
    "vocab_size": 151936,
}


def gpt2_bytes() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


@cache
def ranks() -> dict[bytes, int]:
    """Of a BPE that is trained on the spot; the bytes come first, in an order of their own."""
    byte_of_char = gpt2_bytes()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = BpeTrainer(vocab_size=900, initial_alphabet=sorted(byte_of_char), show_progress=False)
    bpe.train_from_iterator(SENTENCES, trainer)
    words = sorted(bpe.get_vocab().items(), key=lambda item: item[1])
    tokens = [bytes(byte_of_char[char] for char in word) for word, _ in words]
    return {token: rank for rank, token in enumerate(tokens)}


def tiktoken_file(of: dict[bytes, int]) -> bytes:
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in of.items())
    return b"".join(lines)


def control_id(token: str) -> int:
    """As the facts say: the three, 205 extras, ref, box and quad, then img, /img and imgpad."""
    first = len(ranks())
    places = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<ref>": 208, "</ref>": 209}
    places |= {"<box>": 210, "</box>": 211, "<quad>": 212, "</quad>": 213}
    places |= {"<img>": 214, "</img>": 215, "<imgpad>": 216}
    return first + places[token]


def config_json(**changes: Any) -> dict[str, Any]:
    tiny = {
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * 96,
        "kv_channels": 32,
        "num_attention_heads": 8,
        "num_hidden_layers": LAYERS,
        "seq_length": START,
        "max_position_embeddings": 256,
        "vocab_size": len(ranks()) + CONTROL_TOKENS + 20,
        "torch_dtype": "float32",
        "visual": {
            "heads": 2,
            "image_size": 2 * SIDE * 14,
            "image_start_id": control_id("<img>"),
            "layers": DEPTH,
            "mlp_ratio": 1.5,
            "output_dim": HIDDEN,
            "patch_size": 14,
            "width": WIDTH,
        },
    }
    return PUBLISHED | tiny | changes


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the published files by its published name."""
    hidden, ffn, vocab = (
        config["hidden_size"],
        config["intermediate_size"] // 2,
        config["vocab_size"],
    )
    visual = config["visual"]
    width, patch = visual["width"], visual["patch_size"]
    wide, queries = int(width * visual["mlp_ratio"]), (visual["image_size"] // patch // 2) ** 2
    found: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (vocab, hidden),
        "transformer.ln_f.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
        "transformer.visual.conv1.weight": (width, 3, patch, patch),
        "transformer.visual.positional_embedding": (queries, width),
        "transformer.visual.proj": (hidden, hidden),
        "transformer.visual.attn_pool.query": (queries, hidden),
        "transformer.visual.attn_pool.pos_embed": (queries, hidden),
        "transformer.visual.attn_pool.kv_proj.weight": (hidden, width),
        "transformer.visual.attn_pool.attn.in_proj_weight": (3 * hidden, hidden),
        "transformer.visual.attn_pool.attn.in_proj_bias": (3 * hidden,),
        "transformer.visual.attn_pool.attn.out_proj.weight": (hidden, hidden),
        "transformer.visual.attn_pool.attn.out_proj.bias": (hidden,),
    }
    norms = {
        "ln_pre": width,
        "ln_post": hidden,
        "attn_pool.ln_q": hidden,
        "attn_pool.ln_kv": hidden,
    }
    for name, size in norms.items():
        found |= {f"transformer.visual.{name}.{leaf}": (size,) for leaf in ("weight", "bias")}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"transformer.h.{layer}"
        found |= {
            f"{prefix}.ln_1.weight": (hidden,),
            f"{prefix}.ln_2.weight": (hidden,),
            f"{prefix}.attn.c_attn.weight": (3 * hidden, hidden),
            f"{prefix}.attn.c_attn.bias": (3 * hidden,),
            f"{prefix}.attn.c_proj.weight": (hidden, hidden),
            f"{prefix}.mlp.w1.weight": (ffn, hidden),
            f"{prefix}.mlp.w2.weight": (ffn, hidden),
            f"{prefix}.mlp.c_proj.weight": (hidden, ffn),
        }
    for block in range(visual["layers"]):
        prefix = f"transformer.visual.transformer.resblocks.{block}"
        linears = {
            "attn.in_proj": (3 * width, width),
            "attn.out_proj": (width, width),
            "mlp.c_fc": (wide, width),
            "mlp.c_proj": (width, wide),
        }
        for name, shape in linears.items():
            found |= {f"{prefix}.{name}.weight": shape, f"{prefix}.{name}.bias": shape[:1]}
        for name in ("ln_1", "ln_2"):
            found |= {f"{prefix}.{name}.{leaf}": (width,) for leaf in ("weight", "bias")}
    return found


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random ones, of a spread that keeps the numbers of a few layers near 1."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes(config).items():
        values = torch.randn(shape, generator=draw)
        is_norm = ".ln_" in name and name.endswith("weight")
        scale = shape[-1] ** -0.5 if len(shape) == 2 else 0.1
        found[name] = 1 + 0.1 * values if is_norm else scale * values
    return found


def save_published(
    folder: Path, *, chat_format: str = "chatml", dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Write the whole folder, its weights in two pickled shards; returns the tensors."""
    config = config_json()
    weights = {name: tensor.to(dtype) for name, tensor in tensors(config).items()}
    save_all_but_weights(folder, config, chat_format=chat_format)
    names = sorted(weights)
    files = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for index, file in enumerate(files):
        torch.save({name: weights[name] for name in names[index::2]}, folder / file)
    weight_map = {name: files[i % 2] for i, name in enumerate(names)}
    index_json = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index_json))
    return weights


def save_all_but_weights(
    folder: Path, config: dict[str, Any], *, chat_format: str = "chatml"
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generation = {
        "chat_format": chat_format,
        "do_sample": True,
        "eos_token_id": control_id("<|endoftext|>"),
        "max_new_tokens": 512,
        "max_window_size": 6144,
        "pad_token_id": control_id("<|endoftext|>"),
        "top_k": 0,
        "top_p": 0.3,
    }
    for name, value in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("tokenizer_config.json", {"tokenizer_class": "QWenTokenizer"}),
    ):
        (folder / name).write_text(json.dumps(value))
    (folder / "qwen.tiktoken").write_bytes(tiktoken_file(ranks()))
