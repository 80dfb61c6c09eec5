"""A packed model on disk: every tensor as it lies in memory, so that a start is a memory map.

Such a folder holds the source's own config.json, tokenizer and so on, beside qvl.json (the kind, the
layout) and packed.safetensors. Without a model.safetensors other tools find no weights, and say so,
instead of wrong ones. Main path of reading: packed_form -> open_packed -> checkpoint.fill; of
writing: places -> header_bytes -> write_tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import nn

from qvl.errors import ModelFormatError
from qvl.kernels.linear import KINDS, LAYOUT, PackedName
from qvl.loading.checkpoint import Checkpoint, StoredTensor, problem, read_header
from qvl.loading.files import read_json, shown

MARK = "qvl.json"
WEIGHTS = "packed.safetensors"
MAX_MARK_BYTES = 2**16
ALIGN_BYTES = 64  # a cache line, and the widest load of the kernels
DTYPE_NAMES: Mapping[torch.dtype, str] = {
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
}
AGAIN = "convert the checkpoint that it was made from again: qvl models convert"


# ---- reading -----------------------------------------------------------------------------------


def packed_form(folder: Path) -> PackedName | None:
    """The kind of a packed folder, None for any other folder.

    Raises ModelFormatError when qvl.json is damaged or of a release with another layout.
    """
    if not (folder / MARK).exists():
        return None
    mark = read_json(folder, MARK, limit_bytes=MAX_MARK_BYTES, error=ModelFormatError)
    layout, kind = mark.get("layout"), mark.get("kind")
    if type(layout) is not int or layout != LAYOUT:
        raise ModelFormatError(
            f"{MARK}: packed in layout {shown(layout)}, this release of qvl reads layout {LAYOUT}",
            hint=AGAIN,
        )
    if not isinstance(kind, str) or kind not in KINDS:
        raise ModelFormatError(
            f"{MARK}: kind is {shown(kind)}, not one of {', '.join(KINDS)}", hint=AGAIN
        )
    return cast(PackedName, kind)


def open_packed(folder: Path) -> Checkpoint:
    """All tensors of a packed folder; the header is read and checked, data is not.

    Raises ModelFormatError for a malformed file.
    """
    tensors, size = read_header(folder, WEIGHTS)
    return Checkpoint(folder, tensors, {WEIGHTS: size})


def check_fits(checkpoint: Checkpoint, empty: nn.Module) -> None:
    """Raise one ModelFormatError that lists every tensor in which file and model differ."""
    found, wanted = checkpoint.tensors, places(empty)
    other = [
        f"{name} is {describe(found[name])}, not {describe(wanted[name])}"
        for name in sorted(found.keys() & wanted.keys())
        if describe(found[name]) != describe(wanted[name])
    ]
    problems = [
        *problem("missing", sorted(wanted.keys() - found.keys())),
        *problem("unexpected", sorted(found.keys() - wanted.keys())),
        *problem("of another shape or type", other),
    ]
    if problems:
        raise ModelFormatError(
            f"{WEIGHTS} does not fit config.json and {MARK}: {'; '.join(problems)}", hint=AGAIN
        )


def describe(tensor: StoredTensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


# ---- writing -----------------------------------------------------------------------------------


def mark_bytes(kind: PackedName, version: str) -> bytes:
    """What qvl.json holds; the version is for people."""
    mark = {"format": "qvl packed weights", "layout": LAYOUT, "kind": kind, "made_by": version}
    return (json.dumps(mark, indent=2) + "\n").encode()


def places(model: nn.Module) -> dict[str, StoredTensor]:
    """Where each tensor of a packed model lies in the file's data.

    In the model's order, but those of odd sizes last: the format allows no holes, and so every
    tensor begins at a multiple of ALIGN_BYTES, or of the largest power of two in its own size.
    """
    tensors = dict(chain(model.named_parameters(), model.named_buffers()))
    begin, found = 0, {}
    for name in sorted(tensors, key=lambda name: -alignment(tensors[name].nbytes)):
        tensor = tensors[name]
        end = begin + tensor.nbytes
        dtype = DTYPE_NAMES[tensor.dtype]
        found[name] = StoredTensor(name, WEIGHTS, dtype, tuple(tensor.shape), begin, end)
        begin = end
    return found


def alignment(size_bytes: int) -> int:
    """The largest power of two that divides the size, at most ALIGN_BYTES."""
    return min(ALIGN_BYTES, size_bytes & -size_bytes)


def header_bytes(placed: Mapping[str, StoredTensor], form: str = "qvl") -> bytes:
    """The safetensors header, padded so that the data behind it is aligned."""
    entries = {
        t.name: {"dtype": t.dtype, "shape": t.shape, "data_offsets": (t.begin, t.end)}
        for t in placed.values()
    }
    text = json.dumps({"__metadata__": {"format": form}, **entries}, separators=(",", ":"))
    data = text.encode()
    data += b" " * (-(8 + len(data)) % ALIGN_BYTES)
    return len(data).to_bytes(8, "little") + data


def write_tensor(file: BinaryIO, data_at: int, place: StoredTensor, tensor: torch.Tensor) -> None:
    """Put one tensor at its place; `data_at` is where the file's data begins."""
    file.seek(data_at + place.begin)
    numbers = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
    file.write(numbers.data)
