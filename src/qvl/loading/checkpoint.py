"""Safetensors files, checked by our own eyes first, then mapped straight into a model's parameters.

Main path: open_checkpoint (all headers) -> match (tensor names and shapes against the model's) ->
fill (memory-mapped views, converted tensor by tensor only when dtype or device differ).
The format is huggingface/safetensors:README.md: eight bytes of header size, a JSON header, data.
The checks come first because the library takes duplicate names and huge headers, and because a file
shorter than its header says would kill the process with SIGBUS once it is mapped.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from qvl.errors import ModelFormatError, UnsafeCheckpointError
from qvl.loading.files import parse_json, read_json, regular_file, shown
from qvl.loading.names import parameter_name

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 100_000
MAX_RANK = 8
LISTED = 10  # names of each kind in one message

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

ITEM_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
OUTPUTS_LAST = ("qweight", "qzeros", "scales")  # of GPTQ; everything else has them first
FLOATS: Mapping[str, torch.dtype] = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}


@dataclass(frozen=True, slots=True)
class ExpertPart:
    """What one expert has of a tensor that holds those of all: [experts, ...]."""

    expert: int
    transposed: bool  # stored as [experts, inputs, outputs]
    half: int | None = None  # the first or second half of the outputs: gate and up


@dataclass(frozen=True, slots=True)
class Third:
    """The outputs of q, k or v in a tensor that holds those of all three, one after the other."""

    index: int
    axis: int = 0  # that of the outputs


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as a header describes it; begin and end are bytes from the start of the data."""

    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    part: ExpertPart | Third | None = None  # None: all of it

    @property
    def size_bytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Checkpoint:
    folder: Path
    tensors: Mapping[str, StoredTensor]  # by the name that the file gives it
    shard_bytes: Mapping[str, int]  # size of each file when it was checked

    @property
    def main_dtype(self) -> str:
        """The floating dtype that holds most of the bytes, BF16 when there is none."""
        held: Counter[str] = Counter()
        for tensor in self.tensors.values():
            if tensor.dtype in FLOATS:
                held[tensor.dtype] += tensor.size_bytes
        return held.most_common(1)[0][0] if held else "BF16"


def open_checkpoint(folder: Path) -> Checkpoint:
    """All tensors of the folder's safetensors files; headers are read and checked, data is not.

    Raises ModelFormatError for malformed files, UnsafeCheckpointError for pickles and for names
    that leave the folder.
    """
    shards: Mapping[str, set[str] | None]  # each file with the tensors that the index lists for it
    if (folder / SINGLE_FILE).is_symlink() or (folder / SINGLE_FILE).exists():
        shards = {SINGLE_FILE: None}
    elif (folder / INDEX_FILE).exists():
        shards = _read_index(folder)
    else:
        raise _no_weights(folder)
    tensors: dict[str, StoredTensor] = {}
    shard_bytes: dict[str, int] = {}
    for shard, listed in shards.items():
        found, shard_bytes[shard] = read_header(folder, shard)
        if listed is not None:
            _check_against_index(shard, listed, found.keys())
        tensors |= found  # the index gives each name to one shard, so none is overwritten
    return Checkpoint(folder, tensors, shard_bytes)


def refuse_pickle(name: str) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f"{name} is a pickle, which can run code when it is read",
        hint="of Qwen-VL, the first, `qvl models convert FOLDER TARGET` makes safetensors; of "
        "another model take its newer revision, or a copy that somebody you trust has converted",
    )


def pickles_alone(folder: Path) -> list[str]:
    """The names of the pickled files of a folder that has no safetensors."""
    names = sorted(path.name for path in folder.glob("*"))  # none, if it cannot be read
    if any(name.endswith(".safetensors") for name in names):
        return []
    return [name for name in names if name.endswith(PICKLED)]


def _no_weights(folder: Path) -> ModelFormatError | UnsafeCheckpointError:
    if pickles := pickles_alone(folder):
        return refuse_pickle(pickles[0])
    return ModelFormatError(
        f"no {SINGLE_FILE} and no {INDEX_FILE} in the model folder {folder.name!r}",
        hint="download the checkpoint again, in full",
    )


