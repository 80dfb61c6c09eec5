"""Training a LoRA beside transformers' Trainer with PEFT: the same checkpoint, rows, batch and adapter.

    python -m benchmarks.training [FOLDER] [--steps 6] [--batch 8] [--repeat 3]

With `--peak`, what the device multiplies at most in TFLOP/s by its maker, or by default on a GPU what it
reaches in a large matrix product, the share of it that the training uses is printed too (MFU: tokens a
second times `training.flop.flop_a_token`). The last table is in benchmarks/training.md.

Main path: main -> rows of pictures of several sizes with answers of several lengths -> ours and theirs in
turn -> a table. Tokens a second count real tokens, never padding. Theirs get their inputs ready made,
ours reads the pictures' files. What the loss of the first step is, which must agree, is printed too.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from qvl.bench.limits import measured
from qvl.loading.machine import processor_name, usable_cores
from qvl.training.examples import IGNORE, Example
from qvl.training.flop import flop_a_token
from qvl.training.report import read_log
from qvl.training.session import Prepared, Wish, fit, prepare
from qvl.vlm.chat_model import EMBEDDED_FOLDER

RANK, ALPHA = 16, 32
TARGETS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
WORDS = [
    "a",
    "cup",
    "of",
    "tea",
    "on",
    "the",
    "wooden",
    "table",
    "beside",
    "two",
    "red",
    "books",
    "and",
    "one",
    "small",
    "lamp",
]


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of each step but the first, tokens of each, the loss of the first."""

    seconds: list[float]
    tokens: list[int]
    first_loss: float

    @property
    def rate(self) -> float:
        return sum(self.tokens) / sum(self.seconds)


def write_rows(folder: Path, count: int, sides: Sequence[int]) -> Path:
    """Pictures of noise over a gradient, each with one question and an answer of 5 to 80 words."""
    rng, noise = random.Random(7), np.random.default_rng(7)
    lines = []
    for number in range(count):
        width, height = rng.choice(sides), rng.choice(sides)
        ramp = np.linspace(0, 160, width)[None, :, None] * np.ones((height, 1, 3))
        pixels = (ramp + noise.integers(0, 96, (height, width, 3))).astype(np.uint8)
        PILImage.fromarray(pixels).save(folder / f"{number}.png")
        answer = " ".join(rng.choice(WORDS) for _ in range(rng.randint(5, 80)))
        asked = [{"image": f"{number}.png"}, {"text": "Describe the picture."}]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}))
    file = folder / "rows.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def ours(prepared: Prepared) -> Measured:
    fit(prepared)
    first, *rest = read_log(prepared.wish.out)
    return Measured([r["seconds"] for r in rest], [int(r["tokens"]) for r in rest], first["loss"])


