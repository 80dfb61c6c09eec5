"""What every answer is checked for: empty, cut, in a loop, in another language than was asked for.

An empty answer and one in the wrong language are asked for once more; what is still wrong is flagged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qvl.errors import AnswerFormError
from qvl.tasks.language import is_in
from qvl.tasks.prompts import wording
from qvl.types import Completion, Message, Request, ResponseFormat, Text
from qvl.vlm.chat_model import ChatModel

FLAG_OF_REASON = {"length": "cut", "loop": "loop", "reasoning": "reasoning_exhausted"}


@dataclass(frozen=True, slots=True)
class Answered:
    """The accepted answer first, then those that were refused; and what is still wrong with it."""

    completions: tuple[Completion, ...]
    flags: tuple[str, ...]

    @property
    def text(self) -> str:
        return self.completions[0].text.strip()

    def fields(self) -> Mapping[str, Any]:
        """The answer as JSON; raises AnswerFormError for one that was cut."""
        try:
            return json.loads(self.text)
        except ValueError as err:
            raise AnswerFormError(
                "the answer ended before its JSON was whole", hint="raise max_new_tokens"
            ) from err


def answered(model: ChatModel, request: Request, *, language: str | None = None) -> Answered:
    """The answer to a request; one that is to be in `language` is asked for again where it is not."""
    (first,) = model.generate([request])
    wrong = _wrong(first, language, request.response_format)
    if not wrong or first.finish_reason in FLAG_OF_REASON:
        return Answered((first,), flags(first, wrong))
    again = wording("guards", wrong, language or "en")
    (second,) = model.generate([_with(request, again)])
    still = _wrong(second, language, request.response_format)
    if still:
        return Answered((first, second), flags(first, wrong))
    return Answered((second, first), flags(second, still))


def flags(completion: Completion, wrong: str | None) -> tuple[str, ...]:
    """What a person should look at."""
    ended = FLAG_OF_REASON.get(completion.finish_reason)
    return tuple(flag for flag in (ended, wrong) if flag)


def _wrong(completion: Completion, language: str | None, form: ResponseFormat | None) -> str | None:
    if not completion.text.strip():
        return "empty"
    in_json = form is not None and form.kind == "json_schema"
    said = "\n".join(_strings(completion.text)) if in_json else completion.text
    if language is not None and not is_in(said, language):
        return "language"
    return None


def _strings(text: str) -> Iterator[str]:
    """The strings among the values of a JSON text; none of one that was cut."""
    try:
        waiting = [json.loads(text)]
    except ValueError:
        return
    while waiting:
        match waiting.pop():
            case str(value):
                yield value
            case list(values):
                waiting += values
            case dict(values):
                waiting += values.values()


def _with(request: Request, words: str) -> Request:
    """The request with a sentence added to what its user said last."""
    *before, last = request.messages
    *parts, said = last.content
    text = f"{said.text} {words}" if isinstance(said, Text) else words
    kept = parts if isinstance(said, Text) else [*parts, said]
    return replace(request, messages=(*before, Message(last.role, (*kept, Text(text)))))
