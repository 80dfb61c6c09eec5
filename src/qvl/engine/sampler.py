"""One token from one row of logits, as a pure function: no generator, no state between calls.

Main path: sample -> penalise -> best_candidates -> draw. The noise is a counter-based function of
(seed, position), so a request gets the same tokens alone, in any batch, chunked and after a resume.

Shape suffix: v vocabulary. Past the candidates everything is float64 in numpy, on every device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qvl.engine.request import SamplingParams
from qvl.errors import EngineError

_WORD = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def sample(
    logits_v: Tensor,
    params: SamplingParams,
    *,
    position: int,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    banned_v: Tensor | None = None,
) -> tuple[int, float]:
    """The chosen token id and the probability that the model itself gave it.

    `logits_v` is float32 and is not modified; `position` is the new token's index in the sequence;
    ids marked in `banned_v` (bool) are never chosen. The probability is the softmax of the raw
    logits: before penalties, bans, temperature and cuts. Raises EngineError for a logit that is not
    finite.
    """
    if not bool(torch.isfinite(logits_v).all()):
        raise EngineError(
            f"the model gave a logit that is not finite at position {position}",
            hint="load the model in another precision (float16 overflows), or check its weights",
        )
    scores_v = penalise(logits_v, params, prompt_ids, output_ids)
    if banned_v is not None:
        scores_v = scores_v.masked_fill(banned_v, -torch.inf)
    if params.temperature == 0:
        token_id = int(scores_v.argmax())  # the first of equals, so the lowest id
    else:
        token_id = draw(*best_candidates(scores_v, params.top_k), params, position)
    return token_id, float((logits_v[token_id] - logits_v.logsumexp(-1)).exp())


def penalise(
    logits_v: Tensor, params: SamplingParams, prompt_ids: Sequence[int], output_ids: Sequence[int]
) -> Tensor:
    """Logits with the tokens that occurred made less likely, however often they occurred.

    Repetition: prompt and output tokens, as transformers' RepetitionPenaltyLogitsProcessor.
    Presence: output tokens only, as in OpenAI's API and vLLM.
    """
    scores_v = logits_v
    if params.repetition_penalty != 1:
        seen = torch.tensor([*prompt_ids, *output_ids], dtype=torch.int64, device=scores_v.device)
        old = scores_v[seen]
        factor = params.repetition_penalty
        scores_v = scores_v.index_put((seen,), torch.where(old < 0, old * factor, old / factor))
    if params.presence_penalty != 0:
        seen = torch.tensor(output_ids, dtype=torch.int64, device=scores_v.device)
        scores_v = scores_v.index_put((seen,), scores_v[seen] - params.presence_penalty)
    return scores_v


def best_candidates(scores_v: Tensor, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, scores) of the `top_k` best (0: of all), best first, of equals the lower id first."""
    if 0 < top_k < scores_v.numel():
        # topk leaves open which of equal scores it returns, so only its lowest value is used;
        # a sort of the whole vocabulary would cost a hundred times as much
        worst = scores_v.topk(top_k).values[-1]
        ids = (scores_v >= worst).nonzero().squeeze(1)
    else:
        ids = torch.arange(scores_v.numel(), device=scores_v.device)
    scores, order = scores_v[ids].sort(descending=True, stable=True)
    count = top_k or scores.numel()
    return ids[order][:count].cpu().numpy(), scores[:count].double().cpu().numpy()


def draw(ids: np.ndarray, scores: np.ndarray, params: SamplingParams, position: int) -> int:
    """One of `ids` (best first): temperature, then top-p, then min-p, then the inverse of the CDF.

    Top-p keeps the fewest candidates that reach the share, min-p those with at least that share of
    the best one's probability; the best one is always kept.
    """
    weights = np.exp((scores - scores[0]) / params.temperature)
    probabilities = weights / weights.sum()
    before = probabilities.cumsum() - probabilities
    kept = (before < params.top_p) & (probabilities >= params.min_p * probabilities[0])
    reached = probabilities[kept].cumsum()
    chosen = reached.searchsorted(uniform(params.seed, position) * reached[-1], side="right")
    return int(ids[kept][chosen])


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments, equal on every platform.

    Word `position` of the SplitMix64 stream that starts at the mixed seed (Steele, Lea and Flood,
    "Fast splittable pseudorandom number generators", 2014). 52 bits, not 53: for any total > 0 the
    product with the largest value is below the total even after rounding, so an inverse CDF never
    runs past its end.
    """
    word = _mix64(_mix64(seed + _GOLDEN) + (position + 1) * _GOLDEN)
    return (word >> 12) * 2.0**-52


def _mix64(word: int) -> int:
    word &= _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)
