"""The vision tower of Qwen-VL, the first generation: a plain ViT and a resampler with learned queries.

Main path: FixedTower -> PlainBlock -> Resampler. Every picture is one square of patches, and becomes
a quarter as many visual tokens (1024 and 256 in the published model). Parameter names as in the
published files, below transformer.visual.; source: arXiv 2308.12966, and vLLM
vllm/model_executor/models/qwen_vl.py. The decoder is the one of decoder.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.errors import EngineError
from qvl.models.batch import VisionFeatures
from qvl.models.config import RESAMPLER_HEAD, VisionConfig
from qvl.models.vision import NORM_EPS, Grid, patch_positions


class PlainAttention(nn.Module):
    """Over all patches of one picture. in_proj gives [head, (q, k, v), width of a head]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.in_proj = nn.Linear(config.width, 3 * config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x_psd: Tensor) -> Tensor:
        heads = self.in_proj(x_psd).unflatten(-1, (self.heads, 3, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(*heads.unbind(-2))  # [pictures, heads, S, width]
        return self.out_proj(out.transpose(1, 2).flatten(2))


class PlainMLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.width, config.mlp_width)
        self.c_proj = nn.Linear(config.mlp_width, config.width)

    def forward(self, x_psd: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x_psd)))


class PlainBlock(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn = PlainAttention(config)
        self.ln_2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = PlainMLP(config)

    def forward(self, x_psd: Tensor) -> Tensor:
        x_psd = x_psd + self.attn(self.ln_1(x_psd))
        return x_psd + self.mlp(self.ln_2(x_psd))


class Blocks(nn.Module):
    """Only there for the names of the published files: visual.transformer.resblocks.*."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([PlainBlock(config) for _ in range(config.depth)])


class CrossAttention(nn.Module):
    """torch's MultiheadAttention in its names, which packing can read: q, k and v in one weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, q_qd: Tensor, k_psd: Tensor, v_psd: Tensor) -> Tensor:
        parts = zip(self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        q, k, v = (
            F.linear(x, *part).unflatten(-1, (-1, RESAMPLER_HEAD)).transpose(-3, -2)
            for x, part in zip((q_qd, k_psd, v_psd), parts, strict=True)
        )
        out = F.scaled_dot_product_attention(q.expand(len(k), *q.shape), k, v)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    """Learned queries look at all patches of a picture; positions are added to queries and keys."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, queries = config.out_width, config.pos_grid**2
        self.query = nn.Parameter(torch.zeros(queries, width))
        self.pos_embed = nn.Parameter(torch.zeros(queries, width))  # sines and cosines, as stored
        self.kv_proj = nn.Linear(config.width, width, bias=False)
        self.attn = CrossAttention(width)
        self.ln_q = nn.LayerNorm(width, eps=NORM_EPS)
        self.ln_kv = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x_psd: Tensor, order_s: Tensor) -> Tensor:
        x_psd = self.ln_kv(self.kv_proj(x_psd))
        queries = self.ln_q(self.query) + self.pos_embed
        return self.attn(queries, x_psd + doubled(self.pos_embed)[order_s], x_psd)


class FixedTower(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.side, self.merge = config.pos_grid * config.merge, config.merge
        self.conv1 = nn.Conv2d(
            config.in_channels, config.width, config.patch_px, stride=config.patch_px, bias=False
        )
        self.positional_embedding = nn.Parameter(torch.zeros(config.pos_grid**2, config.width))
        self.ln_pre = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.transformer = Blocks(config)
        self.attn_pool = Resampler(config)
        self.ln_post = nn.LayerNorm(config.out_width, eps=NORM_EPS)
        self.proj = nn.Parameter(torch.zeros(config.out_width, config.out_width))

    def forward(self, rows_sc: Tensor, grids: Sequence[Grid]) -> VisionFeatures:
        """Features of all pictures, in order; rows_sc [S, 3 * p * p] in merge order.

        Raises EngineError for a picture that is not of the tower's one size.
        """
        grid = (1, self.side, self.side)
        if any(tuple(other) != grid for other in grids):
            raise EngineError(f"pictures of {list(grids)} patches, Qwen-VL takes {list(grid)} only")
        # attention knows places by the tables alone, so it is they that go into the rows' order
        rows, cols = patch_positions([grid], self.merge).to(rows_sc.device).unbind(1)
        order_s = rows * self.side + cols
        weight = self.conv1.weight.flatten(1)
        x = F.linear(rows_sc.to(weight.dtype), weight).unflatten(0, (len(grids), -1))
        x = self.ln_pre(x + doubled(self.positional_embedding)[order_s])
        for block in self.transformer.resblocks:
            x = block(x)
        features = self.ln_post(self.attn_pool(x, order_s)) @ self.proj
        return VisionFeatures(features.flatten(0, 1))


def doubled(table_qd: Tensor) -> Tensor:
    """A square table [side * side, D] at twice its side, bicubic in fp32, corners not aligned."""
    side = round(len(table_qd) ** 0.5)
    grid = table_qd.float().T.unflatten(1, (side, side)).unsqueeze(0)
    grown = F.interpolate(grid, size=(2 * side, 2 * side), mode="bicubic", align_corners=False)
    return grown[0].flatten(1).T.to(table_qd.dtype)
