"""Which jobs are asked: so many of each skill and language, of scenes from seeds of their own.

Scenes are drawn and their requests made by a few processes beside the one that asks. The same
arguments give the same items in the same order, however many processes draw.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Generator, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context

from qvl.evals.drawn import Asked, asked_of
from qvl.scenes import KINDS, draw
from qvl.scenes.asked import seen_of
from qvl.scenes.scene import Job, Split

FIRST_SEED = 10**9  # far from those that training draws
SEEDS_A_ROUND = 4
SCENES_TO_KNOW = 24  # of a kind, until it is known which skills it has
DRY = 400  # a kind that gave nothing wanted in so many scenes has no more of it
SIGNS = ("sign", *(f"text-{level}" for level in range(10)))
Wanted = tuple[str, str]  # skill, language
Drawn = tuple[frozenset[str], list[Asked]]  # all skills of a scene, and the jobs that are wanted


def skill_of(kind: str, job: Job) -> str:
    """The job's skill; of reading, what is read as well: a word or a line, a receipt, the rest."""
    if job.skill != "read":
        return job.skill
    return "read-receipt" if kind == "receipt" else "read-words" if kind in SIGNS else "read"


@dataclass(slots=True)
class _Open:
    """What is still wanted, and what each kind of scene has given so far."""

    left: Counter[Wanted]
    drawn: Counter[str] = field(default_factory=Counter)
    dry: Counter[str] = field(default_factory=Counter)  # scenes since the last that gave something
    skills: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def wanted(self) -> frozenset[Wanted]:
        return frozenset(key for key, n in self.left.items() if n > 0)

    def kinds(self) -> list[str]:
        """Those that are worth drawing again."""
        skills = {skill for skill, _ in self.wanted()}
        return [
            kind
            for kind in KINDS
            if (self.drawn[kind] < SCENES_TO_KNOW and skills)
            or (skills & self.skills[kind] and self.dry[kind] < DRY)
        ]

    def take(self, kind: str, drawn: Drawn) -> Iterator[Asked]:
        skills, offered = drawn
        self.skills[kind] |= skills
        self.drawn[kind] += 1
        self.dry[kind] += 1
        for asked in offered:
            key = (asked.job.skill, asked.job.options["language"])
            if self.left[key] > 0:
                self.left[key] -= 1
                self.dry[kind] = 0
                yield asked


def items(
    wanted: Mapping[Wanted, int], split: Split, *, first_seed: int = FIRST_SEED, processes: int = 1
) -> Generator[Asked, None, None]:
    """Up to that many jobs of each skill and language, those of one scene together.

    Fewer where no kind of scene has more of them; their `skill` is that of `skill_of`.
    """
    still = _Open(Counter(wanted))
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:

        def start(number: int) -> list[tuple[str, Future[Drawn]]]:
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


def _drawn(kind: str, split: Split, seed: int, wanted: Collection[Wanted]) -> Drawn:
    scene = draw(kind, split, seed)
    seen = seen_of(scene)
    jobs = [replace(job, skill=skill_of(kind, job)) for job in scene.jobs]
    open_jobs = [job for job in jobs if (job.skill, job.options["language"]) in wanted]
    return frozenset(job.skill for job in jobs), [asked_of(job, scene, seen) for job in open_jobs]


def skills() -> frozenset[str]:
    """All that jobs of some scenes of every kind have."""
    return frozenset(
        skill_of(kind, job)
        for kind in KINDS
        for seed in range(SCENES_TO_KNOW)
        for job in draw(kind, "train", seed).jobs
    )
