"""Which rounding costs what: a few layers of Qwen2-VL-2B's width, weights and inputs rounded by turns.

    python -m benchmarks.rounding [LAYERS] | tee benchmarks/rounding.md

Main path: main -> rounded (each linear layer computes with a weight and an input that were rounded as
a variant says) -> a table. What is rounded is first rounded as `kernels/linear.py` does it, then in
ways that it does not: the scale with the least squared error instead of the one that reaches the
largest number, and other groups. The cosine is between the logits of the last LAST tokens and those
of plain fp32, the smallest of them. The weights are normally distributed, as those of
`benchmarks.checkpoints`: the worst case, as nothing in them is more regular than noise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date

import torch
from benchmarks.checkpoints import CONFIGS
from torch import Tensor, nn

from qvl.loading.config import model_config
from qvl.models.attention import PackedCausal
from qvl.models.batch import ForwardBatch
from qvl.models.decoder import Decoder
from qvl.models.norm import RMSNorm

LAST, TOKENS, WORDS = 16, 80, 4096
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)  # of the range that a scale spans, tried one after the other
Round = Callable[[Tensor], Tensor]


def even(levels: int, group: int | None, *, search: bool = False) -> Round:
    """Signed numbers with one scale for each group of a row; None: for a whole row."""

    def rounded(x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (-1, group or x.shape[-1]))
        most = parts.abs().amax(-1, keepdim=True).clamp(min=1e-30) / levels

        def at(scale: Tensor) -> Tensor:
            return (parts / scale).round().clamp(-levels, levels) * scale

        return best(parts, [at(most * shrink) for shrink in (SHRINKS if search else SHRINKS[:1])])

    return rounded


def uneven(group: int, *, search: bool = False) -> Round:
    """Four bits with a zero point, from the smallest to the largest of each group."""

    def rounded(x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (-1, group))
        low, high = (end(parts, -1, keepdim=True) for end in (torch.amin, torch.amax))
        low, high = low.clamp(max=0), high.clamp(min=0)

        def at(shrink: float) -> Tensor:
            scale = ((high - low) * shrink / 15).half().float().clamp(min=1e-30)
            zero = (-low * shrink / scale).round().clamp(0, 15)
            return ((parts / scale).round() + zero).clamp(0, 15).sub(zero) * scale

        return best(parts, [at(shrink) for shrink in (SHRINKS if search else SHRINKS[:1])])

    return rounded


def best(parts: Tensor, tried: list[Tensor]) -> Tensor:
    """Of each group the attempt with the least squared error."""
    chosen, least = tried[0], (tried[0] - parts).square().sum(-1, keepdim=True)
    for attempt in tried[1:]:
        error = (attempt - parts).square().sum(-1, keepdim=True)
        chosen = torch.where(error < least, attempt, chosen)
        least = torch.minimum(error, least)
    return chosen.flatten(-2)


def at_best(bits: float) -> Round:
    """As far off as normally distributed numbers are at least in any code of so many bits (Shannon)."""
    lost = 4.0**-bits

    def rounded(x: Tensor) -> Tensor:
        noise = torch.randn_like(x) * x.std() * (lost * (1 - lost)) ** 0.5
        return x * (1 - lost) + noise

    return rounded


def as_it_is(x: Tensor) -> Tensor:
    return x


# name -> how the layers' weights and their inputs are rounded; the head is not
VARIANTS: dict[str, tuple[Round, Round]] = {
    "int8: weights alone": (even(127, None), as_it_is),
    "int8: inputs alone": (as_it_is, even(127, None)),
    "int8: both, as qvl": (even(127, None), even(127, None)),
    "int8: both, weights searched": (even(127, None, search=True), even(127, None)),
    "int8: both, inputs in groups of 128": (even(127, None), even(127, 128)),
    "int8: both in groups of 128": (even(127, 128), even(127, 128)),
    "int4: weights alone": (uneven(128), as_it_is),
    "int4: inputs alone": (as_it_is, even(127, 128)),
    "int4: both, as qvl": (uneven(128), even(127, 128)),
    "int4: both, weights searched": (uneven(128, search=True), even(127, 128)),
    "int4: both, weights in groups of 64": (uneven(64), even(127, 128)),
    "int4: both, weights in groups of 32": (uneven(32), even(127, 128)),
    "any code of 4.25 bits, at best": (at_best(4.25), even(127, 128)),
    "5 bits in groups of 32": (even(15, 32), even(127, 128)),
    "6 bits in groups of 128": (even(31, 128), even(127, 128)),
}


@contextmanager
def rounded(model: nn.Module, weights: Round, inputs: Round) -> Iterator[None]:
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    plain = [m.weight.data for m in linears]
    hooks = [m.register_forward_pre_hook(lambda _, x: (inputs(x[0]),)) for m in linears]
    for linear in linears:
        linear.weight.data = torch.cat([weights(rows) for rows in linear.weight.data.split(256)])
    try:
        yield
    finally:
        for linear, weight, hook in zip(linears, plain, hooks, strict=True):
            linear.weight.data = weight
            hook.remove()


def random_decoder(layers: int) -> Decoder:
    config = replace(model_config(CONFIGS["Qwen2-VL-2B"]).decoder, layers=layers, vocab_size=WORDS)
    torch.manual_seed(0)
    decoder = Decoder(config).requires_grad_(requires_grad=False)
    for parameter in decoder.parameters():
        parameter.data.normal_(std=1 / 50)
    for module in decoder.modules():
        if isinstance(module, RMSNorm):
            module.weight.data.fill_(1.0)
    return decoder


@torch.inference_mode()
def main() -> None:
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    decoder = random_decoder(layers)
    batch = ForwardBatch(
        ids_t=torch.randint(0, WORDS, (TOKENS,)),
        positions_3t=torch.arange(TOKENS).expand(3, -1),
        attend=PackedCausal([0, TOKENS]),
        wanted_b=torch.arange(TOKENS - LAST, TOKENS),
    )
    head = decoder.embed_tokens.weight
    exact = decoder(batch) @ head.T
    print(f"{date.today()}, {layers} layers of Qwen2-VL-2B's decoder, random weights.\n")
    print("| what is rounded | one weight, rms | logits, rms | cosine, smallest |")
    print("|---|---|---|---|")
    for name, (weights, inputs) in VARIANTS.items():
        one = decoder.layers[0].mlp.down_proj.weight
        off = ((weights(one) - one).norm() / one.norm()).item()
        with rounded(decoder, weights, inputs):
            logits = decoder(batch) @ head.T
        whole = ((logits - exact).norm() / exact.norm()).item()
        cosine = torch.cosine_similarity(logits.double(), exact.double(), dim=-1).min().item()
        print(f"| {name} | {off:.2%} | {whole:.2%} | {cosine:.5f} |", flush=True)


if __name__ == "__main__":
    main()
