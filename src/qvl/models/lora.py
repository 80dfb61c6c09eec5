"""Low-rank adapters of linear layers: LoRA (Hu et al. 2021, arXiv 2106.09685) and DoRA (Liu et al. 2024,
arXiv 2402.09353). What they compute is PEFT 0.21's (peft/tuners/lora/layer.py, dora.py).

N outputs, K inputs, r the rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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

    def merged(self, weight_nk: Tensor) -> Tensor:
        """The adapted weight, fp32 [N, K]."""
        whole = weight_nk.float() + self.scale * (self.b_nr.float() @ self.a_rk.float())
        if self.magnitude_n is None:
            return whole
        return whole * self.gain(weight_nk).unsqueeze(1)

    def gain(self, weight_nk: Tensor) -> Tensor:
        """What each output is multiplied by, fp32 [N]; 1 without magnitudes."""
        if self.magnitude_n is None:
            return torch.ones(len(weight_nk), device=weight_nk.device)
        whole = weight_nk.float() + self.scale * (self.b_nr.float() @ self.a_rk.float())
        return self.magnitude_n.float() / whole.norm(dim=1)


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
    """A layer with what an adapter adds: y = gain (base(x) - bias + scale up(down(x))) + bias.

    The base may be any module that maps [..., K] to [..., N]: plain, packed or quantised, or several
    layers that share an input, joined; then there is one part for each, in their order, None for one
    that is not adapted.
    """

    def __init__(self, base: nn.Module, parts: Sequence[Part | None], sizes: Sequence[int]) -> None:
        super().__init__()
        self.base, self.sizes = base, list(sizes)
        self.parts = nn.ModuleList([nn.Identity() if part is None else part for part in parts])

    def forward(self, x: Tensor) -> Tensor:
        pieces = self.base(x).split(self.sizes, dim=-1)
        return torch.cat(
            [
                part(x, piece) if isinstance(part, Part) else piece
                for part, piece in zip(self.parts, pieces, strict=True)
            ],
            dim=-1,
        )


class Part(nn.Module):
    """`down` is A and `up` is B; both without a bias, and as the base in any form. `gain` and `bias`
    are there for magnitudes.
    """

    gain_n: Tensor | None
    bias_n: Tensor | None

    def __init__(
        self,
        down: nn.Module,
        up: nn.Module,
        scale: float,
        gain_n: Tensor | None = None,
        bias_n: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.down, self.up, self.scale = down, up, scale
        self.register_buffer("gain_n", gain_n)
        self.register_buffer("bias_n", bias_n)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """`y` is what the base makes of x."""
        y = y + self.scale * self.up(self.down(x)).to(y.dtype)
        if self.gain_n is None:
            return y
        gain = self.gain_n.to(y.dtype)
        return y * gain if self.bias_n is None else (y - self.bias_n) * gain + self.bias_n