def _read_index(folder: Path) -> dict[str, set[str]]:
    """The shard files that the index names, each with its tensors."""
    index = read_json(folder, INDEX_FILE, limit_bytes=MAX_HEADER_BYTES, error=ModelFormatError)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFormatError(f"{INDEX_FILE} has no weight_map")
    shards: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.isprintable():
            raise ModelFormatError(f"{INDEX_FILE}: {shown(tensor)} is in {shown(shard)}, no file")
        if "/" in shard or "\\" in shard or shard in ("", ".", ".."):
            raise UnsafeCheckpointError(
                f"{INDEX_FILE}: the path {shown(shard)} leaves the model folder",
                hint="do not use this checkpoint",
            )
        if shard.endswith(PICKLED):
            raise refuse_pickle(shard)
        if not shard.endswith(".safetensors"):
            raise ModelFormatError(f"{INDEX_FILE}: {shown(shard)} is no safetensors file")
        shards.setdefault(shard, set()).add(tensor)
    return shards


def _check_against_index(shard: str, listed: set[str], found: Set[str]) -> None:
    problems = [
        *problem("listed but not in the file", sorted(listed - found)),
        *problem("in the file but not listed", sorted(found - listed)),
    ]
    if problems:
        raise ModelFormatError(
            f"{INDEX_FILE} and {shard} disagree: {'; '.join(problems)}",
            hint="download the checkpoint again, in full",
        )


def problem(what: str, items: Sequence[str]) -> list[str]:
    """ "3 what: a, b, c", the first of them only, or nothing."""
    if not items:
        return []
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return [f"{len(items)} {what}: {', '.join(shown(i) for i in items[:LISTED])}{more}"]


# ---- headers -----------------------------------------------------------------------------------


def read_header(folder: Path, shard: str) -> tuple[dict[str, StoredTensor], int]:
    """The tensors of one file, and its size in bytes; every byte of the data belongs to one tensor.

    Raises ModelFormatError naming the file.
    """
    path = regular_file(folder, shard)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = _header_bytes(file.read(8), size, shard)
            data = file.read(header)
    except OSError as err:
        raise ModelFormatError(f"{shard} cannot be read") from err
    values = parse_json(data, f"the header of {shard}", error=ModelFormatError)
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ModelFormatError(f"{shard}: invalid header, its __metadata__ is not text")
    if len(values) > MAX_TENSORS:
        raise ModelFormatError(f"{shard} has {len(values)} tensors, limit {MAX_TENSORS}")
    tensors = {name: _stored_tensor(name, shard, entry) for name, entry in values.items()}
    _check_layout(shard, tensors.values(), size - 8 - header)
    return tensors, size


def _header_bytes(start: bytes, size: int, shard: str) -> int:
    if size < 8:
        raise ModelFormatError(f"{shard}: header too small, the file has {size} of its 8 bytes")
    header = int.from_bytes(start, "little")
    if header < 2:
        raise ModelFormatError(f"{shard}: invalid header of {header} bytes")
    if header > MAX_HEADER_BYTES:
        raise ModelFormatError(
            f"{shard}: header too large, {header} bytes, limit {MAX_HEADER_BYTES}"
        )
    if header > size - 8:
        raise ModelFormatError(
            f"{shard} is truncated: {size} bytes, its header alone ends at {header + 8}",
            hint="download the checkpoint again",
        )
    return header


