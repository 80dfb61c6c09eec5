"""Low-rank adapters of linear layers: LoRA (Hu et al. 2021, arXiv 2106.09685) and DoRA (Liu et al. 2024,
arXiv 2402.09353). What they compute is PEFT 0.21's (peft/tuners/lora/layer.py, dora.py).

N outputs, K inputs, r the rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """What an adapter does to one layer: W + scale B A; with magnitudes the rows of that are made as
    long as they say (DoRA).
    """

    a_rk: Tensor
    b_nr: Tensor
    scale: float
    magnitude_n: Tensor | None = None

    @property
    def rank(self) -> int:
        return len(self.a_rk)

    def to(self, device: torch.device) -> LowRank:
        magnitude = None if self.magnitude_n is None else self.magnitude_n.to(device)
        return LowRank(self.a_rk.to(device), self.b_nr.to(device), self.scale, magnitude)

    def merged(self, weight_nk: Tensor) -> Tensor:
        """The adapted weight, fp32 [N, K]."""
        whole = self._unscaled(weight_nk)
        if self.magnitude_n is None:
            return whole
        return whole * (self.magnitude_n.float() / whole.norm(dim=1)).unsqueeze(1)

    def gain(self, weight_nk: Tensor) -> Tensor:
        """What each output is multiplied by, fp32 [N]; 1 without magnitudes."""
        if self.magnitude_n is None:
            return torch.ones(len(weight_nk), device=weight_nk.device)
        return self.magnitude_n.float() / self._unscaled(weight_nk).norm(dim=1)

    def _unscaled(self, weight_nk: Tensor) -> Tensor:
        return weight_nk.float() + self.scale * (self.b_nr.float() @ self.a_rk.float())


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """What an adapter does to a model: `layers` by their paths in `QwenVL`, as in
    model.language_model.layers.0.self_attn.q_proj. `digest` names the content.
    """

    name: str
    layers: Mapping[str, LowRank]
    digest: str

    @classmethod
    def of(cls, name: str, layers: Mapping[str, LowRank]) -> Adapter:
        content = hashlib.sha256()
        for path, low in sorted(layers.items()):
            content.update(f"{path}|{low.scale!r}".encode())
            for tensor in (low.a_rk, low.b_nr, low.magnitude_n):
                if tensor is None:
                    content.update(b"|none")
                    continue
                content.update(f"|{list(tensor.shape)}|{tensor.dtype}|".encode())
                content.update(
                    tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
                )
        return cls(name, dict(layers), content.hexdigest())

    @property
    def rank(self) -> int:
        """The largest of its layers."""
        return max(low.rank for low in self.layers.values())

    @property
    def changes_tower(self) -> bool:
        return any(path.startswith("model.visual.") for path in self.layers)


class Adapted(nn.Module):
    """A layer with what an adapter adds: y = gain (base(x) - bias + up(down(x))) + bias.

    The base may be any module that maps [..., K] to [..., N]: plain, packed or quantised, or several
    layers that share an input, joined. `down` is A and `up` is scale B, without biases, in any form,
    too. `gain` and `bias` are there for magnitudes.
    """

    gain_n: Tensor | None
    bias_n: Tensor | None

    def __init__(
        self,
        base: nn.Module,
        down: nn.Module,
        up: nn.Module,
        gain_n: Tensor | None = None,
        bias_n: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.base, self.down, self.up = base, down, up
        self.register_buffer("gain_n", gain_n)
        self.register_buffer("bias_n", bias_n)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        y = y + self.up(self.down(x)).to(y.dtype)
        if self.gain_n is None:
            return y
        gain = self.gain_n.to(y.dtype)
        return y * gain if self.bias_n is None else (y - self.bias_n) * gain + self.bias_n
