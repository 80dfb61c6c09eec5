"""What a run asks: one task with its options, and of each item the options that it has of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from qvl.batch.guards import Guards, guarded
from qvl.batch.media import seen
from qvl.batch.template import filled
from qvl.errors import InvalidParamError, QvlError
from qvl.runs.record import Item
from qvl.tasks import TASKS
from qvl.tasks.task import Result, Task, check_known, flag_of, from_json, option_names
from qvl.types import Sampling, field_names
from qvl.vlm.chat_model import ChatModel

SAMPLING = frozenset(field_names(Sampling))
# a run that is of no task: its items are requests to OpenAI's API, which say all that is asked
REQUESTS = "chat"


class Asks(Protocol):
    """What a run asks about each item: `Asked` of a task, `serve.requested` of requests."""

    def of(self, item: Item) -> object:
        """Raises QvlError for an item that cannot be asked about."""
        ...

    def row(self, model: ChatModel, item: Item) -> Mapping[str, Any]:
        """What comes of it. Raises QvlError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The name of a task, its options as JSON (texts may hold templates), the run's seed, its rules.

    An item may have a task of its own, to which those of these options count that it has, too.
    """

    task: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int
    guards: Guards = field(default_factory=Guards)

    def of(self, item: Item) -> Task[Result]:
        """The task as it is asked about this item. Raises InvalidParamError, naming the option."""
        own = dict(item.options)
        kind = TASKS[self.task]
        if (named := own.pop("task", self.task)) != self.task:
            check_known("task", named, TASKS)
            kind = TASKS[named]
        own.pop("model", None)  # `row` looks at it
        known = {*option_names(kind), *SAMPLING}
        if "prompt" in own and (words := words_option(kind)):
            own[words] = own.pop("prompt")
        if unknown := [name for name in own if name not in known]:
            raise InvalidParamError(
                f"{self.task} has no option {unknown[0]!r}",
                hint=f"`qvl batch run {REQUESTS}` asks requests" if "request" in unknown else None,
            )
        sampling = {
            "seed": seed_of(self.seed, item.id),
            **self.options.get("sampling", {}),
            **{name: own.pop(name) for name in list(own) if name in SAMPLING},
        }
        told = filled(
            {k: v for k, v in self.options.items() if k in known or k == "sampling"}, item
        )
        try:  # what the item has of its own is data: a brace in a cell is a brace
            return from_json(kind, {**told, **own, "sampling": sampling})
        except QvlError as err:
            raise InvalidParamError(f"{item.id}: {err.message}", hint=err.hint) from err

    def row(self, model: ChatModel, item: Item) -> dict[str, Any]:
        """What the task finds of this item, as every door shows it. Raises QvlError."""
        task = self.of(item)
        if (named := item.options.get("model", model.info.name)) != model.info.name:
            raise InvalidParamError(
                f"{item.id} is to be asked of {named!r}, and this run is of {model.info.name!r}",
                hint="make a run for each model",
            )
        shown = seen(item)
        task.check_seen(shown)
        return guarded(self.guards, model, task, shown, item.id, item.columns)


def words_option(kind: type[Task[Result]]) -> str | None:
    """The option that a task's own words are, whatever it is called: what --prompt gives."""
    for f in fields(kind):
        if "--prompt" in flag_of(kind, f.name).names:
            return f.name
    return None


def seed_of(run_seed: int, item_id: str) -> int:
    """The item's own seed: its words do not depend on what stands beside, before or after it."""
    digest = hashlib.sha256(f"{run_seed}/{item_id}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8]) >> 1
