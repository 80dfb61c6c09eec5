"""The `qvl` command: registers the commands and turns errors into messages and exit codes.

Results go to stdout, everything else to stderr. `--debug` before the command shows tracebacks.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Container
from typing import Annotated

import typer

import qvl
from qvl.cli import batch
from qvl.cli.bench import bench
from qvl.cli.chat import chat
from qvl.cli.doctor import doctor
from qvl.cli.mcp import mcp
from qvl.cli.models import models
from qvl.cli.prompts import prompts
from qvl.cli.replay import replay
from qvl.cli.serve import serve
from qvl.cli.settings import settings
from qvl.cli.tasks import command
from qvl.cli.train import train
from qvl.errors import QvlError
from qvl.log import set_up_logging, visible
from qvl.tasks import TASKS


def show_version(value: bool) -> None:  # noqa: FBT001 - the signature that typer calls
    if value:
        print(f"qvl {qvl.__version__}")
        raise typer.Exit


def common(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    del debug  # main() looks for it, where errors end
    set_up_logging(-1 if quiet else verbose)


def made(words: Container[str]) -> typer.Typer:
    """The command line; only the tasks among the words have flags, as those of all take a while."""
    app = typer.Typer(
        name="qvl",
        help="Pictures into text, on your own machine.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(common)
    for task in TASKS.values():
        named = command(task) if task.name in words else lambda: None
        app.command(task.name, help=task.__doc__)(named)
    app.command()(chat)
    app.command()(mcp)
    app.add_typer(models, name="models")
    app.add_typer(prompts, name="prompts")
    app.command()(settings)
    app.command()(doctor)
    app.command()(bench)
    app.command()(serve)
    app.add_typer(batch.app(words), name="batch")
    app.command()(replay)
    app.command()(train)
    return app


def main() -> int:
    """Run the command line; the exit codes are those of DESIGN (see `qvl.errors`)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    debug = "--debug" in sys.argv[1:]
    try:
        # a shell that completes a line gives it in the environment
        made([*sys.argv, *os.environ.get("COMP_WORDS", "").split()])(prog_name="qvl")
    except QvlError as err:
        if debug:
            traceback.print_exc()
        show_error(err)
        return err.exit_code
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:  # typer's, which makes one with 1 of a reader that left
        if isinstance(stop.__context__, BrokenPipeError):
            return 141
        raise
    except Exception as err:  # noqa: BLE001 - the edge of the program: our own bugs end here
        if debug:
            traceback.print_exc()
        print(f"error: a bug in qvl: {type(err).__name__}: {err}", file=sys.stderr)
        print("hint: run again as `qvl --debug ...` and report what it prints", file=sys.stderr)
        return 1
    return 0


def show_error(err: QvlError) -> None:
    print(f"error: {visible(err.message)}", file=sys.stderr)
    if err.hint:
        print(f"hint: {visible(err.hint)}", file=sys.stderr)
