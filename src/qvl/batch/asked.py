"""What a run asks: one task with its options, and of each item the options that it has of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qvl.batch.template import filled
from qvl.errors import InvalidParamError, QvlError
from qvl.runs.record import Item
from qvl.tasks import TASKS
from qvl.tasks.task import Result, Task, from_json, option_names
from qvl.types import Sampling, field_names

SAMPLING = frozenset(field_names(Sampling))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The name of a task, its options as JSON (texts may hold templates), and the run's seed."""

    task: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int

    def of(self, item: Item) -> Task[Result]:
        """The task as it is asked about this item. Raises InvalidParamError, naming the option."""
        kind = TASKS[self.task]
        known = {*option_names(kind), *SAMPLING}
        own = dict(item.options)
        if unknown := [name for name in own if name not in known]:
            raise InvalidParamError(f"{self.task} has no option {unknown[0]!r}")
        sampling = {
            "seed": seed_of(self.seed, item.id),
            **self.options.get("sampling", {}),
            **{name: own.pop(name) for name in list(own) if name in SAMPLING},
        }
        told = {name: texts_filled(value, item) for name, value in self.options.items()}
        try:  # what the item has of its own is data: a brace in a cell is a brace
            return from_json(kind, {**told, **own, "sampling": sampling})
        except QvlError as err:
            raise InvalidParamError(f"{item.id}: {err.message}", hint=err.hint) from err


def texts_filled(value: Any, item: Item) -> Any:
    """An option's value with the item's columns in the texts of it."""
    match value:
        case str():
            return filled(value, item)
        case list():
            return [texts_filled(one, item) for one in value]
        case dict():
            return {key: texts_filled(one, item) for key, one in value.items()}
    return value


def seed_of(run_seed: int, item_id: str) -> int:
    """The item's own seed: its words do not depend on what stands beside, before or after it."""
    digest = hashlib.sha256(f"{run_seed}/{item_id}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8]) >> 1
