"""`qvl batch`: a task over thousands of pictures and the rows of tables, kept, resumed, exported.

Main path: `run TASK SOURCES` -> items (batch.inputs) -> Run.create or Run.open -> carry_out; with --ray
-> the shards of a run (runs.split) -> batch.over_ray -> runs.merge.
"""

from __future__ import annotations

import itertools
import json
import logging
import secrets
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qvl.cli.asks import CHAT, asks_of, opened, words_asked
from qvl.cli.batch_export import export, import_review
from qvl.cli.interrupts import interrupts
from qvl.cli.model import open_chosen
from qvl.cli.run_names import new_name, run_folder
from qvl.cli.tasks import (
    COMMON,
    OPENING,
    SAMPLING,
    flag,
    held_in,
    new_tokens_help,
    option,
    signed,
    tasks,
)
from qvl.errors import PartialFailure, UsageError
from qvl.settings import KEYS, Settings, load_settings
from qvl.tasks import TASKS
from qvl.tasks.task import Task
from qvl.types import Sampling, is_address

if TYPE_CHECKING:
    from qvl.batch.asked import Asked, Asks
    from qvl.batch.job import Job
    from qvl.batch.mirror import Mirror
    from qvl.batch.row import Refused, Wanted
    from qvl.runs.record import Finished, Item
    from qvl.runs.run import Run
    from qvl.runs.state import Counts
    from qvl.vlm.chat_model import ChatModel

log = logging.getLogger(__name__)
PROGRESS_EVERY_S = 10.0
PREVIEWED = 3  # items whose words a plan shows
SHARDS_EACH = 8  # for an engine: the last ones wait for an eighth of one's work at most
SHOWN = 10  # failed items, and refused rows, by name
SOURCES = (
    "Pictures, folders, globs, tables (CSV, TSV, XLSX, JSONL, Parquet), lists, PDFs, videos, archives, "
    "addresses, s3:// and the like."
)
TO_HELP = "s3://BUCKET/PREFIX: the run is kept there, too, and goes on from there."
# flags of a run's inputs, then of where it is kept
INPUTS: Mapping[str, Any] = {
    "ids": option(str | None, help="The column of ids; auto makes each id its row's own."),
    "image_column": option(list[str] | None, help="A column of pictures; may come more than once."),
    "prompts": option(Path | None, help="A file with one prompt a line, one for each picture."),
    "every": option(float | None, help="Of a video, each so many seconds are an item."),
    "follow": option(bool, "--follow", help="Follow links that lead out of a folder."),
}
RULES: Mapping[str, Any] = {
    "forbid": option(str | None, help="Words that no text may have, by commas, or a file of them."),
    "profile": option(str | None, help="A marketplace, whose rules the texts must keep."),
}
KEEPING: Mapping[str, Any] = {
    "run": option(str | None, "--run", help="The run's name, or its folder."),
    "fork": option(str | None, help="A run that answers to the same items are taken from."),
    "shard": option(str | None, help="K/N: only each N-th item, from the K-th."),
    "to": option(str | None, help=TO_HELP),
}
SPREADING: Mapping[str, Any] = {
    "ray": option(str | None, help="Over the machines of this Ray cluster; local is this one."),
    "workers": Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, help="Models; one for each GPU, or machine, if none is given."
        ),
    ],
    "shards_to": option(Path | None, help="A folder all machines share; RUN.shards if none."),
}
CHAT_HELP = (
    "The requests of files in the form of OpenAI's batches, as the server would answer them."
)
ASKING = ("model", *OPENING[:-1], "max_new_tokens", *SAMPLING)


def app(words: Container[str]) -> typer.Typer:
    """The command; only the tasks among the words have flags."""
    batch = typer.Typer(
        help="A task over thousands of pictures or the rows of a table; nothing is lost.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    begin = typer.Typer(
        help="Ask about every item; the same command, or `resume`, goes on.", no_args_is_help=True
    )
    look = typer.Typer(
        help="Check the inputs, and say how long a run takes, before it is begun.",
        no_args_is_help=True,
    )
    for task in TASKS.values():
        for group, do in ((begin, begin_run), (look, tell_plan)):
            made = command(task, do) if task.name in words else lambda: None
            group.command(task.name, help=task.__doc__)(made)
    for group, do in ((begin, begin_run), (look, tell_plan)):
        made = chat_command(do) if CHAT in words else lambda: None
        group.command(CHAT, help=CHAT_HELP)(made)
    batch.add_typer(look, name="plan")
    batch.add_typer(begin, name="run")
    batch.command()(resume)
    batch.command()(status)
    batch.command()(retry)
    batch.command()(export)
    batch.command()(import_review)
    batch.command()(merge)
    batch.command()(repair)
    return batch


