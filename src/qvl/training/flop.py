"""How many operations learning takes, whatever computes them: what a rate is held against."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from qvl.loading.model import empty_model
from qvl.models.config import ModelConfig
from qvl.training.data import Unit


def flop_a_token(config: ModelConfig, units: Sequence[Unit]) -> float:
    """Of training an adapter of the decoder on these units, over their tokens.

    A weight of a product takes two operations for a token, forwards, and two for what goes back through
    it (2 N and 4 N of Kaplan et al. 2020, arXiv 2001.08361, without the 2 N of the gradients that frozen
    weights have not). The head counts where something is learnt, the tower once for each picture and
    forwards alone, an expert for the tokens that go to it. Left out are attention's own products and the
    adapter's, so that a share of a peak made of this is too small rather than too large (as the model
    FLOPs utilisation of Chowdhery et al. 2022, arXiv 2204.02311, counts no recomputation).
    """
    model, decoder, merge = empty_model(config), config.decoder, config.vision.merge
    layers, blocks, mergers = 0.0, 0, 0
    for name, module in model.model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("language_model."):
            used = decoder.experts_per_token / decoder.experts if ".experts." in name else 1.0
            layers += used * module.weight.numel()
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d) and "merger" in name:
            mergers += module.weight.numel()
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            blocks += module.weight.numel()
    tokens, said, visual = (sum(getattr(u, n) for u in units) for n in ("tokens", "said", "visual"))
    head = decoder.hidden * decoder.vocab_size
    seen = 2 * visual * (blocks * merge**2 + mergers)
    return (4 * layers * tokens + 4 * head * said + seen) / tokens
