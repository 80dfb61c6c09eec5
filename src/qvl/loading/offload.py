"""A decoder larger than the card: its last layers stay in host memory and come over the bus each step.

Main path: plan -> offload -> StreamedLayer.forward -> Bus.weights. While a layer computes, the next
one is copied into the other of two sets of buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qvl.errors import OutOfMemoryError

SETS = 2  # of buffers on the card, a layer each


@dataclass(frozen=True, slots=True)
class Plan:
    kept: int  # decoder layers that stay on the card, the first ones
    moved_bytes: int  # over the bus in every step


def plan(*, layers: int, layer_bytes: int, other_bytes: int, room_bytes: int) -> Plan:
    """How many layers fit beside all the rest, and beside the buffers for those that do not.

    Raises OutOfMemoryError when not even the rest and the buffers fit.
    """
    room = room_bytes - other_bytes
    if layers * layer_bytes <= room:
        return Plan(layers, 0)
    kept = room // layer_bytes - SETS
    if kept < 0:
        raise OutOfMemoryError(
            f"the parts of the model that cannot leave the card take"
            f" {(other_bytes + SETS * layer_bytes) / 2**30:.2f} GiB,"
            f" {room_bytes / 2**30:.2f} GiB are there",
            hint="take a smaller model, or device cpu",
        )
    return Plan(kept, (layers - kept) * layer_bytes)


class Bus:
    """Copies of the layers' weights on the device, at most SETS at a time; they are one shape."""

    def __init__(self, layers: Sequence[nn.Module], device: torch.device) -> None:
        self._sources = [tensors(layer) for layer in layers]
        self._sets = [
            {name: torch.empty_like(t, device=device) for name, t in self._sources[0].items()}
            for _ in range(SETS)
        ]
        self._holds: list[int | None] = [None] * SETS  # which layer, by set
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.moved_bytes = 0

    def weights(self, index: int) -> dict[str, Tensor]:
        """Those of one layer; good until two more layers were asked for."""
        self._fetch(index, beside=None)
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._fetch((index + 1) % len(self._sources), beside=index)
        return self._sets[self._holds.index(index)]

    def _fetch(self, index: int, *, beside: int | None) -> None:
        if index in self._holds:
            return
        into = 1 if self._holds[0] == beside else 0
        self._holds[into] = index
        if self._stream is not None:  # what still computes with these buffers was launched before
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            for name, tensor in self._sources[index].items():
                self._sets[into][name].copy_(tensor, non_blocking=True)
                self.moved_bytes += tensor.nbytes


class StreamedLayer(nn.Module):
    """A layer that computes with the bus's copy of its weights."""

    def __init__(self, layer: nn.Module, bus: Bus, index: int) -> None:
        super().__init__()
        self.layer, self.bus, self.index = layer, bus, index
        self.renamed: dict[str, str] = {}  # tensors that the layer calls otherwise than the bus

    def forward(self, *args: object) -> Tensor:
        weights = self.bus.weights(self.index)
        named = {self.renamed.get(name, name): tensor for name, tensor in weights.items()}
        return functional_call(self.layer, named, args)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def offload(layers: nn.ModuleList, kept: int, device: torch.device) -> Bus:
    """Replace the layers from `kept` on, whose weights are in host memory, by streamed ones."""
    left = list(layers)[kept:]
    for layer in left:
        for tensor in tensors(layer).values():
            tensor.data = tensor.data.pin_memory() if device.type == "cuda" else tensor.data
    bus = Bus(left, device)
    for index, layer in enumerate(left):
        layers[kept + index] = StreamedLayer(layer, bus, index)
    return bus
