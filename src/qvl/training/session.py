"""From a user's wish to a trained model: data read and checked, memory told, steps, what comes of it.

Main path: prepare (rows, problems, order, recipe, memory) -> Prepared -> fit -> adapter or model folder.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from qvl.errors import InputError, InvalidParamError, OutOfMemoryError
from qvl.loading.adapter import write_adapter
from qvl.loading.changed import write_changed
from qvl.loading.machine import bf16_instructions, usable_cores
from qvl.loading.model import free_bytes, read_parts
from qvl.loading.template import opens_reasoning
from qvl.models.lora import LowRank
from qvl.training.data import Order, Reader, Share, Unit, survey
from qvl.training.examples import Encoder
from qvl.training.memory import Estimate, estimate, give_back_freed
from qvl.training.parallel import Workers
from qvl.training.passes import Loss, recompute_layers
from qvl.training.report import report
from qvl.training.rows import Problem, read_rows
from qvl.training.run import BEST, Recipe, Run, opened_run, train
from qvl.training.trainable import Base, Method, Section, load_base, make_trainable

RATES: dict[Method, float] = {"lora": 2e-4, "dora": 2e-4, "full": 1e-5}
SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user asks for; None is decided here.

    `eval_data` are files of their own; else `eval_share` of the rows is held back. `epochs` counts
    only where there are no `steps`.
    """

    data: tuple[Path, ...]
    model: str
    folder: Path  # of the model
    out: Path
    method: Method = "lora"
    sections: tuple[Section, ...] = ("decoder",)
    dtype: Literal["auto", "fp32", "bf16", "int8", "int4"] = "auto"
    device: str = "cpu"
    rank: int = 16
    alpha: float | None = None
    epochs: float = 1.0
    steps: int | None = None
    batch: int = 8
    tokens: int = 4096
    rate: float | None = None
    warmup: float = 0.03
    weight_decay: float = 0.0
    eval_data: tuple[Path, ...] = ()
    eval_share: float = 0.0
    eval_every: int = 50
    patience: int = 0
    save_every: int = 50
    seed: int = 0
    recompute: bool = False
    skip_bad: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    wish: Wish
    recipe: Recipe
    reader: Reader
    order: Order
    eval_reader: Reader
    held_back: tuple[Share, ...]
    problems: tuple[Problem, ...]
    memory: Estimate
    workers: Workers

    def summary(self) -> str:
        """What will be done, in a few lines."""
        recipe, units = self.recipe, self.order.units
        rows, tokens = sum(len(u.rows) for u in units), sum(u.tokens for u in units)
        held = sum(len(u.rows) for share in self.held_back for u in share.units)
        gib = {
            name: getattr(self.memory, name) / 2**30 for name in ("weights", "training", "passes")
        }
        epochs = recipe.steps * recipe.batch / max(1, rows)
        return (
            f"{rows} rows, {tokens} tokens, {sum(u.said for u in units)} of them learnt; {held} rows "
            f"to evaluate on\n{recipe.steps} steps of {recipe.batch} rows: {epochs:.1f} times through; "
            f"{recipe.method} of {', '.join(recipe.sections)}, {recipe.base} base, rate {recipe.rate:g}\n"
            f"memory about {self.memory.total / 2**30:.2f} GiB: weights {gib['weights']:.2f}, training "
            f"{gib['training']:.2f}, the largest pass {gib['passes']:.2f}"
        )


