"""How well the embedded model does its tasks: jobs of drawn scenes, asked one by one, decoded freely.

Scenes come from seeds of their own and only from combinations that training never drew; the last column
is of a drawing style that it never drew. Every job goes through the product's own door, greedy.
Run: python -m benchmarks.sprout_scores [--items 1000] [--model FOLDER] [--only SKILL,..] [--json]
Prints two tables, the groups with a bar and all other skills; exit code 1 when a figure misses its bar.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from qvl.evals import scores
from qvl.evals.drawn import Scored, scored
from qvl.evals.items import FIRST_SEED, Wanted, items, skills
from qvl.scenes.phrases import LANGUAGES
from qvl.vlm.open_model import open_model

COLUMNS = (*LANGUAGES, "style")
OTHER_SHARE = 20  # a skill without a bar gets a twentieth of the items
Figure = Callable[[Sequence[Scored]], float]


def right(answers: Sequence[Scored]) -> float:
    return sum(one.right for one in answers) / len(answers)


def measure(name: str) -> Figure:
    """The mean of a measure, over the answers that have it."""

    def figure(answers: Sequence[Scored]) -> float:
        values = [one.measures[name] for one in answers if name in one.measures]
        return sum(values) / len(values) if values else math.nan

    return figure


def cer(answers: Sequence[Scored]) -> float:
    return scores.cer([one.told or "" for one in answers], [one.true for one in answers])


def field_f1(answers: Sequence[Scored]) -> float:
    pooled = scores.Overlap()
    for one in answers:
        pooled += scores.field_overlap(one.told or {}, one.true)
    return pooled.f1


def moderation_f1(answers: Sequence[Scored]) -> float:
    """Over broken rules: naming another than the broken one is a rule too many and one too few."""
    pooled = scores.Overlap()
    for one in answers:
        pooled += scores.overlap([one.told] if one.told else [], [one.true] if one.true else [])
    return pooled.f1


def macro_f1(answers: Sequence[Scored]) -> float:
    return scores.macro_f1(
        [tuple(one.told or ()) for one in answers], [tuple(one.true) for one in answers]
    )


def calibration(answers: Sequence[Scored]) -> float:
    return scores.calibration_error(
        [one.confidence for one in answers], [one.right for one in answers]
    )


@dataclass(frozen=True, slots=True)
class Row:
    """A group of skills with a bar; `is_error`: the figure may be at most that."""

    name: str
    bar: float
    skills: tuple[str, ...]
    figure: Figure = right
    is_error: bool = False

    def holds(self, figure: float) -> bool:
        return math.isnan(figure) or (figure <= self.bar if self.is_error else figure >= self.bar)


DESCRIBED = ("describe", "describe-many", "describe-pair", "describe-coloured", "describe-plain",
             "describe-shelf")  # fmt: skip
CHARTS = ("chart-value", "chart-extreme", "chart-more", "chart-sum", "chart-difference", "chart-count",
          "chart-trend", "arithmetic")  # fmt: skip
COUNTS = ("count", "count-all", "count-kind", "count-group", "count-colour", "count-both")
ROWS = (
    Row("describe: objects named, F1", 0.93, DESCRIBED, measure("named")),
    Row("describe: attributes", 0.90, DESCRIBED, measure("facts")),
    Row("describe: nothing invented", 0.95, DESCRIBED, measure("free")),
    Row("count, 1 to 9", 0.92, COUNTS),
    Row("relation", 0.95, ("relation",)),
    Row("colour", 0.98, ("colour",)),
    Row("grounding, acc@0.5", 0.90, ("ground",)),
    Row("printed words, CER", 0.05, ("read-words",), cer, is_error=True),
    Row("receipts, CER", 0.10, ("read-receipt",), cer, is_error=True),
    Row("receipt fields, F1", 0.85, ("receipt",), field_f1),
    Row("compare", 0.80, ("compare", "compare-ask", "compare-new", "compare-same")),
    Row("chart and arithmetic", 0.75, CHARTS),
    Row("moderation, F1", 0.90, ("moderate",), moderation_f1),
    Row("classification, macro-F1", 0.95, ("classify",), macro_f1),
    Row("video, order of events", 0.85, ("video-events", "video", "describe-video"), measure("order")),
)  # fmt: skip
CALIBRATION = Row("calibration error, short answers", 0.05, (), calibration, is_error=True)


def numbers(each: int, known: Collection[str]) -> dict[str, int]:
    """How many items each skill gets: those of a row share its number."""
    out = dict.fromkeys(sorted(known), math.ceil(each / OTHER_SHARE))
    for row in ROWS:
        out |= dict.fromkeys(row.skills, math.ceil(each / len(row.skills)))
    return out


def answers_of(
    model_name: str, each: Mapping[str, int], seed: int, processes: int
) -> Iterator[tuple[str, Scored]]:
    """Each answer with its column."""
    model = open_model(model_name)
    wanted: dict[Wanted, int] = {
        (s, language): n for s, n in each.items() for language in LANGUAGES
    }
    for one in scored(model, items(wanted, "held-out", first_seed=seed, processes=processes)):
        yield one.language, one
    of_style = {key: math.ceil(n / len(LANGUAGES)) for key, n in wanted.items()}
    for one in scored(model, items(of_style, "style", first_seed=seed, processes=processes)):
        yield "style", one
    model.close()


@dataclass(frozen=True, slots=True)
class Line:
    """Of a table: its figures by column, of so many answers, of which some could not be read."""

    name: str
    bar: float | None
    figures: dict[str, float]
    items: int
    refused: int
    ok: bool


def lines(found: Mapping[tuple[str, str], Sequence[Scored]]) -> tuple[list[Line], list[Line]]:
    """Those with a bar, then all other skills."""

    def line(row: Row, bar: float | None = None) -> Line | None:
        by_column = {
            column: [
                one
                for (of, skill), answers in found.items()
                for one in answers
                if of == column and (skill in row.skills or (row is CALIBRATION and one.is_short))
            ]
            for column in COLUMNS
        }
        every = [one for answers in by_column.values() for one in answers]
        if not every:
            return None
        figures = {column: row.figure(a) if a else math.nan for column, a in by_column.items()}
        ok = bar is None or all(row.holds(figures[language]) for language in LANGUAGES)
        refused = sum(one.is_refused for one in every)
        return Line(row.name, bar, figures, len(every), refused, ok)

    seen = sorted({skill for _, skill in found})
    barred = {skill for row in ROWS for skill in row.skills}
    first = [line(row, row.bar) for row in (*ROWS, CALIBRATION)]
    second = [line(Row(skill, 0.0, (skill,))) for skill in seen if skill not in barred]
    return [one for one in first if one], [one for one in second if one]


def table(title: str, shown: Sequence[Line]) -> str:
    head = "".join(f"{column:>8}" for column in COLUMNS)
    out = [f"{title:<34}{'bar':>6}{head}{'items':>8}{'refused':>9}"]
    for one in shown:
        bar = "" if one.bar is None else f"{one.bar:.2f}"
        figures = "".join(
            f"{'-':>8}" if math.isnan(v) else f"{v:>8.3f}" for v in one.figures.values()
        )
        note = "" if one.ok else "  missed"
        out.append(f"{one.name:<34}{bar:>6}{figures}{one.items:>8}{one.refused:>9}{note}")
    return "\n".join(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100, help="a row and language")
    parser.add_argument("--model", default="sprout")
    parser.add_argument("--only", default="", help="skills, with commas between them")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help="of the first scene")
    parser.add_argument("--processes", type=int, default=1, help="that draw scenes")
    args = parser.parse_args()
    each = numbers(args.items, skills())
    if args.only:
        only = args.only.split(",")
        if unknown := [skill for skill in only if skill not in each]:
            parser.error(f"no skill {', '.join(unknown)}; there are {', '.join(each)}")
        each = {skill: each[skill] for skill in only}
    began_s = time.monotonic()
    found: dict[tuple[str, str], list[Scored]] = defaultdict(list)
    for column, one in answers_of(args.model, each, args.seed, args.processes):
        found[column, one.skill].append(one)
    took_s = time.monotonic() - began_s
    total = sum(map(len, found.values()))
    barred, others = lines(found)
    if args.json:
        shown = {
            "items": args.items,
            "seed": args.seed,
            "seconds": round(took_s, 1),
            "answers": total,
        }
        rows = [asdict(one) for one in (*barred, *others)]
        for row in rows:  # JSON has no NaN
            row["figures"] = {k: None if math.isnan(v) else v for k, v in row["figures"].items()}
        print(json.dumps({**shown, "rows": rows}, ensure_ascii=False))
    else:
        print(f"{args.model}: {total} answers in {took_s:.0f} s, {total / took_s:.1f} a second")
        print(f"{args.items} a row and language, seeds from {args.seed}\n")
        print(table("held-out scenes", barred))
        if others:
            print("\n" + table("other skills: right", others))
    return int(not all(one.ok for one in barred))


if __name__ == "__main__":
    sys.exit(main())
