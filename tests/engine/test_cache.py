"""Cached attention against attention over whole sequences."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.engine.cache import CachedAttention, KVCache, Span
from qvl.models.attention import PackedCausal


def random_qkv(tokens: int, heads: int, kv_heads: int):
    torch.manual_seed(tokens)
    return (
        torch.randn(tokens, heads, 8),
        torch.randn(tokens, kv_heads, 8),
        torch.randn(tokens, kv_heads, 8),
    )


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 1), (3, 3)])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(splits=st.lists(st.integers(1, 7), min_size=1, max_size=8))
def test_attention_in_pieces_equals_attention_in_one(heads, kv_heads, splits):
    total = sum(splits)
    q, k, v = random_qkv(total, heads, kv_heads)
    cache = KVCache()
    pieces, start = [], 0
    for count in splits:
        stop = start + count
        for layer in (0, 1):
            attend = CachedAttention([Span(cache, start, stop)])
            out = attend(layer, q[start:stop], k[start:stop], v[start:stop])
        pieces.append(out)
        start = stop
    torch.testing.assert_close(torch.cat(pieces), PackedCausal([0, total])(0, q, k, v))


def test_each_sequence_of_a_step_sees_only_itself():
    q, k, v = random_qkv(9, 4, 2)
    bounds = [0, 5, 6, 9]
    spans = [Span(KVCache(), 0, b - a) for a, b in pairwise(bounds)]
    out = CachedAttention(spans)(0, q, k, v)
    torch.testing.assert_close(out, PackedCausal(bounds)(0, q, k, v))


def test_storing_the_same_tokens_again_changes_nothing():
    q, k, v = random_qkv(6, 4, 2)
    cache = KVCache()
    CachedAttention([Span(cache, 0, 4)])(0, q[:4], k[:4], v[:4])
    step = CachedAttention([Span(cache, 4, 6)])
    first = step(0, q[4:], k[4:], v[4:])
    assert torch.equal(step(0, q[4:], k[4:], v[4:]), first)


def test_capacity_doubles_so_that_growth_copies_each_token_a_few_times_only():
    cache = KVCache()
    capacities = set()
    for token in range(100):
        cache.store(0, token, torch.zeros(1, 2, 8), torch.zeros(1, 2, 8))
        capacities.add(cache.layers[0].shape[1])
    assert capacities == {1, 2, 4, 8, 16, 32, 64, 128}
