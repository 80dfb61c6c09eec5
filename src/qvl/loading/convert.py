"""A checkpoint -> a packed folder, layer by layer: `qvl models convert`.

Main path: convert -> write_weights (pack one layer, write it, forget it) -> copy_rest -> one rename.
The target appears whole or not at all, whatever stops the work.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

import qvl
from qvl.errors import EngineError, InvalidParamError, ModelFormatError, StorageError
from qvl.kernels.linear import PackedName
from qvl.loading.checkpoint import Checkpoint, StoredTensor, fill, forget_pages
from qvl.loading.files import regular_file
from qvl.loading.machine import large_blocks_apart
from qvl.loading.model import CPU, EMBEDDING, empty_model, open_source, pack, pack_empty, read_parts
from qvl.loading.packed import (
    AGAIN,
    MARK,
    WEIGHTS,
    header_bytes,
    mark_bytes,
    packed_form,
    places,
    write_tensor,
)
from qvl.loading.quantised import check_filled
from qvl.loading.ranks import has_ranks_alone, tokenizer_of_ranks
from qvl.models.qwen_vl import QwenVL

COPIED = ("*.json", "*.txt", "*.jinja", "README.md", "LICENSE*")  # not the index of the weights


def convert(source: Path, target: Path, kind: PackedName) -> int:
    """Write the packed folder `target` of the checkpoint in `source`; returns its weights' bytes.

    Raises what load_model raises for the source, InvalidParamError for a target that exists and is
    not an empty folder, StorageError when the disk cannot take it.
    """
    check_target(target)
    config = read_parts(source).config
    if packed_form(source) is not None:
        raise ModelFormatError(f"{source.name!r} is packed already", hint=AGAIN)
    model = empty_model(config)
    checkpoint, stored = open_source(source, model)
    wanted = empty_model(config)
    pack_empty(wanted, kind, stored[EMBEDDING].dtype)
    placed = places(wanted)
    header = header_bytes(placed)
    weights_bytes = len(header) + sum(place.size_bytes for place in placed.values())
    check_space(target, weights_bytes)
    with whole_or_nothing(target) as made:
        write_weights(made / WEIGHTS, header, placed, model, checkpoint, stored, kind)
        copy_rest(source, made)
        if has_ranks_alone(source):
            (made / "tokenizer.json").write_text(tokenizer_of_ranks(source), "utf-8")
        (made / MARK).write_bytes(mark_bytes(kind, qvl.__version__))
    return weights_bytes


@contextmanager
def whole_or_nothing(target: Path) -> Iterator[Path]:
    """An empty folder that becomes `target` when the work is done. Raises StorageError."""
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
            made = Path(scratch) / target.name
            made.mkdir()
            yield made
            os.replace(made, target)  # over an empty folder too
    except OSError as err:
        raise StorageError(
            f"{str(target)!r} cannot be written: {err.strerror or 'an output error'}",
            hint="make room, or name a folder that you may write to; nothing is left there",
        ) from err


def check_target(target: Path) -> None:
    if not target.parent.is_dir():
        raise StorageError(
            f"there is no folder {str(target.parent)!r} for the model",
            hint="make it first, or name another",
        )
    if target.is_symlink() or target.exists():
        if target.is_dir() and not target.is_symlink() and not any(target.iterdir()):
            return
        raise InvalidParamError(
            f"{str(target)!r} exists and is not an empty folder",
            hint="name a new folder, or remove that one first",
        )


def check_space(target: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(target.parent).free
    if needed_bytes > free_bytes:
        raise StorageError(
            f"the model takes {needed_bytes / 2**30:.2f} GiB, "
            f"{free_bytes / 2**30:.2f} GiB are free",
            hint="make room, or name a folder on a larger disk",
        )


def write_weights(
    path: Path,
    header: bytes,
    placed: dict[str, StoredTensor],
    model: QwenVL,
    checkpoint: Checkpoint,
    stored: dict[str, StoredTensor],
    kind: PackedName,
) -> None:
    """Map the source into `model`, pack it and write each layer as soon as it is packed."""
    left = set(placed)
    with path.open("wb") as file:
        file.write(header)

        def write(name: str, module: nn.Module) -> None:
            tensors = dict(module.named_buffers())
            for leaf, tensor in tensors.items():
                write_tensor(file, len(header), placed[f"{name}.{leaf}"], tensor)
                left.remove(f"{name}.{leaf}")
            module.to("meta")  # its memory is free for the next

        mapped = fill(model, stored, checkpoint, dtype=None, device=CPU)
        check_filled(model, kind)
        with large_blocks_apart():
            pack(model, kind, mapped, packed_one=write)
        for name, parameter in model.named_parameters():
            write_tensor(file, len(header), placed[name], parameter)
            left.remove(name)
            if name == EMBEDDING and name in mapped:
                forget_pages(parameter)
        if left:
            raise EngineError(f"{len(left)} tensors were not packed: {min(left)}")
        file.flush()
        os.fsync(file.fileno())


def copy_rest(source: Path, made: Path) -> list[str]:
    """The other files of the checkpoint, byte for byte; returns their names."""
    found = {path.name for pattern in COPIED for path in source.glob(pattern)}
    names = [n for n in sorted(found) if not n.endswith(".index.json") and (source / n).is_file()]
    for name in names:
        shutil.copyfile(regular_file(source, name), made / name)
    return names
