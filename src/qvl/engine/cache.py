"""Keys and values of each request, and the attention of one step over them.

Main path: CachedAttention -> KVCache.store, attend_causal. One contiguous tensor per layer and
request; the attention mask of a step is as large as the step's tokens times the context, so the
engine's token budget bounds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(slots=True, eq=False)
class KVCache:
    """Per layer a tensor [2, capacity, kv_heads, head_dim]: keys and values of one request."""

    layers: list[Tensor] = field(default_factory=list)

    def store(self, layer: int, start: int, k_tkh: Tensor, v_tkh: Tensor) -> tuple[Tensor, Tensor]:
        """Write tokens from index `start` on; returns keys and values of all tokens up to the last.

        Writing the same tokens again changes nothing, so a step that failed can be repeated.
        """
        stop = start + len(k_tkh)
        if layer == len(self.layers):  # the first step goes through the layers in order
            self.layers.append(k_tkh.new_empty(2, stop, *k_tkh.shape[1:]))
        kv = self.layers[layer]
        if stop > kv.shape[1]:
            grown = kv.new_empty(2, max(stop, 2 * kv.shape[1]), *kv.shape[2:])
            grown[:, :start] = kv[:, :start]
            self.layers[layer] = kv = grown
        kv[0, start:stop], kv[1, start:stop] = k_tkh, v_tkh
        return kv[0, :stop], kv[1, :stop]


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Tokens start .. stop of one request, computed in this step; those before are in the cache."""

    cache: KVCache
    start: int
    stop: int


class CachedAttention:
    """`Attend` of one step: the packed tokens are those of the spans, one after the other."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = spans

    def __call__(self, layer: int, q_tnh: Tensor, k_tkh: Tensor, v_tkh: Tensor) -> Tensor:
        lengths = [span.stop - span.start for span in self.spans]
        parts = zip(self.spans, *(x.split(lengths) for x in (q_tnh, k_tkh, v_tkh)), strict=True)
        return torch.cat(
            [
                attend_causal(q, *span.cache.store(layer, span.start, k, v))
                for span, q, k, v in parts
            ]
        )


def attend_causal(q_mnh: Tensor, k_ckh: Tensor, v_ckh: Tensor) -> Tensor:
    """Attention [m, n, h] of the last m of c tokens: query i sees the first c - m + i + 1 keys."""
    new, cached = len(q_mnh), len(k_ckh)
    k, v = (x.transpose(0, 1).unsqueeze(0) for x in (k_ckh, v_ckh))
    if new == 1:
        # the query heads that share a key head become rows: the same numbers, and on CPU ten times
        # as fast as one row per head
        q = q_mnh.unflatten(1, (k_ckh.shape[1], -1))
        return F.scaled_dot_product_attention(q, k, v).flatten(1, 2)
    q = q_mnh.transpose(0, 1).unsqueeze(0)
    if new == cached:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    else:  # is_causal would align the first query with the first key
        mask = torch.ones(new, cached, dtype=torch.bool, device=q.device).tril(cached - new)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return out.squeeze(0).transpose(0, 1)