def theirs(prepared: Prepared) -> Measured:
    """transformers' Trainer over the same steps' rows, padded as its users' collators do."""
    import peft
    import transformers

    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    wish, recipe, reader = prepared.wish, prepared.recipe, prepared.reader
    steps = prepared.order.epoch(0)[: recipe.steps]
    examples = [
        [reader.encoder.example(reader.rows[n]) for unit in step for n in unit.rows]
        for step in steps
    ]
    dtype = torch.bfloat16 if recipe.base == "bf16" else torch.float32
    model = transformers.AutoModelForImageTextToText.from_pretrained(wish.folder, dtype=dtype)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
    adapted = peft.get_peft_model(model, config)
    clock = Clock()
    arguments = transformers.TrainingArguments(
        output_dir=str(wish.out / "theirs"),
        per_device_train_batch_size=1,  # an item is a whole batch already
        max_steps=len(steps),
        learning_rate=recipe.rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,
        weight_decay=0.0,
        bf16=recipe.base == "bf16",
        use_cpu=wish.device == "cpu",
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = transformers.Trainer(
        model=adapted,
        args=arguments,
        train_dataset=Batches([padded(step, model.config) for step in examples]),
        data_collator=lambda items: items[0],
        callbacks=[clock.callback()],
    )
    trainer._get_train_sampler = lambda *_: None  # in their order
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = [sum(len(e.ids) for e in step) for step in examples]
    return Measured(clock.seconds[1:], tokens[1:], losses[0])


class Batches(torch.utils.data.Dataset):
    def __init__(self, items: list[dict[str, Tensor]]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.items[index]


class Clock:
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.began = 0.0

    def callback(self) -> Any:
        import transformers

        clock = self

        class Timed(transformers.TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                clock.began = time.monotonic()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.seconds.append(time.monotonic() - clock.began)

        return Timed()


def padded(examples: Sequence[Example], config: Any) -> dict[str, Tensor]:
    longest = max(len(e.ids) for e in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    labels = torch.full_like(ids, IGNORE)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length] = torch.from_numpy(example.ids)
        labels[row, 1:length] = torch.from_numpy(example.targets[:-1])
        mask[row, :length] = 1
    images = [image for example in examples for image in example.images]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "pixel_values": torch.cat([torch.from_numpy(i.patches.rows) for i in images]),
        "image_grid_thw": torch.tensor([i.patches.grid for i in images]),
        "mm_token_type_ids": (ids == config.image_token_id).int(),
    }


def utilisation(wish: Wish, rate: float, peak_flop_s: float) -> str:
    """Of the device's peak, by training at so many tokens a second."""
    prepared = prepare(wish)
    flop = flop_a_token(prepared.reader.encoder.parts.config, prepared.order.units)
    return (
        f"A token takes {flop / 1e9:.4g} GFLOP, so qvl uses {flop * rate / peak_flop_s:.1%} of"
        f" {peak_flop_s / 1e12:.4g} TFLOP/s (MFU)."
    )


def in_turn(wish: Wish, repeat: int) -> Iterator[tuple[str, Measured]]:
    for turn in range(repeat):
        prepared = prepare(replace(wish, out=wish.out / f"{turn}"))
        yield "qvl", ours(prepared)
        yield "Trainer and PEFT", theirs(prepared)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, default=EMBEDDED_FOLDER)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sides", default="128,160,192,256")
    parser.add_argument("--peak", type=float, help="of the device, in TFLOP/s")
    asked = parser.parse_args()
    found: dict[str, list[Measured]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        sides = [int(side) for side in asked.sides.split(",")]
        file = write_rows(Path(scratch), asked.steps * asked.batch, sides)
        wish = Wish(
            data=(file,),
            model=asked.folder.name,
            folder=asked.folder,
            out=Path(scratch) / "run",
            dtype=asked.dtype,
            device=asked.device,
            rank=RANK,
            alpha=ALPHA,
            steps=asked.steps,
            batch=asked.batch,
            tokens=1 << 14,
        )
        (Path(scratch) / "run").mkdir()
        for name, run in in_turn(wish, asked.repeat):
            found.setdefault(name, []).append(run)
        rates = {name: statistics.median(run.rate for run in runs) for name, runs in found.items()}
        peak = asked.peak and asked.peak * 1e12
        if peak is None and asked.device != "cpu":
            peak = measured(asked.device, torch.bfloat16).gemm_flop_s
        used = utilisation(wish, rates["qvl"], peak) if peak else ""
    where = "" if asked.device != "cpu" else f"{processor_name()}, {usable_cores()} cores, "
    print(f"# Training a LoRA of rank {RANK} beside transformers' Trainer with PEFT\n")
    print(
        f"{date.today()}, {where}torch {torch.__version__}, transformers {version('transformers')}, peft "
        f"{version('peft')}; {asked.folder.name}, {asked.steps} steps of {asked.batch} rows, "
        f"{asked.repeat} runs in turn, without each one's first step.\n"
    )
    print("| trainer | tokens/s | range | loss of the first step |\n|---|---|---|---|")
    for name, runs in found.items():
        each = [run.rate for run in runs]
        print(
            f"| {name} | {rates[name]:.0f} | {min(each):.0f}-{max(each):.0f} "
            f"| {runs[0].first_loss:.4f} |"
        )
    ours_rate, their_rate = rates.values()
    print(f"\nqvl trains {ours_rate / their_rate:.2f} times as many tokens a second.")
    if used:
        print(used)


if __name__ == "__main__":
    main()
