"""What limits a run over 10^9 pictures: what our store and its shards cost here, scaled, and what a GPU does.

    python -m benchmarks.batch_scale [--pictures 1e9] [--gpus 1000] [--items 100000] | tee benchmarks/batch_scale.md

Main path: main -> measured (a null run of --items items, its shards made, done and merged) -> rows ->
a table; then `tail` plays shards of unequal work on engines that are lost now and then. A figure is
measured by this command, or an assumption that is named with its source and can be given by a flag.
"""

from __future__ import annotations

import argparse
import heapq
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from qvl.loading.machine import processor_name
from qvl.runs.items import INDEX, ITEMS
from qvl.runs.merge import merge
from qvl.runs.record import Item, Outcome, Source
from qvl.runs.run import Run
from qvl.runs.split import split

SHARDS = 8  # that are measured
LETTERS = 600  # of an answer, in UTF-8 mostly two bytes each
SECONDS_A_YEAR, DAY_S = 365 * 86400, 86400


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one item, on this machine, by one process."""

    split_s: float
    manifest_bytes: float
    record_s: float
    result_bytes: float
    open_s: float
    merge_s: float
    state_bytes: float = 11 + 16  # runs/state.py, and the index of items


def item(number: int) -> Item:
    name = f"photos/{number % 1000:03}/{number:012}.jpg"
    return Item(id=name, row=name, sources=(Source(f"s3://pictures/{name}"),),
                options={"language": "ru"})  # fmt: skip


def outcomes(run: Run) -> Iterator[Outcome]:
    for ordinal, one in run.pending():
        run.begin([ordinal])
        out = {"id": one.id, "text": f"{ordinal:09}" + "ш" * LETTERS, "language": "ru", "flags": [],
               "usage": {"prompt_tokens": 700, "completion_tokens": 200}}  # fmt: skip
        yield Outcome(ordinal=ordinal, id=one.id, ok=True, out=out, duration_s=1.5)


def measured(count: int) -> Measured:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began_s = time.perf_counter()
        shards = split(folder / "shards", SHARDS, {"task": "describe"}, map(item, range(count)))
        split_s = time.perf_counter() - began_s
        began_s = time.perf_counter()
        for shard in shards:
            with Run.open(shard) as run:
                for outcome in outcomes(run):
                    run.record(outcome)
        record_s = time.perf_counter() - began_s
        began_s = time.perf_counter()
        for shard in shards:
            with closing(Run.read(shard)) as run:
                assert not run.counts().pending
        open_s = time.perf_counter() - began_s
        began_s = time.perf_counter()
        merge(folder / "merged", shards)
        merge_s = time.perf_counter() - began_s
        sizes = {
            pattern: sum(path.stat().st_size for path in folder.glob(f"shards/*/{pattern}"))
            for pattern in (ITEMS, INDEX, "results-*.jsonl")
        }
    return Measured(
        split_s=split_s / count,
        manifest_bytes=(sizes[ITEMS] + sizes[INDEX]) / count,
        record_s=record_s / count,
        result_bytes=sizes["results-*.jsonl"] / count,
        open_s=open_s / count,
        merge_s=merge_s / count,
    )


def tail(shards: int, engines: int, spread: float, losses_a_day: float, shard_s: float) -> float:
    """Time of a run over that of the same work perfectly shared.

    A shard takes `shard_s` times 1 +- `spread`, evenly. An engine is lost so often a day, and the
    next one begins anew 300 s later with what is left: finished items are kept, so no work is lost.
    """
    draw = random.Random(1)
    free = [0.0] * engines
    work_s = 0.0
    for _ in range(shards):
        takes_s = shard_s * draw.uniform(1 - spread, 1 + spread)
        work_s += takes_s
        at_s = heapq.heappop(free)
        lost = draw.random() < losses_a_day / DAY_S * takes_s
        heapq.heappush(free, at_s + takes_s + 300 * lost)
    return max(free) / (work_s / engines)


def human(seconds: float) -> str:
    for unit, long in (("y", SECONDS_A_YEAR), ("d", DAY_S), ("h", 3600), ("min", 60)):
        if seconds >= 2 * long:
            return f"{seconds / long:.1f} {unit}"
    return f"{seconds:.1f} s"


def size(size_bytes: float) -> str:
    for unit, many in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= many:
            return f"{size_bytes / many:.1f} {unit}"
    return f"{size_bytes:.0f} B"


def rows(m: Measured, given: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    n = given.pictures
    pages = n / 1000
    yield "S3 list, one after the other", human(pages * given.list_page_s), (
        f"{pages:,.0f} pages of 1000 keys (S3 API), {given.list_page_s} s each (assumed)")  # fmt: skip
    yield (
        "manifest and shards, one process",
        human(n * m.split_s),
        f"{m.split_s * 1e6:.1f} us an item",
    )
    yield "manifest", size(n * m.manifest_bytes), f"{m.manifest_bytes:.0f} bytes an item"
    yield "hashes of ids while it is made", size(8 * n * 3), "8 bytes, and twice more to sort them"
    yield "store, one process", human(n * m.record_s), f"{m.record_s * 1e6:.1f} us an item"
    yield "store, of each engine", human(n * m.record_s / given.gpus), f"{given.gpus:,} engines"
    yield "results", size(n * m.result_bytes), f"{m.result_bytes:.0f} bytes an item, as they are"
    gpu_s = n * (given.prompt / given.read + given.answer / given.say)
    yield "GPU time", human(gpu_s), (
        f"{given.prompt} tokens read at {given.read:,}/s, {given.answer} said at {given.say:,}/s "
        "(assumed)")  # fmt: skip
    yield "the run", human(gpu_s / given.gpus), f"{given.gpus:,} GPUs"
    yield (
        "price",
        f"{gpu_s / 3600 * given.price / 1e3:,.0f} thousand $",
        f"{given.price} $ an hour (assumed)",
    )
    most = 256
    shard = n / most
    yield "largest shard", f"{shard:,.0f} items", f"{most} shards, the most that a split makes"
    yield "its open after a loss", human(shard * m.open_s), f"{m.open_s * 1e6:.1f} us an item"
    brought = shard * (m.manifest_bytes + m.result_bytes)
    yield (
        "its way from the store after a loss",
        human(brought / given.network),
        f"{size(brought)} at most, at {given.network / 1e6:g} MB/s (assumed)",
    )
    yield "its memory", size(shard * m.state_bytes), "27 bytes an item"
    parts = gpu_s / given.gpus / 10
    yield "parts in the store", f"{parts * given.gpus:,.0f}", "one each 10 s of each engine"
    yield "their price", f"{parts * given.gpus * given.put / 1e3:,.1f} thousand $", (
        f"{given.put * 1e6:g} $ a million PUTs (assumed: S3 Standard)")  # fmt: skip
    yield "merge, one process", human(n * m.merge_s), f"{m.merge_s * 1e6:.1f} us an item"
    yield "memory of the merge", size(n * (m.state_bytes + 8 * 3)), "state and index of all shards"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pictures", type=float, default=1e9)
    parser.add_argument(
        "--gpus", type=int, default=256, help="engines; a split makes 256 shards at most"
    )
    parser.add_argument("--items", type=int, default=100_000, help="that are measured")
    parser.add_argument("--list-page-s", type=float, default=0.1, help="assumed")
    parser.add_argument("--prompt", type=int, default=700, help="tokens read of each picture")
    parser.add_argument("--answer", type=int, default=200, help="tokens said of each")
    parser.add_argument(
        "--read", type=int, default=20_000, help="tokens/s of a GPU; assumed, give yours"
    )
    parser.add_argument(
        "--say", type=int, default=3_000, help="tokens/s of a GPU, all requests together"
    )
    parser.add_argument("--price", type=float, default=3.0, help="$ for a GPU hour; assumed")
    parser.add_argument("--put", type=float, default=5e-6, help="$ for a PUT; assumed")
    parser.add_argument(
        "--network", type=float, default=100e6, help="bytes/s of an engine; assumed"
    )
    given = parser.parse_args()
    m = measured(given.items)
    print(f"{given.pictures:,.0f} pictures; measured with {given.items:,} items and {SHARDS} shards on "
          f"{processor_name()}\n")  # fmt: skip
    print("| what | how much | of what |\n|---|---|---|")
    for row in rows(m, given):
        print(f"| {' | '.join(row)} |")
    print(
        "\nTime of a run over that of work perfectly shared, 64 engines, shards +-50 %, an engine lost once a day:\n"
    )
    print("| shards an engine | 1 | 2 | 4 | 8 | 32 |\n|---|---|---|---|---|---|")
    took = [tail(64 * each, 64, 0.5, 1.0, 8 * 3600 / each) for each in (1, 2, 4, 8, 32)]
    print("| 8 h of work | " + " | ".join(f"{one:.2f}" for one in took) + " |")


if __name__ == "__main__":
    main()
