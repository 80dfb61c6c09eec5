"""Decode steps in fixed shapes, which a GPU replays as one CUDA graph instead of launch by launch.

A step that has one new token for each request is padded to one of SIZES and to a context in steps of
two; each shape is captured when it first comes. Not on a GPU the same step is just computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from qvl.engine.blocks import BLOCK_TOKENS
from qvl.engine.cache import KVCache
from qvl.engine.request import RequestState
from qvl.kernels.graphs import captured
from qvl.kernels.paged import SPLIT, Sequences, attend_decode
from qvl.models.batch import ForwardBatch
from qvl.models.qwen_vl import QwenVL

SIZES = (1, 2, 4, 8, 16, 32, 64)


class StaticDecode:
    """The next token of some requests; the cache's last block takes what padded rows write."""

    def __init__(self, model: QwenVL, cache: KVCache, device: torch.device) -> None:
        self._model, self._cache, self._device = model, cache, device
        # by size and pages: the buffer that is read, and what computes logits from it
        self._steps: dict[tuple[int, int], tuple[Tensor, Callable[[], Tensor]]] = {}

    def __call__(self, states: Sequence[RequestState]) -> Tensor:
        """Logits [requests, vocab] after the last token of each, good until the next call."""
        size, pages = next(s for s in SIZES if s >= len(states)), SPLIT // BLOCK_TOKENS
        while pages < max(len(state.blocks) for state in states):
            pages *= 2
        spare = self._cache.blocks - 1
        # id, 3 positions, slot, length, stretch, pages ..
        padding = [0, 0, 0, 0, spare * BLOCK_TOKENS, 1, 1] + [spare] * pages
        rows = torch.tensor(padding).repeat(size, 1)
        for row, state in zip(rows, states, strict=False):
            last, blocks = len(state.tokens) - 1, torch.tensor(state.blocks)
            row[0], row[1:4] = state.tokens[last], state.positions(last, last + 1)[:, 0]
            row[4] = blocks[last // BLOCK_TOKENS] * BLOCK_TOKENS + last % BLOCK_TOKENS
            row[5], row[6], row[7 : 7 + len(blocks)] = last + 1, state.stretch, blocks
        if (size, pages) not in self._steps:
            new = rows.to(self._device)
            self._steps[size, pages] = new, captured(partial(self._compute, new), self._device)
        buffer, step = self._steps[size, pages]
        buffer.copy_(rows)
        return step()[: len(states)]

    def _compute(self, rows: Tensor) -> Tensor:
        every, slots_b = torch.arange(len(rows) + 1, device=rows.device), rows[:, 4]
        lengths_b, table_bw = (x.int().contiguous() for x in (rows[:, 5], rows[:, 7:]))
        room = table_bw.shape[1] * BLOCK_TOKENS
        where = Sequences(every.int(), lengths_b, table_bw, BLOCK_TOKENS, 1, 0, room)

        def attend(layer: int, q_tnh: Tensor, k_tkh: Tensor, v_tkh: Tensor) -> Tensor:
            self._cache.write(layer, slots_b, k_tkh, v_tkh)
            return attend_decode(q_tnh, *self._cache.slots(layer), where)

        positions_3t, stretch_t = rows[:, 1:4].T, rows[:, 6]
        batch = ForwardBatch(rows[:, 0], positions_3t, attend, every[:-1], stretch_t=stretch_t)
        return self._model(batch)
