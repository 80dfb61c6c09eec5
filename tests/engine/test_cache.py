"""Cached attention against attention over whole sequences."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.engine.blocks import BLOCK_TOKENS
from qvl.engine.cache import CachedAttention, KVCache, Span
from qvl.models.attention import PackedCausal


def random_qkv(tokens: int, heads: int, kv_heads: int):
    torch.manual_seed(tokens)
    return (
        torch.randn(tokens, heads, 8),
        torch.randn(tokens, kv_heads, 8),
        torch.randn(tokens, kv_heads, 8),
    )


CPU = torch.device("cpu")


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 1), (3, 3)])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    splits=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    blocks=st.permutations(range(12)),
)
def test_attention_in_pieces_equals_attention_in_one(heads, kv_heads, splits, blocks):
    """However a sequence is split, and wherever its blocks lie."""
    total = sum(splits)
    q, k, v = random_qkv(total, heads, kv_heads)
    cache = KVCache(12)
    pieces, start = [], 0
    for count in splits:
        stop = start + count
        for layer in (0, 1):
            attend = CachedAttention(cache, [Span(blocks, start, stop, CPU)])
            out = attend(layer, q[start:stop], k[start:stop], v[start:stop])
        pieces.append(out)
        start = stop
    torch.testing.assert_close(torch.cat(pieces), PackedCausal([0, total])(0, q, k, v))


def test_each_sequence_of_a_step_sees_only_itself():
    q, k, v = random_qkv(40, 4, 2)
    bounds = [0, 20, 21, 40]
    tables = ([5, 1], [0], [3, 2])
    spans = [Span(t, 0, b - a, CPU) for t, (a, b) in zip(tables, pairwise(bounds), strict=True)]
    out = CachedAttention(KVCache(6), spans)(0, q, k, v)
    torch.testing.assert_close(out, PackedCausal(bounds)(0, q, k, v))


def test_two_sequences_share_the_blocks_of_their_common_beginning():
    common, total = 2 * BLOCK_TOKENS, 2 * BLOCK_TOKENS + 5
    q, k, v = random_qkv(total, 4, 2)
    cache = KVCache(5)
    CachedAttention(cache, [Span([4, 0], 0, common, CPU)])(0, q[:common], k[:common], v[:common])
    spans = [Span([4, 0, 2], common, total, CPU), Span([4, 0, 1], common, total, CPU)]
    twice = [torch.cat([x[common:], x[common:]]) for x in (q, k, v)]
    out = CachedAttention(cache, spans)(0, *twice)
    expected = PackedCausal([0, total])(0, q, k, v)[common:]
    torch.testing.assert_close(out, torch.cat([expected, expected]))


def test_storing_the_same_tokens_again_changes_nothing():
    q, k, v = random_qkv(6, 4, 2)
    cache = KVCache(1)
    CachedAttention(cache, [Span([0], 0, 4, CPU)])(0, q[:4], k[:4], v[:4])
    step = CachedAttention(cache, [Span([0], 4, 6, CPU)])
    first = step(0, q[4:], k[4:], v[4:])
    assert torch.equal(step(0, q[4:], k[4:], v[4:]), first)
