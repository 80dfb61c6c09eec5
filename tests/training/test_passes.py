"""A pass of training: packed is padded is alone, branches are rows of their own, gradients are PEFT's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

import oracle
import tiny
import tiny_v1
from qvl.kernels.linear import Int4Linear, Int8Linear
from qvl.loading.model import read_parts
from qvl.loading.names import parameter_name
from qvl.loading.pickled import convert_pickled
from qvl.models.qwen_vl import QwenVL
from qvl.training.examples import IGNORE, Encoder, Example, joined
from qvl.training.passes import Loss, collate, recompute_layers
from qvl.training.rows import Row
from qvl.training.trainable import Base, Frozen, Method, TrainedLowRank, load_base, make_trainable
from qvl.types import Image, Message, Text

CPU = torch.device("cpu")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def row(name: str, question: str, answer: str, *images: Image) -> Row:
    said = Message("assistant", (Text(answer),))
    return Row(name, (Message.user(*images, question), said))


def rows() -> list[Row]:
    one, other = (oracle.picture(w, h, seed=s) for w, h, s in ((84, 56, 1), (112, 140, 2)))
    return [
        row("a", "what is this?", "hello", one),
        row("b", "how many?", "three of the two", other, one),
        row("c", "no picture here", "the end of it"),
        row("d", "where is it?", "in the hello", one),
    ]


def opened(folder: Path) -> tuple[QwenVL, Encoder]:
    parts = read_parts(folder)
    return load_base(folder, parts.config, "fp32", CPU), Encoder(parts, thinks=False)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def learnt(loss: Loss, examples: Sequence[Example]) -> tuple[float, dict[str, Tensor]]:
    """The loss of one pass, and the gradients of its sum."""
    total = loss(collate(examples))
    total.backward()
    return total.item(), gradients(loss.model)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm().clamp(min=1e-12)).item()


def unsettled(model: QwenVL) -> None:
    """B is zero at first, and so would be the gradient of A."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, TrainedLowRank):
            module.lora_b.data.normal_(std=0.05, generator=generator)


@pytest.mark.parametrize("generation", tiny.GENERATIONS)
def test_packed_is_alone(tmp_path: Path, generation: str) -> None:
    tiny.save_tiny(tmp_path, generation)
    model, encoder = opened(tmp_path)
    make_trainable(model, "lora", ("decoder", "merger", "tower"), rank=4)
    unsettled(model)
    loss = Loss(model)
    examples = [encoder.example(r) for r in rows()]
    together, packed = learnt(loss, examples)
    alone = [learnt(loss, [example]) for example in examples]
    said = sum(example.said for example in examples)
    assert together / said == pytest.approx(sum(t for t, _ in alone) / said, abs=1e-5)
    for name, gradient in packed.items():
        apart = torch.stack([g[name] for _, g in alone if name in g]).sum(0)
        assert relative(apart, gradient) < 1e-4, name


def test_branches_are_rows_of_their_own(tmp_path: Path) -> None:
    tiny.save_tiny(tmp_path, "qwen3_vl")
    model, encoder = opened(tmp_path)
    make_trainable(model, "lora", ("decoder", "tower"), rank=4)
    unsettled(model)
    loss = Loss(model)
    first, _, _, last = (encoder.example(r) for r in rows())
    whole = joined([first, last])
    assert len(whole.ids) < len(first.ids) + len(last.ids) - 10
    together, shared = learnt(loss, [whole])
    apart, own = learnt(loss, [first, last])
    assert together == pytest.approx(apart, rel=1e-6)
    assert all(relative(shared[name], own[name]) < 1e-4 for name in own)


def test_only_answers_are_learnt(tmp_path: Path) -> None:
    tiny.save_tiny(tmp_path, "qwen2_vl")
    _, encoder = opened(tmp_path)
    turns = (
        Message.user("one?"),
        Message("assistant", (Text("hello"),)),
        Message.user("two?"),
        Message("assistant", (Text("the end"),)),
    )
    example = encoder.example(Row("turns", turns))
    said = [t for t in example.targets.tolist() if t != IGNORE]
    tokenizer = encoder.parts.tokenizer
    end = tokenizer.encode_control("<|im_end|>")
    assert said == [*tokenizer.encode_text("hello"), end, *tokenizer.encode_text("the end"), end]
    learnt_at = [t for t in range(len(example.ids)) if example.targets[t] != IGNORE]
    assert all(example.ids[t + 1] == example.targets[t] for t in learnt_at)


