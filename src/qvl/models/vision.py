"""The vision tower of the family: patch rows in, one feature row per visual token out.

Main path: VisionTower -> PatchEmbed, Block (VisionAttention, an MLP) -> Merger. Everything runs in
merge order (2x2 blocks raster by raster), the order of `processing.patches`; with windows, window by
window inside the tower. Each temporal patch of each picture is a segment of its own, so a packed
batch equals separate runs.
Source: transformers 5.23 models/qwen2_vl, qwen2_5_vl, qwen3_vl. Parameter names are Qwen3-VL's for
every generation; `loading.names` maps the older ones (merger.ln_q, mlp.fc1, ...) onto them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.models.attention import packed_attention
from qvl.models.batch import VisionFeatures
from qvl.models.config import VisionConfig
from qvl.models.norm import RMSNorm
from qvl.models.rope import rotate, vision_angles

Grid = tuple[int, int, int]  # time, rows, columns, in patches
NORM_EPS = 1e-6


def segment_bounds(grids: Sequence[Grid]) -> list[int]:
    """cu_seqlens over patches: one segment per temporal patch of each picture."""
    return [0, *accumulate(h * w for t, h, w in grids for _ in range(t))]


def patch_positions(grids: Sequence[Grid], merge: int) -> Tensor:
    """(row, column) of every patch in merge order, int64 [S, 2]; repeated for each temporal patch."""
    out = []
    for t, h, w in grids:
        rows, cols = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        rc = torch.stack((rows, cols), -1).unflatten(0, (-1, merge)).unflatten(2, (-1, merge))
        out.append(rc.transpose(1, 2).reshape(1, h * w, 2).expand(t, -1, -1).flatten(0, 1))
    return torch.cat(out)


def window_order(grids: Sequence[Grid], merge: int, window: int) -> tuple[Tensor, list[int]]:
    """Visual tokens window by window: their indexes, int64 [V], and the windows' cu_seqlens in patches.

    Windows are window x window tokens, raster by raster in each temporal patch; those at the right
    and lower edge are smaller.
    """
    order, lengths, start = [], [], 0
    for t, h, w in grids:
        rows, cols = h // merge, w // merge
        for _ in range(t):
            index = torch.arange(start, start + rows * cols).view(rows, cols)
            for row in index.split(window):
                for part in row.split(window, dim=1):
                    order.append(part.flatten())
                    lengths.append(part.numel() * merge**2)
            start += rows * cols
    return torch.cat(order), [0, *accumulate(lengths)]


def table_taps(grids: Sequence[Grid], merge: int, side: int) -> tuple[Tensor, Tensor]:
    """Bilinear taps into a side x side table, corners aligned: indexes and fp32 weights [S, 4]."""
    position = patch_positions(grids, merge).float()
    extent = torch.cat([torch.tensor([[h, w]]).expand(t * h * w, 2) for t, h, w in grids])
    source = position * (side - 1) / (extent - 1).clamp(min=1)
    low = source.floor().long()
    high = (low + 1).clamp(max=side - 1)
    part = source - low
    rows = torch.stack((low[:, 0], high[:, 0]), 1)[:, :, None]
    cols = torch.stack((low[:, 1], high[:, 1]), 1)[:, None, :]
    row_weight = torch.stack((1 - part[:, 0], part[:, 0]), 1)[:, :, None]
    col_weight = torch.stack((1 - part[:, 1], part[:, 1]), 1)[:, None, :]
    return (rows * side + cols).flatten(1), (row_weight * col_weight).flatten(1)


class PatchEmbed(nn.Module):
    """A convolution whose kernel is its stride, kept in the checkpoint's 5-D shape, run as a matmul."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        p = config.patch_px
        kernel = (config.temporal_patch, p, p)
        self.proj = nn.Conv3d(
            config.in_channels, config.width, kernel, stride=kernel, bias=config.patch_bias
        )

    def forward(self, rows_sc: Tensor) -> Tensor:
        return F.linear(rows_sc, self.proj.weight.flatten(1), self.proj.bias)


