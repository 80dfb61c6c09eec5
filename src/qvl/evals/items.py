"""Which jobs are asked: so many of each skill and language, of scenes from seeds of their own.

Scenes are drawn and their requests made by a few processes beside the one that asks. The same
arguments give the same items in the same order, however many processes draw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

from qvl.evals.drawn import Asked, asked_of
from qvl.scenes import KINDS, draw
from qvl.scenes.asked import seen_of
from qvl.scenes.scene import Job, Split

FIRST_SEED = 10**9  # far from those that training draws
SEEDS_A_ROUND = 4
SCENES_FOR_SKILLS = 24
DRY = 48  # a kind that gave nothing wanted in so many scenes is not drawn again
SIGNS = ("sign", *(f"text-{level}" for level in range(10)))
Wanted = tuple[str, str]  # skill, language


def skill_of(kind: str, job: Job) -> str:
    """The job's skill; of reading, what is read as well: a word or a line, a receipt, the rest."""
    if job.skill != "read":
        return job.skill
    return "read-receipt" if kind == "receipt" else "read-words" if kind in SIGNS else "read"


@dataclass(slots=True)
class _Open:
    """How many are still wanted of each, and for how many scenes a kind has given none of them."""

    left: Counter[Wanted]
    dry: Counter[str]

    def wanted(self) -> frozenset[Wanted]:
        return frozenset(key for key, n in self.left.items() if n > 0)

    def kinds(self) -> list[str]:
        return [kind for kind in KINDS if self.dry[kind] < DRY] if self.wanted() else []

    def take(self, kind: str, drawn: Iterable[Asked]) -> Iterator[Asked]:
        taken = False
        for asked in drawn:
            key = (asked.job.skill, asked.job.options["language"])
            if self.left[key] > 0:
                self.left[key] -= 1
                taken = True
                yield asked
        self.dry[kind] = 0 if taken else self.dry[kind] + 1


def items(
    wanted: Mapping[Wanted, int], split: Split, *, first_seed: int = FIRST_SEED, processes: int = 1
) -> Generator[Asked, None, None]:
    """Up to that many jobs of each skill and language, those of one scene together.

    Fewer where no kind of scene has more of them; their `skill` is that of `skill_of`.
    """
    still = _Open(Counter(wanted), Counter())
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:

        def start(number: int) -> list[tuple[str, Future[list[Asked]]]]:
            """A round is drawn while the one before it is asked."""
            seeds = range(
                first_seed + number * SEEDS_A_ROUND, first_seed + (number + 1) * SEEDS_A_ROUND
            )
            return [
                (kind, pool.submit(_drawn, kind, split, seed, still.wanted()))
                for seed in seeds
                for kind in still.kinds()
            ]

        try:
            number, this = 1, start(0)
            while this:
                following = start(number)
                for kind, future in this:
                    yield from still.take(kind, future.result())
                number, this = number + 1, following
        finally:
            pool.shutdown(cancel_futures=True)


def _drawn(kind: str, split: Split, seed: int, wanted: Collection[Wanted]) -> list[Asked]:
    scene = draw(kind, split, seed)
    seen = seen_of(scene)
    jobs = [replace(job, skill=skill_of(kind, job)) for job in scene.jobs]
    return [
        asked_of(job, scene, seen) for job in jobs if (job.skill, job.options["language"]) in wanted
    ]


def skills() -> frozenset[str]:
    """All that jobs of some scenes of every kind have."""
    return frozenset(
        skill_of(kind, job)
        for kind in KINDS
        for seed in range(SCENES_FOR_SKILLS)
        for job in draw(kind, "train", seed).jobs
    )
