"""A training run: steps, evaluation, early stop; what is kept so that it goes on where it stopped.

Main path: train -> Run.step for each step of data.Order -> Run.save. The run's folder holds
run.json (the recipe), state.safetensors (trained weights, optimiser, step; replaced whole), best.safetensors
(the weights of the lowest evaluation loss) and log.jsonl (a line for each step).
Killed at any moment and started again, it ends with the same weights as if it had never stopped, bit
for bit on a CPU.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qvl.errors import (
    InvalidParamError,
    OutOfMemoryError,
    RunChangedError,
    RunLockedError,
    StorageError,
)
from qvl.training.data import Order, Reader, Share
from qvl.training.parallel import Workers
from qvl.training.passes import Loss, Passage
from qvl.training.trainable import Base, Method, Section

RECIPE, STATE, BEST, LOG = "run.json", "state.safetensors", "best.safetensors", "log.jsonl"
LEAST_SHARE = 0.1  # of the peak rate, at the end of the cosine


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that decides what a run learns; `data` and `weights` are digests.

    A step learns from `batch` rows, computed at most `tokens` at a time. The rate rises over `warmup`
    steps and falls on a cosine. `eval_every` 0: never evaluated; `patience` 0: never stopped early.
    """

    method: Method
    sections: tuple[Section, ...]
    base: Base
    rank: int
    alpha: float
    steps: int
    batch: int
    tokens: int
    rate: float
    warmup: int
    weight_decay: float
    clip: float
    eval_every: int
    patience: int
    seed: int
    recompute: bool
    model: str
    weights: str
    data: str


@dataclass(slots=True)
class Progress:
    """`step` are done; the lowest evaluation loss, and after which step."""

    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0


class Run:
    """A model in training. `workers` share each step; one alone is the usual case."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        loss: Loss,
        trained: Sequence[tuple[str, nn.Parameter]],
        workers: Workers,
    ) -> None:
        self.folder, self.recipe, self.workers = folder, recipe, workers
        self.loss = workers.shared(loss)
        self.trained = workers.parameters(self.loss, trained)
        self.optimiser = torch.optim.AdamW(
            [p for _, p in self.trained],
            lr=recipe.rate,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.progress = Progress()
        self.device = next(loss.parameters()).device

    @property
    def is_over(self) -> bool:
        progress, recipe = self.progress, self.recipe
        waited = recipe.patience * recipe.eval_every
        stale = bool(waited) and progress.step - progress.best_step >= waited
        return progress.step >= recipe.steps or (stale and progress.best_step > 0)

    def step(self, passages: Sequence[Passage]) -> dict[str, float]:
        """One step of the optimiser; its mean loss, nats a token, and the length of the gradient."""
        count = self.workers.total(sum(len(p.targets) for p in passages))
        total = torch.zeros((), device=self.device)
        for passage in passages:
            with self.precision():
                loss = self.loss(passage.to(self.device)) / count
            self.workers.scaled(loss).backward()
            total += loss.detach()
        parameters = [p for _, p in self.trained]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        norm = self.workers.whole({"norm": norm})["norm"].item()
        rate = self.recipe.rate * rate_share(self.progress.step, self.recipe)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.progress.step += 1
        mean = self.workers.total(total.item())
        if not math.isfinite(mean):
            raise InvalidParamError(
                f"the loss of step {self.progress.step} is {mean}",
                hint="take a lower rate; the state of the last save is kept",
            )
        return {"loss": mean, "norm": norm, "rate": rate, "said": count}

    def precision(self) -> Any:
        """bf16 products where the frozen weights are kept in it, or in less; all else in fp32."""
        if self.recipe.base == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    @torch.no_grad()
    def evaluate(self, passages: Iterable[Passage]) -> float:
        """The mean loss, nats a token."""
        total, count = 0.0, 0
        for passage in passages:
            with self.precision():
                total += self.loss(passage.to(self.device)).item()
            count += len(passage.targets)
        return total / max(1, count)

    def is_best(self, loss: float) -> bool:
        """Remember an evaluation; the weights of the best are kept."""
        if not loss < self.progress.best_loss:
            return False
        self.progress.best_loss, self.progress.best_step = loss, self.progress.step
        weights = self.workers.whole(dict(self.trained))
        if self.workers.is_first:
            write(self.folder / BEST, weights, {})
        return True

    def save(self) -> None:
        names = [name for name, _ in self.trained]
        state = self.optimiser.state_dict()["state"]
        tensors: dict[str, Tensor] = dict(self.trained)
        for number, entries in state.items():
            for key, value in entries.items():
                tensors[f"{names[number]}@{key}"] = torch.as_tensor(value)
        tensors = self.workers.whole(tensors)
        if self.workers.is_first:
            write(self.folder / STATE, tensors, asdict(self.progress))

    def resume(self) -> None:
        """Go on from the last save, if there is one."""
        path = self.folder / STATE
        if not path.exists():
            return
        with safe_open(path, "pt") as file:
            kept = json.loads(file.metadata()["progress"])
        tensors = load_file(path)
        state = self.optimiser.state_dict()
        with torch.no_grad():
            for number, (name, parameter) in enumerate(self.trained):
                parameter.copy_(self.workers.part(tensors[name], parameter))
                state["state"][number] = {
                    key.split("@")[1]: self.workers.part(value, parameter)
                    for key, value in tensors.items()
                    if key.startswith(f"{name}@")
                }
        self.optimiser.load_state_dict(state)
        self.progress = Progress(**kept)


def rate_share(step: int, recipe: Recipe) -> float:
    """Of the peak rate in step `step`, counted from 0."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return LEAST_SHARE + (1 - LEAST_SHARE) * 0.5 * (1 + math.cos(math.pi * done))


