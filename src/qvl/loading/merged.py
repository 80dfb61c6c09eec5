"""A checkpoint with an adapter merged into it, in the same layout, tensor by tensor: `qvl models convert`."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from qvl.errors import InvalidParamError
from qvl.loading.adapter import read_adapter
from qvl.loading.checkpoint import INDEX_FILE, Checkpoint, StoredTensor, cut
from qvl.loading.convert import check_space, check_target, copy_rest, whole_or_nothing
from qvl.loading.files import regular_file
from qvl.loading.model import empty_model, open_source, read_parts
from qvl.loading.packed import packed_form
from qvl.models.lora import Adapter


def convert_merged(source: Path, target: Path, adapter_folder: Path) -> int:
    """Write the checkpoint `target`: that of `source`, its weights in the dtype that they have there,
    with the adapter in them; returns its weights' bytes.

    Raises what load_model raises for the source and read_adapter for the adapter, InvalidParamError
    for a quantised or packed source and for a target that is not an empty folder, StorageError when
    the disk cannot take it.
    """
    check_target(target)
    config = read_parts(source).config
    if config.quantisation is not None or packed_form(source) is not None:
        raise InvalidParamError(
            f"{source.name!r} is quantised or packed, and adapters are merged into plain weights only",
            hint="take the checkpoint that it was made from",
        )
    checkpoint, stored = open_source(source, empty_model(config))
    adapter = read_adapter(adapter_folder, config)
    size_bytes = sum(checkpoint.shard_bytes.values())
    check_space(target, size_bytes)
    with whole_or_nothing(target) as made:
        for shard in checkpoint.shard_bytes:
            _write_shard(checkpoint, shard, made / shard, stored, adapter)
        if (source / INDEX_FILE).exists():
            shutil.copyfile(regular_file(source, INDEX_FILE), made / INDEX_FILE)
        copy_rest(source, made)
    return size_bytes


@torch.no_grad()
def _write_shard(
    checkpoint: Checkpoint,
    shard: str,
    into: Path,
    stored: dict[str, StoredTensor],
    adapter: Adapter,
) -> None:
    with safe_open(regular_file(checkpoint.folder, shard), framework="pt", device="cpu") as file:
        tensors = {n: file.get_tensor(n) for n, t in checkpoint.tensors.items() if t.shard == shard}
        here = {
            path: t for path in adapter.layers if (t := stored[f"{path}.weight"]).shard == shard
        }
        for name in {tensor.name for tensor in here.values()}:
            tensors[name] = tensors[name].clone()  # until now a view of the file
        for path, tensor in here.items():
            part = cut(tensors[tensor.name], tensor.part)
            part.copy_(adapter.layers[path].merged(part))
        save_file(tensors, into, metadata={"format": "pt"})
