"""What loading a model of 2 billion parameters costs in memory and time, ours beside transformers.

    python -m benchmarks.loading | tee benchmarks/loading.md

Main path: main -> write_checkpoint (checkpoints.py: random weights in two bf16 shards) ->
one child process for each way of loading -> a table. A child reads every parameter once, so that
mapped pages count, and reports the peak of its resident memory (VmHWM); the table gives that also
without what an interpreter holds that has only imported torch. Linux only; 4.3 GB of temporary disk.
Exit status 1 if our net peak is over LIMIT times the weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

# a child imports this module: qvl and transformers are imported where they are used

LIMIT = 1.15
MODEL = "Qwen3-VL-2B"
GB = 1e9


# ---- in a child process ------------------------------------------------------------------------


def load_nothing(_: Path) -> list[torch.Tensor]:
    return []


def load_ours(folder: Path) -> list[torch.Tensor]:
    from qvl.loading.model import load_model

    model = load_model(folder, dtype="bf16").model
    return [*model.parameters(), *model.buffers()]


def load_theirs(folder: Path) -> list[torch.Tensor]:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    kind = transformers.Qwen3VLForConditionalGeneration
    return list(kind.from_pretrained(folder, dtype=torch.bfloat16).parameters())


WAYS: dict[str, Callable[[Path], list[torch.Tensor]]] = {
    "nothing but torch": load_nothing,
    "qvl": load_ours,
    "transformers": load_theirs,
}


@dataclass(frozen=True, slots=True)
class Measured:
    load_s: float  # with the imports of the library that loads
    touch_s: float
    peak_bytes: int


def measure(way: str, folder: Path) -> Measured:
    began = time.monotonic()
    parameters = WAYS[way](folder)
    loaded = time.monotonic()
    for parameter in parameters:
        parameter.detach().sum()
    return Measured(loaded - began, time.monotonic() - loaded, peak_bytes())


def peak_bytes() -> int:
    """The most memory that was resident in this process since it began."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell VmHWM")


# ---- in the parent -----------------------------------------------------------------------------


def in_child(way: str, folder: Path) -> Measured:
    command = [sys.executable, "-m", "benchmarks.loading", "--child", way, str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return Measured(**json.loads(done.stdout))


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(asdict(measure(sys.argv[2], Path(sys.argv[3])))))
        return
    from benchmarks.checkpoints import write_checkpoint

    with tempfile.TemporaryDirectory() as temporary:
        weights = write_checkpoint(MODEL, Path(temporary))
        measured = {way: in_child(way, Path(temporary)) for way in WAYS}
    print_table(weights, measured)
    if net_ratio("qvl", weights, measured) > LIMIT:
        raise SystemExit(f"qvl's net peak is over {LIMIT} times the weights")


def net_bytes(way: str, measured: dict[str, Measured]) -> int:
    return measured[way].peak_bytes - measured["nothing but torch"].peak_bytes


def net_ratio(way: str, weights: int, measured: dict[str, Measured]) -> float:
    return net_bytes(way, measured) / weights


def print_table(weights: int, measured: dict[str, Measured]) -> None:
    from qvl.loading.machine import processor_name, usable_cores

    machine = f"{processor_name() or 'unknown processor'}, {usable_cores()} cores"
    print("# Loading Qwen3-VL-2B's shapes, random bf16 weights in two shards, on the CPU\n")
    print(
        f"{date.today()}, {machine}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, transformers {version('transformers')};"
    )
    print(f"weights {weights / GB:.2f} GB, just written, so in the page cache.")
    print("`python -m benchmarks.loading` prints this page.\n")
    print(
        "| loaded by | import and load, s | then read once, s | peak, GB | net peak, GB | net / weights |"
    )
    print("|---|---|---|---|---|---|")
    for way, found in measured.items():
        cells = (
            way,
            f"{found.load_s:.1f}",
            f"{found.touch_s:.1f}",
            f"{found.peak_bytes / GB:.2f}",
            f"{net_bytes(way, measured) / GB:.2f}",
            f"{net_ratio(way, weights, measured):.2f}",
        )
        print(f"| {' | '.join(cells)} |")
    print("\nPeak: the most memory resident at once (VmHWM), pages of mapped files included.")
    print("Net: without that of an interpreter which has only imported torch.")


if __name__ == "__main__":
    main()
