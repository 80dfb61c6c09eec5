"""`qvl train`: fine-tune a model on conversations about pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from qvl.cli.interrupts import interrupts
from qvl.errors import UsageError, nearest
from qvl.settings import load_settings


def train(
    data: Annotated[
        list[Path], typer.Argument(help="JSONL of messages, or CSV of image and text.")
    ],
    *,
    out: Annotated[
        Path, typer.Option(help="The run's folder; there, it goes on where it stopped.")
    ],
    model: Annotated[str | None, typer.Option(help="A hub id, a folder, or sprout.")] = None,
    method: Annotated[
        Literal["lora", "dora", "full"], typer.Option(help="An adapter, or the weights themselves.")
    ] = "lora",
    train_parts: Annotated[
        str, typer.Option("--train", help="Of decoder,merger,tower; all else stays as it is.")
    ] = "decoder",
    dtype: Annotated[
        Literal["auto", "fp32", "bf16", "int8", "int4"] | None,
        typer.Option(help="What frozen weights are kept in; int4 with lora is QLoRA."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda.")] = None,
    rank: Annotated[int, typer.Option(help="Of the adapter.")] = 16,
    alpha: Annotated[float | None, typer.Option(help="Of the adapter; twice the rank.")] = None,
    epochs: Annotated[float, typer.Option(help="Times through the data.")] = 1.0,
    steps: Annotated[int | None, typer.Option(min=1, help="In place of epochs.")] = None,
    batch: Annotated[int, typer.Option(help="Rows a step learns from.")] = 8,
    tokens: Annotated[int, typer.Option(help="Most that are computed at once: memory.")] = 4096,
    rate: Annotated[float | None, typer.Option(help="Learning rate, at its peak.")] = None,
    warmup: Annotated[float, typer.Option(min=0, max=1, help="Share of the steps.")] = 0.03,
    weight_decay: Annotated[float, typer.Option(min=0, help="AdamW's.")] = 0.0,
    eval_data: Annotated[
        list[Path] | None, typer.Option("--eval", help="Rows that are evaluated on, never learnt.")
    ] = None,
    eval_share: Annotated[float, typer.Option(help="Of the rows, held back for that.")] = 0.0,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations.")] = 50,
    patience: Annotated[
        int, typer.Option(help="Stop after as many evaluations without a better one; 0 never.")
    ] = 0,
    save_every: Annotated[int, typer.Option(help="Steps between saves.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the order and the adapter's start.")] = 0,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Less memory, a third slower (checkpointing).")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that cannot be used.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Check the data, tell steps and memory, and stop.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write its files into the run's folder too.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never download.")] = False,
) -> None:
    """Fine-tune a model: adapters (LoRA, DoRA, QLoRA) or whole, on your own pictures and answers.

    Every row is read before the first step, and what is wrong is listed. Stopped with Ctrl-C or killed,
    the same command goes on.
    """
    chosen = load_settings(model=model, device=device, dtype=dtype)
    from qvl.training import session
    from qvl.training.trainable import SECTIONS
    from qvl.vlm.local import chosen_device, model_folder

    sections = tuple(part.strip() for part in train_parts.split(","))
    for section in sections:
        if section not in SECTIONS:
            raise UsageError(
                f"--train has {section!r}, not one of {', '.join(SECTIONS)}",
                hint=nearest(section, SECTIONS),
            )
    if chosen.dtype == "fp8":
        raise UsageError("fp8 weights are not trained beside", hint="use --dtype bf16 or int4")
    found = model_folder(chosen.model, revision=None, offline=offline or None)
    wish = session.Wish(
        data=tuple(data),
        model=found.name,
        folder=found.path,
        out=out,
        method=method,
        sections=cast(Any, sections),
        dtype=chosen.dtype,
        device=chosen_device(chosen.device),
        rank=rank,
        alpha=alpha,
        epochs=epochs,
        steps=steps,
        batch=batch,
        tokens=tokens,
        rate=rate,
        warmup=warmup,
        weight_decay=weight_decay,
        eval_data=tuple(eval_data or ()),
        eval_share=eval_share,
        eval_every=eval_every,
        patience=patience,
        save_every=save_every,
        seed=seed,
        recompute=recompute,
        skip_bad=skip_bad,
    )
    prepared = session.prepare(wish, seen=progress("rows read"))
    is_first = prepared.workers.is_first  # of several processes one speaks
    if is_first:
        for problem in prepared.problems:
            print(f"left out: {problem}", file=sys.stderr)
        print(prepared.summary(), file=sys.stderr)
    if plan:
        return
    with board(out, is_wanted=tensorboard and is_first) as write, interrupts() as came:
        told = teller(prepared.recipe.steps, write) if is_first else write
        result = session.fit(prepared, told=told, stopping=lambda: bool(came))
    if came:
        print("\nstopped, and kept; the same command goes on", file=sys.stderr)
        raise KeyboardInterrupt
    if result is not None:
        print(result)
        print(f"the curve: {out / 'report.html'}", file=sys.stderr)


def progress(what: str) -> Any:
    """Counts on a terminal."""

    def seen(done: int, whole: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done} of {whole} {what}", end="\n" if done == whole else "", file=sys.stderr)

    return seen


def teller(steps: int, write: Any) -> Any:
    """A line a step on a terminal, every tenth elsewhere, all evaluations."""
    is_terminal = sys.stderr.isatty()

    def told(line: Mapping[str, Any]) -> None:
        write(line)
        step, evaluated = line["step"], "eval_loss" in line
        rate = line["tokens"] / max(line["seconds"], 1e-9)
        text = f"step {step}/{steps}  loss {line['loss']:.4f}  {rate:.0f} tokens/s"
        if evaluated:
            text += f"  evaluation {line['eval_loss']:.4f}{' (best)' if line['best'] else ''}"
        if is_terminal:
            end = "\n" if evaluated or step == steps else ""
            print(f"\r{text}\x1b[K", end=end, flush=True, file=sys.stderr)
        elif evaluated or step == steps or step % 10 == 0:
            print(text, file=sys.stderr)

    return told


@contextmanager
def board(folder: Path, *, is_wanted: bool) -> Iterator[Any]:
    """Where numbers go that TensorBoard shows, if wanted."""
    if not is_wanted:
        yield lambda line: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as err:
        raise UsageError("--tensorboard needs its package", hint="pip install tensorboard") from err
    writer = SummaryWriter(str(folder / "tensorboard"))

    def write(line: Mapping[str, Any]) -> None:
        for name in ("loss", "eval_loss", "rate", "norm"):
            if name in line:
                writer.add_scalar(name, line[name], line["step"])

    try:
        yield write
    finally:
        writer.close()
