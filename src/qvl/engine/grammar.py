"""Answers of a given form: which tokens may come next, by llguidance.

Main path: Grammars.compile -> Grammar; for each token Grammar.allowed, Grammar.accept, and
Grammar.forced for the tokens that need no choice. Masks are computed outside Python's lock, beside
the forward pass. Limits are those of llguidance's parser: a grammar past them is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from qvl.errors import EngineError, InvalidParamError
from qvl.types import ResponseFormat

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Grammars:
    """Makes grammars for one vocabulary.

    `token_bytes` gives the bytes of an id (empty for a special token), `encode` the canonical ids of
    a text, `end_ids` the tokens that end an answer.
    """

    def __init__(
        self,
        *,
        token_bytes: Callable[[int], bytes],
        encode: Callable[[str], list[int]],
        vocab_size: int,
        end_ids: Collection[int],
    ) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        self._rows = vocab_size
        texts = [token_bytes(i) for i in range(vocab_size)]
        vocabulary = _Vocabulary(
            # ids without bytes are special tokens; llguidance marks those by a first byte of 0xff
            tokens=[text or b"\xff[%d]" % i for i, text in enumerate(texts)],
            special_token_ids=[i for i, text in enumerate(texts) if not text],
            eos_token_id=min(end_ids),
            encode=encode,
        )
        self._tokenizer = LLTokenizer(TokenizerWrapper(vocabulary), eos_token=sorted(end_ids))

    def compile(self, form: ResponseFormat) -> Grammar:
        """Raises InvalidParamError for a schema or grammar that is wrong or too large."""
        from llguidance import LLMatcher

        try:
            source = source_of(form)
        except (ValueError, RecursionError) as err:
            raise InvalidParamError(f"the {form.kind} cannot be read: {err}") from err
        matcher = LLMatcher(self._tokenizer, source, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().strip().splitlines()[0]
            raise InvalidParamError(f"the {form.kind} cannot be used: {reason}")
        return Grammar(matcher, self._rows)


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    encode: Callable[[str], list[int]]
    bos_token_id: int | None = None

    def __call__(self, text: str) -> list[int]:
        return self.encode(text)


def source_of(form: ResponseFormat) -> str:
    """The form in llguidance's language; raises ValueError for JSON that is none."""
    from llguidance import LLMatcher, grammar_from

    if form.kind == "json_schema":  # on one line: white space is where small models get lost
        options = {"whitespace_pattern": "[ ]?"}
        return LLMatcher.grammar_from_json_schema(json.loads(form.value), overrides=options)
    return grammar_from(form.kind, form.value)


class Grammar:
    """How far an answer has come; of one request."""

    def __init__(self, matcher: LLMatcher, rows: int) -> None:
        self._matcher = matcher
        self._rows = rows

    @property
    def is_complete(self) -> bool:
        """Nothing can follow any more."""
        return self._matcher.is_stopped()

    def allowed(self) -> Tensor:
        """bool [vocab]: the ids that may come next, an end among them where the answer may end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self._rows].view(bool))

    def accept(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)
        self._check()

    def forced(self) -> list[int]:
        """The ids that follow without a choice, maybe none."""
        return self._matcher.compute_ff_tokens()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().strip().splitlines()[0]
            raise EngineError(f"the grammar of the answer failed: {reason}")
