"""Training `sprout` from its scenes: deterministic data, resumable, one line of log a report.

Run: python -m qvl.training.loop RUN_FOLDER --steps N [--pictures B] [--start CHECKPOINT]
The run folder holds the tokenizer, state.safetensors (weights, optimiser, step, stage of reading) and
log.jsonl; started again with the same arguments it goes on where it stopped.
Learning rate: warm-up, then constant, then linear to zero over the last `--decay` steps (a
warm-up-stable-decay schedule), so that a run can be prolonged without regret.
Reading goes up a stage (scenes.text) when REACHED of the lines of the present one are read without a
mistake: scenes never come twice, so what is counted is new to the model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from qvl.loading.machine import bf16_instructions
from qvl.loading.model import load_model
from qvl.models.batch import ForwardBatch
from qvl.models.qwen_vl import QwenVL
from qvl.scenes.text import STAGES
from qvl.training.dense import Pointer, Probes, class_names, naming_loss
from qvl.training.lessons import Lesson, Lessons
from qvl.training.memory import give_back_freed
from qvl.training.muon import Muon
from qvl.training.passes import PackedBranches
from qvl.training.run import STATE, write
from qvl.training.sprout import initialise, save_sprout, sprout_config

MUON_RATE, ADAM_RATE = 3e-3, 2e-3
CELLS_WEIGHT = 0.5
POINTED_WEIGHT = 4.0
# of the decoder: after one the nouns have looked up their things, after the other the answer has its
NOUNS_LAYER, ANSWERS_LAYER = 1, 2
LOG_STEPS = 20
SEGMENT = 100  # steps after which the run is saved, and reading may go up a stage
REACHED = 0.8  # of the lines of a stage
READING_SKILLS = ("read", "read-lines", "read-at")


class Taught(nn.Module):
    """The model and the probes that are trained beside it."""

    def __init__(self, model: QwenVL, names_lct: Tensor) -> None:
        super().__init__()
        self.model = model
        self.names_lct = names_lct  # dense.class_names
        self.probes = Probes(model.config.vision.out_width)
        self.nouns = Pointer(model.config.decoder.hidden)
        self.answers = Pointer(model.config.decoder.hidden)
        self.hidden: dict[int, Tensor] = {}  # the decoder's states [T, D] after those layers
        for layer in (NOUNS_LAYER, ANSWERS_LAYER):
            keep = partial(self.keep, layer)
            model.model.language_model.layers[layer].register_forward_hook(keep)

    def keep(self, layer: int, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.hidden[layer] = output

    def pointed(self, lesson: Lesson) -> Tensor:
        """How far off the places are that the tokens of the last pass point to."""
        nouns = self.hidden[NOUNS_LAYER][lesson.nouns.at]
        answers = self.hidden[ANSWERS_LAYER][lesson.answers.at]
        return self.nouns.loss(nouns, lesson.nouns.boxes) + self.answers.loss(
            answers, lesson.answers.boxes
        )


@dataclass(frozen=True, slots=True)
class Losses:
    """Of one lesson: nats per answer token, weighted; the cells' loss; how far off the places are that
    nouns and answers point to; which answers are right in every token, as if each were decoded freely:
    where the likeliest token is the true one all along, greedy decoding says it.
    """

    answers: Tensor
    cells: Tensor
    pointed: Tensor
    right: Tensor  # bool, one for each of the lesson's `said`


def losses_of(taught: Taught, lesson: Lesson) -> Losses:
    passage = lesson.passage
    vision = taught.model.encode_images(lesson.rows, lesson.grids)
    embeddings = taught.model.model.language_model.embed_tokens.weight
    cells = taught.probes.loss(vision.rows_vd, lesson.cells)
    cells = cells + naming_loss(vision.rows_vd, lesson.cells, embeddings, taught.names_lct)
    forward = ForwardBatch(
        ids_t=passage.ids,
        positions_3t=passage.positions,
        attend=PackedBranches(passage.bounds, passage.branch),
        wanted_b=passage.wanted,
        vision=vision,
        vision_at_v=passage.places,
    )
    logits = taught.model(forward)
    entropies = F.cross_entropy(logits, passage.targets, reduction="none")
    hits = logits.argmax(-1) == passage.targets
    return Losses(
        answers=(entropies * lesson.weights).sum() / lesson.weights.sum(),
        cells=cells,
        pointed=taught.pointed(lesson),
        right=torch.stack([hits[said.first : said.last].all() for said in lesson.said]),
    )


def optimisers(taught: Taught) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of blocks, AdamW for mergers, embeddings, norms and biases."""
    matrices, rest = [], []
    for name, parameter in taught.named_parameters():
        inner = parameter.ndim == 2 and ("blocks." in name or "layers." in name)
        (matrices if inner else rest).append(parameter)
    adam = torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    optims: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=MUON_RATE, momentum=0.95, weight_decay=0.02),
        adam,
    ]
    for optim in optims:
        for group in optim.param_groups:
            group["peak"] = group["lr"]
    return optims