def test_recomputed_gradients_are_the_same(tmp_path: Path) -> None:
    tiny.save_tiny(tmp_path, "qwen3_vl")
    model, encoder = opened(tmp_path)
    make_trainable(model, "full", ("decoder", "merger", "tower"))
    loss = Loss(model)
    examples = [encoder.example(r) for r in rows()]
    plain_loss, plain = learnt(loss, examples)
    recompute_layers(model)
    again_loss, again = learnt(loss, examples)
    assert plain_loss == again_loss
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize("base", ["int8", "int4"])
def test_beside_quantised_weights_is_beside_what_they_stand_for(tmp_path: Path, base: Base) -> None:
    """QLoRA: the frozen integers act as the numbers that they are, forwards and backwards."""
    wide = {"hidden_size": 128, "intermediate_size": 256, "vision": {"out_hidden_size": 128}}
    tiny.save_tiny(tmp_path, "qwen3_vl", **wide)
    parts = read_parts(tmp_path)
    examples = [Encoder(parts, thinks=False).example(r) for r in rows()]
    quantised = load_base(tmp_path, parts.config, base, CPU)
    plain = load_base(tmp_path, parts.config, "bf16", CPU)
    frozen = {n: m for n, m in quantised.named_modules() if isinstance(m, Frozen)}
    assert len(frozen) == 7 * parts.config.decoder.layers
    kinds = {type(layer.layer) for layer in frozen.values()}
    assert (Int4Linear in kinds) == (base == "int4")  # some layers are too narrow for it
    assert kinds <= {Int8Linear, Int4Linear}
    for name, layer in frozen.items():
        plain.get_parameter(f"{name}.weight").data = layer.weight.bfloat16()
    found = []
    for model in (quantised, plain):
        make_trainable(model, "lora", ("decoder",), rank=4)
        unsettled(model)
        found.append(learnt(Loss(model), examples))
    (one, ours), (other, theirs) = found
    assert one == pytest.approx(other, rel=1e-3)
    assert all(relative(ours[name], theirs[name]) < 0.02 for name in theirs)


def test_the_first_qwen_vl_learns_too(tmp_path: Path) -> None:
    tiny_v1.save_published(tmp_path / "pickled")
    convert_pickled(tmp_path / "pickled", tmp_path / "plain")
    model, encoder = opened(tmp_path / "plain")
    config = encoder.parts.config
    short = replace(config.decoder, stretch_from=0)  # its context is too short for a picture
    encoder = Encoder(replace(encoder.parts, config=replace(config, decoder=short)), thinks=False)
    make_trainable(model, "lora", ("decoder",), rank=4)
    unsettled(model)
    total, found = learnt(Loss(model), [encoder.example(rows()[0])])
    assert total > 0
    assert found
    assert all(gradient.norm() > 0 for gradient in found.values())


# ---- transformers and PEFT ---------------------------------------------------------------------


def our_name(theirs: str, generation: str) -> str:
    return parameter_name(f"{theirs.removeprefix('base_model.model.')}.", generation)[:-1]


def peft_model(theirs: Any, ours: QwenVL, **options: Any) -> Any:
    """Theirs with the weights of our adapter."""
    generation = ours.config.generation
    low_ranks = {n: m for n, m in ours.named_modules() if isinstance(m, TrainedLowRank)}
    targets = [n for n, _ in theirs.named_modules() if our_name(n, generation) in low_ranks]
    adapted = peft.get_peft_model(theirs, peft.LoraConfig(target_modules=targets, **options))
    for name, module in adapted.named_modules():
        own = low_ranks.pop(our_name(name, generation), None)
        theirs_of: Any = module
        if own is not None:
            theirs_of.lora_A["default"].weight.data.copy_(own.lora_a)
            theirs_of.lora_B["default"].weight.data.copy_(own.lora_b)
            if own.magnitude is not None:
                theirs_of.lora_magnitude_vector["default"].weight.data.copy_(own.magnitude)
    assert not low_ranks
    return adapted


def their_gradients(theirs: Any, example: Example) -> tuple[float, dict[str, Tensor]]:
    labels = torch.full((1, len(example.ids)), IGNORE)
    labels[0, 1:] = torch.from_numpy(example.targets[:-1])
    inputs = {"input_ids": torch.from_numpy(example.ids)[None], "labels": labels}
    if example.images:
        rows = [torch.from_numpy(image.patches.rows) for image in example.images]
        inputs["pixel_values"] = torch.cat(rows)
        inputs["image_grid_thw"] = torch.tensor([i.patches.grid for i in example.images])
        kinds = (inputs["input_ids"] == theirs.config.image_token_id).int()
        inputs["mm_token_type_ids"] = kinds
    loss = theirs(**inputs).loss
    loss.backward()
    kinds = {"lora_A": "lora_a", "lora_B": "lora_b", "lora_magnitude_vector": "magnitude"}
    found = {}
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            layer, kind, *_ = name.rsplit(".", 3)
            layer = our_name(layer, theirs.config.model_type)
            found[f"{layer}.{kinds[kind]}"] = parameter.grad
    return loss.item(), found


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("generation", tiny.GENERATIONS)
def test_gradients_are_those_of_transformers_and_peft(
    tmp_path: Path, generation: str, method: Method
) -> None:
    tiny.save_tiny(tmp_path, generation)
    model, encoder = opened(tmp_path)
    make_trainable(model, method, ("decoder", "tower"), rank=4, alpha=8)
    unsettled(model)
    example = encoder.example(rows()[1])
    total, ours = learnt(Loss(model), [example])
    theirs = oracle.load_theirs(tmp_path, generation)
    adapted = peft_model(theirs, model, r=4, lora_alpha=8, use_dora=method == "dora")
    mean, expected = their_gradients(adapted, example)
    assert total / example.said == pytest.approx(mean, rel=1e-5)
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        assert relative(ours[name] / example.said, gradient) < 1e-4, name
