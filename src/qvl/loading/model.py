"""A model folder -> a model ready to run, with its tokenizer and its rules."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from qvl.errors import ConfigError, InvalidParamError, ModelFormatError, OutOfMemoryError, nearest
from qvl.kernels.attention import attend_whole
from qvl.kernels.build import library
from qvl.kernels.linear import Bf16Embedding, Bf16Linear, PackedLinear, PackedName, packed
from qvl.kernels.parts import (
    PackedLayer,
    PackedMLP,
    RowNorm,
    compiled_act,
    layers_at_once,
    rotate_in_place,
)
from qvl.loading.checkpoint import (
    FLOATS,
    PICKLED,
    Checkpoint,
    StoredTensor,
    fill,
    forget_module,
    forget_pages,
    match,
    open_checkpoint,
    pickles_alone,
    refuse_pickle,
)
from qvl.loading.config import parse_config
from qvl.loading.files import regular_file
from qvl.loading.generation import GenerationDefaults, parse_generation_defaults, parse_template
from qvl.loading.gpu import WEIGHTS_SHARE, gpu_kind, to_gpu
from qvl.loading.machine import bf16_instructions, large_blocks_apart, memory_bytes
from qvl.loading.offload import tensors
from qvl.loading.packed import check_fits, open_packed, packed_form
from qvl.loading.quantised import check_filled, dequantise, exact_dtypes, make_places, own_dtypes
from qvl.loading.ranks import has_ranks_alone, tokenizer_of_ranks
from qvl.loading.rules import parse_pixel_rules, parse_video_rules
from qvl.loading.template import opens_reasoning
from qvl.models.config import ModelConfig
from qvl.models.decoder import DecoderLayer
from qvl.models.norm import RMSNorm
from qvl.models.qwen_vl import QwenVL
from qvl.models.vision import GatedMLP, TwoLinearMLP, VisionAttention
from qvl.processing.chat import vision_marks
from qvl.processing.patches import PixelRules
from qvl.processing.tokenizer import Tokenizer
from qvl.processing.video import VideoRules
from qvl.types import DType

CPU = torch.device("cpu")
DTYPES: dict[DType, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
# bytes of a weight in memory; of int4 and fp8 with its scales, the head and the vision tower finer
WEIGHT_BYTES: dict[DType, float] = {"fp32": 4, "bf16": 2, "fp8": 1.2, "int8": 1, "int4": 0.75}
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")
EMBEDDING = "model.language_model.embed_tokens.weight"
LARGE = 10**8  # parameters
# of the free memory: what fp32 weights may take where bf16 would be slower but half the size
FP32_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class LoadedModel:
    model: QwenVL
    tokenizer: Tokenizer
    rules: PixelRules
    video_rules: VideoRules | None
    defaults: GenerationDefaults
    template: str  # what processing.chat calls the form of a prompt
    config: ModelConfig
    dtype: DType
    device: str
    parameters: int
    thinks: bool  # a Thinking edition: it reasons before it answers


def load_model(folder: Path, *, dtype: DType = "auto", device: str = "cpu") -> LoadedModel:
    """The model of a local folder in the hub's layout, in inference mode without gradients.

    "auto" takes the checkpoint's own dtype where the device computes in it, see choose_dtype. int8
    (CPU), int4 and fp8 (GPU) quantise while loading. A folder that `qvl models convert` has packed
    is mapped as it is, in its own kind.
    Raises ModelFormatError, ConfigError or UnsafeCheckpointError for a folder that cannot be used,
    OutOfMemoryError before anything is read when the weights cannot fit.
    """
    place = _device(device)
    parts = read_parts(folder)
    model = empty_model(parts.config)
    parameters = sum(p.numel() for p in model.parameters())
    kind = packed_form(folder)
    if kind is None:
        chosen = _read_weights(model, folder, dtype, place, parameters)
    else:
        _map_packed(model, folder, kind, dtype, place)
        chosen = kind
    return LoadedModel(
        model=model.eval(),
        tokenizer=parts.tokenizer,
        rules=parts.rules,
        video_rules=parts.video_rules,
        defaults=parts.defaults,
        template=parts.template,
        config=parts.config,
        dtype=chosen,
        device=str(place),
        parameters=parameters,
        thinks=opens_reasoning(folder),
    )


@dataclass(frozen=True, slots=True)
class Parts:
    """All of a model folder but the weights."""

    config: ModelConfig
    rules: PixelRules
    video_rules: VideoRules | None
    tokenizer: Tokenizer
    defaults: GenerationDefaults
    template: str


def read_parts(folder: Path) -> Parts:
    """Raises ModelFormatError, ConfigError or UnsafeCheckpointError."""
    check_folder(folder)
    if pickles := pickles_alone(folder):
        raise refuse_pickle(pickles[0])
    config = parse_config(folder)
    rules = parse_pixel_rules(folder, config)
    tokenizer = _tokenizer(folder, config)
    defaults = parse_generation_defaults(folder, config, tokenizer)
    template = parse_template(folder, config)
    videos = parse_video_rules(folder, config, rules)
    return Parts(config, rules, videos, tokenizer, defaults, template)


class _NoStart(TorchFunctionMode):
    """Leaves torch's own start values out: on the meta device they cost seconds of imports."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def empty_model(config: ModelConfig) -> QwenVL:
    """The model on the meta device: names and shapes, no numbers."""
    with torch.device("meta"), _NoStart():
        return QwenVL(config)


