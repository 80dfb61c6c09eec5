"""The commands of the tasks, each made from its task: an option is a flag, the docstring is the help.

Main path: run -> items -> qvl.tasks.task.results -> qvl.cli.formats.item.
"""

from __future__ import annotations

import errno
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import MISSING, Field, fields
from inspect import Parameter, Signature
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from qvl.cli import formats
from qvl.cli.draw import check_target, draw
from qvl.cli.inputs import Unusable, pictures
from qvl.cli.model import ADAPTER_HELP, open_chosen
from qvl.cli.output import (
    Outcome,
    finish,
    output,
    results_of,
    tell_cost,
    tell_of,
    with_progress,
    write_whole,
)
from qvl.cli.page import page
from qvl.errors import InputUnreadableError, InvalidParamError, QvlError, UsageError
from qvl.settings import KEYS, load_settings
from qvl.tasks.task import Flag, Result, Seen, Task, check_known, flag_of, hints, results
from qvl.tasks.video import Watch
from qvl.types import MAX_NEW_TOKENS, Sampling

log = logging.getLogger(__name__)
SOURCES = "Pictures, videos, PDFs, folders, globs, addresses, or - for a picture on stdin."
LIVE = " A camera (/dev/video0) or a live stream (rtsp://...) is watched until Ctrl-C."
WINDOW_S = 10.0
THINKING_HELP = "A Thinking edition begins its answer after so many, if it has not by itself."


def new_tokens_help(usual: int) -> str:
    return (
        f"1 to {MAX_NEW_TOKENS}; {usual} if nothing is given, of a Thinking edition all that there "
        "is room for, with its reasoning."
    )


def option(kind: Any, *names: str, help: str) -> Any:
    return Annotated[kind, typer.Option(*names, help=help)]


# flags of every task: of the model and of how tokens are chosen, then of where results go
COMMON: Mapping[str, Any] = {
    "model": option(str | None, help="A hub id, a folder, openai:MODEL@URL, or sprout."),
    "adapter": option(str | None, help=ADAPTER_HELP),
    "revision": option(str | None, help="Branch, tag or commit on the hub."),
    "offline": option(bool, "--offline", help="Open no connection."),
    "device": option(str | None, help="auto, cpu, cuda."),
    "dtype": option(str | None, help="auto, fp32, bf16, fp8, int8, int4."),
    "max_new_tokens": option(int | None, "--max-new-tokens", "-n", help=""),
    "thinking_tokens": option(int | None, help=THINKING_HELP),
    "temperature": option(float | None, "--temperature", "-t", help="0.1 to 2.0; 0 is greedy."),
    "top_p": option(float | None, help="0.05 to 1.0."),
    "top_k": option(int | None, help="1 to 1000."),
    "repetition_penalty": option(float | None, help="0.1 to 2.0."),
    "seed": option(int | None, help="Same seed, same words."),
    "format": option(str | None, help="text, json (a line each), md, csv, html."),
    "as_json": option(bool, "--json", help="The same as --format json."),
    "out": option(Path | None, "--out", "-o", help="Write the results to this file."),
    "html": option(Path | None, help="Also write a page with pictures, texts and boxes."),
    "draw": option(Path | None, help="Also draw boxes: into a file, of several into a folder."),
}
# flags of one task alone that are no options of it
OWN: Mapping[str, Mapping[str, Any]] = {
    "describe": {
        "write_xmp": option(
            Path | None,
            help="Put copies of the pictures, with the texts in them, into this folder.",
        )
    },
    "video": {
        "window": option(
            float | None,
            help=f"Of a camera or a live stream: so many last seconds at a time; {WINDOW_S:g} "
            "if nothing is given.",
        )
    },
}
OPENING = ("adapter", "device", "dtype", "revision", "offline", "prices")
SAMPLING = ("thinking_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed")


def command(task: type[Task[Any]]) -> Callable[..., None]:
    """The function that typer makes the task's command of."""
    flags = {f.name: flag(task, f) for f in fields(task) if f.name != "sampling"}
    together = task.least < task.most and task.least == 1
    if together:
        flags["together"] = option(bool, "--together", help="Ask about all pictures at once.")
    flags |= {**COMMON, **OWN.get(task.name, {})}
    most = new_tokens_help(task.new_tokens)
    flags["max_new_tokens"] = option(int | None, "--max-new-tokens", "-n", help=most)
    described = SOURCES + LIVE * (task is Watch)
    annotations = {"sources": Annotated[list[str], typer.Argument(help=described)], **flags}

    def run(given: dict[str, Any]) -> None:
        sources: list[str] = given.pop("sources")
        joined = given.pop("together", task.least > 1)
        run_command(task, sources, given, together=joined)

    return signed(task, annotations, run)


