"""`qvl prompts`: the wordings that tasks ask with, and the user's own beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated

import typer

from qvl.errors import InvalidParamError, nearest
from qvl.tasks.prompts import own, own_file, presets, shipped, tasks_with_prompts, version

prompts = typer.Typer(
    help="The words that tasks ask with, and your own.", no_args_is_help=True, rich_markup_mode=None
)
AsJson = Annotated[bool, typer.Option("--json", help="One object a line.")]


@prompts.command("list")
def list_prompts(*, as_json: AsJson = False) -> None:
    """Each task's prompts: version, names, languages, and where your own file lies."""
    for task in tasks_with_prompts():
        names, mine = presets(task), own(task)
        languages = list(dict.fromkeys(code for wordings in names.values() for code in wordings))
        if as_json:
            row = {
                "id": task,
                "version": version(task),
                "names": list(names),
                "languages": languages,
                "own": {"file": str(own_file(task)), "names": list(mine)},
            }
            print(json.dumps(row, ensure_ascii=False))
            continue
        print(f"{task} (version {version(task)}; {', '.join(languages)}): {', '.join(names)}")
        if mine:
            print(f"    your own: {told(mine, shipped(task))}, in {own_file(task)}")
    if not as_json:
        print(f"your own wordings go into {own_file('TASK')}")


@prompts.command("show")
def show_prompts(
    task: Annotated[str, typer.Argument(help="A task, as `qvl prompts list` names it.")],
    name: Annotated[str | None, typer.Argument(help="One of its prompts.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """The wordings in every language; what of them is your own says so."""
    check_known("task with prompts", task, tasks_with_prompts())
    known, mine = presets(task), own(task)
    if name is not None:
        check_known(f"prompt of {task}", name, known)
    for each in [name] if name is not None else known:
        wordings = known[each]
        if as_json:
            row = {"id": f"{task}/{each}", "version": version(task), "own": each in mine}
            print(json.dumps(row | {"wordings": wordings}, ensure_ascii=False))
            continue
        print(f"[{each}]{' (your own)' if each in mine else ''}")
        for language, words in wordings.items():
            print(f"  {language}: {words}")


def told(mine: Iterable[str], theirs: Iterable[str]) -> str:
    """The names of one's own prompts, and whether each is new or stands in place of another."""
    return ", ".join(f"{name} ({'replaces' if name in theirs else 'new'})" for name in mine)


def check_known(what: str, name: str, known: Iterable[str]) -> None:
    names = tuple(known)
    if name not in names:
        hint = nearest(name, names) or f"there are {', '.join(names)}"
        raise InvalidParamError(f"there is no {what} {name!r}", hint=hint)
