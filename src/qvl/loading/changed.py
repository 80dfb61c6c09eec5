"""A checkpoint with some weights changed, in the same layout, file by file."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from qvl.errors import InvalidParamError
from qvl.loading.checkpoint import INDEX_FILE, Checkpoint, StoredTensor, cut
from qvl.loading.convert import check_space, check_target, copy_rest, whole_or_nothing
from qvl.loading.files import regular_file
from qvl.loading.model import empty_model, open_source, read_parts
from qvl.loading.packed import packed_form


def write_changed(
    source: Path, target: Path, names: Collection[str], change: Callable[[str, Tensor], Tensor]
) -> int:
    """Write the checkpoint `target`: that of `source`, of which the parameters of these (our) names are
    what `change` makes of them, in the dtype that they have there; returns its weights' bytes.

    Raises what load_model raises for the source, InvalidParamError for a quantised or packed source
    and for a target that is not an empty folder, StorageError when the disk cannot take it.
    """
    check_target(target)
    config = read_parts(source).config
    if config.quantisation is not None or packed_form(source) is not None:
        raise InvalidParamError(
            f"{source.name!r} is quantised or packed, and only plain weights can be changed",
            hint="take the checkpoint that it was made from",
        )
    checkpoint, stored = open_source(source, empty_model(config))
    size_bytes = sum(checkpoint.shard_bytes.values())
    check_space(target, size_bytes)
    with whole_or_nothing(target) as made:
        for shard in checkpoint.shard_bytes:
            here = {name: stored[name] for name in names if stored[name].shard == shard}
            _write_shard(checkpoint, shard, made / shard, here, change)
        if (source / INDEX_FILE).exists():
            shutil.copyfile(regular_file(source, INDEX_FILE), made / INDEX_FILE)
        copy_rest(source, made)
    return size_bytes


@torch.no_grad()
def _write_shard(
    checkpoint: Checkpoint,
    shard: str,
    path: Path,
    here: dict[str, StoredTensor],
    change: Callable[[str, Tensor], Tensor],
) -> None:
    with safe_open(regular_file(checkpoint.folder, shard), framework="pt", device="cpu") as file:
        tensors = {n: file.get_tensor(n) for n, t in checkpoint.tensors.items() if t.shard == shard}
        for name in {tensor.name for tensor in here.values()}:
            tensors[name] = tensors[name].clone()  # until now a view of the file
        for name, tensor in here.items():
            part = cut(tensors[tensor.name], tensor.part)
            part.copy_(change(name, part))
        save_file(tensors, path, metadata={"format": "pt"})
