"""The text decoder of the family. Main path: Decoder -> DecoderLayer -> Attention, MLP.

Parameter names as in the published files; source: transformers 5.23 models/qwen3_vl and
models/qwen2_vl. How tokens attend to each other, and through which cache, is the batch's affair.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from qvl.models.batch import Attend, ForwardBatch
from qvl.models.config import DecoderConfig
from qvl.models.norm import RMSNorm
from qvl.models.rope import mrope_angles, mrope_axes, rotate


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


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_td: Tensor, angles: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        x_td = x_td + self.self_attn(self.input_layernorm(x_td), angles, attend)
        return x_td + self.mlp(self.post_attention_layernorm(x_td))


class Decoder(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.axes = mrope_axes(config.mrope_section, interleaved=config.mrope_interleaved)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden)
        self.layers = nn.ModuleList([DecoderLayer(config, i) for i in range(config.layers)])
        self.norm = RMSNorm(config.hidden, config.norm_eps)

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Normalised hidden states of the wanted tokens, [B, D].

        Visual rows replace the embeddings at their places; deepstack level j is added there after
        layer j (DeepStack, arXiv 2406.04334).
        """
        x = self.embed_tokens(batch.ids_t).to(self.norm.weight.dtype)
        levels: tuple[Tensor, ...] = ()
        if batch.vision is not None and batch.vision_at_v is not None:
            x = x.index_copy(0, batch.vision_at_v, batch.vision.rows_vd.to(x.dtype))
            levels = batch.vision.deepstack_vd
        angles = mrope_angles(
            batch.positions_3t,
            head_dim=self.config.head_dim,
            theta=self.config.rope_theta,
            axes=self.axes,
            dtype=x.dtype,
        )
        for index, layer in enumerate(self.layers):
            x = layer(x, angles, batch.attend)
            if index < len(levels) and batch.vision_at_v is not None:
                x = x.index_add(0, batch.vision_at_v, levels[index].to(x.dtype))
        return self.norm(x[batch.wanted_b])
