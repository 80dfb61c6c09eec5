"""Tensor names: what the files of each generation call a parameter -> what our modules call it.

Ours are the newer hub names, those of Qwen3-VL, for every generation. Prefix rules as in
transformers 5.23 conversion_mapping.py; they take in the hub's files, raw state dicts and saves of
the base model alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Renames:
    prefixes: tuple[tuple[str, str], ...]  # the first that fits is replaced
    vision_parts: tuple[tuple[str, str], ...]  # then each of these, inside model.visual.
    decoder_parts: tuple[tuple[str, str], ...] = ()  # or of these, inside model.language_model.


_PREFIXES = (
    ("model.visual.", "model.visual."),
    ("model.language_model.", "model.language_model."),
    ("visual.", "model.visual."),
    ("language_model.", "model.language_model."),
    ("model.", "model.language_model."),
)

RENAMES: Mapping[str, Renames] = {
    "qwen_vl": Renames(
        (
            ("transformer.visual.", "model.visual."),
            ("transformer.wte.", "model.language_model.embed_tokens."),
            ("transformer.ln_f.", "model.language_model.norm."),
            ("transformer.h.", "model.language_model.layers."),
        ),
        (),
        (
            (".ln_1.", ".input_layernorm."),
            (".ln_2.", ".post_attention_layernorm."),
            (".attn.c_attn.", ".self_attn.qkv_proj."),
            (".attn.c_proj.", ".self_attn.o_proj."),
            (".mlp.w1.", ".mlp.up_proj."),
            (".mlp.w2.", ".mlp.gate_proj."),  # the one that goes through silu
            (".mlp.c_proj.", ".mlp.down_proj."),
        ),
    ),
    "qwen2_vl": Renames(
        _PREFIXES,
        (
            (".merger.ln_q.", ".merger.norm."),
            (".merger.mlp.0.", ".merger.linear_fc1."),
            (".merger.mlp.2.", ".merger.linear_fc2."),
            (".mlp.fc1.", ".mlp.linear_fc1."),
            (".mlp.fc2.", ".mlp.linear_fc2."),
        ),
    ),
    "qwen2_5_vl": Renames(
        _PREFIXES,
        (
            (".merger.ln_q.", ".merger.norm."),
            (".merger.mlp.0.", ".merger.linear_fc1."),
            (".merger.mlp.2.", ".merger.linear_fc2."),
        ),
    ),
    "qwen3_vl": Renames(_PREFIXES, ()),
    "qwen3_vl_moe": Renames(_PREFIXES, ()),
}


def parameter_name(stored: str, generation: str) -> str:
    """Our name of the tensor that a file calls `stored`; unknown names come back as they are."""
    renames = RENAMES[generation]
    for old, new in renames.prefixes:
        if stored.startswith(old):
            stored = new + stored[len(old) :]
            break
    parts: tuple[tuple[str, str], ...] = ()
    if stored.startswith("model.visual."):
        parts = renames.vision_parts
    elif stored.startswith("model.language_model."):
        parts = renames.decoder_parts
    for old, new in parts:
        stored = stored.replace(old, new)
    return stored


def published_layer(path: str, generation: str) -> str:
    """What the layer of that path of ours is called in transformers 5.23, of the first Qwen-VL in its own
    code: the way back of `parameter_name`.
    """
    renames, name = RENAMES[generation], f"{path}."
    parts = renames.vision_parts if name.startswith("model.visual.") else renames.decoder_parts
    for old, new in parts:
        name = name.replace(new, old)
    for old, new in renames.prefixes:
        if name.startswith(new):
            name = old + name[len(new) :]
            break
    return name.removesuffix(".")