def prepare(wish: Wish, *, seen: Callable[[int, int], None] = lambda done, all_: None) -> Prepared:
    """Read and check everything; nothing is written, and no weight is read.

    Raises InputError naming the first bad rows (unless `skip_bad`), InvalidParamError,
    OutOfMemoryError before the start when memory cannot suffice.
    """
    check(wish)
    device = torch.device(wish.device)
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    parts = read_parts(wish.folder)
    encoder = Encoder(parts, thinks=opens_reasoning(wish.folder))
    rows, wrong = read_rows(wish.data)
    held_rows, held_wrong = read_rows(wish.eval_data)
    all_rows = len(rows) + len(held_rows)
    units, more = survey(
        encoder, rows, most_tokens=wish.tokens, seen=lambda done: seen(done, all_rows)
    )
    held_units, held_more = survey(
        encoder,
        held_rows,
        most_tokens=wish.tokens,
        seen=lambda done: seen(len(rows) + done, all_rows),
    )
    problems = (*wrong, *more, *held_wrong, *held_more)
    if problems and not wish.skip_bad:
        raise bad_rows(problems)
    eval_reader = Reader(encoder, held_rows)
    if not wish.eval_data and wish.eval_share:
        units, held_units = split(units, wish.eval_share, wish.seed)
        eval_reader = Reader(encoder, rows)
    if not units:
        raise InputError(
            "there is nothing to train on", hint="give files with rows that can be used"
        )
    order = Order(tuple(units), wish.batch, wish.tokens, wish.seed)
    recipe = recipe_of(wish, order, has_eval=bool(held_units), digest=digest(wish))
    most = min(wish.tokens, wish.batch * max(u.tokens for u in units))
    seen_share = max(u.visual / u.tokens for u in units)
    patches = round(most * seen_share * parts.config.vision.merge**2)
    memory = estimate(parts.config, recipe, tokens=most, patches=patches)
    check_memory(memory, device)
    workers = Workers(device)
    held = tuple(Share(tuple(p)) for p in order.passes(held_units))
    return Prepared(
        wish=wish,
        recipe=recipe,
        reader=Reader(encoder, rows),
        order=order,
        eval_reader=eval_reader,
        held_back=held,
        problems=problems,
        memory=memory,
        workers=workers,
    )


def check(wish: Wish) -> None:
    least = {"rank": 1, "batch": 1, "tokens": 16, "save_every": 1, "eval_every": 1, "patience": 0}
    for name, low in least.items():
        if getattr(wish, name) < low:
            raise InvalidParamError(f"{name} is {getattr(wish, name)}, less than {low}")
    if not 0 <= wish.eval_share < 1:
        raise InvalidParamError(f"eval_share is {wish.eval_share}, not from 0 to below 1")
    if wish.eval_share and wish.eval_data:
        raise InvalidParamError("eval_data and eval_share are given", hint="give one of them")
    if wish.method == "full" and wish.dtype in ("int8", "int4"):
        raise InvalidParamError(
            f"weights in {wish.dtype} cannot be trained as a whole", hint="use lora, or bf16"
        )


def bad_rows(problems: Sequence[Problem]) -> InputError:
    listed = "\n".join(f"  {problem}" for problem in problems[:SHOWN_PROBLEMS])
    more = len(problems) - SHOWN_PROBLEMS
    listed += f"\n  and {more} more" if more > 0 else ""
    return InputError(
        f"{len(problems)} rows cannot be trained on:\n{listed}",
        hint="mend them, or leave them out with --skip-bad",
    )


def split(units: Sequence[Unit], share: float, seed: int) -> tuple[list[Unit], list[Unit]]:
    """Units to train on and to hold back; rows about the same pictures stay together."""
    order = list(units)
    random.Random(f"held back/{seed}").shuffle(order)
    count = min(len(order) - 1, max(1, round(share * len(order))))
    held = set(order[:count])
    return [u for u in units if u not in held], [u for u in units if u in held]


def digest(wish: Wish) -> str:
    """Of the training files' contents."""
    found = hashlib.sha256()
    for file in (*wish.data, *wish.eval_data):
        found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()[:16]


