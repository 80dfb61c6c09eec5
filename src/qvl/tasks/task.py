"""What a task is: its options, one run over what is seen, a typed result.

A task is a frozen dataclass of options. Every door is made from it: a field is an argument in Python,
a flag of the command, a key of the route's JSON and of the MCP tool; its description is their help.
`run` is plain code that asks the model, reads the answer, checks it, and may ask again.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from typing import Annotated, Any, ClassVar, Generic, TypeVar, get_args, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from qvl.errors import InvalidParamError, QvlError, as_fault, nearest
from qvl.tasks.prompts import LANGUAGES
from qvl.types import (
    NEW_TOKENS,
    Box,
    Completion,
    Image,
    Message,
    Point,
    Request,
    ResponseFormat,
    Sampling,
    Usage,
    Video,
)
from qvl.vlm.chat_model import ChatModel

Seen = Image | Video


@dataclass(frozen=True, slots=True)
class Flag:
    """How an option comes on the command line, where that is not as one value under its own name.

    With `each` it may come more than once, and each value is a run of its own; with `is_file` the
    value may be the name of a file that holds it.
    """

    names: tuple[str, ...] = ()
    each: bool = False
    is_file: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`text` is the answer as a person reads it; `completions` are all that were made for it, the one
    that the text is of first. `flags` are what a person should look at, such as "cut" or "language";
    `boxes` and `points` are the places that the answer tells of, in the first picture.
    """

    text: str
    language: str
    completions: tuple[Completion, ...]
    flags: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()

    @property
    def completion(self) -> Completion:
        return self.completions[0]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of the pictures was not looked at."""
        return tuple(dict.fromkeys(w for c in self.completions for w in c.provenance.unseen))


R_co = TypeVar("R_co", bound=Result, covariant=True)
R = TypeVar("R", bound=Result)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(ABC, Generic[R_co]):
    """The options that every task has.

    Raises InvalidParamError, with the nearest names, for an option out of its range.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    name: ClassVar[str]
    most: ClassVar[int] = 1  # pictures and videos that one run may see together
    least: ClassVar[int] = 1
    videos: ClassVar[bool] = True  # it may see them
    new_tokens: ClassVar[int] = NEW_TOKENS  # of an answer, unless the sampling says how many

    language: Annotated[
        str,
        Flag(each=True),
        Field(description="Language of the answer: ru, zh, en, ... (several: ru,en,zh)."),
    ] = "en"
    sampling: Annotated[Sampling, Field(description="How tokens are chosen.")] = field(
        default_factory=Sampling
    )

    def __post_init__(self) -> None:
        check_known("language", self.language, LANGUAGES)
        self.sampling.checked()

    def request(
        self,
        seen: Sequence[Seen],
        words: str,
        sampling: Sampling | None = None,
        *,
        form: ResponseFormat | None = None,
    ) -> Request:
        """What is seen, then the words about it, answered as long as this task's answers may be."""
        asked = question(seen, words, sampling or self.sampling, form=form)
        return replace(asked, new_tokens=self.new_tokens)

    @abstractmethod
    def run(self, model: ChatModel, seen: Sequence[Seen]) -> R_co:
        """One answer about what is seen. Raises QvlError."""
        ...

    def check_seen(self, seen: Sequence[Seen]) -> None:
        if not self.least <= len(seen) <= self.most:
            several = f"{self.least} to {self.most} pictures" if self.most > 1 else "one picture"
            raise InvalidParamError(f"{self.name} takes {several} at a time, not {len(seen)}")
        for one in seen:
            if isinstance(one, Video) and not self.videos:
                raise InvalidParamError(
                    f"{self.name} takes pictures, and {one.name!r} is a video",
                    hint="`qvl video` and `qvl ask` take videos",
                )


def check_known(what: str, name: str, known: Iterable[str]) -> None:
    names = tuple(known)
    if name not in names:
        raise InvalidParamError(
            f"there is no {what} {name!r}",
            hint=nearest(name, names) or f"there are {', '.join(names)}",
        )


def greedy(sampling: Sampling) -> Sampling:
    """The likeliest words, unless a temperature is asked for: what is read has one right answer."""
    return replace(sampling, temperature=0.0) if sampling.temperature is None else sampling


