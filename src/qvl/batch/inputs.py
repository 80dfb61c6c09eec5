"""The inputs of a run as its items, one after the other, so that 10^7 rows need no list of them.

Main path: items -> sources.rows, which reads folders, tables, archives and stores -> ids that are the
item's alone -> an item for each language. What cannot be used is Refused, and the others go on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from qvl.batch import sources
from qvl.batch.natural import natural_key
from qvl.batch.row import AUTO, Refused, Row, Tell, Wanted, row_name
from qvl.batch.taken import Taken
from qvl.batch.template import check_filled, check_names, names_in
from qvl.errors import InputUnreadableError, InvalidParamError, QvlError
from qvl.processing.source import quoted
from qvl.runs.record import Item

log = logging.getLogger(__name__)
AS_FOUND = Wanted()


def items(
    named: Sequence[str], wanted: Wanted = AS_FOUND, tell: Tell = log.info
) -> Iterator[Item | Refused]:
    """The items of what is named: files, folders, globs, tables, archives, addresses; - is a list on
    stdin. `tell` is told in which encoding a table was read, and the like.

    Raises InvalidParamError where there are not as many prompts as pictures, or files are to be called by
    a column that they have not, InputUnreadableError for the file of prompts.
    """
    found = sources.rows(named, wanted, tell)
    if wanted.prompts is not None:
        found = _with_prompts(found, wanted.prompts)
    taken, needed = Taken(), names_in(wanted.options)
    for row in found:
        if isinstance(row, Refused):
            yield row
            continue
        if not row.columns and not row.options:  # a file: what it lacks, all others do, too
            check_names(needed, (), row.name)
        try:
            row = _with_own_id(row, taken, wanted.ids == AUTO)
            if "request" not in row.options:
                check_filled(needed, row)
            yield from _in_languages(row, wanted.languages, taken)
        except QvlError as err:
            yield Refused(row.name, err)


def _with_own_id(row: Row, taken: Taken, may_change: bool) -> Row:  # noqa: FBT001
    """Raises InvalidParamError for an id that is given twice, naming both rows."""
    holder = taken.take(row.id, row.table, row.number)
    if holder is None:
        return row
    if row.is_given and not may_change:
        first = row_name(*holder) if holder[1] else "a file"
        raise InvalidParamError(
            f"{row.name} has the id {quoted(row.id)}, which {first} has already",
            hint="give each row an id of its own, or --ids auto, which adds the row's number",
        )
    number = row.number or 2
    while taken.take(unique := f"{row.id}#{number}", row.table, row.number):
        number += 1
    return replace(row, id=unique)


def _in_languages(row: Row, languages: Sequence[str], taken: Taken) -> Iterator[Item]:
    """Raises InvalidParamError where an item's id, a language behind that of its row, is another row's."""
    own = row.options.get("language", "")
    languages = [one.strip() for one in own.split(",") if one.strip()] or languages
    rest = {key: value for key, value in row.options.items() if key != "language"}
    for language in languages or ("",):
        own_id = row.id
        if len(languages) > 1:
            own_id = f"{row.id}.{language}"
            if taken.take(own_id, row.table, row.number):
                raise InvalidParamError(
                    f"{row.name} has the id {quoted(own_id)} in {language!r}, which another row has",
                    hint="give each row an id of its own",
                )
        yield Item(
            id=own_id,
            row=row.id,
            sources=row.sources,
            columns=row.columns,
            options={**rest, "language": language} if language else rest,
        )


def _with_prompts(found: Iterable[Row | Refused], file: Path) -> Iterator[Row | Refused]:
    """The rows in natural order of their ids, each with its line of the file as its prompt."""
    try:
        prompts = file.read_text("utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise InputUnreadableError(f"{str(file)!r} cannot be read as UTF-8 text") from err
    rows: list[Row] = []
    refused: list[Refused] = []
    for one in found:
        rows.append(one) if isinstance(one, Row) else refused.append(one)
    yield from refused
    if refused:  # to pair what is left would pair it wrongly
        return
    if len(prompts) != len(rows):
        raise InvalidParamError(
            f"{str(file)!r} has {len(prompts)} prompts, and there are {len(rows)} pictures",
            hint="give one prompt a line for each picture, in natural order of their names",
        )
    if empty := [str(n) for n, line in enumerate(prompts, 1) if not line.strip()]:
        raise InvalidParamError(
            f"{str(file)!r} has no prompt in line {', '.join(empty[:5])}",
            hint="give one prompt a line for each picture",
        )
    rows.sort(key=lambda row: natural_key(row.id))
    for row, prompt in zip(rows, prompts, strict=True):
        yield replace(row, options={**row.options, "prompt": prompt.strip()})
