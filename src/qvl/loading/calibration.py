"""Conversations through a model's layers, one layer after the other: what the layers see, what is lost.

Main path: read_sample (conversations -> prompts, some of them held back) -> entered (features, what
the first layer is given) -> inputs_of, passed (layer by layer) ; loss_between (two folders).
Weights stay as the file has them, and are widened to fp32 one linear layer at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.errors import InputError, InvalidParamError, ModelFormatError
from qvl.kernels.stored import StoredLinear, weight_of
from qvl.loading.checkpoint import Checkpoint, StoredTensor, fill
from qvl.loading.model import CPU, Parts, empty_model, open_source
from qvl.loading.quantised import check_filled
from qvl.models.attention import PackedCausal
from qvl.models.batch import Attend, ForwardBatch, VisionFeatures
from qvl.models.qwen_vl import QwenVL
from qvl.processing.prompt import Prompt, build_prompt
from qvl.processing.tokenizer import Tokenizer
from qvl.types import Message

log = logging.getLogger(__name__)
HELD_EVERY = 8  # of so many conversations one is not calibrated on, but measured with
SAMPLE_TOKENS = 32_768  # of all conversations; what comes after is not read
PICTURE_TOKENS = 1024  # pictures are made smaller, so that many fit
ROW_TOKENS = 8192
PACK_TOKENS = 2048  # of short conversations that go through a layer at once
HEAD_ROWS = 256  # whose logits are held at once


@dataclass(frozen=True, slots=True)
class Row:
    """A conversation, and after which of its tokens the next one is looked at."""

    prompt: Prompt
    measured: np.ndarray  # int64 [B]


@dataclass(frozen=True, slots=True)
class Sample:
    calibrating: tuple[Row, ...]
    held: tuple[Row, ...]
    left_out: int  # conversations that could not be used
    tokens: int  # of those that are calibrated on


def read_sample(
    conversations: Iterable[Sequence[Message]], parts: Parts, *, thinks: bool
) -> Sample:
    """The first conversations, up to SAMPLE_TOKENS; one that cannot be used is named and left out.

    Raises InvalidParamError for less than two that can be used.
    """
    rules = parts.rules
    token_px = (rules.patch_px * rules.merge) ** 2
    small = replace(rules, max_px=max(rules.min_px, min(rules.max_px, PICTURE_TOKENS * token_px)))
    rows: list[Row] = []
    left_out = tokens = 0
    for number, messages in enumerate(conversations, 1):
        try:
            prompt = build_prompt(
                messages,
                tokenizer=parts.tokenizer,
                rules=small,
                generation=parts.template,
                image_token_id=parts.config.image_token_id,
                thinks=thinks,
                video_rules=parts.video_rules,
            )
        except (InputError, InvalidParamError) as err:
            log.warning("conversation %d is left out: %s", number, err.message)
            left_out += 1
            continue
        if len(prompt.ids) > ROW_TOKENS:
            log.warning(
                "conversation %d is left out: %d tokens, limit %d",
                number, len(prompt.ids), ROW_TOKENS,
            )  # fmt: skip
            left_out += 1
            continue
        answered = messages[-1].role == "assistant"
        rows.append(Row(prompt, measured_in(prompt.ids, parts.tokenizer, answered=answered)))
        tokens += len(prompt.ids)
        if tokens >= SAMPLE_TOKENS:
            break
    if len(rows) < 2:
        raise InvalidParamError(
            f"{len(rows)} of {len(rows) + left_out} pictures or conversations can be used, and at "
            "least 2 are needed: one is held back to measure the loss",
            hint="some 100 like those that the model is for are good",
        )
    held = rows[1::HELD_EVERY]
    calibrating = [row for index, row in enumerate(rows) if index % HELD_EVERY != 1]
    calibrated_on = sum(len(row.prompt.ids) for row in calibrating)
    return Sample(tuple(calibrating), tuple(held), left_out, calibrated_on)


def measured_in(ids: np.ndarray, tokenizer: Tokenizer, *, answered: bool) -> np.ndarray:
    """The tokens before those of the last answer and its end, or the last one where it is to come."""
    if not answered:
        return np.array([len(ids) - 1])
    *_, begin, end = np.flatnonzero(ids == tokenizer.encode_control("<|im_start|>"))
    # <|im_start|>assistant\n ANSWER <|im_end|>\n
    return np.arange(begin + len(tokenizer.encode_text("assistant\n")), end - 2)


# ---- a model of mapped files that computes -----------------------------------------------------


class Widened(nn.Module):
    """A linear layer as its file has it; its weight is made fp32 for each call, and let go."""

    def __init__(self, layer: nn.Linear | StoredLinear) -> None:
        super().__init__()
        self.stored = layer

    def forward(self, x: Tensor) -> Tensor:
        bias = self.stored.bias
        return F.linear(x, weight_of(self.stored).float(), None if bias is None else bias.float())


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint and the model of its mapped tensors, whose linear layers are Widened."""

    model: QwenVL
    checkpoint: Checkpoint
    stored: dict[str, StoredTensor]  # by our names
    mapped: frozenset[str]  # those that are views of its files


