"""A checkpoint with an adapter in its weights: `qvl models convert --adapter`."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from qvl.loading.adapter import read_adapter
from qvl.loading.changed import write_changed
from qvl.loading.model import read_parts


def convert_merged(source: Path, target: Path, adapter_folder: Path) -> int:
    """Write the checkpoint `target`: that of `source` with the adapter in it; returns its weights' bytes.

    Raises what read_adapter and write_changed raise.
    """
    layers = read_adapter(adapter_folder, read_parts(source).config).layers

    def merged(name: str, weight_nk: Tensor) -> Tensor:
        return layers[name.removesuffix(".weight")].merged(weight_nk)

    return write_changed(source, target, [f"{path}.weight" for path in layers], merged)