def write(path: Path, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    """The file appears whole. Raises StorageError."""
    partial = path.with_suffix(".part")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(whole, partial, metadata={"progress": json.dumps(progress)})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as err:  # safetensors has an error of its own for a full disk
        partial.unlink(missing_ok=True)
        raise StorageError(
            f"{str(path)!r} cannot be written", hint="make room; the last save is kept"
        ) from err


@contextmanager
def opened_run(folder: Path, recipe: Recipe) -> Iterator[None]:
    """The run's folder, for one process alone.

    Raises RunLockedError while another works on it, RunChangedError for another recipe than the run
    was begun with.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    except OSError as err:
        raise StorageError(f"{str(folder)!r} cannot be written: {err.strerror}") from err
    try:
        lock_file(lock, folder)
        check_recipe(folder / RECIPE, recipe)
        yield
    finally:
        os.close(lock)


def lock_file(descriptor: int, folder: Path) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        raise RunLockedError(
            f"another process works on the run {str(folder)!r}", hint="wait for it, or stop it"
        ) from err


def check_recipe(path: Path, recipe: Recipe) -> None:
    wanted = json.loads(json.dumps(asdict(recipe)))
    if not path.exists():
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
        return
    kept = json.loads(path.read_text("utf-8"))
    changed = sorted(name for name in {*kept, *wanted} if kept.get(name) != wanted.get(name))
    if changed:
        name = changed[0]
        raise RunChangedError(
            f"the run {str(path.parent)!r} was begun with {name} {kept.get(name)!r}, "
            f"now it is {wanted.get(name)!r}",
            hint="give what it was begun with, or another folder for a new run",
        )


def train(
    run: Run,
    order: Order,
    reader: Reader,
    eval_reader: Reader,
    held_back: Sequence[Share],
    *,
    save_every: int,
    told: Callable[[Mapping[str, Any]], None],
    stopping: Callable[[], bool] = lambda: False,
) -> bool:
    """Steps until the run is over, or `stopping`; `told` gets each step's line of the log.

    `held_back` are the passes of the evaluation. Returns whether the run is over.
    """
    recipe, progress, workers = run.recipe, run.progress, run.workers
    run.resume()
    progress = run.progress
    cut_log(run.folder / LOG, progress.step)
    steps = (workers.own(passes) for passes in order.steps(progress.step))
    for passages in reader.ahead(steps):
        if run.is_over or workers.total(stopping()):  # all stop at the same step
            break
        began = time.monotonic()
        with memory_advice(recipe):
            line: dict[str, Any] = {"step": progress.step + 1, **run.step(passages)}
        tokens = workers.total(sum(len(p.ids) for p in passages))
        line |= {"tokens": tokens, "seconds": time.monotonic() - began}
        if recipe.eval_every and progress.step % recipe.eval_every == 0:
            loss = run.evaluate(eval_reader.passage(share) for share in held_back)
            line |= {"eval_loss": loss, "best": run.is_best(loss)}
        if workers.is_first:
            write_line(run.folder / LOG, line)
        told(line)
        if progress.step % save_every == 0 or run.is_over:
            run.save()
    if not run.is_over:
        run.save()
    return run.is_over


def write_line(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def cut_log(path: Path, step: int) -> None:
    """Without the lines of steps that are done again."""
    if path.exists():
        lines = [line for line in path.read_text("utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


@contextmanager
def memory_advice(recipe: Recipe) -> Iterator[None]:
    """What to do when memory runs out in a step."""
    try:
        yield
    except (MemoryError, RuntimeError) as err:
        # torch's own error is a RuntimeError; on a CPU it raises a plain one
        is_memory = isinstance(err, MemoryError | torch.OutOfMemoryError)
        if not is_memory and "DefaultCPUAllocator" not in str(err):
            raise
        ways = [f"--tokens {recipe.tokens // 2}"]
        ways += [] if recipe.recompute else ["--recompute"]
        ways += [] if recipe.base in ("int8", "int4") else ["--method lora --dtype int4"]
        raise OutOfMemoryError(
            "memory ran out while training; the last save is kept",
            hint=f"in a new run, give {', or '.join(ways)}",
        ) from err
