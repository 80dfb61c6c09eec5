"""What every answer is checked for: empty, cut, in a loop, in another language than was asked for.

An empty answer and one in the wrong language are asked for once more; what is still wrong is flagged.
An answer that is JSON is in a language if its strings are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qvl.errors import AnswerFormError
from qvl.tasks.language import is_in
from qvl.tasks.prompts import wording
from qvl.types import Completion, Message, Request, Text
from qvl.vlm.answer_json import read_json
from qvl.vlm.chat_model import ChatModel

FLAG_OF_REASON = {"length": "cut", "loop": "loop", "reasoning": "reasoning_exhausted"}
WHY_NO_JSON = {
    "length": ("the answer was cut before its JSON was whole", "raise max_new_tokens"),
    "loop": ("the answer repeated itself before its JSON was whole", "ask for less at a time"),
    "reasoning": ("the tokens ended before the answer began", "raise max_new_tokens"),
}


@dataclass(frozen=True, slots=True)
class Answered:
    """The accepted answer first, then the one that was refused; and what is still wrong with it."""

    completions: tuple[Completion, ...]
    flags: tuple[str, ...]

    @property
    def text(self) -> str:
        return self.completions[0].text.strip()

    def fields(self) -> Mapping[str, Any]:
        """The answer as a JSON object; raises AnswerFormError for one that is none."""
        value = _json(self.text)
        if not isinstance(value, dict):
            reason = self.completions[0].finish_reason
            message, hint = WHY_NO_JSON.get(reason, ("the answer is no JSON object", None))
            raise AnswerFormError(message, hint=hint)
        return value


def answered(model: ChatModel, request: Request, *, language: str | None = None) -> Answered:
    """The answer to a request; one that is to be in `language` is asked for again where it is not."""
    (first,) = model.generate([request])
    wrong = _wrong(first, request, language)
    # reasoning that took all tokens would take them again
    if wrong is None or first.finish_reason in ("reasoning", "cancelled"):
        return Answered((first,), flags(first, wrong))
    (second,) = model.generate([with_words(request, wording("guards", wrong, language or "en"))])
    still = _wrong(second, request, language)
    if still in (wrong, "empty"):
        return Answered((first, second), flags(first, wrong))
    return Answered((second, first), flags(second, still))


def flags(completion: Completion, wrong: str | None) -> tuple[str, ...]:
    """What a person should look at."""
    ended = FLAG_OF_REASON.get(completion.finish_reason)
    return tuple(flag for flag in (ended, wrong) if flag)


def _wrong(completion: Completion, request: Request, language: str | None) -> str | None:
    if not completion.text.strip():
        return "empty"
    if language is None:
        return None
    form = request.response_format
    is_json = form is not None and form.kind == "json_schema"
    said = "\n".join(_strings(_json(completion.text))) if is_json else completion.text
    return None if is_in(said, language) else "language"


def _json(text: str) -> Any:
    """The value, or None for what is no JSON, such as an answer that was cut."""
    try:
        return read_json(text)
    except (ValueError, RecursionError):
        return None


def _strings(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for part in value:
                yield from _strings(part)
        case dict():
            yield from _strings(list(value.values()))


def with_words(request: Request, words: str) -> Request:
    """The request with a sentence added to what its user said last."""
    *before, last = request.messages
    *parts, said = last.content
    text = f"{said.text} {words}" if isinstance(said, Text) else words
    kept = parts if isinstance(said, Text) else [*parts, said]
    return replace(request, messages=(*before, Message(last.role, (*kept, Text(text)))))
