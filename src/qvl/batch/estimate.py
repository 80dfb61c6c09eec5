"""How long a run will take, how much it reads and says, what it costs: from a short measured probe.

Main path: probed (some items, spread over all, asked for real and forgotten) -> Estimate.of.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from qvl.batch.carry_out import ASKED, Attempt, RowOf, answer
from qvl.errors import QvlError
from qvl.runs.record import Item, Outcome
from qvl.vlm.chat_model import ChatModel

PROBE_S = 15.0  # a probe goes on for so long, and until a first round is done
MOST = 256  # items of a probe
RECORD_BYTES = 2500  # of an item in the store, beside its answer
BASE_WORK = 60_000  # pixels' worth of an item's words and answer
MOST_WORK = 1_000_000  # pixels; what is larger is made smaller before it is looked at


def work_of(sizes: Iterable[tuple[int, int] | None]) -> float:
    """What an item costs, as pixels: only ratios of these mean anything."""
    known = [MOST_WORK / 2 if size is None else min(MOST_WORK, math.prod(size)) for size in sizes]
    return BASE_WORK + sum(known)


@dataclass(frozen=True, slots=True)
class Measured:
    """Of a probe: the outcomes, when each was there (seconds from the start), and its items' work."""

    outcomes: tuple[Outcome, ...]
    moments_s: tuple[float, ...]
    work: tuple[float, ...]
    width: int  # asked at once

    @property
    def work_per_s(self) -> float:
        """Without the first round, in which all begin together, where there are more."""
        skip = self.width if len(self.moments_s) >= 2 * self.width else 0
        began_s = self.moments_s[skip - 1] if skip else 0.0
        return sum(self.work[skip:]) / max(self.moments_s[-1] - began_s, 1e-6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of all items: seconds, tokens (those of pictures among the prompt's), bytes in the store, cost."""

    seconds: float
    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    disk_bytes: int
    cost: float | None

    @classmethod
    def of(cls, measured: Measured, total_work: float, count: int) -> Estimate:
        usages = [one.out["usage"] for one in measured.outcomes if one.ok]
        share = count / max(1, len(usages))

        def all_of(name: str) -> int:
            return round(share * sum(usage[name] for usage in usages))

        texts = sum(
            len(json.dumps(one.out, ensure_ascii=False).encode()) for one in measured.outcomes
        )
        costs = [usage.get("cost") for usage in usages]
        return cls(
            seconds=total_work / measured.work_per_s,
            prompt_tokens=all_of("prompt_tokens"),
            image_tokens=all_of("image_tokens"),
            completion_tokens=all_of("completion_tokens"),
            disk_bytes=round(count * (RECORD_BYTES + texts / max(1, len(measured.outcomes)))),
            cost=None if None in costs or not costs else share * sum(filter(None, costs)),
        )


def probed(
    model: ChatModel,
    row_of: RowOf,
    items: Sequence[tuple[Item, float]],
    *,
    stops: Callable[[], int] = lambda: 0,
) -> Measured:
    """Ask about some of the items (with their work), spread evenly over all; nothing is kept.

    Raises the error of the first item where none has an answer.
    """
    width = ASKED * model.info.at_once
    step = max(1, len(items) // MOST)
    waiting = iter(items[step // 2 :: step][:MOST])
    done: list[tuple[Outcome | QvlError, float, float]] = []
    going: dict[Future[Outcome | QvlError], float] = {}
    began_s = time.monotonic()
    with ThreadPoolExecutor(width, "qvl-probe") as pool:
        while True:
            passed_s = time.monotonic() - began_s
            while len(going) < width and not stops() and (passed_s < PROBE_S or len(done) < width):
                if (one := next(waiting, None)) is None:
                    break
                item, work = one
                going[pool.submit(answer, row_of, Attempt(0.0, 0, item))] = work
            if not going:
                break
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                done.append((future.result(), time.monotonic() - began_s, going.pop(future)))
    outcomes = [told for told, _, _ in done if isinstance(told, Outcome)]
    if not outcomes:
        raise next(told for told, _, _ in done if isinstance(told, QvlError))
    return Measured(
        tuple(outcomes), tuple(m for _, m, _ in done), tuple(w for _, _, w in done), width
    )
