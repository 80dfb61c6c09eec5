"""How much memory a run will need, told before it starts.

The formula counts what PyTorch keeps: the frozen weights; of what is trained the weights, gradients
and both of Adam's means in fp32; and of the longest pass what each layer keeps for its gradients.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from qvl.loading.model import empty_model
from qvl.models.config import ModelConfig
from qvl.training.passes import LOGITS_BYTES
from qvl.training.run import Recipe
from qvl.training.trainable import adaptable, make_trainable

ADAM_BYTES = 16  # of a trained number: itself, its gradient, two means
BASE_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.6}
ROOM = 1.1  # the allocator's rounding
M_MMAP_THRESHOLD = -3  # of malloc.h
RECOMPUTED = (
    1.5  # layers' worth of memory that computing one of them again takes, with its gradients
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes."""

    weights: int
    training: int
    passes: int

    @property
    def total(self) -> int:
        return round(ROOM * (self.weights + self.training + self.passes))


def give_back_freed() -> None:
    """From here on, what a tensor of 4 MiB or more took goes back to the system when it is freed.

    glibc raises that size by itself, up to 32 MiB, and below it small tensors that are kept hold the
    gaps between them open: layers computed again then take six times what is in use. Smaller tensors
    are left to it, because a new page for each of them costs time. Elsewhere nothing changes.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, 4 << 20)


def estimate(config: ModelConfig, recipe: Recipe, *, tokens: int, patches: int) -> Estimate:
    """For passes of at most that many tokens, with that many patches of pictures."""
    model = empty_model(config).requires_grad_(requires_grad=False)
    numbers = sum(p.numel() for p in model.parameters())
    inner = sum(layer.weight.numel() for _, layer in adaptable(model, ("decoder",)))
    quantised = inner if recipe.base in ("int8", "int4") else 0
    plain = 2.0 if recipe.base != "fp32" else 4.0
    weights = (numbers - quantised) * plain + quantised * BASE_BYTES[recipe.base]
    trained = make_trainable(
        model, recipe.method, recipe.sections, rank=recipe.rank, alpha=recipe.alpha
    )
    count = sum(p.numel() for _, p in trained)
    if recipe.method == "full":
        weights -= count * plain
    return Estimate(
        weights=round(weights),
        training=count * ADAM_BYTES,
        passes=round(kept_bytes(config, recipe, tokens=tokens, patches=patches)),
    )


def kept_bytes(config: ModelConfig, recipe: Recipe, *, tokens: int, patches: int) -> float:
    """What one pass keeps for its gradients, as measured: tests/training/test_memory.py compares."""
    decoder, vision = config.decoder, config.vision
    number = 4.0 if recipe.base == "fp32" else 3.0  # products in bf16, norms and sums in fp32
    heads = (2 * decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim
    mlp = decoder.mlp_width * max(1, decoder.experts_per_token)
    kept = 4 * decoder.hidden + 2 * heads + 3 * mlp
    layer = tokens * number * kept
    # and one more, whose gradients are being computed
    layers = min(RECOMPUTED, decoder.layers) if recipe.recompute else decoder.layers + 1
    between = tokens * number * decoder.hidden * decoder.layers if recipe.recompute else 0
    block = patches * number * (8 * vision.width + 3 * vision.mlp_width)
    trains_tower = "tower" in recipe.sections
    blocks = vision.depth if trains_tower and not recipe.recompute else 2
    logits = min(LOGITS_BYTES, 4 * tokens * decoder.vocab_size)
    return layers * layer + between + blocks * block + 3 * logits
