"""fp8 and int4 layers in PyTorch, as they run without Triton."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qvl.kernels.linear import Int4Linear
from qvl.kernels.quantised import FP8, Fp8Linear, Int4WeightLinear, quantised


def random_layer(n: int = 48, k: int = 256, bias: bool = True):
    torch.manual_seed(n + k)
    return torch.randn(n, k) * torch.rand(n, 1), torch.randn(n) if bias else None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_a_layer_is_near_the_one_that_it_was_made_from(kind, bias):
    weight, b = random_layer(bias=bias)
    x = torch.randn(2, 5, 256)
    layer = quantised(weight, b, kind)
    assert layer is not None
    expected = F.linear(x, weight, b)
    error = (layer(x) - expected).norm() / expected.norm()
    assert error < {"fp8": 0.05, "int4": 0.12}[kind]
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_fp8_multiplies_what_the_rows_and_the_weight_are_rounded_to():
    """A row of e4m3 numbers whose largest is 448 has the scale 1, so nothing of it is lost."""
    torch.manual_seed(0)
    weight = (torch.randn(32, 64) * 50).to(FP8).float()
    x = (torch.randn(3, 64) * 50).to(FP8).float()
    weight[:, 0], x[:, 0] = 448, -448
    layer = Fp8Linear(weight, None)
    assert torch.equal(layer.weight(), weight)
    torch.testing.assert_close(layer(x), x @ weight.T)
    # a power of two moves the scale and nothing else
    torch.testing.assert_close(layer(x / 8), x @ weight.T / 8)


def test_fp8_rows_do_not_depend_on_each_other():
    layer = Fp8Linear(*random_layer())
    x = torch.randn(4, 256)
    x[2] = 0
    together = layer(x * torch.tensor([[1.0], [1e4], [1.0], [1e-4]]))
    torch.testing.assert_close(together[:1], layer(x[:1]))
    assert isinstance(layer.bias, torch.Tensor)
    assert torch.equal(together[2], layer.bias)


def test_int4_keeps_integers_zeros_and_scales_as_they_are_given():
    torch.manual_seed(0)
    values = torch.randint(0, 16, (8, 3, 128))
    scales, zeros = torch.rand(8, 3).half(), torch.randint(0, 16, (8, 3))
    layer = Int4WeightLinear(values, scales, zeros)
    expected = ((values - zeros[..., None]) * scales.float()[..., None]).flatten(1)
    assert torch.equal(layer.weight(), expected)
    assert layer.nibbles.nbytes == values.numel() // 2


def test_int4_is_rounded_as_for_a_cpu():
    weight, _ = random_layer(32, 256)
    assert torch.equal(
        Int4WeightLinear.of(weight, None).weight(), Int4Linear(weight, None).weight()
    )


def test_sizes_that_the_kernels_cannot_take_stay_as_they_are():
    assert quantised(torch.randn(24, 32), None, "fp8") is None
    assert quantised(torch.randn(32, 192), None, "int4") is None
