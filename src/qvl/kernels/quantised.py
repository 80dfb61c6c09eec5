"""Linear layers with fp8 and int4 weights for a GPU: 8-bit activations too, or none but the weights.

Without Triton, or on a CPU, the same numbers in PyTorch, slower.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GpuKind = Literal["fp8", "int4"]
FP8 = torch.float8_e4m3fn
GROUP = 128
LEAST = 1e-12  # what counts as the largest number of a row of zeros
FEW_ROWS = 64  # beyond, unpacking the weight costs less than what it is multiplied by


@cache
def kernels(device_type: str) -> ModuleType | None:
    """triton_linear.py, where it runs."""
    if device_type != "cuda":
        return None
    try:
        from qvl.kernels import triton_linear
    except ImportError:
        return None
    return triton_linear


class Fp8Linear(nn.Module):
    """W8A8 in e4m3: a scale for each output and for each row of the input; K and N in sixteens.

    Scales are the largest magnitude over 448. Products are summed in fp32 by torch._scaled_mm.
    """

    values: Tensor
    scales: Tensor

    def __init__(self, weight_nk: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_nk.shape
        values, scales = fp8_of(weight_nk)
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)  # fp32 [N, 1]
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """y [..., N] in the dtype of x."""
        x_mk = x.reshape(-1, self.in_features).contiguous()
        triton = kernels(x.device.type)
        rows, scales = fp8_of(x_mk) if triton is None else triton.fp8_rows(x_mk, FP8, LEAST)
        if x.device.type == "cuda":
            y = torch._scaled_mm(
                rows, self.values.T, scale_a=scales, scale_b=self.scales.T, out_dtype=torch.bfloat16
            ).to(x.dtype)
        else:
            exact = rows.float() @ self.values.float().T
            y = (exact * scales * self.scales.T).to(x.dtype)
        y = y if self.bias is None else y + self.bias.to(x.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def weight(self) -> Tensor:
        """What the weight stands for, fp32 [N, K]."""
        return self.values.float() * self.scales


def fp8_of(x_mk: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3 [M, K], fp32 scales [M, 1]) of each row."""
    most, x = torch.finfo(FP8).max, x_mk.float()
    scales = x.abs().amax(1, keepdim=True).clamp(min=LEAST) / most
    return (x / scales).clamp(-most, most).to(FP8), scales


class Int4WeightLinear(nn.Module):
    """W4A16: integers 0 .. 15 less a zero point, times a scale, for each output and 128 inputs.

    A byte holds input i of a group in its low and input i + 64 in its high half.
    """

    nibbles: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(
        self, values: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None = None
    ) -> None:
        """From integers [N, G, 128], scales and integer zero points [N, G], as AWQ and GPTQ have."""
        super().__init__()
        self.out_features, self.in_features = len(values), values[0].numel()
        low, high = values.to(torch.uint8).split(GROUP // 2, dim=2)
        self.register_buffer("nibbles", (low | high << 4).contiguous())  # [N, G, 64]
        self.register_buffer("scales", scales.half().contiguous())
        self.register_buffer("zeros", zeros.to(torch.uint8).contiguous())
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, weight_nk: Tensor, bias: Tensor | None) -> Int4WeightLinear:
        """The nearest integers; of a group the least and the largest number are kept, and 0."""
        groups = weight_nk.float().unflatten(1, (-1, GROUP))
        low = groups.amin(-1).clamp(max=0)
        scales = ((groups.amax(-1).clamp(min=0) - low) / 15).half()
        inverse = torch.where(scales > 0, 1 / scales.float(), 0)
        zeros = (-low * inverse).round().clamp(0, 15)
        values = (groups * inverse.unsqueeze(-1)).round() + zeros.unsqueeze(-1)
        return cls(values.clamp(0, 15), scales, zeros, bias)

    def forward(self, x: Tensor) -> Tensor:
        """y [..., N] in the dtype of x."""
        x_mk = x.reshape(-1, self.in_features).contiguous()
        triton = kernels(x.device.type)
        if triton is None or len(x_mk) > FEW_ROWS:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            y = F.linear(x_mk, self.weight().to(x.dtype), bias)
        else:
            y = triton.int4_rows(x_mk, self.nibbles, self.scales, self.zeros, self.bias)
        return y.view(*x.shape[:-1], self.out_features)

    def weight(self) -> Tensor:
        """What the weight stands for, fp32 [N, K]."""
        values = torch.cat((self.nibbles & 15, self.nibbles >> 4), 2).float()
        return ((values - self.zeros.unsqueeze(-1)) * self.scales.float().unsqueeze(-1)).flatten(1)


def quantised(weight_nk: Tensor, bias: Tensor | None, kind: GpuKind) -> nn.Module | None:
    """The layer in the wanted kind, on the weight's device; None where its sizes do not allow it."""
    outputs, inputs = weight_nk.shape
    if kind == "fp8" and outputs % 16 == inputs % 16 == 0:
        return Fp8Linear(weight_nk, bias)
    if kind == "int4" and inputs % GROUP == 0:
        return Int4WeightLinear.of(weight_nk, bias)
    return None