def signed(
    task: type[Task[Any]] | None,
    annotations: Mapping[str, Any],
    do: Callable[[dict[str, Any]], None],
) -> Callable[..., None]:
    """A function with the annotated flags, all of which it hands to `do`; None is no task's."""

    def run(**given: Any) -> None:
        do(given)

    if task is not None:
        run.__name__, run.__doc__ = task.name, task.__doc__
    run.__annotations__ = dict(annotations)
    parameters = [
        Parameter(name, Parameter.KEYWORD_ONLY, annotation=kind, default=default(task, name, kind))
        for name, kind in annotations.items()
    ]
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined] # what typer reads
    return run


def run_command(
    task: type[Task[Any]], sources: Sequence[str], given: Mapping[str, Any], *, together: bool
) -> None:
    from qvl.fetch import set_policy  # brings ssl: not for `qvl --help`
    from qvl.processing.live import is_live  # brings numpy

    settings = load_settings(**{key: given[key] for key in KEYS if key in given})
    options = {**given, **{key: getattr(settings, key) for key in KEYS}}
    sampling = Sampling(
        max_new_tokens=settings.max_new_tokens, **{name: given[name] for name in SAMPLING}
    ).checked()
    shows_boxes = given["html"] is not None or given["draw"] is not None
    if shows_boxes and "boxes" in options and not options.get("grounded"):
        options["boxes"] = True  # there would be none to show
    asked = list(tasks(task, options, sampling))
    form = chosen_format(given["format"], as_json=given["as_json"])
    set_policy(offline=given["offline"])
    if any(map(is_live, sources)):
        from qvl.cli.live import watch

        watch(sources, asked, options, form)
        return
    if options.get("window") is not None:
        raise UsageError("--window is of a camera or a live stream", hint="leave it out")
    found = pictures(sources)
    usable = [item for item in found if not isinstance(item, Unusable)]
    outcomes = [Outcome(item.name, item.error) for item in found if isinstance(item, Unusable)]
    items = [usable] if together and usable else [[item] for item in usable]
    refused = [item.error for item in found if isinstance(item, Unusable)]
    # all together: to ask about what is left would be another question
    if refused and (together or len(found) == 1):
        raise refused[0]
    if options["draw"] is not None:
        check_target(options["draw"], alone=len(items) + len(outcomes) == 1)
    answer(items, asked, outcomes, options, form)


def chosen_format(name: str | None, *, as_json: bool) -> str:
    check_known("format", name or "text", formats.FORMATS)
    if as_json and name not in (None, "json"):
        raise UsageError(f"--json and --format {name} are two formats", hint="give one of them")
    return "json" if as_json else name or "text"


def answer(
    items: Sequence[Sequence[Seen]],
    asked: Sequence[Task[Any]],
    outcomes: list[Outcome],
    options: Mapping[str, Any],
    form: str,
) -> None:
    """Every task about every item, shown as they are done."""
    model = open_chosen(options["model"], **{name: options[name] for name in OPENING})
    total = len(items) + len(outcomes)
    alone = total == 1
    kind = type(asked[0])
    copies, taken = options.get("write_xmp"), set()
    work = ((task, seen) for seen in items for task in asked)
    with output(options["out"]) as stream, closing(results(model, work)) as told:

        def say(text: str) -> None:
            print(text, end="", file=stream, flush=True)

        say(formats.beginning(kind, form))
        for outcome in outcomes:
            tell_of(outcome, alone=False)
            say(formats.item(outcome, kind, form, alone=False))
        try:
            for number, seen in enumerate(with_progress(items, len(items)), start=1):
                outcome = gathered(seen, list(itertools.islice(told, len(asked))))
                outcomes.append(outcome)
                tell_of(outcome, alone=alone)
                say(formats.item(outcome, kind, form, alone=alone))
                if options["draw"] is not None:
                    draw(outcome, number, options["draw"], alone=alone)
                if copies is not None:
                    from qvl.cli.copies import copied  # brings XML: not for `qvl --help`

                    outcomes[-1] = copied(outcome, copies, taken, alone=alone)
        except KeyboardInterrupt:
            left = total - len(outcomes)
            log.error("interrupted: %d done and kept, %d left", len(outcomes), left)
            raise
        finally:
            if options["html"] is not None:
                write_whole(options["html"], page(outcomes).encode(), "--html")
            say(formats.ending(outcomes, form))
            tell_cost([c.usage for o in outcomes for r in results_of(o) for c in r.completions])
    finish(outcomes)


