"""The compiled parts around packed weights: compiled == PyTorch; a token is itself anywhere."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qvl.engine.cache import CachedAttention, KVCache, Span
from qvl.kernels import attention, build, parts
from qvl.kernels.attention import attend_causal, attend_whole
from qvl.kernels.parts import PackedLayer, RowNorm, compiled_act, layers_at_once, rotate_in_place
from qvl.loading.machine import bf16_instructions
from qvl.models.attention import PackedCausal, packed_attention
from qvl.models.config import DecoderConfig
from qvl.models.decoder import DecoderLayer, one_after_the_other
from qvl.models.norm import RMSNorm
from qvl.models.rope import mrope_angles, mrope_axes, vision_angles
from qvl.models.vision import gelu_tanh, quick_gelu

pytestmark = pytest.mark.skipif(build.library() is None, reason="no C compiler here")
CPU = torch.device("cpu")


def config(*, qk_norm: bool, hidden: int = 256, kv_heads: int = 2, head_dim: int = 64, experts=0):
    return DecoderConfig(
        layers=1, hidden=hidden, heads=6, kv_heads=kv_heads, head_dim=head_dim, mlp_width=384,
        vocab_size=99, norm_eps=1e-6, rope_theta=1e6, mrope_interleaved=qk_norm,
        mrope_section=(head_dim // 4, head_dim // 8, head_dim // 8), qkv_bias=not qk_norm,
        qk_norm=qk_norm, tied_head=True, max_positions=4096,
        experts=experts, experts_per_token=experts and 3,
    )  # fmt: skip


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


M = TypeVar("M", bound=torch.nn.Module)


def filled(module: M) -> M:
    for index, parameter in enumerate(module.parameters()):
        parameter.data = noise(*parameter.shape, seed=index) * 0.1 + (parameter.dim() == 1)
    module.requires_grad_(False)
    return module


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch):
    """What a function gives when there is no compiled code."""

    def run(function):
        with monkeypatch.context() as patched:
            patched.setattr(parts, "library", lambda: None)
            patched.setattr(attention, "library", lambda: None)
            return function()

    return run


@pytest.mark.parametrize("width", [32, 96, 1536])
def test_the_norm_is_that_of_the_models(width: int) -> None:
    norm = filled(RMSNorm(width, 1e-6))
    x = noise(7, width) * torch.logspace(-6, 6, 7).unsqueeze(1)
    torch.testing.assert_close(RowNorm(norm)(x), norm(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(RowNorm(norm)(torch.zeros(2, width)), torch.zeros(2, width))


def test_silu_of_extremes() -> None:
    gates = torch.tensor([-1e30, -300.0, -88.5, -1.0, 0.0, 1.0, 88.5, 300.0, 1e30, torch.nan])
    row = torch.cat([gates, torch.zeros(22), torch.ones(32)]).unsqueeze(0)
    inner = torch.empty(1, 32)
    kernels = build.library()
    assert kernels is not None
    kernels.qvl_silu_mul(row.data_ptr(), inner.data_ptr(), 1, 32)
    expected = torch.nn.functional.silu(gates)
    torch.testing.assert_close(inner[0, :10], expected, rtol=1e-6, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("act", [quick_gelu, gelu_tanh])
def test_an_activation_is_that_of_the_models(act, without_compiler) -> None:
    extremes = torch.tensor([-1e4, -90, -0.0, 0, 90, 1e4]).repeat(16, 2)
    x = torch.cat((noise(16, 20) * 4, extremes), dim=1)
    assert torch.allclose(compiled_act(act)(x.clone()), act(x), rtol=1e-5, atol=1e-6)
    assert compiled_act(act)(torch.full((32,), torch.nan)).isnan().all()
    assert without_compiler(lambda: compiled_act(act)(x)).equal(act(x))


@pytest.mark.parametrize(("qk_norm", "experts"), [(False, 0), (True, 0), (True, 8)])
@pytest.mark.parametrize("kind", ["bf16", "int8", "int4"])
def test_a_layer_is_the_same_without_a_compiler(qk_norm, experts, kind, without_compiler) -> None:
    shape = config(qk_norm=qk_norm, experts=experts)
    layer = PackedLayer(filled(DecoderLayer(shape, 0)), kind)
    angles = angles_of(shape, 21)
    x = noise(21, 256)
    before = x.clone()

    def run() -> Tensor:
        return layer(x, angles, CachedAttention(KVCache(2), [Span([1, 0], 0, 21, CPU)]))

    expected = without_compiler(run)
    # whole numbers of 8 bits may now and then be rounded otherwise
    assert (run() - expected).norm() < 3e-3 * expected.norm()
    plain = layer(x, angles, PackedCausal([0, 21]))
    assert (plain - expected).norm() < 3e-3 * expected.norm()
    assert torch.equal(x, before)
    x[3] = torch.nan
    assert run()[3:].isnan().all()
    assert not run()[:3].isnan().any()


def angles_of(shape: DecoderConfig, tokens: int) -> tuple[Tensor, Tensor]:
    positions = torch.arange(tokens).expand(3, -1) + torch.tensor([[0], [3], [5]])
    axes = mrope_axes(shape.mrope_section, interleaved=shape.mrope_interleaved)
    return mrope_angles(
        positions, head_dim=shape.head_dim, theta=1e6, axes=axes, dtype=torch.float32
    )


@pytest.mark.parametrize("kind", ["bf16", "int8", "int4"])
def test_a_token_takes_its_experts_alone_as_among_others(kind) -> None:
    shape = config(qk_norm=True, experts=8)
    layer = PackedLayer(filled(DecoderLayer(shape, 0)), kind)
    x, angles = noise(21, 256), angles_of(shape, 21)
    together = layer(x, angles, PackedCausal(list(range(22))))  # each attends to itself only
    for i in (0, 7, 20):
        alone = layer(x[i : i + 1], tuple(a[i : i + 1] for a in angles), PackedCausal([0, 1]))
        assert alone.equal(together[i : i + 1])


def test_attention_agrees_with_the_dense_one_for_any_table() -> None:
    q, k, v = noise(70, 12, 64), noise(70, 2, 64, seed=1), noise(70, 2, 64, seed=2)
    cache = KVCache(9)
    whole = CachedAttention(cache, [Span([7, 2, 5, 0, 8], 0, 70, CPU)])(0, q, k, v)
    torch.testing.assert_close(whole, attend_causal(q, k, v), rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    total=st.integers(1, 75),
    cuts=st.lists(st.integers(1, 75), max_size=4),
    kv_heads=st.sampled_from([1, 2, 6]),
    width=st.sampled_from([32, 64, 128]),
    other=st.integers(1, 40),
)
def test_a_token_attends_the_same_in_any_part_and_beside_anyone(
    total, cuts, kv_heads, width, other
) -> None:
    q, k, v = (
        noise(total, 6, width),
        noise(total, kv_heads, width, seed=1),
        noise(total, kv_heads, width, seed=2),
    )
    oq, ok, ov = (
        noise(other, 6, width, seed=3),
        noise(other, kv_heads, width, seed=4),
        noise(other, kv_heads, width, seed=5),
    )
    alone = CachedAttention(KVCache(5), [Span([0, 1, 2, 3, 4], 0, total, CPU)])(0, q, k, v)
    cache, parts_, start = KVCache(9), [], 0
    table, others = [6, 3, 8, 1, 0], [2, 4, 5]
    for stop in sorted({*(c for c in cuts if c < total), total}):
        spans = [Span(others, 0, other, CPU), Span(table, start, stop, CPU)]
        out = CachedAttention(cache, spans)(
            0,
            torch.cat([oq, q[start:stop]]),
            torch.cat([ok, k[start:stop]]),
            torch.cat([ov, v[start:stop]]),
        )
        parts_.append(out[other:])
        start = stop
    assert torch.equal(torch.cat(parts_), alone)


@pytest.mark.parametrize("width", [64, 72, 80])
def test_attention_of_whole_pictures_is_the_dense_one(width: int) -> None:
    """Segments of any length; where bf16 is multiplied in bf16, up to what rounding to it loses."""
    bounds = [0, 1, 17, 17 + 40, 57 + 300]
    qkv = noise(bounds[-1], 3, 4, width)
    q, k, v = qkv.unbind(1)
    k[20] *= 30  # a key that takes nearly everything
    expected = packed_attention(q, k, v, bounds, causal=False)
    found = attend_whole(q, k, v, bounds, causal=False)
    lost = (found - expected).norm() / expected.norm()
    assert lost < (0.006 if bf16_instructions() else 1e-5)


def test_a_picture_attends_the_same_beside_others() -> None:
    q, k, v = noise(3, 130, 4, 80).unbind(0)
    together = attend_whole(q, k, v, [0, 37, 130], causal=False)
    for part in (slice(0, 37), slice(37, 130)):
        alone = attend_whole(q[part], k[part], v[part], [0, part.stop - part.start], causal=False)
        assert torch.equal(together[part], alone)


def test_no_number_in_one_picture_harms_no_other() -> None:
    q, k, v = noise(3, 50, 2, 64).unbind(0)
    clean = attend_whole(q, k, v, [0, 20, 50], causal=False)
    k[5, 0, 3] = float("nan")
    found = attend_whole(q, k, v, [0, 20, 50], causal=False)
    assert not found[:20, 0].isfinite().any()
    assert torch.equal(found[20:], clean[20:])
    assert torch.equal(found[:, 1], clean[:, 1])


@pytest.mark.parametrize("width", [64, 72, 80])
def test_the_towers_rotation_is_that_of_the_models(width: int, without_compiler) -> None:
    angles = vision_angles(
        torch.randint(0, 40, (33, 2), generator=torch.Generator().manual_seed(8)), width
    )
    qkv = noise(33, 3, 4, width)
    q, k, v = qkv.unbind(1)
    expected = without_compiler(lambda: rotate_in_place(q, k, angles))
    apart = rotate_in_place(q.clone(), k.clone(), angles)  # no views of one tensor
    assert torch.equal(torch.stack(apart), torch.stack(expected))
    untouched = v.clone()
    for found, wanted in zip(rotate_in_place(q, k, angles), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(v, untouched)


@pytest.mark.parametrize("kind", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_layers_in_one_call_are_each_after_the_other(kind, qk_norm: bool) -> None:
    """Bit for bit, keys and values in the cache too; in two steps, the second one of a single token."""
    layers = [PackedLayer(filled(DecoderLayer(config(qk_norm=qk_norm), i)), kind) for i in range(3)]
    said = []
    for run in (layers_at_once, one_after_the_other):
        cache, table = KVCache(4), [3, 1]
        for start, stop in ((0, 20), (20, 21)):
            x = noise(stop - start, 256, seed=start)
            positions = torch.arange(start, stop).expand(3, -1)
            axes = mrope_axes((16, 8, 8), interleaved=qk_norm)
            angles = mrope_angles(positions, head_dim=64, theta=1e6, axes=axes, dtype=torch.float32)
            attend = CachedAttention(cache, [Span(table, start, stop, CPU)])
            said.append(run(layers, x, angles, attend))
        said.append(
            torch.stack([cache.layer(i, x)[:, table].flatten(1, 2)[:, :21] for i in range(3)])
        )
    for found, expected in zip(said[:3], said[3:], strict=True):
        assert torch.equal(found, expected)
