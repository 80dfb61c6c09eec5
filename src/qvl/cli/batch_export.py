"""`qvl batch export` and `import-review`: a run's texts into files, and a person's changes back."""

from __future__ import annotations

import getpass
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qvl.cli.run_names import run_folder
from qvl.errors import InputError, PartialFailure, UsageError, nearest

if TYPE_CHECKING:
    from qvl.runs.record import Finished, Item
    from qvl.runs.run import Run

log = logging.getLogger(__name__)
BY_SUFFIX = {
    ".csv": "csv", ".xlsx": "xlsx", ".jsonl": "jsonl", ".parquet": "parquet", ".sqlite": "sqlite",
    ".db": "sqlite", ".html": "html",
}  # fmt: skip
FOLDERS = ("txt", "json", "xmp", "copies")  # formats of many files
FORMATS = (*dict.fromkeys(BY_SUFFIX.values()), *FOLDERS, "openai", "training")


def export(
    name: Annotated[str, typer.Argument(help="The run's name, or its folder.")],
    target: Annotated[Path, typer.Argument(help="The file to write; a folder for sidecars.")],
    *,
    form: Annotated[
        str | None,
        typer.Option("--as", help=f"{', '.join(FORMATS)}; the target's ending if none is given."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="A marketplace, as whose file it is written.")
    ] = None,
    workbook: Annotated[
        Path | None, typer.Option(help="Your own XLSX, of which the run's rows are: a filled copy.")
    ] = None,
    sheet: Annotated[str | None, typer.Option(help="The sheet of that workbook.")] = None,
    approved: Annotated[
        bool, typer.Option("--approved", help="Only what a person approved.")
    ] = False,
    pictures: Annotated[bool, typer.Option(help="Small pictures in an XLSX.")] = True,
    bom: Annotated[bool, typer.Option(help="In CSV, the mark that Excel wants.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the target.")] = False,
) -> None:
    """Write what came of a run: whole or not at all, in the words of who reviewed it."""
    from qvl.runs.run import Run

    form = chosen(form, target, profile, workbook)
    if target.exists() and not overwrite and form not in FOLDERS:
        raise InputError(
            f"{str(target)!r} exists already", hint="give another name, or --overwrite"
        )
    with Run.read(run_folder(name)) as run:
        finished = (one for one in run.finished() if not approved or is_approved(one))
        written = write(
            run, finished, target, form, profile=profile, workbook=workbook, sheet=sheet,
            pictures=pictures, bom=bom,
        )  # fmt: skip
    print(f"{written}{target}", file=sys.stderr)


def chosen(form: str | None, target: Path, profile: str | None, workbook: Path | None) -> str:
    """The format. Raises UsageError for what does not go together."""
    if profile is not None and (form or workbook):
        raise UsageError("--profile goes with neither --as nor --workbook", hint="leave them out")
    if profile is not None:
        return "profile"
    if workbook is not None:
        if form not in (None, "xlsx"):
            raise UsageError(f"--workbook is filled as xlsx, not as {form}")
        return "workbook"
    found = form or BY_SUFFIX.get(target.suffix.lower())
    if found is None or found not in FORMATS:
        wrong = form or target.suffix
        raise UsageError(
            f"there is no format {wrong!r}",
            hint=nearest(wrong, FORMATS) or f"there are {', '.join(FORMATS)}: --as",
        )
    return found


def write(
    run: Run,
    finished: Iterator[Finished],
    target: Path,
    form: str,
    *,
    profile: str | None,
    workbook: Path | None,
    sheet: str | None,
    pictures: bool,
    bom: bool,
) -> str:
    """What was written, as far as it is worth telling."""
    from qvl.batch import exports

    match form:
        case "profile":
            from qvl.batch.exports import marketplace
            from qvl.batch.profiles import load

            counts = marketplace.write(finished, target, load(profile or ""))
            report = marketplace.report_of(target)
            return f"{counts.written} products, {counts.cut} of them cut, {counts.left_out} left out ({report.name}): "
        case "workbook":
            from qvl.batch.exports import own_workbook

            own_workbook.write(finished, target, workbook or target, page=sheet, pictures=pictures)
        case "csv":
            from qvl.batch.exports import csv_table

            csv_table.write(finished, target, bom=bom)
        case "xlsx":
            from qvl.batch.exports import workbook as made

            made.write(finished, target, pictures=pictures)
        case "html":
            from qvl.batch.exports import gallery

            gallery.write(finished, target, title=run.name)
        case "txt" | "json" | "xmp":
            from qvl.batch.exports import sidecars

            return f"{sidecars.write(finished, target, form)} files in "
        case "copies":
            from qvl.batch.exports import copies

            count, failed = copies.write(finished, target)
            for one in failed[:10]:
                log.error("%s", one)
            if failed:
                raise PartialFailure(f"{len(failed)} copies could not be written")
            return f"{count} copies in "
        case "openai":
            from qvl.batch.exports import openai_batch

            openai_batch.write(finished, target)
        case "training":
            from qvl.batch.exports import training_set

            return f"{training_set.write(finished, target, asked_words(run))} conversations: "
        case _:
            from importlib import import_module

            import_module(f"{exports.__name__}.{form}").write(finished, target)
    return ""


def asked_words(run: Run) -> Callable[[Item], str]:
    """The words that an item was asked with, as the task makes them."""
    from qvl.batch.job import Job
    from qvl.cli.asks import words_asked

    kept = run.identity.values
    asked = Job.of(kept).asked
    return lambda item: words_asked(asked, item, kept["model"]["generation"])


def is_approved(one: Finished) -> bool:
    return one.review is not None and one.review.state == "approved"


def import_review(
    name: Annotated[str, typer.Argument(help="The run's name, or its folder.")],
    table: Annotated[Path, typer.Argument(help="The exported CSV or XLSX, as you changed it.")],
    *,
    skip_stale: Annotated[
        bool, typer.Option("--skip-stale", help="Leave out rows that are not the run's any more.")
    ] = False,
) -> None:
    """Take what a person changed in an exported table: exactly those cells, and the status."""
    from qvl.batch.import_review import import_review as reviews_in
    from qvl.runs.run import Run

    with Run.read(run_folder(name)) as run:
        reviews = list(
            reviews_in(
                table,
                run.finished(),
                by=getpass.getuser(),
                at=datetime.now(UTC).isoformat(timespec="seconds"),
                stale="skip" if skip_stale else "refuse",
            )
        )
        run.review(reviews)
    print(f"{len(reviews)} items reviewed", file=sys.stderr)
