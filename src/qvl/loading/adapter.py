"""Low-rank adapters as PEFT 0.21 writes them: a folder of adapter_config.json and adapter_model.safetensors.

Main path: read_adapter -> _terms (the config, of which nothing is passed over) -> _tensors (checked
headers, then the file) -> _layers. `write_adapter` is the way back.
PEFT names layers as the modules of transformers were called when the adapter was made; which of ours
they are `names` knows, as it does for checkpoints.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qvl.errors import ConfigError, InvalidParamError, ModelFormatError, UnsafeCheckpointError
from qvl.loading.checkpoint import FLOATS, StoredTensor, pickles_alone, problem, read_header
from qvl.loading.convert import check_target, whole_or_nothing
from qvl.loading.files import regular_file, shown
from qvl.loading.model import check_folder, empty_model
from qvl.loading.names import parameter_name, published_layer
from qvl.loading.section import Section, json_file
from qvl.models.config import ModelConfig
from qvl.models.lora import Adapter, LowRank

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
FACTORS = ("lora_A", "lora_B", "lora_magnitude_vector")
QKV = tuple(f".self_attn.{one}_proj" for one in "qkv")
LARGEST = 65_536  # of a rank or an alpha
# what says how the adapter was trained, where it came from, or which layers it has, as its tensors do
INERT = frozenset({
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
})  # fmt: skip
READ = frozenset({
    "alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern",
    "use_dora", "use_rslora",
})  # fmt: skip
# other starts change the base's weights before the training: without that change they mean nothing
STARTS = (True, False, "gaussian", "eva", "orthogonal")
MAX_PATTERNS, MAX_PATTERN, MAX_REPEATS = 10_000, 256, 3


@dataclass(frozen=True, slots=True)
class _Terms:
    """What adapter_config.json says about the numbers."""

    rank: int
    alpha: float
    ranks: Mapping[str, float]  # by pattern
    alphas: Mapping[str, float]
    is_stabilised: bool  # rsLoRA: alpha / sqrt(r) instead of alpha / r
    has_magnitudes: bool

    def rank_of(self, layer: str) -> float:
        return _first_fit(self.ranks, layer, self.rank)

    def scale_of(self, layer: str, rank: int) -> float:
        alpha = _first_fit(self.alphas, layer, self.alpha)
        return alpha / (math.sqrt(rank) if self.is_stabilised else rank)


def read_adapter(folder: Path, config: ModelConfig, *, name: str = "") -> Adapter:
    """The adapter of a folder, for a model of that config; its name is the folder's if none is given.

    Raises ConfigError for an adapter_config.json that asks for what is not kept here, ModelFormatError
    for tensors that do not fit the model or each other, UnsafeCheckpointError for a pickle.
    """
    check_folder(folder)
    if not (folder / CONFIG_FILE).exists():
        raise ModelFormatError(
            f"{CONFIG_FILE} is missing in the adapter's folder {folder.name!r}",
            hint="give the folder that PEFT's save_pretrained has written",
        )
    terms = _terms(json_file(folder, CONFIG_FILE))
    layers = _layers(_tensors(folder), terms, config)
    return Adapter.of(name or folder.resolve().name, layers)


def adapter_facts(folder: Path) -> dict[str, object]:
    """What a folder says of its adapter, without the model that it is for. Raises as read_adapter."""
    section = json_file(folder, CONFIG_FILE)
    terms, tensors = _terms(section), _stored(folder)
    layers = {_taken_apart(name)[0] for name in tensors}
    base = section.values.get("base_model_name_or_path")
    return {
        "kind": "DoRA adapter" if terms.has_magnitudes else "LoRA adapter",
        "for": base if isinstance(base, str) else "not said",
        "rank": terms.rank,
        "alpha": terms.alpha,
        "layers": len(layers),
        "of_the_tower": sum("visual." in layer for layer in layers),
        "weights_mib": round(sum(t.size_bytes for t in tensors.values()) / 2**20, 1),
    }


# ---- adapter_config.json -----------------------------------------------------------------------


def _terms(section: Section) -> _Terms:
    section.one_of("peft_type", ("LORA",), "and only LoRA and DoRA are kept here")
    if not section.has("peft_type"):
        raise section.missing("peft_type")
    section.one_of("bias", ("none",), "and trained biases are not kept here")
    section.one_of("init_lora_weights", STARTS, "which changes the base model's own weights")
    for key, value in section.values.items():
        if key not in INERT and key not in READ and value not in (None, False, [], {}, ""):
            raise ConfigError(
                f"{section.file}: {key} is {shown(value)}, which is not kept here",
                hint="train the adapter without it, or merge it with the library that made it",
            )
    for key in ("use_rslora", "use_dora"):
        section.one_of(key, (True, False), "not true or false")
    return _Terms(
        rank=section.whole("r", 1, LARGEST, fallback=8),
        alpha=section.real("lora_alpha", -LARGEST, LARGEST, fallback=8),
        ranks=_patterns(section, "rank_pattern"),
        alphas=_patterns(section, "alpha_pattern"),
        is_stabilised=section.values.get("use_rslora") is True,
        has_magnitudes=section.values.get("use_dora") is True,
    )


def _patterns(section: Section, key: str) -> Mapping[str, float]:
    """Regular expressions for names of layers, with what holds for those.

    They come from the file, so none is taken that could need more than a moment.
    """
    patterns = section.section(key)
    if len(patterns.values) > MAX_PATTERNS:
        raise section.bad(key, f"more than {MAX_PATTERNS} patterns")
    for pattern in patterns.values:
        repeats = len(re.findall(r"[*+{?]", pattern))
        if len(pattern) > MAX_PATTERN or repeats > MAX_REPEATS or re.search(r"\)[*+{]", pattern):
            raise patterns.bad(pattern, "under a pattern that repeats too much to be tried")
        try:
            re.compile(pattern)
        except re.error as err:
            raise patterns.bad(pattern, "under what is no regular expression") from err
    return {p: patterns.real(p, -LARGEST, LARGEST) for p in patterns.values}


def _first_fit(patterns: Mapping[str, float], layer: str, otherwise: float) -> float:
    """As PEFT does: the first pattern that fits a whole name, or its end from a dot on."""
    fitting = (value for p, value in patterns.items() if re.match(rf"(.*\.)?({p})$", layer))
    return next(fitting, otherwise)


# ---- adapter_model.safetensors -----------------------------------------------------------------


def _stored(folder: Path) -> dict[str, StoredTensor]:
    """What the file's header says, checked. Raises ModelFormatError, UnsafeCheckpointError."""
    if not (folder / WEIGHTS_FILE).exists() and (pickles := pickles_alone(folder)):
        raise UnsafeCheckpointError(
            f"{pickles[0]} is a pickle, which can run code when it is read",
            hint="save the adapter again with a PEFT of 0.7 or later, which writes safetensors",
        )
    stored, _ = read_header(folder, WEIGHTS_FILE)
    for name, tensor in stored.items():
        if tensor.dtype not in FLOATS:
            raise ModelFormatError(
                f"{WEIGHTS_FILE}: {shown(name)} is {tensor.dtype}, not F32, BF16 or F16"
            )
    return stored


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the file, by its name there; copies, so that the file may go."""
    stored = _stored(folder)
    try:
        with safe_open(regular_file(folder, WEIGHTS_FILE), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name).clone() for name in stored}
    except SafetensorError as err:
        raise ModelFormatError(f"{WEIGHTS_FILE} is not a safetensors file") from err


def _layers(
    tensors: Mapping[str, Tensor], terms: _Terms, config: ModelConfig
) -> dict[str, LowRank]:
    if not tensors:
        raise ModelFormatError(f"{WEIGHTS_FILE} holds no tensor")
    factors: dict[str, dict[str, Tensor]] = {}  # by the layer's name in the file
    unknown = []
    for name, tensor in tensors.items():
        layer, factor = _taken_apart(name)
        if factor is None or factor in factors.get(layer, {}):
            unknown.append(name)
        else:
            factors.setdefault(layer, {})[factor] = tensor
    modules = dict(empty_model(config).named_modules())
    sizes = {path: module for path, module in modules.items() if isinstance(module, nn.Linear)}
    layers: dict[str, LowRank] = {}
    misshapen, twice = [], []
    for layer, found in factors.items():
        path = _our_path(layer, config.generation)
        thirds = _thirds(path, found)
        if any(one not in sizes for one in thirds):
            unknown += [f"{PREFIX}{layer}.{factor}" for factor in sorted(found)]
            continue
        for one, parts in thirds.items():
            low = _low_rank(layer, parts, terms)
            outputs, inputs = sizes[one].weight.shape
            if (len(low.b_nr), low.a_rk.shape[1]) != (outputs, inputs):
                misshapen.append(
                    f"{layer} maps {low.a_rk.shape[1]} to {len(low.b_nr)}, "
                    f"the model's layer {inputs} to {outputs}"
                )
            if one in layers:
                twice.append(layer)
            layers[one] = low
    problems = [
        *problem("of no linear layer of this model", sorted(unknown)),
        *problem("of another shape", sorted(misshapen)),
        *problem("stored under two names", sorted(twice)),
    ]
    if problems:
        raise ModelFormatError(
            f"{WEIGHTS_FILE}: the tensors do not fit the model: {'; '.join(problems)}",
            hint="take the model that the adapter was trained on; of adapted embeddings, experts or "
            "whole modules nothing is kept here",
        )
    return layers


def _taken_apart(name: str) -> tuple[str, str | None]:
    """The layer that a tensor is of, and which factor it is; None for what is none."""
    layer, _, factor = name.removesuffix(".weight").rpartition(".")
    if not name.startswith(PREFIX) or factor not in FACTORS:
        return name, None
    return layer.removeprefix(PREFIX), factor


def _our_path(layer: str, generation: str) -> str:
    return parameter_name(f"{layer}.weight", generation).removesuffix(".weight")


def _thirds(path: str, found: Mapping[str, Tensor]) -> dict[str, Mapping[str, Tensor]]:
    """Of the first Qwen-VL, whose files have q, k and v as one layer: what each of the three has."""
    head, joint, _ = path.partition(".qkv_proj")
    if not joint:
        return {path: found}
    parts = {f: [t] * 3 if f == "lora_A" else t.chunk(3) for f, t in found.items()}
    return {
        f"{head}.{one}_proj": {f: part[i] for f, part in parts.items() if i < len(part)}
        for i, one in enumerate("qkv")
    }


def _low_rank(layer: str, found: Mapping[str, Tensor], terms: _Terms) -> LowRank:
    """Raises ModelFormatError where its factors do not fit each other or the config."""

    def bad(why: str) -> ModelFormatError:
        return ModelFormatError(f"{WEIGHTS_FILE}: {PREFIX}{layer} {why}")

    a, b, magnitude = (found.get(factor) for factor in FACTORS)
    if a is None or b is None:
        raise bad(f"has no {'lora_A' if a is None else 'lora_B'}")
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not len(a):
        raise bad(f"has factors of the shapes {list(a.shape)} and {list(b.shape)}")
    rank = len(a)
    if rank != terms.rank_of(layer):
        raise bad(f"has rank {rank}, {CONFIG_FILE} says {terms.rank_of(layer):g}")
    if terms.has_magnitudes != (magnitude is not None):
        has = "no" if magnitude is None else "a"
        raise bad(f"has {has} lora_magnitude_vector, {CONFIG_FILE} says otherwise in use_dora")
    if magnitude is not None and magnitude.shape != (len(b),):
        raise bad(f"has magnitudes of the shape {list(magnitude.shape)} for {len(b)} outputs")
    if any(not t.isfinite().all() for t in found.values()):
        raise bad("has numbers that are not finite")
    return LowRank(a, b, terms.scale_of(layer, rank), magnitude)


# ---- the way back ------------------------------------------------------------------------------


def write_adapter(
    folder: Path, layers: Mapping[str, LowRank], *, generation: str, base_name: str
) -> None:
    """A folder that PEFT, vLLM and `read_adapter` load; it appears whole or not at all.

    `layers` by our paths, as in `Adapter`; `base_name` is the model that they belong to. Raises
    InvalidParamError for no layers, for magnitudes in some layers only and for a folder that is not
    empty, StorageError when the disk cannot take it.
    """
    layers = _joined(layers) if generation == "qwen_vl" else layers
    check_target(folder)
    has_magnitudes = {low.magnitude_n is not None for low in layers.values()}
    if len(has_magnitudes) != 1:
        raise InvalidParamError("an adapter has layers, and magnitudes in all of them or in none")
    named = {published_layer(path, generation): low for path, low in layers.items()}
    ranks = {layer: low.rank for layer, low in named.items()}
    alphas = {layer: _short(low.scale * low.rank) for layer, low in named.items()}
    rank, alpha = (Counter(v.values()).most_common(1)[0][0] for v in (ranks, alphas))
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _others(ranks, rank),
        "alpha_pattern": _others(alphas, alpha),
        "target_modules": sorted(named),
        "use_dora": has_magnitudes == {True},
        "use_rslora": False,
    }
    tensors: dict[str, Tensor] = {}
    for layer, low in named.items():
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = low.a_rk
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = low.b_nr
        if low.magnitude_n is not None:
            tensors[f"{PREFIX}{layer}.lora_magnitude_vector"] = low.magnitude_n
    # copies: of tensors that share memory the library writes none
    own = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()}
    with whole_or_nothing(folder) as made:
        save_file(own, made / WEIGHTS_FILE, metadata={"format": "pt"})
        (made / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _joined(layers: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Of the first Qwen-VL q, k and v as one layer: its A are all of theirs, its B is block by block.

    Raises InvalidParamError where one of the three is missing, for what stands in its place is not known.
    """
    joined = {path: low for path, low in layers.items() if not path.endswith(QKV)}
    for head in {path[: -len(QKV[0])] for path in layers if path.endswith(QKV)}:
        three = [low for end in QKV if (low := layers.get(head + end)) is not None]
        magnitudes = [low.magnitude_n for low in three if low.magnitude_n is not None]
        if len(three) < 3 or len(magnitudes) not in (0, 3):
            raise InvalidParamError(
                f"{head} has an adapter of some of q, k and v, which are one layer"
            )
        joined[f"{head}.self_attn.qkv_proj"] = LowRank(
            torch.cat([low.a_rk for low in three]),
            torch.block_diag(*(low.scale * low.b_nr for low in three)),
            1.0,
            torch.cat(magnitudes) if magnitudes else None,
        )
    return joined


def _short(alpha: float) -> float:
    """A whole number as one, which is what vLLM expects of an alpha."""
    return int(alpha) if float(alpha).is_integer() else alpha


def _others(values: Mapping[str, float], usual: float) -> dict[str, float]:
    """Patterns for the layers with another value than usual."""
    return {f"^{re.escape(layer)}": v for layer, v in values.items() if v != usual}
