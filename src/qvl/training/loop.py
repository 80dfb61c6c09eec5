"""Training `sprout` from its scenes: deterministic data, resumable, one line of log a report.

Run: python -m qvl.training.loop RUN_FOLDER --steps N [--pictures B]
The run folder holds the tokenizer, state.safetensors + state.json (weights, optimiser, step) and
log.jsonl; started again with the same arguments it goes on where it stopped.
Learning rate: warm-up, then constant, then linear to zero over the last `--decay` steps (a
warm-up-stable-decay schedule), so that a run can be prolonged without regret.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from qvl.loading.model import load_model
from qvl.models.batch import ForwardBatch
from qvl.models.qwen_vl import QwenVL
from qvl.training.batches import Batch, Packer
from qvl.training.dense import Pointer, Probes, class_names, naming_loss
from qvl.training.muon import Muon
from qvl.training.sprout import initialise, save_sprout, sprout_config

MUON_RATE, ADAM_RATE = 3e-3, 2e-3
CELLS_WEIGHT = 0.5
POINTED_WEIGHT = 4.0
# of the decoder: after one the nouns have looked up their things, after the other the answer has its
NOUNS_LAYER, ANSWERS_LAYER = 1, 2
LOG_STEPS, SAVE_STEPS = 20, 200


class Branches:
    """`Attend` for training rows: causal, and only to the beginning and the own branch.

    Only the attention pads rows to one length; everything else runs on packed tokens.
    """

    def __init__(self, branch_t: Tensor, lengths: Sequence[int]) -> None:
        rows, longest = len(lengths), max(lengths)
        padding = torch.arange(longest) >= torch.tensor(lengths)[:, None]
        self.shape = (rows, longest)
        self.places = (~padding).flatten().nonzero().flatten()  # [T] into the padded rows
        branch_bl = torch.full((rows * longest,), -1).index_copy(0, self.places, branch_t)
        branch_bl = branch_bl.view(rows, longest)
        keys, queries = branch_bl[:, None, :], branch_bl[:, :, None]
        causal = torch.ones(longest, longest, dtype=torch.bool).tril()
        self.mask = (((keys == queries) | (keys == 0)) & causal).unsqueeze(1)

    def pad(self, x_tnh: Tensor) -> Tensor:
        rows, longest = self.shape
        out = x_tnh.new_zeros(rows * longest, *x_tnh.shape[1:])
        return out.index_copy(0, self.places, x_tnh).view(rows, longest, *x_tnh.shape[1:])

    def __call__(self, layer: int, q_tnh: Tensor, k_tkh: Tensor, v_tkh: Tensor) -> Tensor:
        groups = q_tnh.shape[1] // k_tkh.shape[1]
        q, k, v = (self.pad(x).transpose(1, 2) for x in (q_tnh, k_tkh, v_tkh))
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        return out.transpose(1, 2).flatten(0, 1)[self.places]


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

    def pointed(self, batch: Batch) -> Tensor:
        """How far off the places are that the tokens of the last pass point to."""
        nouns = self.hidden[NOUNS_LAYER][batch.nouns.at]
        answers = self.hidden[ANSWERS_LAYER][batch.answers.at]
        return self.nouns.loss(nouns, batch.nouns.boxes) + self.answers.loss(
            answers, batch.answers.boxes
        )


@dataclass(frozen=True, slots=True)
class Losses:
    """Of one batch: nats per answer token, weighted; the cells' loss; how far off the places are that
    nouns and answers point to; share of tokens right.

    Without questions there are no answers and no nouns: 0, and not a number for the share.
    """

    answers: Tensor
    cells: Tensor
    pointed: Tensor
    right: Tensor


def losses_of(taught: Taught, batch: Batch) -> Losses:
    vision = taught.model.encode_images(batch.rows, [batch.grid] * len(batch.lengths))
    cells = taught.probes.loss(vision.rows_vd, batch.cells)
    embeddings = taught.model.model.language_model.embed_tokens.weight
    cells = cells + naming_loss(vision.rows_vd, batch.cells, embeddings, taught.names_lct)
    wanted = (batch.targets >= 0).nonzero().flatten()
    if not len(wanted):
        return Losses(torch.zeros(()), cells, torch.zeros(()), torch.tensor(torch.nan))
    forward = ForwardBatch(
        ids_t=batch.ids,
        positions_3t=batch.positions,
        attend=Branches(batch.branch, batch.lengths),
        wanted_b=wanted,
        vision=vision,
        vision_at_v=batch.vision_at,
    )
    logits, targets = taught.model(forward), batch.targets[wanted]
    weights = batch.weights[wanted]
    entropies = F.cross_entropy(logits, targets, reduction="none")
    return Losses(
        answers=(entropies * weights).sum() / weights.sum(),
        cells=cells,
        pointed=taught.pointed(batch),
        right=(logits.argmax(-1) == targets).float().mean(),
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


def save_state(
    folder: Path, taught: Taught, optims: list[torch.optim.Optimizer], step: int
) -> None:
    """Weights and optimiser tensors as safetensors, swapped in whole."""
    tensors = taught.state_dict()
    for number, optim in enumerate(optims):
        for key, entries in optim.state_dict()["state"].items():
            for name, value in entries.items():
                tensors[f"optim.{number}.{key}.{name}"] = torch.as_tensor(value)
    partial = folder / "state.safetensors.part"
    save_file(
        {k: v.contiguous() for k, v in tensors.items()}, partial, metadata={"step": str(step)}
    )
    os.replace(partial, folder / "state.safetensors")


def load_state(folder: Path, taught: Taught, optims: list[torch.optim.Optimizer]) -> int:
    """Restores what save_state wrote; returns the next step."""
    path = folder / "state.safetensors"
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
    tensors = load_file(path)
    taught.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("optim.")})
    for number, optim in enumerate(optims):
        state = optim.state_dict()
        for name, value in tensors.items():
            kind, *where = name.split(".")
            if kind == "optim" and int(where[0]) == number:
                state["state"].setdefault(int(where[1]), {})[where[2]] = value
        optim.load_state_dict(state)
    return step


def train(
    folder: Path,
    *,
    steps: int,
    pictures: int,
    decay: int,
    seed: int,
    start: Path | None = None,
    stop_after: int | None = None,
) -> None:
    """Train up to step `steps` of the schedule, or to `stop_after` to go on later.

    A new run begins from the weights of the checkpoint `start`, or from random ones.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    packer = Packer(tokenizer, seed=seed, pictures=pictures)
    torch.manual_seed(seed)
    model = QwenVL(sprout_config(tokenizer))
    initialise(model)
    taught = Taught(model, class_names(packer.encode))
    optims = optimisers(taught)
    first = 0
    if (folder / "state.safetensors").exists():
        first = load_state(folder, taught, optims)
    elif start is not None:
        model.load_state_dict(load_model(start, dtype="fp32").model.state_dict())
    loader = DataLoader(
        packer, batch_size=None, sampler=range(first, stop_after or steps), num_workers=1
    )
    began, logged = time.monotonic(), []
    for step, batch in enumerate(loader, start=first):
        rate = rate_at(step, steps=steps, warmup=150, decay=decay)
        logged.append((update(taught, batch, optims, rate), len(batch.lengths)))
        done = step + 1
        if done % LOG_STEPS == 0:
            write_log(folder, done, logged, time.monotonic() - began)
            began, logged = time.monotonic(), []
        if done % SAVE_STEPS == 0 or done == (stop_after or steps):
            save_state(folder, taught, optims, done)
            save_sprout(folder / "sprout", model, tokenizer)