def gathered(seen: Sequence[Seen], found: Sequence[Result | QvlError]) -> Outcome:
    """What became of one item; its first error, where there is one."""
    name = ", ".join(one.name for one in seen)
    errors = [one for one in found if isinstance(one, QvlError)]
    return Outcome(name, errors[0] if errors else list(found), seen)  # type: ignore[arg-type]


def tasks(
    task: type[Task[Any]], options: Mapping[str, Any], sampling: Sampling
) -> Iterator[Task[Any]]:
    """The task with each value of the options of which several may come."""
    plain, several = {}, {}
    for f in fields(task):
        if f.name == "sampling":
            continue
        value = options[f.name]
        how = flag_of(task, f.name)
        if f.name == "language":
            several["language"] = value.split(",")
        elif how.each:
            several[f.name] = value
        elif value is not None and value is not False:
            plain[f.name] = read(f.name, value, how, hints(task)[f.name])
    for chosen in itertools.product(*several.values()):
        each = dict(zip(several, chosen, strict=True))
        yield task(sampling=sampling, **plain, **each)


def read(name: str, value: Any, how: Flag, kind: Any) -> Any:
    """A flag's value as the task takes it."""
    if is_kind(kind, Mapping) and isinstance(value, list):
        return dict(pair(name, one) for one in value)
    if is_kind(kind, tuple):
        held = held_in(value[0]) if how.is_file and len(value) == 1 else None
        if held is not None:
            return tuple(line.strip() for line in held.splitlines() if line.strip())
        values = value[0].split(",") if len(value) == 1 else value
        return tuple(one.strip() for one in values)
    if how.is_file and (held := held_in(value)) is not None:
        return held
    return value


def held_in(name: str) -> str | None:
    """The text of the file of that name; None where there is no such file."""
    try:
        return Path(name).read_text("utf-8-sig") if Path(name).is_file() else None
    except (OSError, UnicodeDecodeError) as err:
        if isinstance(err, OSError) and err.errno == errno.ENAMETOOLONG:  # a text, and no name
            return None
        raise InputUnreadableError(f"{name!r} cannot be read as text") from err


def pair(name: str, value: str) -> tuple[str, str]:
    key, sign, rest = value.partition("=")
    if not sign or not key.strip():
        raise InvalidParamError(
            f"--{name.replace('_', '-')} {value!r} is not name=value",
            hint="write it as article=4711",
        )
    return key.strip(), rest.strip()


def flag(task: type[Task[Any]], f: Field[Any]) -> Any:
    """The option's type and help, as typer reads them."""
    kind, how = hints(task)[f.name], flag_of(task, f.name)
    described = next(m for m in get_args(kind) if isinstance(m, FieldInfo)).description or ""
    plain = get_args(kind)[0]
    dashed = "--" + f.name.replace("_", "-")
    if plain is bool:
        return option(bool, dashed, help=described)
    if f.name == "language":
        return option(str | None, help=described)
    if how.each or is_kind(kind, tuple) or (is_kind(kind, Mapping) and not is_kind(kind, str)):
        return option(list[str] | None, *(how.names or [dashed]), help=described)
    number = next((t for t in (int, float) if is_kind(kind, t)), str)
    return option(number | None, *(how.names or [dashed]), help=described)


def default(task: type[Task[Any]] | None, name: str, kind: Any) -> Any:
    """A flag that was not given: an option's own default then holds, through settings or the task."""
    if name == "sources":
        return Parameter.empty
    required = any(
        f.name == name and f.default is MISSING and f.default_factory is MISSING
        for f in (fields(task) if task is not None else ())
    )
    if required:
        return Parameter.empty
    return False if get_args(kind)[0] is bool else None


def is_kind(kind: Any, wanted: type) -> bool:
    """The option's type, or one of its union, is the wanted one."""
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    members = get_args(plain) if get_origin(plain) in (Union, UnionType) else (plain,)
    return any((get_origin(m) or m) is wanted for m in members)
