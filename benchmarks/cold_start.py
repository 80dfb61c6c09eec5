"""Cold start of a packed model: from the start of a process to its first token of a short text prompt.

    qvl models convert FOLDER PACKED --quantize int4
    python -m benchmarks.cold_start PACKED [ROUNDS]

Main path: main -> in turn read_once (the packed file's bytes, in pieces of 8 MB) and in_child (a fresh
process that maps the folder and answers one token) -> a table of medians. The file is in the page
cache. Linux only. Exit status 1 if the start takes over START_LIMIT times the reading, or its peak of
resident memory, mapped pages included, is over PEAK_LIMIT times the file.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

# the child's imports are a part of what is measured

START_LIMIT, PEAK_LIMIT = 1.5, 1.15
PIECE_BYTES = 8 << 20
ROUNDS = 5
GB = 1e9


@dataclass(frozen=True, slots=True)
class Start:
    stages_s: dict[str, float]  # by name, in order; together all of the time
    processor_s: float
    prompt_tokens: int
    peak_bytes: int

    @property
    def total_s(self) -> float:
        return sum(self.stages_s.values())


# ---- in a child process ------------------------------------------------------------------------


def measured_start(folder: str, began_s: float) -> Start:
    """`began_s` was the monotonic clock, which all processes share, when the parent began this one."""
    stages_s: dict[str, float] = {}
    reached_s = began_s

    def reached(stage: str) -> None:
        nonlocal reached_s
        now = time.monotonic()
        stages_s[stage] = stages_s.get(stage, 0) + now - reached_s
        reached_s = now

    reached("start of Python")
    import torch  # noqa: F401

    reached("import torch")
    from qvl.loading import model as loading
    from qvl.types import Message, Request, Sampling, Text
    from qvl.vlm.local import LocalModel

    reached("import qvl")

    def noted(name: str, stage: str) -> None:
        """Make a step of load_model a stage of its own."""
        step: Callable[..., Any] = getattr(loading, name)

        def noting(*arguments: Any, **named: Any) -> Any:
            reached("empty modules, checks")
            result = step(*arguments, **named)
            reached(stage)
            return result

        setattr(loading, name, noting)

    noted("read_parts", "tokenizer, json")
    noted("fill", "map the file")
    model = LocalModel(folder, device="cpu")
    reached("engine")
    prompt = (Message("system", (Text("."),)), Message.user("Hi"))
    request = Request(messages=prompt, sampling=Sampling(max_new_tokens=1, temperature=0))
    answer = model.generate([request])[0]
    reached("first forward")
    used = resource.getrusage(resource.RUSAGE_SELF)
    processor_s = used.ru_utime + used.ru_stime
    return Start(stages_s, processor_s, answer.usage.prompt_tokens, used.ru_maxrss * 1024)


# ---- in the parent -----------------------------------------------------------------------------


def in_child(folder: Path) -> Start:
    command = [sys.executable, "-m", "benchmarks.cold_start", "--child", str(folder)]
    began_s = time.monotonic()
    done = subprocess.run([*command, repr(began_s)], check=True, stdout=subprocess.PIPE)
    return Start(**json.loads(done.stdout))


def read_once(path: Path, piece: bytearray) -> tuple[float, float]:
    """Seconds on the clock, and of the processor."""
    began_s, used_s = time.monotonic(), time.process_time()
    with path.open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass
    return time.monotonic() - began_s, time.process_time() - used_s


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["--child"]:
        print(json.dumps(asdict(measured_start(arguments[1], float(arguments[2])))))
        return
    if not 1 <= len(arguments) <= 2:
        raise SystemExit((__doc__ or "").strip())
    folder, rounds = Path(arguments[0]), int(arguments[1]) if arguments[1:] else ROUNDS
    path, piece = folder / "packed.safetensors", bytearray(PIECE_BYTES)
    read_once(path, piece)  # into the page cache
    in_child(folder)  # its modules too
    reads, starts = [], []
    for _ in range(rounds):
        reads.append(read_once(path, piece))
        starts.append(in_child(folder))
    print_table(folder, path.stat().st_size, reads, starts)
    ratio = statistics.median(start.total_s for start in starts) / statistics.median(
        clock for clock, _ in reads
    )
    peak = max(start.peak_bytes for start in starts) / path.stat().st_size
    if ratio > START_LIMIT or peak > PEAK_LIMIT:
        raise SystemExit(
            f"over the limits: {START_LIMIT} times reading, {PEAK_LIMIT} times the file"
        )


def print_table(
    folder: Path, size: int, reads: Sequence[tuple[float, float]], starts: Sequence[Start]
) -> None:
    from qvl.loading.machine import processor_name, usable_cores

    kind = json.loads((folder / "qvl.json").read_text("utf-8"))["kind"]
    read_s = statistics.median(clock for clock, _ in reads)
    total_s = statistics.median(start.total_s for start in starts)
    peak = max(start.peak_bytes for start in starts)
    machine = f"{processor_name() or 'unknown processor'}, {usable_cores()} cores"
    print(f"# Cold start of a packed model, {kind}, {size / GB:.2f} GB, in the page cache\n")
    print(f"{date.today()}, {machine}; medians of {len(starts)} rounds;")
    print(f"a text prompt of {starts[0].prompt_tokens} tokens. `python -m benchmarks.cold_start`\n")
    print("| stage | s | times reading |")
    print("|---|---|---|")
    rows = {
        stage: statistics.median(start.stages_s[stage] for start in starts)
        for stage in starts[0].stages_s
    }
    rows |= {
        "all, to the first token": total_s,
        "reading the file once": read_s,
        "processor time to the first token": statistics.median(s.processor_s for s in starts),
        "processor time of reading": statistics.median(used for _, used in reads),
    }
    for stage, seconds in rows.items():
        print(f"| {stage} | {seconds:.2f} | {seconds / read_s:.2f} |")
    print(f"\nPeak of resident memory {peak / GB:.2f} GB, {peak / size:.2f} times the file.")


if __name__ == "__main__":
    main(sys.argv[1:])
