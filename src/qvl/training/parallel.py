"""One process alone, or several that share each step: torchrun and PyTorch's FSDP2.

`torchrun --nproc-per-node N -m qvl train ...` starts the same command N times; each takes its part of
a step's passes, holds its part of weights, gradients and optimiser, and all take the same step.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from qvl.training.data import Share, Unit
from qvl.training.passes import Loss


class Workers:
    """All processes of a run; `count` is 1 without torchrun."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.number = int(os.environ.get("RANK", "0"))
        if self.count > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    @property
    def is_first(self) -> bool:
        return self.number == 0

    def close(self) -> None:
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def own(self, passes: Sequence[Sequence[Unit]]) -> list[Share]:
        """This process's passes of a step. All have as many, because they gather weights together:
        where there is none left, one is computed again and nothing is learnt from it.
        """
        places = range(self.number, -(-len(passes) // self.count) * self.count, self.count)
        return [
            Share(tuple(passes[i] if i < len(passes) else passes[0]), learns=i < len(passes))
            for i in places
        ]

    def shared(self, loss: Loss) -> Loss:
        """The same module, its weights spread over the processes layer by layer (FSDP2)."""
        if self.count == 1:
            return loss
        from torch.distributed.fsdp import fully_shard

        for layer in loss.model.model.language_model.layers:
            fully_shard(layer)
        fully_shard(loss)
        return loss

    def parameters(
        self, loss: Loss, trained: Sequence[tuple[str, nn.Parameter]]
    ) -> list[tuple[str, nn.Parameter]]:
        """The trained ones as they are now, by the same names."""
        now = dict(loss.model.named_parameters())
        return [(name, now[name]) for name, _ in trained]

    def scaled(self, loss: Tensor) -> Tensor:
        """So that the mean over processes, which FSDP takes of gradients, is their sum."""
        return loss * self.count

    def total(self, number: float) -> float:
        """The sum of what each process has."""
        if self.count == 1:
            return number
        tensor = torch.tensor(float(number), device=self.device, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.item()

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the processes hold parts of, together."""
        return {
            name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            for name, tensor in tensors.items()
        }

    def part(self, whole: Tensor, like: Tensor) -> Tensor:
        """This process's part of it, if `like` is spread."""
        if isinstance(like, DTensor) and whole.shape == like.shape:
            return distribute_tensor(whole.to(self.device), like.device_mesh, like.placements)
        return whole