def rate_at(step: int, *, steps: int, warmup: int, decay: int) -> float:
    """The share of the peak learning rate at this step."""
    return min(1.0, (step + 1) / warmup, max(0.02, (steps - step) / max(1, decay)))


@dataclass(slots=True)
class Place:
    """Where a run stands."""

    step: int = 0
    stage: int = 0


def save_state(
    folder: Path, taught: Taught, optims: list[torch.optim.Optimizer], place: Place
) -> None:
    """Weights and optimiser tensors as safetensors, swapped in whole."""
    tensors = taught.state_dict()
    for number, optim in enumerate(optims):
        for key, entries in optim.state_dict()["state"].items():
            for name, value in entries.items():
                tensors[f"optim.{number}.{key}.{name}"] = torch.as_tensor(value)
    write(folder / STATE, tensors, asdict(place))


def load_state(folder: Path, taught: Taught, optims: list[torch.optim.Optimizer]) -> Place:
    """Restores what save_state wrote."""
    path = folder / STATE
    with safe_open(path, "pt") as file:
        place = Place(**json.loads(file.metadata()["progress"]))
    tensors = load_file(path)
    taught.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("optim.")})
    for number, optim in enumerate(optims):
        state = optim.state_dict()
        for name, value in tensors.items():
            kind, *where = name.split(".")
            if kind == "optim" and int(where[0]) == number:
                state["state"].setdefault(int(where[1]), {})[where[2]] = value
        optim.load_state_dict(state)
    return place


@dataclass(slots=True)
class Tally:
    """Since the last report: sums of the losses, and right of all answers by kind and skill."""

    sums: dict[str, float]
    right: dict[tuple[str, str], list[int]]
    steps: int = 0

    @classmethod
    def empty(cls) -> Tally:
        return cls(defaultdict(float), defaultdict(lambda: [0, 0]))

    def add(self, losses: Losses, lesson: Lesson) -> None:
        for name in ("answers", "cells", "pointed"):
            self.sums[name] += getattr(losses, name).item()
        for said, right in zip(lesson.said, losses.right.tolist(), strict=True):
            counts = self.right[said.kind, said.skill]
            counts[0] += right
            counts[1] += 1
        self.steps += 1

    def share(self, kinds: Sequence[str], skills: Sequence[str]) -> float:
        found = [c for (kind, skill), c in self.right.items() if kind in kinds and skill in skills]
        whole = sum(count for _, count in found)
        return sum(right for right, _ in found) / whole if whole else 0.0

    def by_skill(self) -> Mapping[str, float]:
        whole: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for (_, skill), (right, count) in self.right.items():
            whole[skill][0] += right
            whole[skill][1] += count
        return {skill: round(right / count, 3) for skill, (right, count) in sorted(whole.items())}


