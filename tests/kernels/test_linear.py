"""Packed linear layers: compiled == plain == what the packed weight stands for; a row is itself anywhere."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qvl.kernels import build, linear
from qvl.kernels.linear import (
    GROUP,
    KINDS,
    Bf16Embedding,
    Bf16Linear,
    Int4Linear,
    Int8Linear,
    PackedLinear,
    PackedName,
    packed,
)

# multiplying in bf16, as a processor with such units does, rounds the activations
ROUNDS_X = bool(build.library()) and "avx512_bf16" in build.CPUINFO.read_text("utf-8", "replace")


@pytest.fixture(params=["compiled", "plain"])
def computed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything twice: with the C kernels, and as on a machine without a compiler."""
    if request.param == "plain":
        monkeypatch.setattr(linear, "library", lambda: None)
    elif build.library() is None:
        pytest.skip("no C compiler here")
    return request.param


def layer(
    kind: PackedName, n: int, k: int, *, seed: int = 0
) -> tuple[PackedLinear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator) * 0.05
    bias = torch.randn(n, generator=generator)
    return KINDS[kind](weight, bias), weight, bias


def inputs(m: int, k: int, seed: int = 1) -> Tensor:
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(seed))
    x[0, 3] = 1e3  # an outlier
    x[m // 2] = 0 if m > 1 else x[m // 2]
    return x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 16, 100, 4104])
@pytest.mark.parametrize("m", [1, 2, 3, 5, 7, 9, 16, 33, 97, 200])
def test_compiled_is_plain(kind: PackedName, n: int, m: int) -> None:
    if build.library() is None:
        pytest.skip("no C compiler here")
    module, _, _ = layer(kind, n, 256)
    x = inputs(m, 256)
    if kind == "bf16" and ROUNDS_X:
        x = x.bfloat16().float()
    torch.testing.assert_close(module(x), module.plain(x), atol=2e-4, rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), [(48, 128), (200, 1536), (64, 8960)])
