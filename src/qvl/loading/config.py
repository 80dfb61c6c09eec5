"""A checkpoint's json files -> our own frozen shapes and rules.

Main path: parse_config (config.json), parse_pixel_rules (preprocessor_config.json), parse_video_rules
(video_preprocessor_config.json), parse_generation_defaults (generation_config.json). Keys that we do not read are ignored; an unknown
value of a key that we do read is a ConfigError naming file, key and value, so nothing runs under
other arithmetic than it was trained with. Sources: the published files, and what transformers 5.23
(models/qwen2_vl, models/qwen3_vl) reads from them and writes back.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from qvl.errors import ConfigError, ModelFormatError
from qvl.loading.files import read_json, shown
from qvl.models.config import (
    RESAMPLER_HEAD,
    DecoderConfig,
    Generation,
    ModelConfig,
    Quantisation,
    VisionConfig,
)
from qvl.processing.patches import PixelRules
from qvl.processing.tokenizer import Tokenizer
from qvl.processing.video import VideoRules

log = logging.getLogger(__name__)

MAX_JSON_BYTES = 2**20
MAX_LAYERS = 256
MAX_WIDTH = 2**17
MAX_IMAGE_PX = 50_000_000  # of the product; a checkpoint may only ask for less
VISION_ROPE_THETA = 10_000.0  # fixed in the vision tower
FP8_BLOCK = 128

SUPPORTED = (
    "this version runs Qwen-VL, Qwen2-VL, Qwen2.5-VL and Qwen3-VL, in safetensors of bf16, fp16, "
    "fp32, and but for the first GPTQ, AWQ or FP8"
)
QWEN3 = ("qwen3_vl", "qwen3_vl_moe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallbacks:
    """What a generation's published checkpoints say, for files that leave the key out."""

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


