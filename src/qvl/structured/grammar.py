"""Answers of a given form: which tokens may come next, by llguidance.

Main path: Grammars.compile, or compile_calls for a tool that must be called -> Grammar; for each token Grammar.allowed, Grammar.accept, and
Grammar.forced for the tokens that need no choice. Masks are computed outside Python's lock, beside
the forward pass. A form that is too large, or that could not be kept to the letter, is refused:
`schema` says which JSON schemas those are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from qvl.errors import InvalidParamError
from qvl.structured.calls import calls_grammar
from qvl.structured.schema import parse_schema
from qvl.types import ResponseFormat, Tool

if TYPE_CHECKING:
    from llguidance import LLMatcher

# With both, no form that we found takes more than about a second and 300 MB to compile. A schema of
# 500 optional properties or an enum of 20,000 values is below them.
MAX_CHARACTERS = 500_000
MAX_SYMBOLS = 20_000
KEPT = 8  # forms, of up to 100 MB; each picture of a folder is asked with the same one
# All but \u: with that a key could be spelled in letters that no schema names ("\u0061" for "a")
ESCAPES = 'nrbtf\\"'
# on one line: white space is where small models get lost
JSON_OPTIONS = {"whitespace_pattern": "[ ]?", "json_allowed_escapes": ESCAPES}


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
        self._end_ids = tuple(sorted(end_ids))
        texts = [token_bytes(i) for i in range(vocab_size)]
        vocabulary = _Vocabulary(
            # ids without bytes are special tokens; llguidance marks those by a first byte of 0xff
            tokens=[text or b"\xff[%d]" % i for i, text in enumerate(texts)],
            special_token_ids=[i for i, text in enumerate(texts) if not text],
            eos_token_id=self._end_ids[0],
            encode=encode,
        )
        self._tokenizer = LLTokenizer(TokenizerWrapper(vocabulary), eos_token=list(self._end_ids))
        self._kept = lru_cache(KEPT)(self._matcher)

    def compile(self, form: ResponseFormat, *, tenant: str = "") -> Grammar:
        """What a `tenant` asked for last is at hand; the time it takes tells nobody else of it.

        Raises InvalidParamError for a schema or grammar that is wrong, too large, or that no text
        fits.
        """
        if len(form.value) > MAX_CHARACTERS:
            raise InvalidParamError(
                f"the {form.kind} has {len(form.value)} characters, more than {MAX_CHARACTERS}"
            )
        try:
            source = source_of(form)
        except (ValueError, RecursionError) as err:
            raise InvalidParamError(f"the {form.kind} cannot be read: {err!s:.200}") from err
        return self._grammar(source, f"the {form.kind} cannot be used", tenant)

    def compile_calls(
        self, tools: Sequence[Tool], *, marks: tuple[int, int], several: bool, tenant: str = ""
    ) -> Grammar:
        """Of an answer that calls one of the tools, or `several` times any of them, and says no more.

        `marks` are the ids of the tokens around a call. Raises InvalidParamError as `compile`.
        """
        from llguidance import LLMatcher

        source = calls_grammar(tools, marks=marks, options=JSON_OPTIONS, several=several)
        if len(source) > MAX_CHARACTERS:
            raise InvalidParamError(
                f"the parameters of the tools have {len(source)} characters together, more than "
                f"{MAX_CHARACTERS}"
            )
        lark = LLMatcher.grammar_from_lark(source)
        return self._grammar(lark, "the parameters of the tools cannot be used", tenant)

    def _grammar(self, source: str, complaint: str, tenant: str) -> Grammar:
        matcher = self._kept(source, complaint, tenant)
        return Grammar(matcher.deep_copy(), self._rows, self._end_ids)

    def _matcher(self, source: str, complaint: str, tenant: str) -> LLMatcher:
        """Of a form at its beginning, for `_kept`, which keeps those of tenants apart."""
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(max_grammar_size=MAX_SYMBOLS, verbose_errors=False)
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=limits)
        tried = matcher if matcher.is_error() else self._tried(matcher)
        if tried.is_error():
            raise InvalidParamError(f"{complaint}: {reason_of(tried)}")
        return matcher

    def _tried(self, matcher: LLMatcher) -> LLMatcher:
        """A copy one step further: a form that no text fits, or with too many ways, fails there."""
        tried = matcher.deep_copy()
        bits = np.frombuffer(tried.compute_bitmask(), np.uint8)
        ids = np.flatnonzero(np.unpackbits(bits, bitorder="little")[: self._rows])
        first = next((int(i) for i in ids if i not in self._end_ids), None)
        if first is not None and not tried.is_error():
            tried.consume_token(first)
            tried.compute_bitmask()
        return tried


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
    """The form in llguidance's language.

    Raises ValueError for JSON that is none, InvalidParamError for what could not be kept exactly.
    """
    from llguidance import LLMatcher

    match form.kind:
        case "json_schema":
            schema = parse_schema(form.value)
            return LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS)
        case "choice":  # one lexeme: as a rule of many it would cost ten times as much
            choices = json.loads(form.value)
            if not isinstance(choices, list) or not {type(c) for c in choices} == {str}:
                raise ValueError("it is not a list of strings")
            words = " | ".join(json.dumps(choice) for choice in choices)
            return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {words}")
        case "regex":
            return LLMatcher.grammar_from_regex(form.value)
        case "lark":
            if "%json" in form.value:  # would go round the checks of `schema`
                raise ValueError("a grammar with %json in it is not taken: ask for a json_schema")
            return LLMatcher.grammar_from_lark(form.value)


def reason_of(matcher: LLMatcher) -> str:
    """Why a matcher has failed, in a line without llguidance's own advice."""
    first, *rest = matcher.get_error().strip().splitlines()
    if first.startswith("NoExtension"):
        return "no text fits it"
    details = [line.removeprefix("error: ") for line in rest if line.startswith("error: ")]
    reason = " ".join([re.split(r"[.;] (?=Enable|consider|try)", first)[0], *details])
    is_pattern = reason.startswith("regex parse error") or " in regex /" in reason
    return f"pattern: {reason}" if is_pattern else reason


class Grammar:
    """How far an answer has come; of one request. `end_ids` end an answer."""

    def __init__(self, matcher: LLMatcher, rows: int, end_ids: tuple[int, ...]) -> None:
        self._matcher = matcher
        self._rows = rows
        self.end_ids = end_ids

    @property
    def is_complete(self) -> bool:
        """Nothing can follow any more."""
        return self._matcher.is_stopped()

    def allowed(self) -> Tensor:
        """bool [vocab]: the ids that may come next, an end among them where the answer may end.

        Raises InvalidParamError, as `accept`, where the form turns out to be too complex.
        """
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
            raise InvalidParamError(
                f"the form of the answer is too complex: {reason_of(self._matcher)}",
                hint="ask for a simpler form: fewer optional properties, shorter patterns",
            )