def test_the_product_is_that_of_the_weight_it_stands_for(kind, n, k, computed) -> None:
    module, weight, bias = layer(kind, n, k)
    x = torch.randn(9, k, generator=torch.Generator().manual_seed(2))
    expected = x @ module.weight().T + bias
    # eight bits of activations: about 0.7 % of the norm, and nothing else is rounded
    limit = 1e-5 if kind == "bf16" and not ROUNDS_X else 0.012
    assert (module(x) - expected).norm() < limit * expected.norm()
    lost = (module.weight() - weight).norm() / weight.norm()
    assert lost < {"bf16": 0.003, "int8": 0.012, "int4": 0.12}[kind]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    m=st.integers(1, 110),
    n=st.integers(1, 70),
    groups=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_a_row_is_the_same_alone_and_among_others(kind, m, n, groups, seed) -> None:
    if build.library() is None:
        pytest.skip("no C compiler here")
    module, _, _ = layer(kind, n, groups * GROUP, seed=seed)
    x = inputs(m, groups * GROUP, seed)
    alone = torch.cat([module(row[None]) for row in x])
    assert torch.equal(module(x), alone)
    assert torch.equal(module(x[m // 3 :]), alone[m // 3 :])


@pytest.fixture(scope="module")
def any_processors(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels as a processor without vector units of its own kind has them."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if build.library() is None or compiler is None:
        pytest.skip("no C compiler here")
    made = tmp_path_factory.mktemp("kernels") / "any.so"
    flags = [flag for flag in build.FLAGS if flag != "-march=native"]
    subprocess.run([compiler, *flags, str(build.SOURCE), "-o", str(made), "-lm"], check=True)
    return build.declared(ctypes.CDLL(str(made)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 5, 8, 9, 40, 400])
@pytest.mark.parametrize("built", ["here", "anywhere"])
def test_nothing_is_written_beyond_the_scratch(kind, m: int, built: str, request) -> None:
    library = request.getfixturevalue("any_processors") if built == "anywhere" else build.library()
    if library is None:
        pytest.skip("no C compiler here")
    module, _, _ = layer(kind, 20, 8960)
    x, y, size = inputs(m, 8960), torch.empty(m, 20), linear.scratch(m, 8960).numel()
    room = torch.full((size + (1 << 20),), 7, dtype=torch.uint8)
    library.qvl_linear(
        ctypes.byref(module.struct()), x.data_ptr(), room.data_ptr(), y.data_ptr(), m
    )
    assert (room[size:] == 7).all()
    # a number that lies halfway between two whole ones may be rounded otherwise
    assert (y - module.plain(x)).norm() < 3e-3 * y.norm()


def test_rows_of_zeros_and_empty_inputs(computed) -> None:
    for kind in KINDS:
        module, _, bias = layer(kind, 40, 128)
        assert torch.equal(module(torch.zeros(2, 128)), bias.expand(2, -1))
        assert module(torch.zeros(0, 128)).shape == (0, 40)
        assert module(torch.zeros(2, 3, 128)).shape == (2, 3, 40)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stays_none(computed, bad: float) -> None:
    for kind in KINDS:
        module, _, _ = layer(kind, 40, 256)
        x = torch.randn(6, 256, generator=torch.Generator().manual_seed(3))
        clean = module(x)
        x[4, 200] = bad
        y = module(x)
        assert not y[4].isfinite().any()
        assert torch.equal(y[:4], clean[:4])
        assert torch.equal(y[5], clean[5])


def test_weights_of_zeros_and_of_one_sign(computed) -> None:
    weight = torch.stack([torch.zeros(128), torch.full((128,), 0.5), torch.full((128,), -0.25)])
    for kind in KINDS:
        module = KINDS[kind](weight, None)
        torch.testing.assert_close(module.weight(), weight, atol=1e-3, rtol=2e-3)
        sums = module(torch.ones(1, 128))
        torch.testing.assert_close(sums, weight.sum(1)[None], atol=0.01, rtol=5e-3)


def test_integers_as_checkpoints_store_them_are_kept(computed) -> None:
    """int4 takes values, scales and zero points from outside, whatever they are."""
    generator = torch.Generator().manual_seed(4)
    values = torch.randint(0, 16, (32, 2, GROUP), generator=generator, dtype=torch.uint8)
    scales = torch.rand(32, 2, generator=generator).half()
    zeros = torch.randint(0, 16, (32, 2), generator=generator, dtype=torch.uint8)
    module = Int4Linear(torch.zeros(32, 256), None)
    module.keep({n: t.contiguous() for n, t in Int4Linear.laid_out(values, scales, zeros).items()})
    assert torch.equal(module.values(), values)
    stands_for = (values.float() - zeros[..., None]) * scales.float()[..., None]
    assert torch.equal(module.weight(), stands_for.flatten(1))
    x = torch.randn(3, 256, generator=generator)
    expected = x @ stands_for.flatten(1).T
    assert (module(x) - expected).norm() < 0.012 * expected.norm()


def test_a_packed_head_is_its_embedding_too() -> None:
    head, weight, _ = layer("bf16", 37, 64)
    assert isinstance(head, Bf16Linear)
    ids = torch.tensor([0, 36, 5, 5, 16, 15])
    assert torch.equal(Bf16Embedding(head)(ids), weight.bfloat16().float()[ids])


def test_a_width_that_does_not_fit_takes_the_next_finer_kind() -> None:
    for width, kind in ((256, Int4Linear), (100, Int8Linear), (98, Bf16Linear)):
        assert type(packed(torch.zeros(4, width), None, "int4")) is kind


def test_without_a_compiler_one_line_says_so(monkeypatch, caplog) -> None:
    monkeypatch.delenv("QVL_NO_CC", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    build.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert build.library() is None
            assert build.library() is None
        assert [r.message.count("gcc") for r in caplog.records] == [1]
    finally:
        build.library.cache_clear()


def test_a_compiler_that_fails_is_no_fault_of_the_user(monkeypatch, caplog, tmp_path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'cannot do this' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.delenv("QVL_NO_CC", raising=False)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setattr(build, "user_cache_path", lambda name: tmp_path / "cache")
    build.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert build.library() is None
        assert "cannot do this" in caplog.text
        assert not list((tmp_path / "cache").rglob("*.so"))
    finally:
        build.library.cache_clear()


def test_qvl_no_cc_turns_the_kernels_off() -> None:
    script = "from qvl.kernels.build import library; print(library())"
    environ = os.environ | {"QVL_NO_CC": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")