def pack_empty(model: QwenVL, kind: PackedName, embedding: str) -> None:
    """Pack a model on the meta device; `embedding` is the stored dtype of its table."""
    table = model.model.language_model.embed_tokens
    table.weight.data = table.weight.data.to(FLOATS.get(embedding, torch.float32))
    pack(model, kind, ())


def open_source(folder: Path, model: QwenVL) -> tuple[Checkpoint, dict[str, StoredTensor]]:
    """A checkpoint as published, and which of its tensors becomes which tensor of the model.

    Where it is quantised, the model's layers are made places for what it stores.
    """
    checkpoint = open_checkpoint(folder)
    make_places(model, checkpoint)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors(model).items()}
    return checkpoint, match(checkpoint, shapes, model.config.generation, exact_dtypes(model))


def _read_weights(
    model: QwenVL, folder: Path, dtype: DType, place: torch.device, parameters: int
) -> DType:
    """Fill the empty model from a checkpoint as published, packed if the dtype asks for it."""
    checkpoint, stored = open_source(folder, model)
    chosen = choose_dtype(
        dtype,
        stored_dtype=checkpoint.main_dtype,
        parameters=parameters,
        free_bytes=room_bytes(place),
        computes_bf16=_computes_bf16(place, parameters),
        own=own_dtypes(model, place),
    )
    finer = gpu_kind(chosen, place)
    kind = packed_kind(chosen, place)
    on_gpu = place.type == "cuda"
    quantised = model.config.quantisation is not None
    as_dtype = None if kind or on_gpu or quantised else DTYPES[chosen]
    first = CPU if on_gpu or quantised else place
    mapped = fill(model, stored, checkpoint, dtype=as_dtype, device=first)
    check_filled(model, chosen)
    if quantised and kind is None and not on_gpu:
        dequantise(model, DTYPES[chosen], mapped)
        model.to(place)
    if kind is not None:
        with large_blocks_apart():
            pack(model, kind, mapped)
    if on_gpu:
        room = round(WEIGHTS_SHARE * (free_bytes(place) or 0))
        main = DTYPES.get(chosen, torch.bfloat16)
        to_gpu(model, finer, main, place, room_bytes=room, mapped=mapped)
    return chosen


def _map_packed(
    model: QwenVL, folder: Path, kind: PackedName, dtype: str, place: torch.device
) -> None:
    """Fill the empty model from a packed folder; its tensors are views of the mapped file."""
    if dtype not in ("auto", kind):
        raise InvalidParamError(
            f"dtype is {dtype!r}, and the model folder {folder.name!r} is packed as {kind}",
            hint="leave the dtype out, or take the checkpoint that it was made from",
        )
    if place.type != "cpu":
        raise InvalidParamError(
            f"the model folder {folder.name!r} is packed as {kind}, which runs on a CPU only",
            hint="use device cpu, or the checkpoint that it was made from",
        )
    checkpoint = open_packed(folder)
    table = checkpoint.tensors.get(EMBEDDING)
    pack_empty(model, kind, "F32" if table is None else table.dtype)
    check_fits(checkpoint, model)
    check_room(sum(checkpoint.shard_bytes.values()), kind, free_bytes(place))
    fill(model, checkpoint.tensors, checkpoint, dtype=None, device=place)


def packed_kind(dtype: DType, device: torch.device) -> PackedName | None:
    """How linear layers are packed, None for plain ones: bf16 only where C kernels make it pay."""
    if device.type == "cpu" and (dtype == "int8" or dtype == "int4"):
        return dtype
    return "bf16" if dtype == "bf16" and device.type == "cpu" and library() is not None else None


def pack(
    model: QwenVL,
    kind: PackedName,
    mapped: Container[str],
    *,
    packed_one: Callable[[str, nn.Module], None] | None = None,
) -> None:
    """Pack every linear layer in place, one after the other; all else but the embedding to fp32.

    int4 is for the decoder's layers: the vision tower and the head, which cost little and lose
    most, take int8. The pages of parameters that are `mapped` from files are given back at once.
    `packed_one` is called with each layer, and its name, as soon as it is packed.
    """
    finer = "int8" if kind == "int4" else kind
    language = model.model.language_model
    embedding = language.embed_tokens.weight
    tied = model.lm_head is None
    if tied:
        model.lm_head = packed(embedding, None, finer)
        if packed_one is not None:
            packed_one("lm_head", model.lm_head)
    if EMBEDDING in mapped:
        forget_pages(embedding)

    def replace(name: str, new: nn.Module) -> None:
        forget_module(model.get_submodule(name), name, mapped)
        model.set_submodule(name, new)
        for tail, part in new.named_modules(prefix=name):
            if packed_one is not None and isinstance(part, PackedLinear):
                packed_one(tail, part)

    language.through = layers_at_once
    pack_layers(model, kind, replace)
    if tied and isinstance(model.lm_head, Bf16Linear):
        rows = Bf16Embedding(model.lm_head)
        model.set_submodule("model.language_model.embed_tokens", rows)
    for parameter in model.parameters():
        if parameter is not embedding:
            parameter.data = parameter.data.float()