def recipe_of(wish: Wish, order: Order, *, has_eval: bool, digest: str) -> Recipe:
    base = base_of(wish)
    steps = wish.steps or max(1, round(wish.epochs * len(order.epoch(0))))
    return Recipe(
        method=wish.method,
        sections=wish.sections,
        base=base,
        rank=wish.rank,
        alpha=wish.alpha if wish.alpha is not None else 2 * wish.rank,
        steps=steps,
        batch=wish.batch,
        tokens=wish.tokens,
        rate=wish.rate if wish.rate is not None else RATES[wish.method],
        warmup=max(1, round(wish.warmup * steps)),
        weight_decay=wish.weight_decay,
        clip=1.0,
        eval_every=wish.eval_every if has_eval else 0,
        patience=wish.patience,
        seed=wish.seed,
        recompute=wish.recompute,
        model=wish.model,
        weights=weights_digest(wish.folder),
        data=digest,
    )


def base_of(wish: Wish) -> Base:
    if wish.dtype != "auto":
        return wish.dtype
    fast = wish.device != "cpu" or bool(bf16_instructions())
    return "bf16" if fast else "fp32"


def weights_digest(folder: Path) -> str:
    """What the weights' files are called and how long they are, and the config: not each byte."""
    files = sorted(folder.glob("*.safetensors"))
    named = [(file.name, file.stat().st_size) for file in files]
    config = (folder / "config.json").read_bytes()
    return hashlib.sha256(json.dumps(named).encode() + config).hexdigest()[:16]


def check_memory(memory: Estimate, device: torch.device) -> None:
    free = free_bytes(device)
    if free is not None and memory.total > free:
        raise OutOfMemoryError(
            f"this needs about {memory.total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free",
            hint="take fewer --tokens, --recompute, lora in place of full, or --dtype int4",
        )


def fit(
    prepared: Prepared,
    *,
    told: Callable[[Mapping[str, Any]], None] = lambda line: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Path | None:
    """Train, or go on where the run stopped; the folder of what came of it, None if it was stopped.

    An adapter lies in OUT/adapter, a whole model in OUT/model; of the step with the lowest evaluation
    loss, where there are evaluations. OUT/report.html shows the curve.
    Raises RunLockedError, RunChangedError, StorageError, OutOfMemoryError.
    """
    wish, recipe, workers = prepared.wish, prepared.recipe, prepared.workers
    give_back_freed()
    with opened_run(wish.out, recipe) if workers.is_first else nullcontext():
        parts = prepared.reader.encoder.parts
        model = load_base(wish.folder, parts.config, recipe.base, torch.device(wish.device))
        trained = make_trainable(
            model,
            recipe.method,
            recipe.sections,
            rank=recipe.rank,
            alpha=recipe.alpha,
            seed=recipe.seed,
        )
        loss = Loss(model)
        if recipe.recompute:
            recompute_layers(model)
        run = Run(wish.out, recipe, loss, trained, workers)
        is_over = train(
            run,
            prepared.order,
            prepared.reader,
            prepared.eval_reader,
            prepared.held_back,
            save_every=wish.save_every,
            told=told,
            stopping=stopping,
        )
        weights = workers.whole(dict(run.trained))
        if not workers.is_first:
            return None
        (wish.out / "report.html").write_text(report(wish.out), encoding="utf-8")
        if not is_over:
            return None
        best = wish.out / BEST
        return keep(prepared, load_file(best) if best.exists() else weights)


def keep(prepared: Prepared, weights: Mapping[str, Tensor]) -> Path:
    """What was learnt, as others can load it: an adapter in PEFT's format, or a whole checkpoint."""
    wish, recipe = prepared.wish, prepared.recipe
    name = "model" if recipe.method == "full" else "adapter"
    target = wish.out / name
    shutil.rmtree(target, ignore_errors=True)  # of the run before it was prolonged
    if recipe.method == "full":
        write_changed(wish.folder, target, weights, lambda name, _: weights[name])
        return target
    config = prepared.reader.encoder.parts.config
    paths = [path.removesuffix(".lora_a") for path in weights if path.endswith(".lora_a")]
    layers = {
        path: LowRank(
            weights[f"{path}.lora_a"],
            weights[f"{path}.lora_b"],
            recipe.alpha / recipe.rank,
            weights.get(f"{path}.magnitude"),
        )
        for path in paths
    }
    write_adapter(target, layers, generation=config.generation, base_name=wish.model)
    return target
