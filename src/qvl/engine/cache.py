"""Keys and values in blocks, and the attention of one step over them.

Main path: CachedAttention -> the kernel of a GPU or of a CPU, else KVCache.write, KVCache.read and
`attention.attend_causal`. There the mask of a step is as large as its tokens times the context, so the engine's
token budget bounds it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qvl.engine.blocks import BLOCK_TOKENS
from qvl.kernels import attention
from qvl.kernels.paged import paged_kernel


class KVCache:
    """Per layer a tensor [2, blocks, BLOCK_TOKENS, kv_heads, head_dim]: keys and values.

    On a CPU the whole room is reserved at once and costs memory only where it has been written.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._layers: list[Tensor] = []

    def layer(self, layer: int, k_tkh: Tensor) -> Tensor:
        """The layer's tensor, made when the first keys come; they come through the layers in order."""
        if layer == len(self._layers):
            shape = (2, self.blocks, BLOCK_TOKENS, *k_tkh.shape[1:])
            self._layers.append(k_tkh.new_empty(shape))
        return self._layers[layer]

    def write(self, layer: int, slots_t: Tensor, k_tkh: Tensor, v_tkh: Tensor) -> None:
        """Keys and values of tokens into their slots; a slot is block * BLOCK_TOKENS + offset.

        Writing the same tokens again changes nothing, so a step that failed can be repeated.
        """
        kv = self.layer(layer, k_tkh).flatten(1, 2)
        kv[0].index_copy_(0, slots_t, k_tkh)
        kv[1].index_copy_(0, slots_t, v_tkh)

    def slots(self, layer: int) -> tuple[Tensor, Tensor]:
        """All keys and values [slots, kv_heads, head_dim]: views."""
        kv = self._layers[layer].flatten(1, 2)
        return kv[0], kv[1]

    def read(self, layer: int, span: Span) -> tuple[Tensor, Tensor]:
        """Keys and values [c, kv_heads, head_dim] of the span's tokens and all before them."""
        kv, count = self._layers[layer], len(span.blocks)
        if span.in_a_row:  # a view; otherwise a copy
            kv = kv[:, span.first : span.first + count]
        else:
            kv = kv.index_select(1, span.blocks)
        kv = kv.flatten(1, 2)[:, : span.stop]
        return kv[0], kv[1]


class Span:
    """Tokens start .. stop of one sequence, computed in this step; those before are in `blocks`."""

    __slots__ = ("blocks", "first", "in_a_row", "pages", "slots_t", "start", "stop")

    def __init__(self, blocks: Sequence[int], start: int, stop: int, device: torch.device) -> None:
        self.pages = blocks[: -(-stop // BLOCK_TOKENS)]
        used = torch.tensor(self.pages)
        at_t = torch.arange(start, stop)
        slots_t = used[at_t // BLOCK_TOKENS] * BLOCK_TOKENS + at_t % BLOCK_TOKENS
        self.in_a_row = bool((used.diff() == 1).all())
        self.first, self.start, self.stop = blocks[0], start, stop
        self.blocks, self.slots_t = used.to(device), slots_t.to(device)


class CachedAttention:
    """`Attend` of one step: the packed tokens are those of the spans, one after the other."""

    def __init__(self, cache: KVCache, spans: Sequence[Span]) -> None:
        self.cache, self.spans = cache, spans
        self.slots_t = torch.cat([span.slots_t for span in spans])
        self.places = attention.places([(s.blocks, s.start, s.stop) for s in spans])
        self.lengths = [span.stop - span.start for span in spans]
        cached, pages = [s.stop for s in spans], [s.pages for s in spans]
        self.kernel = paged_kernel(self.lengths, cached, pages, BLOCK_TOKENS, self.slots_t.device)

    def __call__(self, layer: int, q_tnh: Tensor, k_tkh: Tensor, v_tkh: Tensor) -> Tensor:
        if self.places is not None and attention.takes(q_tnh):
            kv = self.cache.layer(layer, k_tkh)
            return attention.attend(kv, q_tnh, k_tkh, v_tkh, self.places)
        self.cache.write(layer, self.slots_t, k_tkh, v_tkh)
        if self.kernel is not None:
            return self.kernel(q_tnh, *self.cache.slots(layer))
        queries = q_tnh.split(self.lengths)
        return torch.cat(
            [
                attention.attend_causal(q, *self.cache.read(layer, span))
                for span, q in zip(self.spans, queries, strict=True)
            ]
        )