def pack_layers(
    part: nn.Module, kind: PackedName, replace: Callable[[str, nn.Module], None]
) -> None:
    """Pack the linear layers of a model or of a part of it, with what lies between them; `replace` puts
    each new module in the old one's place.
    """
    finer = "int8" if kind == "int4" else kind
    for name, module in list(part.named_modules()):
        if isinstance(module, DecoderLayer):
            replace(name, PackedLayer(module, kind))
        elif isinstance(module, GatedMLP):
            replace(name, PackedMLP(module, finer))
    for name, module in list(part.named_modules()):
        if isinstance(module, nn.Linear):
            replace(name, packed(module.weight, module.bias, finer))
        elif isinstance(module, RMSNorm):
            replace(name, RowNorm(module))
        elif isinstance(module, TwoLinearMLP):
            module.act = compiled_act(module.act)
        elif isinstance(module, VisionAttention):
            module.rotate, module.attend = rotate_in_place, attend_whole


def pack_tower(tower: nn.Module) -> None:
    """Pack a tower in place, bf16; what it computes of a picture depends on no other."""
    pack_layers(tower, "bf16", tower.set_submodule)
    for parameter in tower.parameters():
        parameter.data = parameter.data.float()


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    path: Path
    name: str  # the hub id, or the folder as it was given
    revision: str | None  # the commit; None for a local folder


def local_folder(name: str, revision: str | None) -> CheckpointFolder | None:
    """The folder or file of that name on this machine; None where there is none.

    Raises as check_folder does, InvalidParamError for a revision.
    """
    local = os.path.expanduser(name)
    if not local or not os.path.exists(local):  # unlike Path's, false for names no disk can hold
        return None
    check_folder(Path(local))
    if revision is not None:
        raise InvalidParamError(
            f"{name!r} is a local folder, which has no revision {revision!r}",
            hint="leave the revision out",
        )
    return CheckpointFolder(Path(local), name, None)


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
    if has_ranks_alone(folder):
        tokenizer = Tokenizer.from_json(tokenizer_of_ranks(folder))
    else:
        tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size > config.decoder.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, "
            f"config.json's vocab_size is {config.decoder.vocab_size}"
        )
    start, pad, end = vision_marks(config.generation)
    expected_ids = {
        pad: config.image_token_id,
        start: config.vision_start_token_id,
        end: config.vision_end_token_id,
    }
    if config.generation != "qwen_vl":
        expected_ids["<|video_pad|>"] = config.video_token_id
    for token, expected in expected_ids.items():
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
    own: Sequence[DType] = (),
) -> DType:
    """The dtype to run in; free_bytes None means unknown.

    "auto" takes the first of a quantised checkpoint's `own` dtypes that fits. Of all others F32
    stays fp32; BF16, and F16 whose range the family's activations overflow, run in bf16 on a device
    that computes it, else in fp32 if that takes at most FP32_SHARE of the free memory.
    Raises InvalidParamError for an unknown name, OutOfMemoryError when the weights cannot fit.
    """

    def needed(kind: DType) -> int:
        return round(parameters * WEIGHT_BYTES[kind])

    chosen: DType
    if asked == "auto":
        small_enough = free_bytes is None or 4 * parameters <= FP32_SHARE * free_bytes
        wide = stored_dtype == "F32" or (not computes_bf16 and small_enough)
        chosen = "fp32" if wide else "bf16"
        fitting = (kind for kind in own if free_bytes is None or needed(kind) <= free_bytes)
        chosen = next(fitting, own[-1] if own else chosen)
    elif asked in WEIGHT_BYTES:
        chosen = asked
    else:
        known = ", ".join(WEIGHT_BYTES)
        raise InvalidParamError(
            f"dtype is {asked!r}, not one of auto, {known}", hint=nearest(asked, WEIGHT_BYTES)
        )
    check_room(needed(chosen), chosen, free_bytes)
    return chosen


def check_room(needed: int, chosen: DType, free_bytes: int | None) -> None:
    """Raise OutOfMemoryError for weights of more bytes than are free; None means unknown."""
    if free_bytes is not None and needed > free_bytes:
        raise OutOfMemoryError(
            f"the weights take {needed / 2**30:.2f} GiB in {chosen}, "
            f"{free_bytes / 2**30:.2f} GiB are free",
            hint="close other programs, or take a smaller model"
            + (" or dtype int4" if chosen != "int4" else ""),
        )


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