_QWEN2_VL = Fallbacks(
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
_QWEN3_VL = Fallbacks(
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
    "qwen2_vl": _QWEN2_VL,
    "qwen2_5_vl": replace(
        _QWEN2_VL,
        architectures=("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel"),
        vision_act="silu",
    ),
    "qwen3_vl": _QWEN3_VL,
    "qwen3_vl_moe": replace(
        _QWEN3_VL, architectures=("Qwen3VLMoeForConditionalGeneration", "Qwen3VLMoeModel")
    ),
}


@dataclass(frozen=True, slots=True)
class Section:
    """One JSON object of one file; reads are typed and ranged, null counts as absent."""

    file: str
    path: str  # "" at the top, else "vision_config." and so on
    values: Mapping[str, Any]

    def bad(self, key: str, why: str) -> ConfigError:
        return ConfigError(f"{self.file}: {self.path}{key} is {self.show(key)}, {why}")

    def missing(self, key: str) -> ConfigError:
        return ConfigError(f"{self.file}: {self.path}{key} is missing")

    def show(self, key: str) -> str:
        return shown(self.values.get(key))

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def section(self, key: str) -> Section:
        """The object under the key; an empty one when it is absent."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.bad(key, "not an object")
        return Section(self.file, f"{self.path}{key}.", value or {})

    def whole(self, key: str, low: int, high: int, fallback: int | None = None) -> int:
        return int(self._number(key, (int,), low, high, fallback))

    def real(self, key: str, low: float, high: float, fallback: float | None = None) -> float:
        return float(self._number(key, (int, float), low, high, fallback))

    def _number(
        self, key: str, kinds: tuple[type, ...], low: float, high: float, fallback: float | None
    ) -> float:
        value = self.values.get(key)
        if value is None:
            if fallback is None:
                raise self.missing(key)
            return fallback
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise self.bad(key, "not a whole number" if kinds == (int,) else "not a number")
        if not low <= value <= high:
            raise self.bad(key, f"out of range {low}..{high}")
        return value

    def numbers(
        self, key: str, kinds: tuple[type, ...], low: float, high: float, fallback: Any
    ) -> tuple[Any, ...]:
        """A list of numbers, each in the range; fallback when absent."""
        value = self.values.get(key)
        if value is None:
            return fallback
        if not isinstance(value, list):
            raise self.bad(key, "not a list")
        for item in value:
            if isinstance(item, bool) or not isinstance(item, kinds) or not low <= item <= high:
                raise self.bad(key, f"not a list of numbers in {low}..{high}")
        return tuple(value)

    def one_of(self, key: str, known: tuple[Any, ...], what: str) -> None:
        """Absent, or one of the values that we implement."""
        value = self.values.get(key)
        if value is not None and not any(type(value) is type(k) and value == k for k in known):
            raise ConfigError(
                f"{self.file}: {self.path}{key} is {self.show(key)}, {what}",
                hint=f"known here: {', '.join(str(k) for k in known)}",
            )


# ---- config.json -------------------------------------------------------------------------------


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
    return model_config(
        read_json(folder, "config.json", limit_bytes=MAX_JSON_BYTES, error=ConfigError)
    )


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
    ratio = vision.whole("mlp_ratio", 1, 64, _QWEN2_VL.vision_mlp_ratio)
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
    rows = vision.whole("num_position_embeddings", 1, 2**20, _QWEN3_VL.position_rows)
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
    quantised = top.section("quantization_config")
    if quantised.values:
        raise quantised.bad("quant_method", "and the first Qwen-VL is not supported quantised")
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


# ---- preprocessor_config.json ------------------------------------------------------------------


def parse_pixel_rules(folder: Path, config: ModelConfig) -> PixelRules:
    """How pictures become patches.

    From processor_config.json, where transformers 5 nests the rules, else preprocessor_config.json.
    Raises ConfigError for rules that we do not know or that contradict config.json.
    """
    if config.generation == "qwen_vl":
        return _square_rules(config.vision)
    part = _rules_section(folder, "image_processor", "preprocessor_config.json")
    if not part.values:
        log.warning(
            "the model folder has no preprocessor_config.json; using the family's pixel rules"
        )
    known, vision = FALLBACKS[config.generation], config.vision
    for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        part.one_of(key, (True,), "which is not supported")
    part.one_of("resample", (3,), "another filter than bicubic (3)")
    if abs(part.real("rescale_factor", 0, 1, 1 / 255) - 1 / 255) > 1e-9:
        raise part.bad("rescale_factor", f"not {1 / 255}")
    for key, expected in (
        ("patch_size", vision.patch_px),
        ("merge_size", vision.merge),
        ("temporal_patch_size", vision.temporal_patch),
    ):
        if part.whole(key, 1, 256, expected) != expected:
            raise part.bad(key, f"but the model's is {expected} (config.json)")
    rules = PixelRules(
        patch_px=vision.patch_px,
        merge=vision.merge,
        temporal_patch=vision.temporal_patch,
        min_px=_area(part, "min_pixels", "shortest_edge", known.min_px),
        max_px=_area(part, "max_pixels", "longest_edge", known.max_px),
        mean=_per_channel(part, "image_mean", -10.0, known.mean),
        std=_per_channel(part, "image_std", 1e-3, known.std),
    )
    token_px = (vision.patch_px * vision.merge) ** 2
    if not max(rules.min_px, token_px) <= rules.max_px:
        raise ConfigError(
            f"{part.file}: at most {rules.max_px} pixels a picture, but at least {rules.min_px} "
            f"and {token_px} for one visual token"
        )
    return rules


def _square_rules(vision: VisionConfig) -> PixelRules:
    """Of the first Qwen-VL, whose files do not say them."""
    side_px = vision.pos_grid * vision.merge * vision.patch_px
    return PixelRules(
        patch_px=vision.patch_px,
        merge=vision.merge,
        temporal_patch=vision.temporal_patch,
        min_px=side_px**2,
        max_px=side_px**2,
        mean=_QWEN2_VL.mean,
        std=_QWEN2_VL.std,
        square_px=side_px,
    )


def parse_video_rules(folder: Path, config: ModelConfig, pixels: PixelRules) -> VideoRules | None:
    """Which frames of videos become patches, and how large; None for the first Qwen-VL.

    Qwen3-VL's files say it, as parse_pixel_rules' do. Before, no file does: the bounds are those of
    qwen-vl-utils 0.0.14 (128 to 768 visual tokens a frame, together nine tenths of the context), for
    Qwen2-VL with the total of its own days. A video may never ask for more than that share.
    Raises ConfigError for rules that we do not know or that contradict the pictures'.
    """
    if config.generation == "qwen_vl":
        return None
    token_px = (pixels.patch_px * pixels.merge) ** 2
    share = int(0.9 * config.decoder.max_positions)
    if config.generation not in QWEN3:
        values = read_json(folder, "config.json", limit_bytes=MAX_JSON_BYTES, error=ConfigError)
        vision = Section("config.json", "", values).section("vision_config")
        is_first = config.generation == "qwen2_vl"
        return VideoRules(
            stamps=False,
            min_px=128 * token_px,
            max_px=768 * token_px,
            total_px=(min(share, 24576) if is_first else share) * token_px,
            positions_per_second=(
                None if is_first else vision.real("tokens_per_second", 0.01, 1000, 2.0)
            ),
        )
    part = _rules_section(folder, "video_processor", "video_preprocessor_config.json")
    for key, expected in (
        ("patch_size", pixels.patch_px),
        ("merge_size", pixels.merge),
        ("temporal_patch_size", pixels.temporal_patch),
    ):
        if part.whole(key, 1, 256, expected) != expected:
            raise part.bad(key, f"but the pictures' is {expected}")
    for key, low, expected in (("image_mean", -10.0, pixels.mean), ("image_std", 1e-3, pixels.std)):
        if _per_channel(part, key, low, expected) != expected:
            raise part.bad(key, f"but the pictures' is {list(expected)}")
    most_px = share * pixels.temporal_patch * token_px
    return VideoRules(
        stamps=True,
        min_px=_area(part, "min_pixels", "shortest_edge", 4096),
        max_px=min(_area(part, "max_pixels", "longest_edge", 24576 * 1024), most_px),
        fps=part.real("fps", 0.01, 1000, 2.0),
    )


def _rules_section(folder: Path, nested: str, own_file: str) -> Section:
    """The rules of one kind: nested in processor_config.json, or in a file of their own, or none."""
    for file in ("processor_config.json", own_file):
        if not (folder / file).exists():
            continue
        values = read_json(folder, file, limit_bytes=MAX_JSON_BYTES, error=ConfigError)
        if file == own_file:
            return Section(file, "", values)
        part = Section(file, "", values).section(nested)
        if part.values:
            return part
    return Section(own_file, "", {})


def _area(part: Section, legacy: str, edge: str, fallback: int) -> int:
    """Pixels of a picture; the legacy key wins, `size` holds areas despite the names in it."""
    if part.has(legacy):
        return part.whole(legacy, 1, MAX_IMAGE_PX)
    return part.section("size").whole(edge, 1, MAX_IMAGE_PX, fallback)


def _per_channel(
    part: Section, key: str, low: float, fallback: tuple[float, float, float]
) -> tuple[float, float, float]:
    values = part.numbers(key, (int, float), low, 10.0, fallback)
    if len(values) != 3:
        raise part.bad(key, "not three numbers (red, green, blue)")
    return float(values[0]), float(values[1]), float(values[2])


# ---- generation_config.json --------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """How the checkpoint's authors sample. Temperature 0 is greedy; top_k 0 and top_p 1 are off."""

    stop_ids: tuple[int, ...]
    do_sample: bool
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    presence_penalty: float = 0.0


def parse_generation_defaults(
    folder: Path, config: ModelConfig, tokenizer: Tokenizer
) -> GenerationDefaults:
    """What generation_config.json says; without it, greedy until the family's stop tokens.

    Raises ConfigError for values out of range and for stop ids outside the vocabulary.
    """
    file = "generation_config.json"
    values: dict[str, Any] = {}
    if (folder / file).exists():
        values = read_json(folder, file, limit_bytes=MAX_JSON_BYTES, error=ConfigError)
    part = Section(file, "", values)
    do_sample = part.values.get("do_sample", False)
    if not isinstance(do_sample, bool):
        raise part.bad("do_sample", "neither true nor false")
    temperature = part.real("temperature", 0.0, 100.0, 1.0)
    return GenerationDefaults(
        stop_ids=_stop_ids(part, config, tokenizer),
        do_sample=do_sample and temperature > 0,
        temperature=temperature if do_sample else 0.0,
        top_p=part.real("top_p", 1e-6, 1.0, 1.0),
        top_k=part.whole("top_k", 0, 2**20, 50),  # 50: transformers' own, when a file is silent
        repetition_penalty=part.real("repetition_penalty", 0.01, 10.0, 1.0),
    )


def _stop_ids(part: Section, config: ModelConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    key, last = "eos_token_id", config.decoder.vocab_size - 1
    is_first = config.generation == "qwen_vl"
    known = FIRST_STOPS if is_first else FALLBACKS[config.generation].stop_tokens
    own_ids = tuple(tokenizer.encode_control(token) for token in known)
    if not part.has(key):
        return own_ids
    if isinstance(part.values[key], list):
        stop_ids = part.numbers(key, (int,), 0, last, ())
    else:
        stop_ids = (part.whole(key, 0, last),)
    if not stop_ids:
        raise part.bad(key, "no stop id at all")
    # Qwen-VL's own code stops at all of them, its file names one
    return (*stop_ids, *own_ids) if is_first else stop_ids


def parse_template(folder: Path, config: ModelConfig) -> str:
    """What processing.chat calls the form of a prompt: the generation, and Qwen-VL's plain texts.

    Raises ConfigError for a chat_format that we do not know.
    """
    file = "generation_config.json"
    if config.generation != "qwen_vl" or not (folder / file).exists():
        return config.generation
    values = read_json(folder, file, limit_bytes=MAX_JSON_BYTES, error=ConfigError)
    part = Section(file, "", values)
    part.one_of("chat_format", ("raw", "chatml"), "an unknown form of prompts")
    return "qwen_vl_base" if values.get("chat_format") == "raw" else "qwen_vl"
