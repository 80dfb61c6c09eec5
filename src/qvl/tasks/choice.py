"""How likely a model is to give each of some answers, from the probabilities of its own tokens.

The number: let the model say nothing but these answers, and draw its tokens at temperature 1; this is
how often it would say each. At a place where the answers part, the raw probabilities of the tokens
that begin them are divided by their sum; what all of the answers left begin with alike counts
nothing, however unlikely it is. So an answer is not the less likely for being long, and neither the
order of the answers nor that of asking changes a number.

An answer goes the way on which the model, had it no other, would say it: at each place by the
likeliest token that its text goes on with. Other ways to cut the same text into tokens are not
counted. One number is a bound: that of an answer whose token, after a beginning that it shares, is not
among the likeliest and cannot be asked for alone counts as the least likely of those.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qvl.errors import AnswerFormError, InvalidParamError
from qvl.types import Completion, Request, ResponseFormat, Sampling, TokenLogprob
from qvl.vlm.chat_model import ChatModel

BEST = 20  # the likeliest tokens of a place that a model tells
NEGLIGIBLE = math.log(1e-4)  # as compared with the likeliest


@dataclass(frozen=True, slots=True)
class Odds:
    """Probabilities that sum to 1, the likeliest first; `completions` are all that were made."""

    probabilities: dict[str, float]
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class _Way:
    """The answers that go on with one token, and the logarithm of its probability."""

    answers: tuple[str, ...]
    logprob: float


def odds(model: ChatModel, request: Request, answers: Sequence[str]) -> Odds:
    """The probability of each of at least two answers.

    Asks once for every place where answers part, and for those that are not among the likeliest there;
    all with one prompt, which is computed once. Nothing is drawn: of the request's sampling only
    `max_new_tokens` and `thinking_tokens` count. Raises InvalidParamError for a model that tells no probabilities.
    """
    sampling = Sampling(
        max_new_tokens=request.sampling.max_new_tokens,
        thinking_tokens=request.sampling.thinking_tokens,
        temperature=0.0,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        logprobs=BEST,
        stop_loops=False,
    )
    asker = _Asker(model, replace(request, sampling=sampling), [])
    shares: dict[str, float] = {}
    waiting = [(tuple(sorted(answers)), 1.0)]
    while waiting:
        group, share = waiting.pop()
        if len(group) == 1:
            shares[group[0]] = share
            continue
        ways = asker.ways(group)
        most = max(way.logprob for way in ways)
        weights = [math.exp(way.logprob - most) for way in ways]
        waiting += [
            (way.answers, share * weight / sum(weights))
            for way, weight in zip(ways, weights, strict=True)
        ]
    ordered = sorted(answers, key=lambda answer: -shares[answer])
    return Odds({answer: shares[answer] for answer in ordered}, tuple(asker.made))


@dataclass(frozen=True, slots=True)
class _Asker:
    model: ChatModel
    request: Request
    made: list[Completion]

    def ask(self, answers: Sequence[str]) -> Completion:
        form = ResponseFormat("choice", json.dumps(list(answers)))
        (told,) = self.model.generate([replace(self.request, response_format=form)])
        if not told.logprobs:
            raise InvalidParamError(
                "the model tells no probabilities of its tokens",
                hint="ask a model that does: qvl's own engine, or a server with logprobs",
            )
        self.made.append(told)
        return told

    def ways(self, group: Sequence[str]) -> list[_Way]:
        """The answers of a group by the tokens at the first place where they part."""
        said = b""
        for place in self.ask(group).logprobs:
            found = _ways(place, said, group)
            if not found:  # as of a server that tells tokens which are not those of its text
                raise AnswerFormError("the tokens that are told do not spell an answer")
            unseen = tuple(a for a in group if not any(a in way.answers for way in found))
            if len(found) > 1 or unseen:
                return found + self._unseen(place, said, found, unseen)
            said += place.token
        raise AnswerFormError("the answer ended before it was decided", hint="raise max_new_tokens")

    def _unseen(
        self, place: TokenLogprob, said: bytes, found: Sequence[_Way], unseen: tuple[str, ...]
    ) -> list[_Way]:
        """The ways of answers whose tokens are not among the likeliest: asked for by themselves, the
        likeliest of them first, until what is left is negligible.
        """
        more: list[_Way] = []
        most = max(way.logprob for way in found)
        while unseen:
            there = _place(self.ask(unseen), said)
            ways = _ways(there, said, unseen) if there is not None else []
            if not ways:  # they go on alike, so nothing is asked there: none is likelier than this
                least = min(logprob for _, logprob in (*place.best, (place.token, place.logprob)))
                return more + [_Way((answer,), least) for answer in unseen]
            more += ways
            told = {answer for way in ways for answer in way.answers}
            unseen = tuple(answer for answer in unseen if answer not in told)
            if max(way.logprob for way in ways) < most + NEGLIGIBLE:
                break
        return more + [_Way((answer,), -math.inf) for answer in unseen]


def _ways(place: TokenLogprob, said: bytes, answers: Sequence[str]) -> list[_Way]:
    """The answers that go on, after what was said, with a token that is told of at the place."""
    # the chosen one may be less likely than all of them; of tokens spelt alike the likeliest counts
    tokens = dict(reversed((*place.best, (place.token, place.logprob))))
    ranked = sorted(tokens.items(), key=lambda token: -token[1])
    found: dict[bytes, list[str]] = {}
    for answer in answers:
        rest = answer.encode()[len(said) :]
        # an end has no bytes
        fits = (t for t, _ in ranked if (rest.startswith(t) if t else not rest))
        if (token := next(fits, None)) is not None:
            found.setdefault(token, []).append(answer)
    return [_Way(tuple(group), tokens[token]) for token, group in found.items()]


def _place(told: Completion, said: bytes) -> TokenLogprob | None:
    """Where in an answer this much was said, and there was a choice."""
    so_far = b""
    for place in told.logprobs:
        if so_far == said and place.best:
            return place
        so_far += place.token
    return None
