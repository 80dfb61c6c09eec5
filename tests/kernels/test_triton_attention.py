"""The Triton attention kernel in Triton's interpreter, on a CPU, against attention written out."""

from __future__ import annotations

import os
import random
from itertools import pairwise

import pytest
import torch

from qvl.kernels.paged import SHORT, SPLIT, attend_decode, sequences, whole_segments

pytestmark = [
    pytest.mark.triton,
    # the interpreter of Triton 3.6 makes scalars in the way that numpy 2.4 gave up
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("TRITON_INTERPRET=1 is not set; `make test-triton`", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed")
attend = pytest.importorskip("qvl.kernels.triton_attention").attend

PAGE = 16
CPU = torch.device("cpu")


def written_out(q_mnh, k_ckh, v_ckh, *, causal):
    """Softmax attention of the last m of c tokens in fp32."""
    q, k, v = (x.float().transpose(0, 1) for x in (q_mnh, k_ckh, v_ckh))
    group = len(q) // len(k)
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    new, cached = scores.shape[1:]
    if causal:
        seen = torch.ones(new, cached, dtype=torch.bool).tril(cached - new)
        scores = scores.masked_fill(~seen, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1)


def paged(lengths, heads, kv_heads, head_dim, *, dtype=torch.float32, seed=0):
    """Random (new, cached) sequences: packed queries, a cache in random pages, what is right."""
    torch.manual_seed(seed)
    pages = [-(-cached // PAGE) for _, cached in lengths]
    order = random.Random(seed).sample(range(sum(pages) + 3), sum(pages))
    tables = [[order.pop() for _ in range(count)] for count in pages]
    # what no sequence holds must not matter: it may be anything that memory was before
    kv = torch.full((2, sum(pages) + 3, PAGE, kv_heads, head_dim), float("nan"), dtype=dtype)
    queries, expected = [], []
    for (new, cached), table in zip(lengths, tables, strict=True):
        k, v = torch.randn(2, cached, kv_heads, head_dim).to(dtype)
        for j in range(cached):
            kv[0, table[j // PAGE], j % PAGE] = k[j]
            kv[1, table[j // PAGE], j % PAGE] = v[j]
        queries.append(torch.randn(new, heads, head_dim).to(dtype))
        expected.append(written_out(queries[-1], k, v, causal=True))
    where = sequences([n for n, _ in lengths], [c for _, c in lengths], tables, PAGE, CPU)
    k_ckh, v_ckh = kv.flatten(1, 2)
    return torch.cat(queries), k_ckh, v_ckh, where, torch.cat(expected)


# one token, page edges, more than a tile, more than a split, a chunk in the middle of a prompt
LENGTHS = [(1, 1), (1, 15), (1, 16), (1, 17), (7, 7), (30, 47), (SHORT + 1, 40), (4, SPLIT + 2)]


@pytest.mark.parametrize("head_dim", [64, 72, 80, 128])
@pytest.mark.parametrize("group", [1, 2, 6])
def test_paged_attention_is_what_it_is_written_out(head_dim, group):
    q, k, v, where, expected = paged(LENGTHS, 2 * group, 2, head_dim)
    torch.testing.assert_close(attend(q, k, v, where, causal=True), expected)


@pytest.mark.parametrize("seed", range(8))
def test_random_lengths(seed):
    draw = random.Random(seed)
    cached = [draw.randint(1, 3 * SPLIT) for _ in range(4)]
    lengths = [(draw.randint(1, min(c, draw.choice([1, SHORT, 90]))), c) for c in cached]
    q, k, v, where, expected = paged(lengths, 4, 2, 64, seed=seed)
    torch.testing.assert_close(attend(q, k, v, where, causal=True), expected)


def test_fp16_sums_in_fp32():
    q, k, v, where, expected = paged([(1, 3 * SPLIT), (40, 300)], 4, 2, 64, dtype=torch.float16)
    out = attend(q, k, v, where, causal=True)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), expected, atol=2e-3, rtol=2e-3)


def test_a_row_has_the_same_bits_alone_and_among_others():
    q, k, v, where, _ = paged([(1, 2 * SPLIT + 5), (40, 70), (3, 19)], 4, 2, 64)
    together = attend(q, k, v, where, causal=True)
    bounds = where.cu_q.tolist()
    assert where.table_bw is not None
    for index, (a, b) in enumerate(pairwise(bounds)):
        table = where.table_bw[index : index + 1].tolist()
        alone = sequences([b - a], [int(where.k_lens_b[index])], table, PAGE, CPU)
        assert torch.equal(attend(q[a:b], k, v, alone, causal=True), together[a:b])


def test_one_token_each_is_what_pytorch_says():
    q, k, v, where, _ = paged([(1, 5), (1, 300), (1, 33)], 6, 3, 64)
    torch.testing.assert_close(attend(q, k, v, where, causal=True), attend_decode(q, k, v, where))


@pytest.mark.parametrize("head_dim", [64, 72, 80])
def test_segments_without_pages_see_all_of_themselves(head_dim):
    """The vision tower's: keys and values may be parts of a wider tensor."""
    torch.manual_seed(0)
    lengths = [1, 64, 65, 4, 130]
    q, k, v = torch.randn(sum(lengths), 3, 2, head_dim).unbind(1)
    where = whole_segments(tuple(lengths), CPU)
    parts = [x.split(lengths) for x in (q, k, v)]
    expected = [written_out(*part, causal=False) for part in zip(*parts, strict=True)]
    torch.testing.assert_close(attend(q, k, v, where, causal=False), torch.cat(expected))
