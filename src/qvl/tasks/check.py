"""A second look at an answer: can each statement be seen, does it contradict what is known?

Each statement is a question of its own about the picture, to be answered yes or no; which of the two
is nearer is read from the probabilities of the answer's tokens. Known facts are compared where that
is exact, a number or a code beside the fact's name; whether a text contradicts any other fact is again
a question, about the text alone.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from itertools import pairwise

from qvl.tasks.ask import YES_NO
from qvl.tasks.prompts import instruction
from qvl.tasks.task import Seen, question
from qvl.types import Completion, Request, ResponseFormat, Sampling, Video
from qvl.vlm.chat_model import ChatModel

SAMPLING = Sampling(temperature=0.0, logprobs=20)
LEAST_CHANCE = 0.5  # that a statement is seen, or that a fact is contradicted
_LIST_MARK = re.compile(r"^\s*(?:[-*•#>]+|\d{1,2}[.)])\s+|\*\*", re.MULTILINE)
# not behind an initial, nor behind what is mostly written with a full stop
_SENTENCE_END = re.compile(
    r"(?<=[。！？；])|\n+"
    r"|(?<!\b[A-ZА-ЯЁ]\.)(?<!\b(?:г|т|д|п|e|g|i)\.)(?<!\b(?:см|См|ул|им|др|пр|кв|шт|гг|Mr|Dr|St|vs)\.)"
    r"(?<!\b(?:руб|коп|рис|стр|etc|Mrs|fig)\.)(?<!\b(?:напр)\.)"
    r"(?<=[.!?…;])\s+"
)
_CLAUSE_END = re.compile(
    r",\s+(?:and|but|while|whereas|а|но|и|тогда как)\s+|，(?=而|但|并且|同时|且)", re.IGNORECASE
)
_WORDS = re.compile(r"[^\W\d_]+")
_SIGN = re.compile(r"[\u3400-\u9fff]")
_CODE = r"((?:[^\W_]+[-/])*[A-Za-zА-я]*\d(?:[^\W_]|[.,/×-](?=[^\W_]))*?)\s*([^\W\d_]*)(?![^\W_])"


def statements(text: str) -> tuple[str, ...]:
    """What a text states, one by one: its sentences, and clauses that could be sentences."""
    found: dict[str, None] = {}
    for sentence in _SENTENCE_END.split(_LIST_MARK.sub("", text)):
        ends = [end.span() for end in _CLAUSE_END.finditer(sentence)]
        start = 0
        for (end, after), (following, _) in pairwise([*ends, (len(sentence), len(sentence))]):
            # both sides say something: not "red, white, and blue"
            if _says(sentence[start:end]) and _says(sentence[after:following]):
                found[sentence[start:end].strip()] = None
                start = after
        found[sentence[start:].strip()] = None
    return tuple(statement for statement in found if any(map(str.isalpha, statement)))


def unseen(
    model: ChatModel, seen: Sequence[Seen], text: str, language: str
) -> tuple[tuple[str, ...], tuple[Completion, ...]]:
    """The statements of a text that cannot be seen, and the answers that say so."""
    kind = "video" if isinstance(seen[0], Video) else "picture"
    stated = statements(text)
    asked = [_yes_or_no(seen, language, kind, statement=each) for each in stated]
    told = tuple(model.generate(asked))
    chances = [chance_of_yes(answer, language) for answer in told]
    pairs = zip(stated, chances, strict=True)
    return tuple(each for each, chance in pairs if chance < LEAST_CHANCE), told


def contradicted(text: str, facts: Mapping[str, str]) -> tuple[str, ...]:
    """The names of facts beside which the text has another number or code than the fact."""
    plain = _plain(text)
    return tuple(
        name
        for name, value in facts.items()
        if not _is_said(plain, _plain(value)) and _differs(plain, _plain(name), _plain(value))
    )


def disputed(
    model: ChatModel, text: str, facts: Mapping[str, str], language: str
) -> tuple[tuple[str, ...], tuple[Completion, ...]]:
    """The names of facts that a text contradicts, also in other words, and the answers that say so.

    What the text says to the letter, or differs from in a number or code, is not asked about.
    """
    exact = contradicted(text, facts)
    open_facts = [
        name
        for name, value in facts.items()
        if name not in exact and not _is_said(_plain(text), _plain(value))
    ]
    asked = [
        _yes_or_no([], language, "contradicts", text=text, fact=f"{name}: {facts[name]}")
        for name in open_facts
    ]
    told = tuple(model.generate(asked))
    found = {
        name
        for name, answer in zip(open_facts, told, strict=True)
        if chance_of_yes(answer, language) >= LEAST_CHANCE
    }
    return tuple(name for name in facts if name in exact or name in found), told


def chance_of_yes(completion: Completion, language: str) -> float:
    """The probability of yes, of yes and no together, where their tokens part.

    A completion without log probabilities has 1 or 0; one that says neither word, 0.
    """
    choices = [choice.encode() for choice in _yes_no(language)]
    said = 0  # bytes
    for token in completion.logprobs:
        rests = [choice[said:] for choice in choices]
        if all(rest.startswith(token.token) for rest in rests):
            said += len(token.token)
            continue
        chances = [0.0, 0.0]
        for text, logprob in {token.token: token.logprob, **dict(token.best)}.items():
            fits = [text != b"" and rest.startswith(text) for rest in rests]
            if sum(fits) == 1:
                chances[fits.index(True)] += math.exp(logprob)
        if sum(chances) > 0:
            return chances[0] / sum(chances)
        break
    return float(completion.text.strip() == _yes_no(language)[0])


def _yes_or_no(seen: Sequence[Seen], language: str, name: str, **given: str) -> Request:
    form = ResponseFormat("choice", json.dumps(_yes_no(language)))
    return question(seen, instruction("check", name, language, **given), SAMPLING, form=form)


def _yes_no(language: str) -> tuple[str, str]:
    return YES_NO.get(language, YES_NO["en"])


def _says(clause: str) -> bool:
    return len(_WORDS.findall(clause)) >= 3 or len(_SIGN.findall(clause)) >= 4


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold().replace("ё", "е")
    return re.sub(r"(?<=\d),(?=\d)", ".", " ".join(text.split()))


def _is_said(text: str, value: str) -> bool:
    return re.search(rf"(?<![\d.]){re.escape(value)}(?!\.?\d)", text) is not None


def _differs(text: str, name: str, value: str) -> bool:
    """Behind the fact's name, however it is inflected, stands another number or code."""
    fact = re.fullmatch(_CODE, value)
    if fact is None:
        return False
    # of a long word the ending may change; Chinese has no space before a word
    words = [re.escape(w[:-2] if len(w) > 4 else w) + r"[^\W\d_]*" for w in name.split()]
    begin = "" if _SIGN.match(name) else r"(?<!\w)"
    between = r"[^\d.!?;\n。！？；]{0,20}?"
    found = re.search(begin + r"\s+".join(words) + between + _CODE, text)
    if found is None or (fact[2] and found[2] and fact[2] != found[2]):
        return False
    return _number(found[1]) != _number(fact[1])


def _number(code: str) -> Decimal | str:
    try:
        return Decimal(code)
    except InvalidOperation:
        return code