def update(
    taught: Taught, batch: Batch, optims: Sequence[torch.optim.Optimizer], rate: float
) -> Losses:
    """One step at `rate` of the peak learning rates; returns the losses before it."""
    losses = losses_of(taught, batch)
    loss = losses.answers + CELLS_WEIGHT * losses.cells + POINTED_WEIGHT * losses.pointed
    loss.backward()
    torch.nn.utils.clip_grad_norm_(taught.parameters(), 1.0)
    for optim in optims:
        for group in optim.param_groups:
            group["lr"] = group["peak"] * rate
        optim.step()
        optim.zero_grad(set_to_none=True)
    return Losses(*(getattr(losses, field.name).detach() for field in fields(losses)))


def write_log(
    folder: Path, step: int, logged: Sequence[tuple[Losses, int]], seconds: float
) -> None:
    """One line of log.jsonl: the means since the last one, those of answers where any were asked."""
    asked = [losses for losses, _ in logged if not losses.right.isnan()]
    line = {
        "step": step,
        "answers": mean_of([losses.answers for losses in asked]),
        "right": mean_of([losses.right for losses in asked]),
        "pointed": mean_of([losses.pointed for losses in asked]),
        "cells": mean_of([losses.cells for losses, _ in logged]),
        "pictures_per_s": round(sum(pictures for _, pictures in logged) / seconds, 1),
    }
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def mean_of(values: Sequence[Tensor]) -> float:
    return round(torch.stack(list(values)).mean().item(), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--pictures", type=int, default=48, help="pictures in a step")
    parser.add_argument("--decay", type=int, default=600, help="steps of the final decay")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=Path, help="a checkpoint folder to begin from")
    args = parser.parse_args()
    train(
        args.folder,
        steps=args.steps,
        pictures=args.pictures,
        decay=args.decay,
        seed=args.seed,
        start=args.start,
    )


if __name__ == "__main__":
    main()
