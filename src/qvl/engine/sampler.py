"""One token from one row of logits, as a pure function: no generator, no state between calls.

Main path: sample -> adjust -> draw -> kept. The noise is a counter-based function of (seed, position),
so a request gets the same tokens alone, in any batch, chunked and after a resume.

Shape suffix: v vocabulary. Past the candidates everything is float64 in numpy, on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, log

import numpy as np
import torch
from torch import Tensor

from qvl.engine.request import SamplingParams
from qvl.errors import EngineError

_WORD = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
# a sort of the whole vocabulary costs as much as a step of a small model; nearly always the
# candidates that count are among the first ones
FIRST_CANDIDATES = 1024


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token, the probability that the model gave it, and the `logprobs` best ids with theirs.

    A token that a grammar leaves no choice about is never asked of the model: None.
    """

    token_id: int
    probability: float | None
    best: tuple[tuple[int, float], ...] = ()  # (id, natural logarithm of its probability)


def sample(
    logits_v: Tensor,
    params: SamplingParams,
    *,
    position: int,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    banned_v: Tensor | None = None,
) -> Sampled:
    """The chosen token and what the model itself thought of it.

    `logits_v` is float32 and is not modified; `position` is the new token's index in the sequence;
    ids marked in `banned_v` (bool) are never chosen. Probabilities are the softmax of the raw
    logits: before penalties, bans, temperature and cuts. Raises EngineError for a logit that is not
    finite, or when no token is left to choose from.
    """
    lowest, highest = logits_v.aminmax()  # of which not-a-number makes both
    if not (isfinite(lowest) and isfinite(highest)):
        raise EngineError(
            f"the model gave a logit that is not finite at position {position}",
            hint="load the model in another precision (float16 overflows), or check its weights",
        )
    scores_v = adjust(logits_v, params, prompt_ids, output_ids)
    if banned_v is not None:
        scores_v = torch.where(banned_v, -torch.inf, scores_v)
    best_id = first_best(scores_v)
    if scores_v[best_id] == -torch.inf:
        raise EngineError(f"no token is allowed at position {position}")
    token_id = best_id if params.temperature == 0 else draw(scores_v, params, position)
    total = log_sum(logits_v, float(highest))
    probability = exp(float(logits_v[token_id]) - total)
    if not params.logprobs:
        return Sampled(token_id, probability)
    ids, logits = best_candidates(logits_v, params.logprobs)
    logarithms = (logits - total).tolist()
    return Sampled(token_id, probability, tuple(zip(ids.tolist(), logarithms, strict=True)))


def adjust(
    logits_v: Tensor, params: SamplingParams, prompt_ids: Sequence[int], output_ids: Sequence[int]
) -> Tensor:
    """Logits after penalties for tokens that occurred, biases and the list of allowed ids.

    Repetition: prompt and output tokens, however often, as transformers'
    RepetitionPenaltyLogitsProcessor. Presence (once) and frequency (each time): output tokens only,
    as in OpenAI's API and vLLM.
    """
    scores_v = logits_v
    if params.repetition_penalty != 1:
        seen = index_of([*prompt_ids, *output_ids], scores_v)
        old = scores_v[seen]
        factor = params.repetition_penalty
        scores_v = scores_v.index_put((seen,), torch.where(old < 0, old * factor, old / factor))
    if params.presence_penalty != 0 or params.frequency_penalty != 0:
        seen, times = index_of(output_ids, scores_v).unique(return_counts=True)
        penalty = params.presence_penalty + params.frequency_penalty * times
        scores_v = scores_v.index_put((seen,), scores_v[seen] - penalty)
    if params.logit_bias:
        ids, bias = zip(*params.logit_bias, strict=True)
        seen = index_of(ids, scores_v)
        scores_v = scores_v.index_put((seen,), scores_v[seen] + scores_v.new_tensor(bias))
    if params.allowed_ids:
        seen = index_of(params.allowed_ids, scores_v)
        only_v = torch.full_like(scores_v, -torch.inf)
        scores_v = only_v.index_put((seen,), scores_v[seen])
    return scores_v


def first_best(scores_v: Tensor) -> int:
    """The lowest id of those with the highest score; torch's own argmax takes ten times numpy's."""
    return int(scores_v.numpy().argmax() if scores_v.is_cpu else scores_v.argmax())


def log_sum(logits_v: Tensor, highest: float) -> float:
    """The logarithm of the sum of their exponentials; torch's own sets all threads to work on it."""
    if not logits_v.is_cpu:
        return float(logits_v.logsumexp(-1))
    return highest + log(np.exp(logits_v.numpy() - np.float32(highest)).sum())


def index_of(ids: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64, device=like.device)


def best_candidates(scores_v: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, scores) of the `count` best that are not banned, fewer where there are fewer (0: of all,
    the banned last), best first, of equals the lower id first.
    """
    if count == 1:
        best_id = first_best(scores_v)
        return np.array([best_id]), np.array([float(scores_v[best_id])])
    if 0 < count < scores_v.numel():
        # topk leaves open which of equal scores it returns, so only its lowest value is used
        worst = float(scores_v.topk(count).values[-1])
        ids = (scores_v > worst if worst == -inf else scores_v >= worst).nonzero().squeeze(1)
    else:
        ids = torch.arange(scores_v.numel(), device=scores_v.device)
    scores, order = scores_v[ids].sort(descending=True, stable=True)
    count = count or scores.numel()
    return ids[order[:count]].cpu().numpy(), scores[:count].double().cpu().numpy()


def draw(scores_v: Tensor, params: SamplingParams, position: int) -> int:
    """One id by the inverse of the CDF of what `kept` leaves."""
    ids, weights = kept(scores_v, params)
    reached = weights.cumsum()
    chosen = reached.searchsorted(uniform(params.seed, position) * reached[-1], side="right")
    return int(ids[chosen])


def kept(scores_v: Tensor, params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    """(ids, probabilities) that may be drawn, best first: temperature, top-k, top-p, min-p.

    Top-p keeps the fewest candidates that reach the share, min-p those with at least that share of
    the best one's probability; the best one is always kept. Shares are of all that top-k leaves.
    """
    if not params.top_k and params.top_p == 1 and params.min_p == 0:  # nothing to cut: no order
        return np.arange(scores_v.numel()), softmax(scores_v, params.temperature).cpu().numpy()
    for count in (params.top_k or FIRST_CANDIDATES, 0):
        ids, scores = best_candidates(scores_v, count)
        if params.top_k:
            weights = np.exp((scores - scores[0]) / params.temperature)
            probabilities = weights / weights.sum()
        else:
            probabilities = softmax(scores_v, params.temperature).cpu().numpy()[ids]
        before = probabilities.cumsum() - probabilities
        keep = (before < params.top_p) & (probabilities >= params.min_p * probabilities[0])
        # where the worst candidate is cut, so is everything beyond it
        if params.top_k or not keep[-1] or len(ids) < count:
            break
    return ids[keep], probabilities[keep]


def softmax(scores_v: Tensor, temperature: float) -> Tensor:
    return (scores_v.double() / temperature).softmax(-1)


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
