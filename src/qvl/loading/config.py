"""config.json -> our own frozen shapes. Main path: parse_config -> model_config -> _decoder, _vision.

Keys that we do not read are ignored; an unknown value of a key that we do read is a ConfigError
naming file, key and value, so nothing runs under other arithmetic than it was trained with.
Sources: the published files, and what transformers 5.23 (models/qwen2_vl, models/qwen3_vl) reads
from them and writes back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from qvl.errors import ConfigError, ModelFormatError
from qvl.loading.family import FALLBACKS, QWEN2_VL, QWEN3, QWEN3_VL
from qvl.loading.files import shown
from qvl.loading.section import Section, json_file
from qvl.models.config import (
    RESAMPLER_HEAD,
    DecoderConfig,
    Generation,
    ModelConfig,
    Quantisation,
    VisionConfig,
)

MAX_LAYERS = 256
MAX_WIDTH = 2**17
VISION_ROPE_THETA = 10_000.0  # fixed in the vision tower
FP8_BLOCK = 128

SUPPORTED = (
    "this version runs Qwen-VL, Qwen2-VL, Qwen2.5-VL and Qwen3-VL, in safetensors of bf16, fp16, "
    "fp32, GPTQ, AWQ or FP8"
)


def parse_config(folder: Path) -> ModelConfig:
    """The shapes that config.json describes.

    Raises ModelFormatError for another model than those supported, ConfigError for values that we
    do not know or that contradict each other.
    """
    if not (folder / "config.json").exists():
        raise ModelFormatError(
            f"no config.json in the model folder {folder.name!r}",
            hint="a model folder holds config.json, tokenizer.json and *.safetensors",
        )
    return model_config(json_file(folder, "config.json").values)


def model_config(values: Mapping[str, Any]) -> ModelConfig:
    """The shapes that the object of a config.json describes; raises as parse_config does."""
    top = Section("config.json", "", values)
    if values.get("model_type") == "qwen":
        return _first_config(top)
    generation = _generation(top)
    known = FALLBACKS[generation]
    # the published files before Qwen3-VL are flat; its own, and what transformers 5 saves, nested
    text = top.section("text_config")
    if not text.values and generation not in QWEN3:
        text = top
    vision = top.section("vision_config")
    for part in (top, text, vision):
        _refuse_what_we_cannot_compute(part)
    decoder = _decoder(top, text, generation)
    config = ModelConfig(
        generation=generation,
        vision=_vision(vision, generation, decoder.hidden),
        decoder=decoder,
        quantisation=_quantisation(top, text),
        **{
            key: top.whole(key, 0, decoder.vocab_size - 1, getattr(known, key))
            for key in (
                "image_token_id",
                "video_token_id",
                "vision_start_token_id",
                "vision_end_token_id",
            )
        },
    )
    _check_shapes(config)
    return config


def _generation(top: Section) -> Generation:
    name = top.values.get("model_type")
    if not isinstance(name, str) or name not in FALLBACKS:
        raise ModelFormatError(f"config.json: model_type {shown(name)} is unknown", hint=SUPPORTED)
    generation = cast(Generation, name)
    architectures = top.values.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list)
        and all(a in FALLBACKS[generation].architectures for a in architectures)
    ):
        raise ModelFormatError(
            f"unsupported architecture {shown(architectures)} in config.json", hint=SUPPORTED
        )
    return generation


def _refuse_what_we_cannot_compute(part: Section) -> None:
    for key in ("dtype", "torch_dtype"):
        part.one_of(key, ("bfloat16", "float16", "float32"), "an unknown dtype")
    part.one_of("use_sliding_window", (False,), "which is not supported")
    part.one_of("attention_bias", (False,), "which is not supported")


def _quantisation(top: Section, text: Section) -> Quantisation | None:
    """How the files store what they quantise, None for not at all.

    Which layers that are the files say themselves, by their tensors' names: the lists of modules
    left out, which name them in either scheme or not at all, are not needed.
    """
    part = top.section("quantization_config")
    part = part if part.values else text.section("quantization_config")
    if not part.values:
        return None
    unknown = "which is not supported"
    if not part.has("quant_method"):
        raise part.missing("quant_method")
    part.one_of("quant_method", ("gptq", "awq", "fp8"), "a quantisation that is not supported")
    method = part.values["quant_method"]
    if method == "fp8":
        part.one_of("activation_scheme", ("dynamic",), unknown)
        part.one_of("fmt", ("e4m3",), unknown)
        if part.numbers("weight_block_size", (int,), 1, 2**20, None) != (FP8_BLOCK, FP8_BLOCK):
            raise part.bad("weight_block_size", f"only [{FP8_BLOCK}, {FP8_BLOCK}] is supported")
        return Quantisation(method="fp8", bits=8, group=FP8_BLOCK)
    bits, group = part.whole("bits", 1, 32), part.whole("group_size", -1, MAX_WIDTH)
    if group == 0:
        raise part.bad("group_size", "no size of a group")
    if method == "awq":
        part.one_of("bits", (4,), unknown)
        part.one_of("version", ("gemm", "GEMM"), unknown)
        part.one_of("zero_point", (True,), unknown)
        return Quantisation(method="awq", bits=bits, group=group)
    part.one_of("bits", (4, 8), unknown)
    part.one_of("checkpoint_format", ("gptq", "gptq_v2"), unknown)
    part.one_of("desc_act", (True, False), unknown)
    return Quantisation(
        method="gptq",
        bits=bits,
        group=group,
        # the first form stores a zero point less one
        zero_offset=0 if part.values.get("checkpoint_format") == "gptq_v2" else 1,
        act_order=part.values.get("desc_act") is True,
    )


def _decoder(top: Section, text: Section, generation: Generation) -> DecoderConfig:
    known = FALLBACKS[generation]
    text.one_of("hidden_act", ("silu",), "an unknown activation")
    layer_types = text.values.get("layer_types")
    if layer_types is not None and not (
        isinstance(layer_types, list) and all(kind == "full_attention" for kind in layer_types)
    ):
        raise text.bad("layer_types", "only full_attention is known")
    hidden = text.whole("hidden_size", 1, MAX_WIDTH)
    heads = text.whole("num_attention_heads", 1, 1024)
    theta, section = _rope(text, generation)
    experts = _experts(text) if generation == "qwen3_vl_moe" else {}
    width_key = "moe_intermediate_size" if experts else "intermediate_size"
    return DecoderConfig(
        layers=text.whole("num_hidden_layers", 1, MAX_LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=text.whole("num_key_value_heads", 1, heads, heads),
        head_dim=text.whole("head_dim", 2, 1024, max(2, hidden // heads)),
        mlp_width=text.whole(width_key, 1, 2**20),
        vocab_size=text.whole("vocab_size", 1, 2**20),
        norm_eps=text.real("rms_norm_eps", 1e-12, 1e-2, known.norm_eps),
        rope_theta=theta,
        mrope_section=section,
        mrope_interleaved=generation in QWEN3,
        qkv_bias=generation not in QWEN3,
        qk_norm=generation in QWEN3,
        # at either place; where both are, the text's is but transformers' default
        tied_head=(top if top.has("tie_word_embeddings") else text).values.get(
            "tie_word_embeddings"
        )
        is True,
        max_positions=text.whole("max_position_embeddings", 1, 2**24),
        **experts,
    )


def _experts(text: Section) -> dict[str, int]:
    text.one_of("decoder_sparse_step", (1,), "but only a mixture in every layer is known")
    text.one_of("norm_topk_prob", (True,), "which is not supported")
    if text.values.get("mlp_only_layers") not in (None, []):
        raise text.bad("mlp_only_layers", "but only a mixture in every layer is known")
    # transformers 5 saves it under another name
    key = "num_experts" if text.has("num_experts") else "num_local_experts"
    experts = text.whole(key, 2, 4096)
    chosen = text.whole("num_experts_per_tok", 1, experts)
    return {"experts": experts, "experts_per_token": chosen}


def _rope(text: Section, generation: Generation) -> tuple[float, tuple[int, int, int]]:
    """(theta, mrope_section) from rope_parameters (transformers 5) or rope_scaling (before)."""
    known = FALLBACKS[generation]
    rope = text.section("rope_parameters")
    if not rope.values:
        rope = text.section("rope_scaling")
    for key in ("rope_type", "type"):
        rope.one_of(key, ("default", "mrope"), "a scaling that is not yet supported")
    rope.one_of("factor", (1, 1.0), "a scaling that is not yet supported")
    rope.one_of("mrope_interleaved", (generation in QWEN3,), "not as this generation has it")
    source = rope if rope.has("rope_theta") else text
    theta = source.real("rope_theta", 1.0, 1e12, known.rope_theta)
    section = rope.numbers("mrope_section", (int,), 1, 4096, known.mrope_section)
    if len(section) != 3:
        raise rope.bad("mrope_section", "not three numbers (time, row, column)")
    return theta, (section[0], section[1], section[2])


def _vision(vision: Section, generation: Generation, decoder_hidden: int) -> VisionConfig:
    known = FALLBACKS[generation]
    vision.one_of("hidden_act", (known.vision_act,), "an unknown activation")
    rope = vision.section("rope_parameters")
    rope.one_of("rope_type", ("axial", "default"), "an unknown rotary type")
    rope.one_of("rope_theta", (VISION_ROPE_THETA, int(VISION_ROPE_THETA)), "an unknown base")
    # Qwen2-VL calls the width of the tower's output "hidden_size"
    width_key, out_key = (
        ("embed_dim", "hidden_size")
        if generation == "qwen2_vl"
        else ("hidden_size", "out_hidden_size")
    )
    width = vision.whole(width_key, 1, MAX_WIDTH)
    depth = vision.whole("depth", 1, MAX_LAYERS)
    if vision.whole(out_key, 1, MAX_WIDTH) != decoder_hidden:
        raise vision.bad(out_key, f"but the decoder's hidden_size is {decoder_hidden}")
    switches: dict[str, Any]
    if generation == "qwen2_vl":
        switches = _qwen2_switches(vision, width)
    elif generation == "qwen2_5_vl":
        switches = _qwen2_5_switches(vision, depth)
    else:
        switches = _qwen3_switches(vision, depth)
    return VisionConfig(
        depth=depth,
        width=width,
        heads=vision.whole("num_heads", 1, 1024, known.vision_heads),
        out_width=decoder_hidden,
        patch_px=vision.whole("patch_size", 1, 256, known.patch_px),
        merge=vision.whole("spatial_merge_size", 1, 16, known.merge),
        temporal_patch=vision.whole("temporal_patch_size", 1, 16, known.temporal_patch),
        # the published Qwen2-VL files say in_chans
        in_channels=vision.whole(
            "in_channels" if vision.has("in_channels") else "in_chans", 3, 3, 3
        ),
        **switches,
    )


def _qwen2_switches(vision: Section, width: int) -> dict[str, Any]:
    ratio = vision.whole("mlp_ratio", 1, 64, QWEN2_VL.vision_mlp_ratio)
    return {
        "norm": "layer",
        "mlp": "quick_gelu",
        "mlp_width": width * ratio,
        "patch_bias": False,
        "pos_grid": 0,
        "deepstack_after": (),
    }


def _qwen2_5_switches(vision: Section, depth: int) -> dict[str, Any]:
    token_px = vision.whole("patch_size", 1, 256, 14) * vision.whole("spatial_merge_size", 1, 16, 2)
    window_px = vision.whole("window_size", token_px, MAX_WIDTH, 112)
    full = vision.numbers("fullatt_block_indexes", (int,), 0, depth - 1, None)
    if full is None:
        raise vision.missing("fullatt_block_indexes")
    return {
        "norm": "rms",
        "mlp": "silu_gated",
        "mlp_width": vision.whole("intermediate_size", 1, 2**20),
        "patch_bias": False,
        "pos_grid": 0,
        "deepstack_after": (),
        "window": window_px // token_px,
        "full_attention_at": full,
    }


def _qwen3_switches(vision: Section, depth: int) -> dict[str, Any]:
    rows = vision.whole("num_position_embeddings", 1, 2**20, QWEN3_VL.position_rows)
    if math.isqrt(rows) ** 2 != rows:
        raise vision.bad("num_position_embeddings", "not the square of a side")
    after = vision.numbers("deepstack_visual_indexes", (int,), 0, depth - 1, None)
    if after is None:
        raise vision.missing("deepstack_visual_indexes")
    if list(after) != sorted(set(after)):
        raise vision.bad("deepstack_visual_indexes", "not in rising order")
    return {
        "norm": "layer",
        "mlp": "gelu_tanh",
        "mlp_width": vision.whole("intermediate_size", 1, 2**20),
        "patch_bias": True,
        "pos_grid": math.isqrt(rows),
        "deepstack_after": after,
    }


def _first_config(top: Section) -> ModelConfig:
    """Of the first Qwen-VL, whose files name everything otherwise (its configuration_qwen.py)."""
    visual = top.section("visual")
    if not visual.values:
        raise ModelFormatError(
            "config.json: model_type 'qwen' without `visual` is Qwen, which sees no pictures",
            hint=SUPPORTED,
        )
    _refuse_what_we_cannot_compute(top)
    top.section("quantization_config").one_of(
        "quant_method", ("gptq",), "and the first Qwen-VL was published in GPTQ only"
    )
    top.one_of("no_bias", (True,), "which is not supported")
    top.one_of("tie_word_embeddings", (False,), "which is not supported")
    top.one_of("scale_attn_weights", (True,), "which is not supported")
    top.one_of("rotary_pct", (1, 1.0), "which is not supported")
    hidden = top.whole("hidden_size", 1, MAX_WIDTH)
    heads = top.whole("num_attention_heads", 1, 1024)
    head_dim = top.whole("kv_channels", 2, 1024, 128)
    if head_dim % 2 or head_dim * heads != hidden:
        raise top.bad("kv_channels", f"but hidden_size {hidden} has {heads} heads")
    image_px = visual.whole("image_size", 1, 4096)
    patch_px = visual.whole("patch_size", 1, 256)
    width = visual.whole("width", 1, MAX_WIDTH)
    vision_heads = visual.whole("heads", 1, 1024)
    if image_px % (2 * patch_px):
        raise visual.bad("image_size", f"no multiple of two patches of {patch_px}")
    if width % vision_heads:
        raise visual.bad("width", f"no multiple of {vision_heads} heads")
    if visual.whole("output_dim", 1, MAX_WIDTH) != hidden or hidden % RESAMPLER_HEAD:
        raise visual.bad("output_dim", f"not hidden_size {hidden} in heads of {RESAMPLER_HEAD}")
    vocab_size = top.whole("vocab_size", 1, 2**20)
    image_start_id = visual.whole("image_start_id", 0, vocab_size - 3)
    for key in ("use_dynamic_ntk", "use_logn_attn"):
        top.one_of(key, (True,), "which is not supported")
    start = top.whole("seq_length", 2, 2**24, 2048)
    return ModelConfig(
        generation="qwen_vl",
        vision=VisionConfig(
            depth=visual.whole("layers", 1, MAX_LAYERS),
            width=width,
            heads=vision_heads,
            mlp_width=int(width * visual.real("mlp_ratio", 0.1, 64)),
            out_width=hidden,
            patch_px=patch_px,
            merge=2,
            temporal_patch=1,
            norm="layer",
            mlp="gelu",
            patch_bias=False,
            pos_grid=image_px // patch_px // 2,
            deepstack_after=(),
        ),
        decoder=DecoderConfig(
            layers=top.whole("num_hidden_layers", 1, MAX_LAYERS),
            hidden=hidden,
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            mlp_width=top.whole("intermediate_size", 2, 2**20) // 2,  # both halves of it counted
            vocab_size=vocab_size,
            norm_eps=top.real("layer_norm_epsilon", 1e-12, 1e-2, 1e-6),
            rope_theta=top.real("rotary_emb_base", 1.0, 1e12, 10_000.0),
            mrope_section=(head_dim // 2, 0, 0),
            mrope_interleaved=False,
            qkv_bias=True,
            qk_norm=False,
            tied_head=False,
            max_positions=top.whole("max_position_embeddings", start, 2**24, 8192),
            stretch_from=start,
        ),
        quantisation=_quantisation(top, top),
        image_token_id=image_start_id + 2,
        video_token_id=image_start_id + 2,  # it has no videos
        vision_start_token_id=image_start_id,
        vision_end_token_id=image_start_id + 1,
    )


def _check_shapes(config: ModelConfig) -> None:
    """Raise ConfigError where two sizes contradict each other, naming both."""
    vision, decoder = config.vision, config.decoder
    time, rows, cols = decoder.mrope_section
    total = time + rows + cols
    frequencies = decoder.head_dim // 2
    for fits, what in (
        (decoder.head_dim % 2 == 0, f"head_dim is {decoder.head_dim}, not even"),
        (
            total == frequencies,
            f"mrope_section {list(decoder.mrope_section)} sums to {total}, "
            f"half of head_dim is {frequencies}",
        ),
        (
            # every third frequency is a row's, every third a column's
            not decoder.mrope_interleaved or (3 * rows - 1 <= total and 3 * cols <= total),
            f"mrope_section {list(decoder.mrope_section)} cannot be interleaved over {total}",
        ),
        (
            decoder.heads % decoder.kv_heads == 0,
            f"{decoder.heads} num_attention_heads are no multiple of "
            f"{decoder.kv_heads} num_key_value_heads",
        ),
        (
            vision.width % (4 * vision.heads) == 0,
            f"the vision width {vision.width} is no multiple of 4 x {vision.heads} heads",
        ),
        (
            len(vision.deepstack_after) <= decoder.layers,
            f"{len(vision.deepstack_after)} deepstack levels for {decoder.layers} decoder layers",
        ),
        (
            len({config.image_token_id, config.video_token_id}) == 2,
            f"image_token_id and video_token_id are both {config.image_token_id}",
        ),
    ):
        if not fits:
            raise ConfigError(f"config.json: {what}")
