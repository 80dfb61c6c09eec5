"""What a run would be: how many items, what is wrong with the inputs, how long it takes.

Main path: planned -> looked_at (headers) -> Plan; `estimated` then asks a model about a few items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from qvl.batch.asked import Asks
from qvl.batch.check import Looked, looked_at
from qvl.batch.duplicates import same_bytes
from qvl.batch.estimate import Estimate, probed, work_of
from qvl.batch.row import Refused
from qvl.errors import QvlError
from qvl.runs.record import Item
from qvl.vlm.chat_model import ChatModel

KEPT = 1000  # refused items that are kept with their errors, and items to ask about in a probe


@dataclass(slots=True, kw_only=True)
class Plan:
    """`problems` are the first KEPT of all `refused`; `work` is of those that can be used, as
    `estimate.work_of` has it, and `sample` some of these, spread over all, each with its own.
    """

    items: int = 0
    rows: int = 0
    refused: int = 0
    problems: list[Refused] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    work: float = 0.0
    sample: list[tuple[Item, float]] = field(default_factory=list)
    same: list[tuple[str, ...]] = field(default_factory=list)  # rows that show the same


def planned(
    items: Callable[[], Iterable[Item | Refused]],
    asked: Asks,
    seen: Callable[[int], None] = lambda _: None,
) -> Plan:
    """Goes through the items several times; `seen` is told how many were looked at."""
    plan = Plan()
    rows: set[int] = set()
    spread = 1  # of the sample, which is thinned as it grows
    for one in looked_at(items()):
        plan.items += 1
        seen(plan.items)
        if isinstance(one, Looked):
            try:
                asked.of(one.item)
            except QvlError as err:
                one = Refused(one.item.id, err)
        if isinstance(one, Refused):
            plan.refused += 1
            if len(plan.problems) < KEPT:
                plan.problems.append(one)
            continue
        rows.add(hash(one.item.row))
        plan.languages[one.item.options.get("language", "")] += 1
        work = work_of(one.sizes)
        plan.work += work
        if plan.items % spread == 0:
            plan.sample.append((one.item, work))
            if len(plan.sample) >= KEPT:
                del plan.sample[::2]
                spread *= 2
    plan.rows = len(rows)
    groups = map(dict.fromkeys, same_bytes(_Usable(items)))
    plan.same = [tuple(group) for group in groups if len(group) > 1]
    return plan


@dataclass(frozen=True, slots=True)
class _Usable:
    """The items, each time anew."""

    items: Callable[[], Iterable[Item | Refused]]

    def __iter__(self) -> Iterator[Item]:
        return (one for one in self.items() if isinstance(one, Item))


def estimated(plan: Plan, model: ChatModel, asked: Asks) -> Estimate:
    """Raises the error of the first item that was asked about, where none has an answer."""
    measured = probed(model, partial(asked.row, model), plan.sample)
    return Estimate.of(measured, plan.work, plan.items - plan.refused)
