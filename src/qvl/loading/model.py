"""A model folder -> a model ready to run, with its tokenizer and its rules."""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from qvl.errors import ConfigError, InvalidParamError, ModelFormatError, OutOfMemoryError, nearest
from qvl.kernels.build import library
from qvl.kernels.linear import Bf16Embedding, Bf16Linear, PackedName, packed
from qvl.loading.checkpoint import (
    PICKLED,
    fill,
    forget_pages,
    match,
    open_checkpoint,
    refuse_pickle,
)
from qvl.loading.config import (
    GenerationDefaults,
    parse_config,
    parse_generation_defaults,
    parse_pixel_rules,
)
from qvl.loading.files import regular_file
from qvl.loading.gpu import WEIGHTS_SHARE, gpu_kind, to_gpu
from qvl.loading.machine import bf16_instructions, large_blocks_apart, memory_bytes
from qvl.models.config import ModelConfig
from qvl.models.qwen_vl import QwenVL
from qvl.processing.patches import PixelRules
from qvl.processing.tokenizer import Tokenizer
from qvl.types import DType

DTYPES: dict[DType, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
# bytes of a weight in memory; of int4 and fp8 with its scales, the head and the vision tower finer
WEIGHT_BYTES: dict[DType, float] = {"fp32": 4, "bf16": 2, "fp8": 1.2, "int8": 1, "int4": 0.75}
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")
LARGE = 10**8  # parameters
# of the free memory: what fp32 weights may take where bf16 would be slower but half the size
FP32_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class LoadedModel:
    model: QwenVL
    tokenizer: Tokenizer
    rules: PixelRules
    defaults: GenerationDefaults
    config: ModelConfig
    dtype: DType
    device: str
    parameters: int


def load_model(folder: Path, *, dtype: DType = "auto", device: str = "cpu") -> LoadedModel:
    """The model of a local folder in the hub's layout, in inference mode without gradients.

    "auto" takes the checkpoint's own dtype where the device computes in it, see choose_dtype. int8
    (CPU), int4 and fp8 (GPU) quantise while loading.
    Raises ModelFormatError, ConfigError or UnsafeCheckpointError for a folder that cannot be used,
    OutOfMemoryError before anything is read when the weights cannot fit.
    """
    place = _device(device)
    check_folder(folder)
    config = parse_config(folder)
    rules = parse_pixel_rules(folder, config)
    tokenizer = _tokenizer(folder, config)
    defaults = parse_generation_defaults(folder, config, tokenizer)
    checkpoint = open_checkpoint(folder)
    with torch.device("meta"):
        model = QwenVL(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    stored = match(checkpoint, shapes, config.generation)
    parameters = sum(p.numel() for p in model.parameters())
    chosen = choose_dtype(
        dtype,
        stored_dtype=checkpoint.main_dtype,
        parameters=parameters,
        free_bytes=room_bytes(place),
        computes_bf16=_computes_bf16(place, parameters),
    )
    finer = gpu_kind(chosen, place)
    kind = packed_kind(chosen, place)
    on_gpu = place.type == "cuda"
    as_dtype = None if kind or on_gpu else DTYPES[chosen]
    first = torch.device("cpu") if on_gpu else place
    mapped = fill(model, stored, checkpoint, dtype=as_dtype, device=first)
    if kind is not None:
        with large_blocks_apart():
            pack(model, kind, mapped)
    if on_gpu:
        room = round(WEIGHTS_SHARE * (free_bytes(place) or 0))
        main = DTYPES.get(chosen, torch.bfloat16)
        to_gpu(model, finer, main, place, room_bytes=room, mapped=mapped)
    return LoadedModel(
        model.eval(), tokenizer, rules, defaults, config, chosen, str(place), parameters
    )


def packed_kind(dtype: DType, device: torch.device) -> PackedName | None:
    """How linear layers are packed, None for plain ones: bf16 only where C kernels make it pay."""
    if device.type == "cpu" and (dtype == "int8" or dtype == "int4"):
        return dtype
    return "bf16" if dtype == "bf16" and device.type == "cpu" and library() is not None else None


def pack(model: QwenVL, kind: PackedName, mapped: Container[str]) -> None:
    """Pack every linear layer in place, one after the other; all else but the embedding to fp32.

    int4 is for the decoder's layers: the vision tower and the head, which cost little and lose
    most, take int8. The pages of parameters that are `mapped` from files are given back at once.
    """
    finer = "int8" if kind == "int4" else kind
    embedding = model.model.language_model.embed_tokens.weight
    tied = model.lm_head is None
    if tied:
        model.lm_head = packed(embedding, None, finer)
    if "model.language_model.embed_tokens.weight" in mapped:
        forget_pages(embedding)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            in_layers = name.startswith("model.language_model.")
            new = packed(module.weight, module.bias, kind if in_layers else finer)
            model.set_submodule(name, new)
            if f"{name}.weight" in mapped:
                forget_pages(module.weight)
    if tied and isinstance(model.lm_head, Bf16Linear):
        rows = Bf16Embedding(model.lm_head)
        model.set_submodule("model.language_model.embed_tokens", rows)
    for parameter in model.parameters():
        if parameter is not embedding:
            parameter.data = parameter.data.float()


def check_folder(folder: Path) -> None:
    """Raise unless `folder` is a folder whose files can be listed and looked at."""
    if os.path.isfile(folder):
        if folder.suffix in PICKLED:
            raise refuse_pickle(folder.name)
        raise ModelFormatError(
            f"{folder.name!r} is a file, not a model folder",
            hint="give the folder that holds config.json and the safetensors files",
        )
    try:
        next(folder.iterdir(), None)
        (folder / "config.json").exists()
    except OSError as err:
        raise ModelFormatError(f"the model folder {folder.name!r} cannot be read") from err


def _tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    """The folder's tokenizer, once its ids agree with config.json."""
    for name in TOKENIZER_FILES:
        if (folder / name).exists():
            regular_file(folder, name)
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size > config.decoder.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, "
            f"config.json's vocab_size is {config.decoder.vocab_size}"
        )
    for token, expected in (
        ("<|image_pad|>", config.image_token_id),
        ("<|video_pad|>", config.video_token_id),
        ("<|vision_start|>", config.vision_start_token_id),
        ("<|vision_end|>", config.vision_end_token_id),
    ):
        found = tokenizer.encode_control(token)
        if found != expected:
            raise ConfigError(f"{token} is {found} in the tokenizer, {expected} in config.json")
    return tokenizer


# ---- dtype, device, memory ---------------------------------------------------------------------


def choose_dtype(
    asked: str,
    *,
    stored_dtype: str,
    parameters: int,
    free_bytes: int | None,
    computes_bf16: bool,
) -> DType:
    """The dtype to run in; free_bytes None means unknown.

    F32 stays fp32. BF16, and F16 whose range the family's activations overflow, run in bf16 on a
    device that computes it, else in fp32 if that takes at most FP32_SHARE of the free memory.
    Raises InvalidParamError for an unknown name, OutOfMemoryError when the weights cannot fit.
    """
    chosen: DType
    if asked == "auto":
        small_enough = free_bytes is None or 4 * parameters <= FP32_SHARE * free_bytes
        wide = stored_dtype == "F32" or (not computes_bf16 and small_enough)
        chosen = "fp32" if wide else "bf16"
    elif asked in WEIGHT_BYTES:
        chosen = asked
    else:
        known = ", ".join(WEIGHT_BYTES)
        raise InvalidParamError(
            f"dtype is {asked!r}, not one of auto, {known}", hint=nearest(asked, WEIGHT_BYTES)
        )
    needed = round(parameters * WEIGHT_BYTES[chosen])
    if free_bytes is not None and needed > free_bytes:
        raise OutOfMemoryError(
            f"the weights take {needed / 2**30:.2f} GiB in {chosen}, "
            f"{free_bytes / 2**30:.2f} GiB are free",
            hint="close other programs, or take a smaller model"
            + (" or dtype int4" if chosen != "int4" else ""),
        )
    return chosen


def _device(name: str) -> torch.device:
    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in counts:
        raise InvalidParamError(
            f"device is {name!r}, not one of {', '.join(counts)}", hint=nearest(name, counts)
        )
    if (device.index or 0) >= counts[device.type]:
        raise InvalidParamError(f"device {name!r} is not available here", hint="use device cpu")
    return device


def _computes_bf16(device: torch.device, parameters: int) -> bool:
    """Whether bf16 weights are no slower than fp32 ones."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return True
    # of a large model the memory sets the pace, so half the bytes win whatever is multiplied
    return bool(bf16_instructions()) or (parameters >= LARGE and library() is not None)


def room_bytes(device: torch.device) -> int | None:
    """Memory for weights in all: what does not fit on a card stays in the host's."""
    free = free_bytes(device)
    host = free_bytes(torch.device("cpu")) if device.type == "cuda" else 0
    return None if free is None or host is None else free + host


def free_bytes(device: torch.device) -> int | None:
    """Memory that new weights can take, or None where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    memory = memory_bytes() if device.type == "cpu" else None
    return None if memory is None else memory[1]