def _stored_tensor(name: str, shard: str, entry: Any) -> StoredTensor:
    def bad(why: str) -> ModelFormatError:
        return ModelFormatError(f"{shard}: tensor {shown(name)} {why}")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise bad("is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise bad(f"has the unknown dtype {shown(dtype)}")
    if not _are_sizes(shape) or len(shape) > MAX_RANK:
        raise bad(f"has the impossible shape {shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise bad(f"has the impossible data_offsets {shown(offsets)}")
    needed, held = math.prod(shape) * ITEM_BYTES[dtype], offsets[1] - offsets[0]
    if needed >= 2**63:
        raise bad(f"of shape {shown(shape)} would overflow the largest size")
    if needed != held:
        raise bad(f"of shape {shown(shape)} in {dtype} needs {needed} bytes, it has {held}")
    return StoredTensor(name, shard, dtype, tuple(shape), offsets[0], offsets[1])


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _check_layout(shard: str, tensors: Iterable[StoredTensor], data_bytes: int) -> None:
    """Raise unless the tensors lie one after another and fill the data exactly."""
    reached = 0
    for tensor in sorted(tensors, key=lambda t: (t.begin, t.end)):
        if tensor.begin != reached:
            kind = "overlap with another" if tensor.begin < reached else "leave a hole"
            raise ModelFormatError(
                f"{shard}: the bytes of {shown(tensor.name)} {kind}: they begin at "
                f"{tensor.begin}, the ones before end at {reached}"
            )
        reached = tensor.end
    if reached != data_bytes:
        raise ModelFormatError(
            f"{shard} holds {data_bytes} bytes of data, its header describes {reached}",
            hint="the file is cut or damaged: download it again",
        )


# ---- into the model ----------------------------------------------------------------------------


def match(
    checkpoint: Checkpoint,
    wanted: Mapping[str, tuple[int, ...]],
    generation: str,
    exact: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, StoredTensor]:
    """Which stored tensor becomes which parameter; `wanted` gives every parameter's shape.

    `exact` gives the dtype of those that are not to be floats of any kind. A head stored beside a
    tied embedding is ignored; a tensor of all experts goes to each of them. Raises one
    ModelFormatError that lists all that is missing, unexpected, of another shape or of another dtype.
    """
    found: dict[str, StoredTensor] = {}
    twice, unexpected, misshapen, other = [], [], [], []

    def fits(name: str, dtype: str) -> bool:
        return dtype == exact[name] if name in exact else dtype in FLOATS

    for stored in checkpoint.tensors.values():
        name = parameter_name(stored.name, generation)
        parts = expert_parts(name, stored, wanted) or thirds_of(name, stored, wanted)
        new = parts and not (found.keys() & parts.keys())
        if new and fits(next(iter(parts)), stored.dtype):
            found |= parts
            continue
        if name == "lm_head.weight" and name not in wanted:
            continue
        if name not in wanted:
            unexpected.append(stored.name)
        elif name in found:
            twice.append(stored.name)
        elif not fits(name, stored.dtype):
            right = exact.get(name, "F32, BF16 or F16")
            other.append(f"{stored.name} is {stored.dtype}, not {right}")
        elif stored.shape != wanted[name]:
            misshapen.append(
                f"{stored.name} is {list(stored.shape)}, config.json asks for {list(wanted[name])}"
            )
        found.setdefault(name, stored)
    problems = [
        *problem("missing", sorted(wanted.keys() - found.keys())),
        *problem("unexpected", sorted(unexpected)),
        *problem("stored twice", sorted(twice)),
        *problem("of another shape", sorted(misshapen)),
        *problem("of another dtype", sorted(other)),
    ]
    if problems:
        raise ModelFormatError(
            f"the tensors do not fit config.json: {'; '.join(problems)}",
            hint="the weights and config.json are of different models, or quantised in another way "
            "than its quantization_config says",
        )
    return found


def expert_parts(
    name: str, stored: StoredTensor, wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, StoredTensor]:
    """The parameters of single experts that lie in a fused tensor, none if it is none or does not fit.

    The hub's files have [experts, inputs, outputs], those that transformers 5 saves [experts,
    outputs, inputs]; gate_up_proj has both projections' outputs, gate first. The scales of FP8 lie
    as their weights do. Raises ModelFormatError where the shape does not tell which.
    """
    prefix, _, leaf = name.rpartition(".")
    tail = "weight_scale_inv" if leaf.endswith("_scale_inv") else "weight"
    leaf = leaf.removesuffix("_scale_inv")
    names = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(leaf)
    if names is None or not prefix.endswith(".experts") or len(stored.shape) != 3:
        return {}
    experts, *matrix = stored.shape
    one = wanted.get(f"{prefix}.0.{names[0]}.{tail}")
    if one is None or f"{prefix}.{experts - 1}.{names[0]}.{tail}" not in wanted:
        return {}
    outputs_inputs = [one[0] * len(names), one[1]]
    if matrix not in (outputs_inputs, outputs_inputs[::-1]):
        return {}
    if outputs_inputs == outputs_inputs[::-1]:
        raise ModelFormatError(
            f"{stored.name} is {list(stored.shape)}: nothing tells inputs from outputs",
            hint="store the experts one by one, as mlp.experts.0.gate_proj.weight and so on",
        )
    transposed = matrix != outputs_inputs
    return {
        f"{prefix}.{expert}.{part}.{tail}": replace(
            stored, part=ExpertPart(expert, transposed, half if len(names) > 1 else None)
        )
        for expert in range(experts)
        for half, part in enumerate(names)
    }


def thirds_of(
    name: str, stored: StoredTensor, wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, StoredTensor]:
    """The parameters of q, k and v that lie in a fused projection, none if it is none or does not fit.

    GPTQ's integers and scales have the outputs last, and one g_idx, of the inputs, is for all three.
    """
    head, _, leaf = name.partition(".qkv_proj.")
    if not leaf:
        return {}
    names = [f"{head}.{one}_proj.{leaf}" for one in "qkv"]
    shape, axis = list(stored.shape), 1 if leaf in OUTPUTS_LAST else 0
    if leaf != "g_idx":
        if len(shape) <= axis or shape[axis] % 3:
            return {}
        shape[axis] //= 3
    if any(wanted.get(one) != tuple(shape) for one in names):
        return {}
    if leaf == "g_idx":
        return dict.fromkeys(names, stored)
    return {one: replace(stored, part=Third(index, axis)) for index, one in enumerate(names)}


def cut(whole: torch.Tensor, part: ExpertPart | Third | None) -> torch.Tensor:
    """A view of the part that is meant."""
    if part is None:
        return whole
    if isinstance(part, Third):
        return whole.chunk(3, dim=part.axis)[part.index]
    matrix = whole[part.expert].T if part.transposed else whole[part.expert]
    return matrix if part.half is None else matrix.chunk(2)[part.half]


def fill(
    model: nn.Module,
    stored: Mapping[str, StoredTensor],
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None,
    device: torch.device,
) -> frozenset[str]:
    """Replace every tensor of the model (built on the meta device) by the stored one of its name.

    dtype None keeps each as it is stored. Returns the names of those that are views of mapped files.
    On the CPU, in the stored dtype, these are views of the mapped file: nothing is copied.
    Raises ModelFormatError when a file has changed since its header was read.
    """
    state: dict[str, torch.Tensor] = {}
    mapped: set[str] = set()
    for shard, size in checkpoint.shard_bytes.items():
        path = regular_file(checkpoint.folder, shard)
        if path.stat().st_size != size:
            raise ModelFormatError(f"{shard} changed while it was being read")
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name, tensor in stored.items():
                    if tensor.shard == shard:
                        view = cut(file.get_tensor(tensor.name), tensor.part)
                        state[name] = _aligned(view).to(device=device, dtype=dtype)
                        if state[name].data_ptr() == view.data_ptr():
                            mapped.add(name)
        except SafetensorError as err:
            raise ModelFormatError(f"{shard} is not a safetensors file") from err
    model.requires_grad_(False)
    model.load_state_dict(state, strict=True, assign=True)
    return frozenset(mapped)


def forget_module(module: nn.Module, name: str, mapped: Container[str]) -> None:
    """forget_pages of all tensors of the module of that name that are among the mapped ones."""
    for tail, tensor in chain(module.named_parameters(), module.named_buffers()):
        if f"{name}.{tail}" in mapped:
            forget_pages(tensor)


def forget_pages(mapped: torch.Tensor) -> None:
    """Take the pages of a view of a mapped file out of this process's memory, where the system can.

    They stay in the system's cache of files, and come back when they are read again.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    reach = sum((n - 1) * apart for n, apart in zip(mapped.shape, mapped.stride(), strict=True)) + 1
    begin, end = mapped.data_ptr(), mapped.data_ptr() + reach * mapped.element_size()
    first, last = -(-begin // mmap.PAGESIZE), end // mmap.PAGESIZE  # whole pages only
    if last > first:
        address, size = first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied when its file puts it at an address that kernels may not load from."""
    return tensor if tensor.data_ptr() % tensor.element_size() == 0 else tensor.clone()