def command(
    task: type[Task[Any]], do: Callable[[type[Task[Any]], dict[str, Any]], None]
) -> Callable[..., None]:
    """The function that typer makes a task's command of."""
    own = {f.name: flag(task, f) for f in fields(task) if f.name != "sampling"}
    flags = {**own, **{name: COMMON[name] for name in ASKING}, **INPUTS, **RULES, **KEEPING}
    if do is begin_run:
        flags |= SPREADING
    most = new_tokens_help(task.new_tokens)
    flags["max_new_tokens"] = option(int | None, "--max-new-tokens", "-n", help=most)
    sources = Annotated[list[str], typer.Argument(help=SOURCES)]
    return signed(task, {"sources": sources, **flags}, partial(do, task))


def chat_command(do: Callable[[None, dict[str, Any]], None]) -> Callable[..., None]:
    """The same of requests, which say themselves what is asked."""
    flags = {name: COMMON[name] for name in ("model", *OPENING[:-1], "seed")}
    flags |= {"ids": INPUTS["ids"], **KEEPING, **(SPREADING if do is begin_run else {})}
    sources = Annotated[list[str], typer.Argument(help="Files of requests, JSONL.")]
    return signed(None, {"sources": sources, **flags}, partial(do, None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What a command asks for: the job, how the inputs are read, and how the model is opened."""

    job: Job
    wanted: Wanted
    opening: Mapping[str, Any]


def job_of(asked: Asked, revision: str | None, settings: Settings) -> Job:
    from qvl.batch.job import Job

    name = settings.model
    if not is_address(name) and Path(name).expanduser().is_dir():
        name = str(Path(name).expanduser().resolve())
    return Job(
        asked=asked,
        model=name,
        revision=revision,
        adapter=settings.adapter,
        dtype=settings.dtype,
        device=settings.device,
    )


def asking(task: type[Task[Any]] | None, given: Mapping[str, Any], seed: int) -> Asking:
    from qvl.batch.asked import Asked
    from qvl.batch.guards import Guards
    from qvl.batch.profiles import load
    from qvl.batch.row import Wanted
    from qvl.tasks.task import adapter

    settings = load_settings(**{key: given[key] for key in KEYS if key in given})
    options = {**given, **{key: getattr(settings, key) for key in KEYS}}
    opening = {name: options[name] for name in OPENING if name in options}
    if task is None:
        job = job_of(Asked(task=CHAT, seed=seed), given["revision"], settings)
        return Asking(job=job, wanted=Wanted(ids=given["ids"]), opening=opening)
    languages = tuple(one.strip() for one in settings.language.split(","))
    sampling = {
        name: given[name] for name in SAMPLING if name != "seed" and given[name] is not None
    }
    if settings.max_new_tokens is not None:
        sampling["max_new_tokens"] = settings.max_new_tokens
    first, *others = tasks(
        task, {**options, "language": languages[0]}, Sampling(**sampling).checked()
    )
    if others:
        raise UsageError(
            "a run asks one thing of each item, not several",
            hint="give one, or a column with it in the table",
        )
    told = adapter(task).dump_python(first, mode="json")
    told["sampling"] = sampling
    guards = Guards(forbidden=words_of(given["forbid"]), profile=given["profile"] or "")
    if guards.profile:
        load(guards.profile)
    asked = Asked(task=task.name, options=told, seed=seed, guards=guards)
    job = job_of(asked, given["revision"], settings)
    wanted = Wanted(
        ids=given["ids"],
        languages=languages if len(languages) > 1 else (),
        prompts=given["prompts"],
        image_columns=tuple(given["image_column"] or ()),
        every_s=given["every"],
        follow=given["follow"],
        options=told,
    )
    return Asking(job=job, wanted=wanted, opening=opening)


def tell_plan(task: type[Task[Any]] | None, given: dict[str, Any]) -> None:
    """What the run would be; exit code 3 where some of the inputs cannot be used."""
    from qvl.batch.inputs import items
    from qvl.batch.plan import estimated, planned
    from qvl.fetch import set_policy

    ask = asking(task, given, given["seed"] or 0)
    set_policy(offline=given["offline"])
    asks = asks_of(ask.job.asked)
    plan = planned(lambda: items(given["sources"], ask.wanted), asks)
    tell_refused(plan.problems, plan.refused)
    languages = ", ".join(f"{name} {count}" for name, count in plan.languages.items() if name)
    print(
        f"{plan.items - plan.refused} items of {plan.rows} rows"
        + f" ({languages})" * bool(languages)
    )
    if plan.refused:
        print(f"{plan.refused} cannot be used")
    for group in plan.same[:SHOWN]:
        print(f"the same: {', '.join(group)}")
    if len(plan.same) > SHOWN:
        print(f"and {len(plan.same) - SHOWN} more groups that are the same")
    if plan.sample:
        with closing(open_chosen(ask.job.model, **ask.opening)) as model:
            for item, _ in plan.sample[:PREVIEWED]:
                print(f"{item.id}: {words_asked(ask.job.asked, item, model.info.generation)}")
            told = estimated(plan, model, asks)
        cost = "" if told.cost is None else f", cost {told.cost:.4g}"
        print(
            f"about {human(told.seconds)}: reads {told.prompt_tokens} tokens ({told.image_tokens} of "
            f"pictures), says {told.completion_tokens}; {told.disk_bytes / 1e6:.1f} MB on disk, "
            f"{peak_gb():.1f} GB of memory{cost}"
        )
    if plan.refused:
        raise PartialFailure(f"{plan.refused} of {plan.items} items cannot be used")


def peak_gb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def words_of(given: str | None) -> tuple[str, ...]:
    """Of "a,b", or of a file with a word or more a line."""
    if given is None:
        return ()
    held = held_in(given)
    words = given.split(",") if held is None else held.splitlines()
    return tuple(word.strip() for word in words if word.strip())


def begin_run(task: type[Task[Any]] | None, given: dict[str, Any]) -> None:
    """A new run, or on with one that was begun by the same command."""
    from qvl.batch.mirror import mirrored
    from qvl.fetch import set_policy

    if given["ray"] and (given["shard"] or given["fork"]):
        raise UsageError("--ray goes with neither --shard nor --fork", hint="leave them out")
    set_policy(offline=given["offline"])
    folder = run_folder(given["run"] or new_name(task.name if task else CHAT))
    with mirrored(folder, given["to"]) as mirror:
        begin_in(folder, task, given, mirror)


def begin_in(
    folder: Path, task: type[Task[Any]] | None, given: dict[str, Any], mirror: Mirror | None
) -> None:
    from qvl.batch.fork import take_over
    from qvl.batch.inputs import items
    from qvl.runs import identity
    from qvl.runs.items import Shard
    from qvl.runs.run import Run

    is_new = not (folder / identity.FILE).exists()
    shards = given["shards_to"] or folder.with_name(folder.name + ".shards")
    begun = next(iter(shards.glob(f"*/{identity.FILE}")), None) if is_new and given["ray"] else None
    seed = given["seed"]
    if seed is None and (begun or not is_new):
        seed = identity.read(begun.parent if begun else folder).values["seed"]
    ask = asking(task, given, secrets.randbits(32) if seed is None else seed)
    asks = asks_of(ask.job.asked)
    shard = Shard.parse(given["shard"] or "1/1")
    refused: list[Refused] = []
    found = usable(items(given["sources"], ask.wanted), refused)
    first = next(found, None)
    if first is None:
        if refused:
            tell_refused(refused[1:], len(refused) - 1)
            raise refused[0].error
        print("the inputs hold no items: nothing is done", file=sys.stderr)
        return
    found = itertools.chain([first], found)
    if given["ray"] and is_new:
        run_over_ray(folder, shards.absolute(), ask, found, given, refused)
        return
    model = open_chosen(ask.job.model, **ask.opening)
    kept = ask.job.identity(model.info)
    environment = ask.job.environment(model.info)
    if is_new:
        run = Run.create(folder, kept, found, environment=environment, shard=shard)
    else:
        run = Run.open(folder, kept, found, environment=environment)
    with run:
        tell_refused(refused, len(refused))
        if given["fork"]:
            with Run.read(run_folder(given["fork"])) as old:
                taken = take_over(old, run)
            print(f"{taken} answers are those of {given['fork']}", file=sys.stderr)
        carried_out(run, model, asks, refused, mirror)


def run_over_ray(
    folder: Path,
    shards: Path,
    ask: Asking,
    items: Iterator[Item],
    given: Mapping[str, Any],
    refused: Sequence[Refused],
) -> None:
    """The shards of a new run, begun or gone on with, and the run that they make in the end."""
    from qvl.batch.mirror import Mirror
    from qvl.batch.over_ray import Begun, spread
    from qvl.runs import split
    from qvl.runs.merge import merge as merged
    from qvl.runs.run import Run

    def where(one: Path) -> str | None:
        return f"{given['to'].rstrip('/')}/{one.name}" if given["to"] else None

    def pending(one: Path) -> bool:
        with closing(Run.read(one)) as run:
            return bool(run.counts().pending)

    def made(begun: Begun, engines: int) -> Sequence[Path]:
        identity, environment = begun
        if not shards.exists():
            most = min(split.MOST, SHARDS_EACH * engines)
            split.split(shards, most, identity, items, environment=environment)
        else:
            split.check_shards(split.shard_folders(shards), identity, items)
        tell_refused(refused, len(refused))
        for one in split.shard_folders(shards):
            if (place := where(one)) is not None:
                mirror = Mirror(one, place)
                mirror.fetch()
                mirror.send()
        return [one for one in split.shard_folders(shards) if pending(one)]

    def tell(one: Path, counts: Counts, left: int) -> None:
        print(f"shard {one.name}: {told(counts)}; {left} shards more", file=sys.stderr)

    with interrupts(3, tell_interrupt) as came:
        opens = partial(open_chosen, ask.job.model, **ask.opening)
        spread(
            given["ray"],
            opens,
            ask.job,
            made,
            workers=given["workers"],
            where=where,
            stops=lambda: len(came),
            told=tell,
        )
    if came:
        print("hint: the same command goes on", file=sys.stderr)
        raise SystemExit(128 + came[0])
    folders = split.shard_folders(shards)
    for one in folders:
        if (place := where(one)) is not None:
            Mirror(one, place).fetch()
    merged(folder, folders)
    with closing(Run.read(folder)) as run:
        tell_end(run, refused)


def resume(
    name: Annotated[str, typer.Argument(help="The run's name, or its folder.")],
    *,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection.")] = False,
    to: Annotated[str | None, typer.Option(help=TO_HELP)] = None,
) -> None:
    """Go on with a run that was interrupted: with the very job that it was begun with."""
    from qvl.batch.job import Job
    from qvl.batch.mirror import mirrored
    from qvl.fetch import set_policy
    from qvl.runs import identity
    from qvl.runs.run import Run

    folder = run_folder(name)
    settings = load_settings(device=device)
    set_policy(offline=offline)
    with mirrored(folder, to) as mirror:
        job = Job.of(identity.read(folder).values, device=settings.device)
        asks = asks_of(job.asked)
        model = opened(job, settings, offline=offline)
        kept, environment = job.identity(model.info), job.environment(model.info)
        with Run.open(folder, kept, environment=environment) as run:
            carried_out(run, model, asks, [], mirror)


def status(
    name: Annotated[str | None, typer.Argument(help="The run's name, or its folder.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One object a line.")] = False,
) -> None:
    """How a run is doing, also while it goes on; without a name, all of them."""
    from qvl.runs import home, identity

    if name:
        identity.read(run_folder(name))  # raises where there is none
    known = (
        [home.look(run_folder(name))]
        if name
        else home.runs(Path(load_settings().runs).expanduser())
    )
    for one in known:
        if as_json:
            counts = asdict(one.counts) if one.counts else None
            row = {"run": str(one.folder), "state": one.state, "counts": counts}
            print(json.dumps({**row, "error": one.error} if one.error else row))
        else:
            print(
                f"{one.folder.name}: {one.state}; {told(one.counts) if one.counts else one.error}"
            )


def retry(
    name: Annotated[str, typer.Argument(help="The run's name, or its folder.")],
    *,
    where: Annotated[
        list[str] | None,
        typer.Option(help="error=CODE, flag=NAME, state=rejected; failed items if none is given."),
    ] = None,
) -> None:
    """Make items pending once more; `resume` then asks about them."""
    from qvl.runs.run import Run

    chosen = [filtered(one) for one in where or ["error="]]
    with Run.open(run_folder(name)) as run:
        ordinals = [one.ordinal for one in run.finished() if any(f(one) for f in chosen)]
        run.requeue(ordinals)
    print(f"{len(ordinals)} items will be asked again", file=sys.stderr)
    if ordinals:
        print(f"hint: qvl batch resume {name}", file=sys.stderr)


def merge(
    name: Annotated[str, typer.Argument(help="The new run's name, or its folder.")],
    shards: Annotated[list[str], typer.Argument(help="The runs of all shards.")],
) -> None:
    """Make one run of the shards of one: complete, and each item once."""
    from qvl.runs import merge as merging

    target = run_folder(name)
    merging.merge(target, [run_folder(shard) for shard in shards])
    print(f"{target.name}: {len(shards)} shards", file=sys.stderr)


def repair(name: Annotated[str, typer.Argument(help="The run's name, or its folder.")]) -> None:
    """Put damaged lines of a run aside; their items are asked again."""
    from qvl.runs import repair as repairing

    found = repairing.repair(run_folder(name))
    print(f"{found.lines} lines were put aside", file=sys.stderr)
    if found.requeued:
        print(
            f"hint: {len(found.requeued)} items are asked again: qvl batch resume {name}",
            file=sys.stderr,
        )
    if found.lost:
        raise PartialFailure(f"{len(found.lost)} items are lost: nothing is known of them any more")


def filtered(where: str) -> Callable[[Finished], bool]:
    """Whether an item is one that KEY=VALUE means. Raises UsageError."""
    key, sign, value = where.partition("=")
    if not sign or key not in ("error", "flag", "state"):
        raise UsageError(
            f"--where {where!r} is no filter", hint="write error=CODE, flag=NAME or state=rejected"
        )

    def holds(one: Finished) -> bool:
        if key == "state":
            return (one.review.state if one.review else "new") == value
        if one.outcome is None:
            return False
        if key == "flag":
            return value in one.outcome.out.get("flags", ())
        return not one.outcome.ok and value in ("", one.outcome.out["error"]["code"])

    return holds


def usable(found: Iterator[Item | Refused], refused: list[Refused]) -> Iterator[Item]:
    """The items; what is refused is put into that list."""
    from qvl.batch.row import Refused

    for one in found:
        if isinstance(one, Refused):
            refused.append(one)
        else:
            yield one


def tell_refused(refused: Sequence[Refused], count: int) -> None:
    for one in refused[:SHOWN]:
        message = one.error.message
        log.error("%s", message if one.name in message else f"{one.name}: {message}")
    if count > SHOWN:
        log.error("and %d more cannot be used", count - SHOWN)


def carried_out(
    run: Run, model: ChatModel, asks: Asks, refused: Sequence[Refused], mirror: Mirror | None
) -> None:
    """The run to its end, or to an interrupt; raises what the exit code is made of."""
    from qvl.batch.carry_out import carry_out

    before = run.counts()
    if not before.pending:
        print(f"run {run.name}: nothing is left to do", file=sys.stderr)

    def stops() -> int:
        return len(came) or int(mirror is not None and mirror.error is not None)

    with interrupts(3, tell_interrupt) as came, shown_progress(run, before.pending):
        carry_out(run, model, partial(asks.row, model), stops=stops)
    if came:
        print(f"run {run.name}: {told(run.counts())}", file=sys.stderr)
        print(f"hint: go on with `qvl batch resume {run.name}`", file=sys.stderr)
        raise SystemExit(128 + came[0])
    tell_end(run, refused)


def tell_interrupt(times: int) -> None:
    log.warning(
        "finishing what is being asked; once more gives it up" if times == 1 else "given up"
    )


def tell_end(run: Run, refused: Sequence[Refused]) -> None:
    """Raises PartialFailure where anything failed."""
    counts = run.counts()
    print(f"run {run.name}: {told(counts)}", file=sys.stderr)
    failed = counts.failed + len(refused)
    if counts.failed:
        failures = (one for one in run.finished() if one.outcome and not one.outcome.ok)
        for one in itertools.islice(failures, SHOWN):
            error = one.outcome.out["error"] if one.outcome else {}
            log.error("%s: %s", one.item.id, error.get("message"))
        if counts.failed > SHOWN:
            log.error("and %d more failed", counts.failed - SHOWN)
    if failed:
        raise PartialFailure(
            f"{failed} of {counts.total + len(refused)} items failed",
            hint=f"`qvl batch retry {run.name}` asks about them again",
        )


def told(counts: Counts) -> str:
    """As in "12 of 20 done, 1 failed, 7 left; flags: language 2"."""
    text = f"{counts.done} of {counts.total} done, {counts.failed} failed, {counts.pending} left"
    for what, by_name in (("flags", counts.flags), ("errors", counts.errors)):
        if by_name:
            text += f"; {what}: " + ", ".join(f"{name} {n}" for name, n in by_name.items())
    return text


@contextmanager
def shown_progress(run: Run, total: int) -> Iterator[None]:
    """How many are done and how long the rest will take, on stderr, while the block goes on."""
    ended = threading.Event()

    def show() -> None:
        began_s, before = time.monotonic(), run.counts()
        done_before = before.done + before.failed
        while not ended.wait(PROGRESS_EVERY_S):
            counts = run.counts()
            new = counts.done + counts.failed - done_before
            if not new or not counts.pending:
                continue
            left_s = (time.monotonic() - began_s) / new * counts.pending
            print(f"{told(counts)}; about {human(left_s)} more", file=sys.stderr)

    if not total:
        yield
        return
    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def human(seconds: float) -> str:
    """As in 12 s, 3 min, 4 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