def open_widened(folder: Path, parts: Parts) -> Source:
    """Raises what load_model raises for the folder."""
    model = empty_model(parts.config)
    checkpoint, stored = open_source(folder, model)
    mapped = fill(model, stored, checkpoint, dtype=None, device=CPU)
    check_filled(model, "fp32")
    embedding = model.model.language_model.embed_tokens.weight
    for parameter in own_parameters(model):
        if parameter is not embedding:
            parameter.data = parameter.data.float()
    if model.lm_head is None:
        with torch.device("meta"):
            model.lm_head = nn.Linear(embedding.shape[1], embedding.shape[0], bias=False)
        model.lm_head.weight = embedding
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | StoredLinear):
            model.set_submodule(name, Widened(module))
    return Source(model.eval(), checkpoint, stored, mapped)


def own_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Those of all but linear layers."""
    for module in model.modules():
        if not isinstance(module, nn.Linear | StoredLinear):
            yield from module.parameters(recurse=False)


# ---- through the layers ------------------------------------------------------------------------


@dataclass(slots=True)
class Passing:
    """Packed conversations between two layers."""

    x_td: Tensor
    angles: tuple[Tensor, Tensor]
    attend: Attend
    vision_at_v: Tensor | None
    levels: tuple[Tensor, ...]  # of deepstack, that are yet to be added

    def through(self, layer: nn.Module) -> None:
        self.x_td = layer(self.x_td, self.angles, self.attend)
        if self.levels and self.vision_at_v is not None:
            level, *rest = self.levels
            self.x_td = self.x_td.index_add(0, self.vision_at_v, level)
            self.levels = tuple(rest)


def packs(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows in order, as many at once as PACK_TOKENS hold, at least one."""
    some: list[Row] = []
    for row in rows:
        if some and sum(len(r.prompt.ids) for r in (*some, row)) > PACK_TOKENS:
            yield some
            some = []
        some.append(row)
    if some:
        yield some


def batch_of(rows: Sequence[Row], model: QwenVL) -> ForwardBatch:
    """One pass over whole conversations, with the features of their pictures."""
    starts = [0, *accumulate(len(row.prompt.ids) for row in rows)]
    features: list[VisionFeatures] = []
    places: list[Tensor] = []
    for start, row in zip(starts[:-1], rows, strict=True):
        for image in row.prompt.images:
            patches = torch.from_numpy(image.patches.rows)
            features.append(model.encode_images(patches, [image.patches.grid]))
            first = start + image.start
            places.append(torch.arange(first, first + image.tokens))
    wanted = [start + row.measured for start, row in zip(starts[:-1], rows, strict=True)]
    return ForwardBatch(
        ids_t=torch.from_numpy(np.concatenate([row.prompt.ids for row in rows])),
        positions_3t=torch.from_numpy(np.concatenate([r.prompt.positions for r in rows], axis=1)),
        attend=PackedCausal(starts),
        wanted_b=torch.from_numpy(np.concatenate(wanted)),
        vision=VisionFeatures.joined(features) if features else None,
        vision_at_v=torch.cat(places) if places else None,
    )