def train(
    folder: Path,
    *,
    steps: int,
    pictures: int,
    decay: int,
    seed: int,
    start: Path | None = None,
    stage: int = 0,
    stop_after: int | None = None,
    minutes: float | None = None,
) -> None:
    """Train up to step `steps` of the schedule, or to `stop_after`, or for `minutes`, to go on later.

    A new run begins from the weights of the checkpoint `start`, or from random ones, with reading at
    that `stage`. Its tokenizer and other files lie in `folder`/sprout from the beginning.
    """
    give_back_freed()
    own = folder / "sprout"
    if start is not None and not own.exists():
        shutil.copytree(start, own)
    file = own / "tokenizer.json" if own.exists() else folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    torch.manual_seed(seed)
    model = QwenVL(sprout_config(tokenizer))
    initialise(model)
    taught = Taught(model, class_names(lambda text: tokenizer.encode(text).ids))
    optims = optimisers(taught)
    place = Place(stage=stage)
    if (folder / STATE).exists():
        place = load_state(folder, taught, optims)
    elif start is not None:
        model.load_state_dict(load_model(start, dtype="fp32").model.state_dict())
    else:
        save_sprout(own, model, tokenizer)
    end = stop_after or steps
    began = time.monotonic()
    while place.step < end:
        tally = segment(folder, taught, optims, place, until=end, steps=steps, decay=decay,
                        seed=seed, pictures=pictures)  # fmt: skip
        read = tally.share([f"text-{place.stage}"], READING_SKILLS)
        write_log(folder, place, {"read": read, "skills": tally.by_skill()})
        if read >= REACHED and place.stage < len(STAGES) - 1:
            place.stage += 1
        save_state(folder, taught, optims, place)
        save_sprout(own, model, tokenizer)
        if minutes is not None and time.monotonic() - began > 60 * minutes:
            break


def segment(
    folder: Path,
    taught: Taught,
    optims: Sequence[torch.optim.Optimizer],
    place: Place,
    *,
    until: int,
    steps: int,
    decay: int,
    seed: int,
    pictures: int,
) -> Tally:
    """Up to SEGMENT steps with reading at one stage; moves `place` on."""
    lessons = Lessons(folder / "sprout", seed=seed, pictures=pictures, stage=place.stage)
    last = min(until, (place.step // SEGMENT + 1) * SEGMENT)
    loader = DataLoader(
        lessons, batch_size=None, sampler=range(place.step, last), num_workers=1, prefetch_factor=4
    )
    whole, part, began = Tally.empty(), Tally.empty(), time.monotonic()
    for lesson in loader:
        rate = rate_at(place.step, steps=steps, warmup=150, decay=decay)
        losses = update(taught, lesson, optims, rate)
        whole.add(losses, lesson)
        part.add(losses, lesson)
        place.step += 1
        if place.step % LOG_STEPS == 0:
            means = {name: round(value / part.steps, 4) for name, value in part.sums.items()}
            speed = part.steps * pictures / (time.monotonic() - began)
            write_log(folder, place, {**means, "pictures_per_s": round(speed, 1)})
            part, began = Tally.empty(), time.monotonic()
    return whole


@cache
def computes_bf16() -> bool:
    return bool(bf16_instructions())


def update(
    taught: Taught, lesson: Lesson, optims: Sequence[torch.optim.Optimizer], rate: float
) -> Losses:
    """One step at `rate` of the peak learning rates; returns the losses before it."""
    with torch.autocast("cpu", torch.bfloat16, enabled=computes_bf16()):
        losses = losses_of(taught, lesson)
    loss = losses.answers + CELLS_WEIGHT * losses.cells + POINTED_WEIGHT * losses.pointed
    loss.backward()
    torch.nn.utils.clip_grad_norm_(taught.parameters(), 1.0)
    for optim in optims:
        for group in optim.param_groups:
            group["lr"] = group["peak"] * rate
        optim.step()
        optim.zero_grad(set_to_none=True)
    return losses


def write_log(folder: Path, place: Place, line: Mapping[str, Any]) -> None:
    """One line of log.jsonl."""
    text = json.dumps({"step": place.step, "stage": place.stage, **line}, ensure_ascii=False)
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--decay", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", type=int, default=0)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--minutes", type=float)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    train(
        asked.folder,
        steps=asked.steps,
        pictures=asked.pictures,
        decay=asked.decay,
        seed=asked.seed,
        start=asked.start,
        stage=asked.stage,
        minutes=asked.minutes,
    )


if __name__ == "__main__":
    main()