def rotate_both(q_snh: Tensor, k_snh: Tensor, angles: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Queries and keys, rotated; unlike in the decoder, in fp32."""
    return [rotate(x.float(), *angles).to(x.dtype) for x in (q_snh, k_snh)]


class VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        # what is loaded for a GPU or packed for a CPU has kernels instead
        self.rotate, self.attend = rotate_both, packed_attention

    def forward(self, x_sd: Tensor, angles: tuple[Tensor, Tensor], bounds: Sequence[int]) -> Tensor:
        q, k, v = self.qkv(x_sd).unflatten(-1, (3, self.heads, -1)).unbind(1)
        q, k = self.rotate(q, k, angles)
        return self.proj(self.attend(q, k, v, bounds, causal=False).flatten(1))


class TwoLinearMLP(nn.Module):
    def __init__(self, config: VisionConfig, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.linear_fc1 = nn.Linear(config.width, config.mlp_width)
        self.linear_fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x_sd: Tensor) -> Tensor:
        return self.linear_fc2(self.act(self.linear_fc1(x_sd)))


class GatedMLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width)
        self.up_proj = nn.Linear(config.width, config.mlp_width)
        self.down_proj = nn.Linear(config.mlp_width, config.width)

    def forward(self, x_sd: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_sd)) * self.up_proj(x_sd))


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def vision_mlp(config: VisionConfig) -> nn.Module:
    if config.mlp == "silu_gated":
        return GatedMLP(config)
    return TwoLinearMLP(config, quick_gelu if config.mlp == "quick_gelu" else gelu_tanh)


def vision_norm(config: VisionConfig, dim: int) -> nn.Module:
    if config.norm == "rms":
        return RMSNorm(dim, NORM_EPS)
    return nn.LayerNorm(dim, eps=NORM_EPS)


class Block(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = vision_norm(config, config.width)
        self.norm2 = vision_norm(config, config.width)
        self.attn = VisionAttention(config)
        self.mlp = vision_mlp(config)

    def forward(self, x_sd: Tensor, angles: tuple[Tensor, Tensor], bounds: Sequence[int]) -> Tensor:
        x_sd = x_sd + self.attn(self.norm1(x_sd), angles, bounds)
        return x_sd + self.mlp(self.norm2(x_sd))


class Merger(nn.Module):
    """merge x merge patches side by side, then two linears: [S, width] -> [S / merge^2, out].

    `norm_merged` normalises the joined rows instead of single patches (deepstack's mergers).
    """

    def __init__(self, config: VisionConfig, *, norm_merged: bool) -> None:
        super().__init__()
        self.joined = config.width * config.merge**2
        self.norm_merged = norm_merged
        self.norm = vision_norm(config, self.joined if norm_merged else config.width)
        self.linear_fc1 = nn.Linear(self.joined, self.joined)
        self.linear_fc2 = nn.Linear(self.joined, config.out_width)

    def forward(self, x_sd: Tensor) -> Tensor:
        if self.norm_merged:
            x = self.norm(x_sd.reshape(-1, self.joined))
        else:
            x = self.norm(x_sd).reshape(-1, self.joined)
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))


class VisionTower(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        if config.pos_grid:
            self.pos_embed = nn.Embedding(config.pos_grid**2, config.width)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.merger = Merger(config, norm_merged=False)
        self.deepstack_merger_list = nn.ModuleList(
            [Merger(config, norm_merged=True) for _ in config.deepstack_after]
        )

    def forward(self, rows_sc: Tensor, grids: Sequence[Grid]) -> VisionFeatures:
        """Features of all pictures, in order; rows_sc [S, 3 * temporal * p * p] in merge order."""
        config, device = self.config, rows_sc.device
        x = self.patch_embed(rows_sc.to(self.patch_embed.proj.weight.dtype))
        if config.pos_grid:
            taps, weights = table_taps(grids, config.merge, config.pos_grid)
            table = self.pos_embed(taps.to(device)) * weights.to(device).unsqueeze(-1)
            x = x + table.sum(1).to(x.dtype)
        positions = patch_positions(grids, config.merge).to(device)
        angles = vision_angles(positions, config.width // config.heads)
        bounds = windows = segment_bounds(grids)
        order: Tensor | None = None
        if config.window:
            order, windows = window_order(grids, config.merge, config.window)
            order = order.to(device)
            x, *angles = (by_token(part, order, config.merge) for part in (x, *angles))
        deepstack = []
        for index, block in enumerate(self.blocks):
            full = not config.window or index in config.full_attention_at
            x = block(x, angles, bounds if full else windows)
            if index in config.deepstack_after:
                level = config.deepstack_after.index(index)
                deepstack.append(self.deepstack_merger_list[level](x))
        rows_vd = self.merger(x)
        if order is not None:
            rows_vd = torch.empty_like(rows_vd).index_copy_(0, order, rows_vd)
        return VisionFeatures(rows_vd, tuple(deepstack))


def by_token(patches_sd: Tensor, order_v: Tensor, merge: int) -> Tensor:
    """The patches in another order of their visual tokens, merge x merge of which follow each other."""
    return patches_sd.unflatten(0, (-1, merge**2))[order_v].flatten(0, 1)
