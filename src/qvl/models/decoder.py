"""The text decoder of the family. Main path: Decoder -> DecoderLayer -> Attention, MLP or SparseMLP.

Parameter names as in the published files; source: transformers 5.23 models/qwen3_vl and
models/qwen2_vl. How tokens attend to each other, and through which cache, is the batch's affair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.models.batch import Attend, ForwardBatch
from qvl.models.config import DecoderConfig
from qvl.models.norm import RMSNorm
from qvl.models.rope import log_n, mrope_angles, mrope_axes, rotate, stretched_theta


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden, q_width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_width, config.hidden, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x_td: Tensor, angles: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        heads = (-1, self.head_dim)
        q_tnh = rotate(self.q_norm(self.q_proj(x_td).unflatten(-1, heads)), *angles)
        k_tkh = rotate(self.k_norm(self.k_proj(x_td).unflatten(-1, heads)), *angles)
        v_tkh = self.v_proj(x_td).unflatten(-1, heads)
        return self.o_proj(attend(self.layer, q_tnh, k_tkh, v_tkh).flatten(1))


class MLP(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.hidden, bias=False)

    def forward(self, x_td: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_td)) * self.up_proj(x_td))


class Router(nn.Linear):
    """The weights that tokens give to experts; never quantised, as a near tie would fall otherwise."""


class SparseMLP(nn.Module):
    """A mixture of experts: each token goes through those that the gate gives the most weight.

    The chosen weights are a softmax in fp32 over all experts, made to sum to 1 again; they multiply
    what an expert gives. Only chosen experts are computed, each for its tokens at once, in rising
    order, so that a token's sum does not depend on the others. (transformers 5.23 models/qwen3_vl_moe)
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.per_token = config.experts_per_token
        self.gate: nn.Module = Router(config.hidden, config.experts, bias=False)
        self.experts = nn.ModuleList([MLP(config) for _ in range(config.experts)])

    def forward(self, x_td: Tensor) -> Tensor:
        weights, chosen = self.gate(x_td).float().softmax(-1).topk(self.per_token, dim=-1)
        weights_tc = (weights / weights.sum(-1, keepdim=True)).to(x_td.dtype)
        out_td = torch.zeros_like(x_td)
        for expert in chosen.unique().tolist():
            token, place = (chosen == expert).nonzero(as_tuple=True)
            y = self.experts[expert](x_td[token])
            out_td.index_add_(0, token, y * weights_tc[token, place].unsqueeze(-1))
        return out_td


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.mlp = SparseMLP(config) if config.experts else MLP(config)

    def forward(self, x_td: Tensor, angles: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        x_td = x_td + self.self_attn(self.input_layernorm(x_td), angles, attend)
        return x_td + self.mlp(self.post_attention_layernorm(x_td))


def one_after_the_other(
    layers: Sequence[nn.Module], x_td: Tensor, angles: tuple[Tensor, Tensor], attend: Attend
) -> Tensor:
    for layer in layers:
        x_td = layer(x_td, angles, attend)
    return x_td


class Decoder(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.axes = mrope_axes(config.mrope_section, interleaved=config.mrope_interleaved)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden)
        self.layers = nn.ModuleList([DecoderLayer(config, i) for i in range(config.layers)])
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        self.through = one_after_the_other  # packed layers have one compiled call

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Normalised hidden states of the wanted tokens, [B, D].

        Visual rows replace the embeddings at their places; deepstack level j is added there after
        layer j (DeepStack, arXiv 2406.04334).
        """
        x, angles, attend = self.entered(batch)
        layers = list(self.layers)
        if batch.vision is not None and batch.vision_at_v is not None:
            for level in batch.vision.deepstack_vd:
                x = layers.pop(0)(x, angles, attend)
                x = x.index_add(0, batch.vision_at_v, level.to(x.dtype))
        x = self.through(layers, x, angles, attend)
        return self.norm(x[batch.wanted_b])

    def entered(self, batch: ForwardBatch) -> tuple[Tensor, tuple[Tensor, Tensor], Attend]:
        """What the first layer is given: hidden states [T, D], angles, attention."""
        x = self.embed_tokens(batch.ids_t).to(self.norm.weight.dtype)
        if batch.vision is not None and batch.vision_at_v is not None:
            x = x.index_copy(0, batch.vision_at_v, batch.vision.rows_vd.to(x.dtype))
        theta, attend = self.stretched(batch, x.dtype)
        angles = mrope_angles(
            batch.positions_3t,
            head_dim=self.config.head_dim,
            theta=theta,
            axes=self.axes,
            # the first Qwen-VL rotates in fp32
            dtype=torch.float32 if self.config.stretch_from else x.dtype,
        )
        return x, angles, attend

    def stretched(self, batch: ForwardBatch, dtype: torch.dtype) -> tuple[float | Tensor, Attend]:
        """The base of the rotation and the attention of this pass, for the first Qwen-VL stretched."""
        config = self.config
        if not config.stretch_from:
            return config.rope_theta, batch.attend
        theta: float | Tensor = config.rope_theta
        if batch.stretch_t is not None:
            theta = stretched_theta(config.rope_theta, batch.stretch_t, config.head_dim)
        scale_t11 = log_n(batch.positions_3t[0], config.stretch_from).to(dtype)[:, None, None]

        def attend(layer: int, q_tnh: Tensor, k_tkh: Tensor, v_tkh: Tensor) -> Tensor:
            return batch.attend(layer, q_tnh * scale_t11, k_tkh, v_tkh)

        return theta, attend
