"""Linear layers as quantised checkpoints store them: GPTQ, AWQ (GEMM) and FP8 in blocks.

They stand in for nn.Linear while a model is loaded, with the file's own tensors under the file's
own names; nothing computes with them. `weight_of` gives their weight as plain numbers, `int4_of` as
the integers that the int4 kernels take as they are. The formulas are those of AutoGPTQ
(qlinear_cuda.py), AutoAWQ (packing_utils.py) and transformers (integrations/finegrained_fp8.py).
N outputs, K inputs, G groups of inputs that share a scale.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.kernels.linear import GROUP
from qvl.models.config import Quantisation

OUTPUTS_AT_ONCE = 1024  # whose weight is made at a time; whole words of eight
E4M3_MAX = 448.0
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight outputs nibble 0, 1, 2, ... of a word is


class StoredLinear(nn.Module):
    """The tensors of one quantised layer, at first on the meta device.

    extra_bias: the file has a bias that the layer has not.
    """

    bias: Tensor | None

    def __init__(self, how: Quantisation, linear: nn.Linear, *, extra_bias: bool) -> None:
        super().__init__()
        self.how, self.extra_bias = how, extra_bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("bias", None)
        if extra_bias or linear.bias is not None:
            self.empty("bias", torch.float16, self.out_features)

    def empty(self, name: str, dtype: torch.dtype, *shape: int) -> None:
        self.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"))

    @abstractmethod
    def dense(self) -> Tensor:
        """The weight, fp32 [N, K]; made in parts, so that little is needed beside it."""


def fields(words: Tensor, bits: int) -> Tensor:
    """uint8 [..., words * 32 / bits]: the numbers in int32 words, those of the lowest bits first."""
    octets = words.contiguous().view(torch.uint8)
    if bits == 8:
        return octets
    pairs = octets.to(torch.int16)
    return (pairs & 15 | pairs >> 4 << 8).view(torch.uint8)


def awq_fields(words_kn: Tensor) -> Tensor:
    """uint8 [outputs, K] from words [K, outputs / 8]."""
    words = words_kn.T.contiguous()
    eight = words.new_empty(len(words), 8, words.shape[1], dtype=torch.uint8)
    for nibble, output in enumerate(AWQ_ORDER):
        eight[:, output] = words >> 4 * nibble & 15
    return eight.flatten(0, 1)


class GroupedLinear(StoredLinear):
    """W[n, k] = scales[g, n] (q[n, k] - zero[g, n]), g the group of input k."""

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor

    def __init__(self, how: Quantisation, linear: nn.Linear, *, extra_bias: bool) -> None:
        super().__init__(how, linear, extra_bias=extra_bias)
        n, k = self.out_features, self.in_features
        self.group = k if how.group == -1 else how.group
        self.empty("qzeros", torch.int32, -(-k // self.group), -(-n * how.bits // 32))
        self.empty("scales", torch.float16, -(-k // self.group), n)

    @abstractmethod
    def values(self, outputs: slice) -> Tensor:
        """q of some outputs, uint8 [n, K]."""

    @abstractmethod
    def zeros(self) -> Tensor:
        """int16 [N, G]; up to 256."""

    def in_order(self) -> Tensor:
        """Each input's group when groups are neighbours, int64 [K]."""
        return torch.arange(self.in_features, device=self.scales.device) // self.group

    def groups(self) -> Tensor:
        """Each input's group, int64 [K]."""
        return self.in_order()

    def dense(self) -> Tensor:
        zeros, scales, groups = self.zeros().float(), self.scales.float().T, self.groups()
        neighbours = self.in_features % self.group == 0 and torch.equal(groups, self.in_order())
        whole = scales.new_empty(self.out_features, self.in_features)
        for first in range(0, self.out_features, OUTPUTS_AT_ONCE):
            some = slice(first, first + OUTPUTS_AT_ONCE)
            part, zero, scale = whole[some].copy_(self.values(some)), zeros[some], scales[some]
            if neighbours:
                by_group = part.unflatten(1, (-1, self.group))
                by_group.sub_(zero.unsqueeze(-1)).mul_(scale.unsqueeze(-1))
            else:
                part.sub_(zero.index_select(1, groups)).mul_(scale.index_select(1, groups))
        return whole

    def fits_int4(self) -> bool:
        """Whether the int4 kernels' form holds the stored numbers as they are.

        It does not hold 8 bits, other groups than 128 neighbours (act-order) and scales that are
        not fp16.
        """
        if self.how.bits != 4 or self.group != GROUP or self.in_features % GROUP:
            return False
        in_order = torch.equal(self.groups(), self.in_order())
        return in_order and self.scales.dtype == torch.float16

    def int4(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values uint8 [N, G, 128], fp16 scales and zero points uint8 [N, G]."""
        values = self.values(slice(0, self.out_features)).unflatten(1, (-1, GROUP))
        return values, self.scales.T, self.zeros().to(torch.uint8)


class GptqLinear(GroupedLinear):
    """qweight [K / n, N] and qzeros [G, N / n], n fields a word; g_idx [K] is each input's group."""

    g_idx: Tensor

    def __init__(self, how: Quantisation, linear: nn.Linear, *, extra_bias: bool) -> None:
        super().__init__(how, linear, extra_bias=extra_bias)
        self.empty("qweight", torch.int32, -(-self.in_features * how.bits // 32), self.out_features)
        self.empty("g_idx", torch.int32, self.in_features)

    def values(self, outputs: slice) -> Tensor:
        return fields(self.qweight[:, outputs].T, self.how.bits)[:, : self.in_features]

    def zeros(self) -> Tensor:
        rows = fields(self.qzeros, self.how.bits)[:, : self.out_features]
        return rows.T.to(torch.int16) + self.how.zero_offset

    def groups(self) -> Tensor:
        return self.g_idx.long()


class AwqLinear(GroupedLinear):
    """qweight [K, N / 8] and qzeros [G, N / 8], both packed along the outputs."""

    def __init__(self, how: Quantisation, linear: nn.Linear, *, extra_bias: bool) -> None:
        super().__init__(how, linear, extra_bias=extra_bias)
        self.empty("qweight", torch.int32, self.in_features, -(-self.out_features // 8))

    def values(self, outputs: slice) -> Tensor:
        rows = awq_fields(self.qweight[:, outputs.start // 8 : -(-outputs.stop // 8)])
        return rows[: self.out_features - outputs.start]

    def zeros(self) -> Tensor:
        return awq_fields(self.qzeros)[: self.out_features].to(torch.int16)


class Fp8BlockLinear(StoredLinear):
    """weight e4m3 [N, K], times a scale for each 128 x 128 of it; blocks at the edges are smaller."""

    weight: Tensor
    weight_scale_inv: Tensor

    def __init__(self, how: Quantisation, linear: nn.Linear, *, extra_bias: bool) -> None:
        super().__init__(how, linear, extra_bias=extra_bias)
        n, k = self.out_features, self.in_features
        self.empty("weight", torch.float8_e4m3fn, n, k)
        self.empty("weight_scale_inv", torch.float32, -(-n // how.group), -(-k // how.group))

    def dense(self) -> Tensor:
        side, device = self.how.group, self.weight.device
        whole = torch.empty(self.weight.shape, device=device)
        # of all e4m3 numbers: looking them up is three times as fast as converting them
        numbers = (
            torch.arange(256, dtype=torch.uint8, device=device).view(self.weight.dtype).float()
        )
        # despite its name in the file the scale is multiplied
        scales = self.weight_scale_inv.float().repeat_interleave(side, 1)
        for block, scale in enumerate(scales[:, : self.in_features]):
            some = slice(block * side, (block + 1) * side)
            octets = self.weight[some].contiguous().view(torch.uint8)
            looked_up = numbers.index_select(0, octets.flatten().int()).view(octets.shape)
            torch.mul(looked_up, scale, out=whole[some])
        return whole


STAND_INS = {"gptq": GptqLinear, "awq": AwqLinear, "fp8": Fp8BlockLinear}


def gptq_tensors(values: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> dict[str, Tensor]:
    """What a file of the first form holds, which stores zero points less one; groups are neighbours.

    values uint8 [N, K], scales fp16 and zeros uint8 [N, G].
    """
    inputs = torch.arange(values.shape[1], dtype=torch.int32)
    return {
        "qweight": words(values, bits).T.contiguous(),
        "qzeros": words((zeros - 1).T, bits),
        "scales": scales.T.contiguous(),
        "g_idx": inputs // (values.shape[1] // scales.shape[1]),
    }


def awq_tensors(values: Tensor, scales: Tensor, zeros: Tensor) -> dict[str, Tensor]:
    """values and zeros of 4 bits, uint8 [N, K] and [N, G]; scales fp16 [N, G]."""

    def packed(numbers: Tensor) -> Tensor:
        return words(numbers.T.unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1), 4)

    return {
        "qweight": packed(values),
        "qzeros": packed(zeros),
        "scales": scales.T.contiguous(),
    }


def fp8_tensors(weight: Tensor, side: int = 128) -> dict[str, Tensor]:
    """A weight [N, K] rounded to e4m3, the largest number of each block to the largest of e4m3."""
    n, k = weight.shape
    padded = F.pad(weight.float(), (0, -k % side, 0, -n % side))
    blocks = padded.unflatten(1, (-1, side)).unflatten(0, (-1, side))  # [rows, side, columns, side]
    scales = blocks.abs().amax((1, 3)) / E4M3_MAX
    scales[scales == 0] = 1  # of nothing but zeros
    values = (blocks / scales[:, None, :, None]).clamp(-E4M3_MAX, E4M3_MAX)
    whole = values.flatten(2).flatten(0, 1)[:n, :k]
    return {"weight": whole.to(torch.float8_e4m3fn), "weight_scale_inv": scales}


def words(numbers: Tensor, bits: int) -> Tensor:
    """int32 [..., numbers * bits / 32]: what `fields` reads."""
    if bits == 4:
        numbers = numbers[..., ::2] | numbers[..., 1::2] << 4
    # flat first: a row of its own may have any stride
    return numbers.flatten().view(torch.int32).view(*numbers.shape[:-1], -1)


def weight_of(layer: nn.Linear | StoredLinear) -> Tensor:
    """The weight [N, K]: as it is, or fp32 from a stored one."""
    return layer.dense() if isinstance(layer, StoredLinear) else layer.weight.data


def int4_of(layer: nn.Linear | StoredLinear) -> tuple[Tensor, Tensor, Tensor] | None:
    """Values, scales and zero points as Int4Linear.laid_out takes them; None for what does not fit."""
    return layer.int4() if isinstance(layer, GroupedLinear) and layer.fits_int4() else None


def ordinary(stored: StoredLinear, dtype: torch.dtype) -> nn.Linear:
    """The same layer with its weight as plain numbers."""
    with torch.device("meta"):
        layer = nn.Linear(stored.in_features, stored.out_features, bias=False)
    layer.weight = nn.Parameter(stored.dense().to(dtype), requires_grad=False)
    if stored.bias is not None:
        layer.bias = nn.Parameter(stored.bias.to(dtype), requires_grad=False)
    return layer