def entered(rows: Iterable[Row], model: QwenVL) -> list[Passing]:
    """What the first layer is given."""
    found = []
    for some in packs(rows):
        batch = batch_of(some, model)
        x_td, angles, attend = model.model.language_model.entered(batch)
        levels = batch.vision.deepstack_vd if batch.vision is not None else ()
        found.append(Passing(x_td, angles, attend, batch.vision_at_v, levels))
    return found


@dataclass(slots=True)
class Inputs:
    """What linear layers that share their input see: X^T X [K, K], the sum of |X| [K], rows."""

    hessian: Tensor
    total: Tensor
    rows: int = 0

    def add(self, x: Tensor) -> None:
        self.hessian.addmm_(x.T, x)
        self.total += x.abs().sum(0)
        self.rows += len(x)

    def divide(self, scale_k: Tensor) -> None:
        """As if the inputs had been divided by it."""
        self.hessian /= scale_k.unsqueeze(-1) * scale_k
        self.total /= scale_k

    @property
    def mean(self) -> Tensor:
        """Of |X|, [K]."""
        return self.total / max(1, self.rows)


class _SeenError(Exception):
    """Nothing behind the layer that was looked at has to be computed."""


def inputs_of(layer: nn.Module, names: Sequence[str], passing: Sequence[Passing]) -> list[Inputs]:
    """What the linear layers of these names, which are parts of `layer`, see of the conversations.

    Raises ModelFormatError for NaN and infinity.
    """
    linears = [layer.get_submodule(name) for name in names]
    sizes = [linear.in_features for linear in linears if isinstance(linear, nn.Linear)]
    found = [Inputs(torch.zeros(size, size), torch.zeros(size)) for size in sizes]

    def watch(inputs: Inputs) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def see(module: nn.Module, given: tuple[Tensor]) -> None:
            inputs.add(given[0])
            if len(names) == 1:
                raise _SeenError

        return see

    hooks = [
        linear.register_forward_pre_hook(watch(inputs))
        for linear, inputs in zip(linears, found, strict=True)
    ]
    try:
        for pack in passing:
            try:
                layer(pack.x_td, pack.angles, pack.attend)
            except _SeenError:
                continue
    finally:
        for hook in hooks:
            hook.remove()
    for name, inputs in zip(names, found, strict=True):
        if not inputs.hessian.isfinite().all():
            raise ModelFormatError(
                f"the inputs of a layer's {name} are not finite",
                hint="the weights before it are damaged: download the checkpoint again",
            )
    return found


# ---- what is lost ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loss:
    """Of one model against another, over `tokens` next tokens: means, and how often they agree."""

    conversations: int
    tokens: int
    cosine: float  # of the logits
    kl: float  # of the probabilities, in nats
    same: float  # share of equal likeliest tokens


def loss_between(source: Source, other: Source, rows: Sequence[Row]) -> Loss:
    cosine = kl = same = 0.0
    tokens = 0
    for some in packs(rows):
        hidden = [s.model.model.language_model(batch_of(some, s.model)) for s in (source, other)]
        pieces = zip(*(h.split(HEAD_ROWS) for h in hidden), strict=True)
        for ours, theirs in pieces:
            true, found = source.model.head(ours), other.model.head(theirs)
            cosine += float(F.cosine_similarity(true, found, dim=-1).sum())
            logs = (found.log_softmax(-1), true.log_softmax(-1))
            kl += float(F.kl_div(*logs, reduction="sum", log_target=True))
            same += int((true.argmax(-1) == found.argmax(-1)).sum())
            tokens += len(true)
    return Loss(len(rows), tokens, cosine / tokens, kl / tokens, same / tokens)