def question(
    seen: Sequence[Seen],
    words: str,
    sampling: Sampling,
    *,
    form: ResponseFormat | None = None,
) -> Request:
    """One request: what is seen, then the words about it."""
    return Request(
        messages=(Message.user(*seen, words),),
        sampling=sampling,
        response_format=form,
        id=seen[0].name if seen else "",
    )


def run_task(model: ChatModel, task: Task[R], seen: Sequence[Seen]) -> R | QvlError:
    """The result, or the error of this one item."""
    try:
        task.check_seen(seen)
        return task.run(model, seen)
    except Exception as err:  # noqa: BLE001 - the edge of one item: the others go on
        return as_fault(err, seen[0].name if seen else task.name)


def results(
    model: ChatModel, work: Iterable[tuple[Task[R], Sequence[Seen]]]
) -> Generator[R | QvlError, None, None]:
    """The result or the error of each item, in order; as many at once as the model takes.

    Left early, it closes the model, which ends what is still being computed.
    """
    at_once = model.info.at_once
    going: deque[Future[R | QvlError]] = deque()
    pool = ThreadPoolExecutor(at_once, "qvl-task")
    try:
        for task, seen in work:
            going.append(pool.submit(run_task, model, task, seen))
            if len(going) >= 2 * at_once:
                yield going.popleft().result()
        while going:
            yield going.popleft().result()
    except BaseException:  # an interrupt, or a consumer that stopped
        pool.shutdown(wait=False, cancel_futures=True)
        model.close()
        raise
    finally:
        pool.shutdown()


def option_names(task: type[Task[Any]]) -> tuple[str, ...]:
    return tuple(f.name for f in fields(task))


@cache  # it is asked for every flag of every command, at every start
def hints(task: type[Task[Any]]) -> Mapping[str, Any]:
    return get_type_hints(task, include_extras=True)


def flag_of(task: type[Task[Any]], name: str) -> Flag:
    """How that option comes on the command line."""
    return next((m for m in get_args(hints(task)[name]) if isinstance(m, Flag)), Flag())


def from_json(task: type[Task[R]], options: Mapping[str, Any]) -> Task[R]:
    """A task of options as JSON gives them; raises InvalidParamError naming the option."""
    for name in options:
        if name not in option_names(task):
            raise InvalidParamError(
                f"{task.name} has no option {name!r}",
                hint=nearest(name, option_names(task))
                or f"there are {', '.join(option_names(task))}",
            )
    try:
        return adapter(task).validate_json(json.dumps(dict(options)), strict=True)
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidParamError(f"{place or task.name}: {first['msg'].lower()}") from err


@cache
def adapter(task: type[Task[R]]) -> TypeAdapter[Task[R]]:
    """Reads a task's options from JSON, and tells their schema."""
    return TypeAdapter(task)


def as_row(item: str, result: Result) -> dict[str, Any]:
    """What every door says of a result: the `--json` line, the route's body, the batch's record."""
    own = {
        f.name: getattr(result, f.name)
        for f in fields(result)
        if f.name not in ("text", "completions", "flags")
    }
    answer = result.completion
    return {
        "id": item,
        "text": result.text,
        **({"reasoning": answer.reasoning} if answer.reasoning else {}),
        **plain(own),
        "flags": list(result.flags),
        **({"warnings": list(result.warnings)} if result.warnings else {}),
        "finish_reason": answer.finish_reason,
        "usage": {
            name: value
            for name, value in asdict(usage(result.completions)).items()
            if value is not None
        },
        "meta": {
            "confidence": round(answer.confidence, 4),
            **plain(asdict(answer.provenance)),
            "timings": asdict(answer.timings),
        },
    }


def usage(completions: Sequence[Completion]) -> Usage:
    """The tokens of all completions together, and their cost, where that of each is known."""
    counts = [f.name for f in fields(Usage) if f.name != "cost"]
    costs = [c.usage.cost for c in completions]
    return Usage(
        **{name: sum(getattr(c.usage, name) for c in completions) for name in counts},
        cost=None if None in costs else sum(filter(None, costs)),
    )


def plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as JSON has them."""
    return TypeAdapter(Any).dump_python(value, mode="json")
