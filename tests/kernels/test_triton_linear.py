"""The Triton kernels of quantised layers in Triton's interpreter, on a CPU, against PyTorch."""

from __future__ import annotations

import os

import pytest
import torch

from qvl.kernels.quantised import FP8, LEAST, Int4WeightLinear, fp8_of

pytestmark = [
    pytest.mark.triton,
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("TRITON_INTERPRET=1 is not set; `make test-triton`", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed")
kernels = pytest.importorskip("qvl.kernels.triton_linear")


@pytest.mark.parametrize("m", [1, 4, 17, 64])
@pytest.mark.parametrize(("n", "k", "bias"), [(48, 384, True), (40, 128, False)])
def test_int4_rows_are_those_of_the_unpacked_weight(m, n, k, bias):
    torch.manual_seed(m)
    layer = Int4WeightLinear.of(torch.randn(n, k), torch.randn(n) if bias else None)
    x = torch.randn(m, k)
    y = kernels.int4_rows(x, layer.nibbles, layer.scales, layer.zeros, layer.bias)
    torch.testing.assert_close(y, layer(x), atol=1e-4, rtol=1e-4)


def test_int4_rows_in_fp16_lose_no_more_than_their_rounding():
    torch.manual_seed(0)
    layer = Int4WeightLinear.of(torch.randn(32, 512) / 16, None)
    x = torch.randn(3, 512).half()
    y = kernels.int4_rows(x, layer.nibbles, layer.scales, layer.zeros, None)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), layer(x.float()), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("k", [64, 1024, 1500])
def test_rows_in_fp8_are_pytorchs(k):
    torch.manual_seed(k)
    x = torch.randn(4, k) * torch.tensor([[1.0], [1e3], [0.0], [1e-3]])
    values, scales = kernels.fp8_rows(x, FP8, LEAST)
    expected, expected_scales = fp8_of(x)
    torch.testing.assert_close(scales, expected_scales)
    # the interpreter leaves out the carry into the exponent: 127.9 / 1 becomes 64, not 128
    carried = expected.float().abs() == 2 * values.float().abs()
    carried &= expected.float() != 0
    assert carried.float().mean() < 0.05
    assert torch.equal(values[~carried], expected[~carried])
