"""A checkpoint -> one in a published quantised form: GPTQ, AWQ, FP8; `qvl models convert --export`.

Main path: export -> planned (what the files will hold) -> written (layer by layer: look at its inputs,
round, write, forget) -> loss_between (the folder, read back, against the source).
Only the linear layers of the decoder's layers are rounded, as in the published files: the vision
tower, the norms, the embedding, the head, biases and a mixture's router stay as they are, byte for
byte; AWQ divides the norms before what it rounds. Memory: one layer in fp32, what its inputs are
known by, and the hidden states of the conversations that it is calibrated on.
The target appears whole or not at all, whatever stops the work.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from qvl.errors import EngineError, ModelFormatError
from qvl.kernels.rounding import DAMP, Grid, awq_scale, gptq, nearest
from qvl.kernels.stored import awq_tensors, fp8_tensors, gptq_tensors
from qvl.loading.calibration import (
    Inputs,
    Loss,
    Passing,
    Sample,
    Source,
    Widened,
    entered,
    inputs_of,
    loss_between,
    open_widened,
    read_sample,
)
from qvl.loading.checkpoint import (
    FLOATS,
    INDEX_FILE,
    ITEM_BYTES,
    SINGLE_FILE,
    ExpertPart,
    StoredTensor,
    forget_pages,
)
from qvl.loading.convert import check_space, check_target, copy_rest, whole_or_nothing
from qvl.loading.files import regular_file
from qvl.loading.model import Parts, read_parts
from qvl.loading.packed import alignment, header_bytes, packed_form, write_tensor
from qvl.loading.section import json_file
from qvl.loading.template import opens_reasoning
from qvl.models.config import DecoderConfig
from qvl.models.decoder import Router
from qvl.types import Message

ExportName = Literal["gptq", "awq", "int8", "fp8"]
EXPORTS: tuple[ExportName, ...] = ("gptq", "awq", "int8", "fp8")
GROUP = 128
BLOCK = 128
LAYERS = "model.language_model.layers."
# dtype and shape of what the file has of a rounded layer
Fields = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export made; the loss is None where there was nothing to measure it with."""

    source_bytes: int
    weights_bytes: int
    sample: Sample | None
    loss: Loss | None


def export(
    source: Path,
    target: Path,
    kind: ExportName,
    conversations: Iterable[Sequence[Message]] = (),
    *,
    group: int = GROUP,
    watched: Callable[[Sequence[int], int], Iterable[int]] = lambda layers, _: layers,
) -> Exported:
    """Write the folder `target` of the checkpoint in `source`, in the hub's layout.

    gptq: 4 bits, awq: 4 bits with zero points, int8: GPTQ with 8 bits, all in groups of inputs; fp8:
    e4m3 in blocks of 128 x 128. Seven of eight conversations calibrate, the eighth measures the loss;
    fp8 needs none, and measures with all. `watched` is given the layers' numbers and their count and
    gives them back, to show progress.
    Raises what load_model raises for the source, ModelFormatError for one that is quantised or packed
    and for layers that the form cannot hold, InvalidParamError for too few conversations and for a
    target that exists and is not an empty folder, StorageError when the disk cannot take it.
    """
    check_target(target)
    parts = read_source(source)
    form = Form(kind, group)
    with torch.inference_mode():
        opened = open_widened(source, parts)
        plan = planned(opened, parts.config.decoder, form)
        check_space(target, plan.size_bytes)
        sample = sample_for(kind, conversations, parts, thinks=opens_reasoning(source))
        with whole_or_nothing(target) as made:
            copy_rest(source, made)
            write_config(source, made, opened, plan, form)
            write_plain(made, opened, plan)
            write_rounded(made, opened, plan, form, sample, watched)
            loss = None
            if sample is not None:
                both = open_widened(source, parts), open_widened(made, read_parts(made))
                rows = (*sample.calibrating, *sample.held) if kind == "fp8" else sample.held
                loss = loss_between(*both, rows)
    source_bytes = sum(tensor.size_bytes for tensor in opened.checkpoint.tensors.values())
    return Exported(source_bytes, plan.size_bytes, sample, loss)


def read_source(source: Path) -> Parts:
    """All but the weights of a checkpoint that can be exported."""
    if packed_form(source) is not None:
        raise ModelFormatError(
            f"{source.name!r} is packed for a processor, and so is rounded already",
            hint="export the checkpoint that it was made from",
        )
    parts = read_parts(source)
    if parts.config.quantisation is not None:
        raise ModelFormatError(
            f"{source.name!r} is quantised already ({parts.config.quantisation.method})",
            hint="export the checkpoint that it was made from, in bf16, fp16 or fp32",
        )
    if parts.config.generation == "qwen_vl":
        raise ModelFormatError(
            "the first Qwen-VL cannot be exported: its q, k and v are one layer in the file",
            hint="qvl models convert --quantize packs it for a processor",
        )
    return parts


def sample_for(
    kind: ExportName,
    conversations: Iterable[Sequence[Message]],
    parts: Parts,
    *,
    thinks: bool,
) -> Sample | None:
    left = iter(conversations)
    first = next(left, None)
    if first is None and kind == "fp8":
        return None
    return read_sample(() if first is None else chain([first], left), parts, thinks=thinks)


# ---- what the files will hold ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Form:
    """How a linear layer is stored."""

    kind: ExportName
    group: int

    @property
    def bits(self) -> int:
        return 4 if self.kind in ("gptq", "awq") else 8

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, self.group, symmetric=self.kind != "awq")

    def fields(self, name: str, outputs: int, inputs: int) -> Fields:
        """Raises ModelFormatError for a layer that it cannot hold."""
        if self.kind == "fp8":
            scales = (-(-outputs // BLOCK), -(-inputs // BLOCK))
            return {
                "weight": ("F8_E4M3", (outputs, inputs)),
                "weight_scale_inv": ("F32", scales),
            }
        a_word = 32 // self.bits
        if self.group % a_word or inputs % self.group or outputs % a_word:
            fitting = [g for g in (128, 64, 32) if not inputs % g]
            with_groups = f"groups of {', '.join(map(str, fitting))} fit it; " if fitting else ""
            raise ModelFormatError(
                f"{name} has {inputs} inputs and {outputs} outputs: {self.kind} has groups of "
                f"{self.group} inputs and words of {a_word} outputs",
                hint=f"{with_groups}fp8 holds layers of any size",
            )
        groups = inputs // self.group
        fields: Fields = {
            "qzeros": ("I32", (groups, outputs // a_word)),
            "scales": ("F16", (groups, outputs)),
        }
        if self.kind == "awq":
            return fields | {"qweight": ("I32", (inputs, outputs // a_word))}
        packed = ("I32", (inputs // a_word, outputs))
        return fields | {"qweight": packed, "g_idx": ("I32", (inputs,))}


@dataclass(frozen=True, slots=True)
class Plan:
    placed: Mapping[str, StoredTensor]  # by the name in the file
    headers: Mapping[str, bytes]  # by shard
    names: Mapping[
        str, str
    ]  # of our parameters; of a rounded layer's weight the layer's, with a dot
    plain: tuple[str, ...]  # what is copied

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.headers.values())) + sum(
            place.size_bytes for place in self.placed.values()
        )

    def write(self, folder: Path, name: str, tensor: Tensor) -> None:
        place = self.placed[name]
        if tuple(tensor.shape) != place.shape:
            raise EngineError(f"{name} is {list(tensor.shape)}, not {list(place.shape)}")
        with (folder / place.shard).open("r+b") as file:
            write_tensor(file, len(self.headers[place.shard]), place, tensor)


def planned(source: Source, decoder: DecoderConfig, form: Form) -> Plan:
    """Shards as the source has them, names as it has them; experts that lie in one tensor apart."""
    rounded = {
        f"{LAYERS}{layer}.{name}.weight"
        for layer in range(decoder.layers)
        for stage in stages(decoder)
        for names in stage
        for name in names
    }
    ours: dict[str, list[str]] = {}
    for name, stored in source.stored.items():
        ours.setdefault(stored.name, []).append(name)
    held: list[tuple[str, str, str, tuple[int, ...]]] = []  # name, shard, dtype, shape
    names: dict[str, str] = {}
    plain = []
    for stored in source.checkpoint.tensors.values():
        mine = ours.get(stored.name, [])
        if not rounded.intersection(mine):
            names |= dict.fromkeys(mine, stored.name)
            plain.append(stored.name)
            held.append((stored.name, stored.shard, stored.dtype, stored.shape))
        for name in rounded.intersection(mine):
            names[name] = prefix = stored_prefix(name, source.stored[name])
            widened = source.model.get_submodule(name.removesuffix(".weight"))
            outputs, inputs = widened.get_parameter("stored.weight").shape
            for leaf, (dtype, shape) in form.fields(prefix[:-1], outputs, inputs).items():
                held.append((prefix + leaf, stored.shard, dtype, shape))
    placed: dict[str, StoredTensor] = {}
    reached: dict[str, int] = {}
    # as kernels load them: see packed.places
    for name, shard, dtype, shape in sorted(held, key=lambda h: (-alignment(bytes_of(h)), h[0])):
        begin = reached.get(shard, 0)
        reached[shard] = begin + bytes_of((name, shard, dtype, shape))
        placed[name] = StoredTensor(name, shard, dtype, shape, begin, reached[shard])
    headers = {
        shard: header_bytes({n: p for n, p in placed.items() if p.shard == shard}, "pt")
        for shard in reached
    }
    return Plan(placed, headers, names, tuple(plain))


def bytes_of(held: tuple[str, str, str, tuple[int, ...]]) -> int:
    return ITEM_BYTES[held[2]] * math.prod(held[3])


def stored_prefix(name: str, stored: StoredTensor) -> str:
    """Of a layer's tensors in the file, with its dot; `name` is what we call its weight."""
    if not isinstance(stored.part, ExpertPart):
        return stored.name.removesuffix("weight")
    before = stored.name.rpartition(".experts.")[0]
    return f"{before}.experts.{name.rpartition('.experts.')[2].removesuffix('weight')}"


def stages(decoder: DecoderConfig) -> list[list[tuple[str, ...]]]:
    """A layer's linear layers, in the order in which they compute, those that share an input together."""
    mlps = [f"mlp.experts.{e}" for e in range(decoder.experts)] or ["mlp"]
    return [
        [("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")],
        [("self_attn.o_proj",)],
        [(f"{mlp}.gate_proj", f"{mlp}.up_proj") for mlp in mlps],
        [(f"{mlp}.down_proj",) for mlp in mlps],
    ]


# ---- writing -----------------------------------------------------------------------------------


def write_config(source: Path, made: Path, opened: Source, plan: Plan, form: Form) -> None:
    """config.json with how the weights are stored, and the index of the shards."""
    values = {**json_file(source, "config.json").values}
    values["quantization_config"] = quantization_config(opened, plan, form)
    (made / "config.json").write_text(
        json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8"
    )
    if len(plan.headers) > 1 or SINGLE_FILE not in plan.headers:
        size = sum(place.size_bytes for place in plan.placed.values())
        weight_map = {name: plan.placed[name].shard for name in sorted(plan.placed)}
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (made / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def quantization_config(opened: Source, plan: Plan, form: Form) -> dict[str, Any]:
    """As the published checkpoints have it."""
    mixture = opened.model.config.decoder.experts > 0
    if form.kind == "fp8":
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
            "modules_to_not_convert": left_plain(opened, plan),
        }
    if form.kind == "awq":
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": 4,
            "group_size": form.group,
            "zero_point": True,
            "modules_to_not_convert": ["visual", *(["mlp.gate"] if mixture else [])],
        }
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": form.bits,
        "group_size": form.group,
        "desc_act": False,
        "sym": True,
        "true_sequential": True,
        "damp_percent": DAMP,
    }


def left_plain(opened: Source, plan: Plan) -> list[str]:
    """The linear layers that are not rounded, as the file calls them."""
    weights = (f"{n}.weight" for n, m in opened.model.named_modules() if isinstance(m, Widened))
    stored = {opened.stored[name].name for name in weights if name in opened.stored}
    left = {name.removesuffix(".weight") for name in stored.intersection(plan.plain)}
    return sorted(left | {"lm_head"})  # a tied one, too, has no scales


def write_plain(made: Path, opened: Source, plan: Plan) -> None:
    """Each shard with its header and what is copied."""
    tensors = opened.checkpoint.tensors
    for shard, header in plan.headers.items():
        (made / shard).write_bytes(header)
        path = regular_file(opened.checkpoint.folder, shard)
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in plan.plain:
                if tensors[name].shard == shard:
                    tensor = file.get_tensor(name)
                    plan.write(made, name, tensor)
                    forget_pages(tensor)


def write_rounded(
    made: Path,
    opened: Source,
    plan: Plan,
    form: Form,
    sample: Sample | None,
    watched: Callable[[Sequence[int], int], Iterable[int]],
) -> None:
    """Layer after layer, each calibrated on what those before it, rounded, give."""
    model, decoder = opened.model, opened.model.config.decoder
    calibrated = form.kind != "fp8" and sample is not None
    passing = entered(sample.calibrating, model) if calibrated and sample else []
    model.model.visual.to("meta")
    layers = model.model.language_model.layers
    for number in watched(range(decoder.layers), decoder.layers):
        layer = in_fp32(layers[number], f"{LAYERS}{number}", opened.mapped)
        called = {
            name: plan.names[f"{LAYERS}{number}.{name}"] for name, _ in layer.named_parameters()
        }
        kept = {
            name: FLOATS[plan.placed[c].dtype] for name, c in called.items() if c in plan.placed
        }
        for name, tensors in rounded(layer, decoder, form, passing, kept):
            for leaf, tensor in tensors.items():
                plan.write(made, called[f"{name}.weight"] + leaf, tensor)
        if form.kind == "awq":
            for name, dtype in kept.items():
                plan.write(made, called[name], layer.get_parameter(name).to(dtype))
        for pack in passing:
            pack.through(layer)
        layer.to("meta")  # its memory is free for the next
    for shard in plan.headers:
        with (made / shard).open("rb") as file:
            os.fsync(file.fileno())


def in_fp32(layer: nn.Module, name: str, mapped: Container[str]) -> nn.Module:
    """The decoder layer with plain linear layers. Raises ModelFormatError for what is no number."""
    for part, module in list(layer.named_modules()):
        if isinstance(module, Widened) and isinstance(module.stored, nn.Linear):
            linear, weight = module.stored, module.stored.weight
            wide = weight.to(torch.float32, copy=True)
            if not wide.isfinite().all():
                raise ModelFormatError(
                    f"{name}.{part}.weight holds NaN or infinity", hint="download it again"
                )
            linear.weight = nn.Parameter(wide, requires_grad=False)
            if linear.bias is not None:
                linear.bias = nn.Parameter(linear.bias.float(), requires_grad=False)
            layer.set_submodule(part, linear)
            if f"{name}.{part}.weight" in mapped:
                forget_pages(weight)
    return layer


# ---- rounding one layer ------------------------------------------------------------------------

Written = Iterator[tuple[str, dict[str, Tensor]]]  # a linear layer's name, what the file has of it
Kept = Mapping[str, torch.dtype]  # parameters of a layer that are not rounded, as they are stored


def rounded(
    layer: nn.Module,
    decoder: DecoderConfig,
    form: Form,
    passing: Sequence[Passing],
    kept: Kept,
) -> Written:
    """Round each linear layer of a decoder layer in place."""
    match form.kind:
        case "fp8":
            return by_blocks(layer, decoder)
        case "awq":
            return by_awq(layer, decoder, form, passing, kept)
        case _:
            return by_gptq(layer, decoder, form, passing)


def linears_of(layer: nn.Module, names: Iterable[str]) -> list[nn.Linear]:
    found = [layer.get_submodule(name) for name in names]
    return [linear for linear in found if isinstance(linear, nn.Linear)]


def by_blocks(layer: nn.Module, decoder: DecoderConfig) -> Written:
    for name in (name for stage in stages(decoder) for names in stage for name in names):
        (linear,) = linears_of(layer, [name])
        yield name, fp8_tensors(linear.weight, BLOCK)


def by_gptq(
    layer: nn.Module, decoder: DecoderConfig, form: Form, passing: Sequence[Passing]
) -> Written:
    """Those that compute first, first: the others see what they, rounded, give."""
    for stage in stages(decoder):
        seen = inputs_of(layer, [names[0] for names in stage], passing)
        for names, inputs in zip(stage, seen, strict=True):
            linears = linears_of(layer, names)
            together = torch.cat([linear.weight for linear in linears])
            parts = gptq(together, inputs.hessian, form.grid)
            outputs = [linear.out_features for linear in linears]
            for name, linear, part in zip(names, linears, parts.split(outputs), strict=True):
                linear.weight.data = part.weight()
                yield name, gptq_tensors(part.values, part.scales, part.zeros, form.bits)


def by_awq(
    layer: nn.Module,
    decoder: DecoderConfig,
    form: Form,
    passing: Sequence[Passing],
    kept: Kept,
) -> Written:
    """First all scales, which change no output, then all roundings."""
    attention, (out,), gates, downs = stages(decoder)
    groups = [*attention, out, *gates, *downs]
    seen = dict(zip(groups, inputs_of(layer, [names[0] for names in groups], passing), strict=True))
    fold_norm(layer, "input_layernorm", attention, seen, form, kept)
    fold_values(layer, out, seen[out], decoder, form, kept)
    fold_norm(layer, "post_attention_layernorm", gates, seen, form, kept)
    for (_, up), down in zip(gates, downs, strict=True):
        fold_up(layer, up, down, seen[down], form)
    for names, inputs in seen.items():
        for name, linear in zip(names, linears_of(layer, names), strict=True):
            # q and k multiply each other, where what is cut off counts twice; as in AutoAWQ
            whole = name.endswith(("q_proj", "k_proj"))
            part = nearest(linear.weight, form.grid, None if whole else inputs.hessian)
            linear.weight.data = part.weight()
            yield name, awq_tensors(part.values, part.scales, part.zeros)


def fold_norm(
    layer: nn.Module,
    norm: str,
    sharing: Sequence[tuple[str, ...]],
    seen: Mapping[tuple[str, ...], Inputs],
    form: Form,
    kept: Kept,
) -> None:
    """Divide what a norm gives, multiply the weights that read it, those of a mixture's router too."""
    inputs = [seen[names] for names in sharing]
    linears = [linears_of(layer, names) for names in sharing]
    total = torch.stack([one.total for one in inputs]).sum(0)
    weights = [torch.cat([linear.weight for linear in some]) for some in linears]
    pairs = list(zip(weights, (one.hessian for one in inputs), strict=True))
    scale = awq_scale(pairs, total / max(1, sum(one.rows for one in inputs)), form.grid)
    routers = [m for m in layer.modules() if isinstance(m, Router)] if len(sharing) > 1 else []
    if routers:
        scale = scale.log2().round().exp2()  # multiplied by these no number is rounded
    before = layer.get_parameter(f"{norm}.weight")
    after = (before / scale).to(kept[f"{norm}.weight"]).float()
    # what it was divided by once it is stored
    scale = torch.where(after != 0, before / after, 1.0)
    before.data = after
    for linear in (*routers, *(linear for some in linears for linear in some)):
        linear.weight *= scale
    for one in inputs:
        one.divide(scale)


def fold_values(
    layer: nn.Module,
    out: tuple[str, ...],
    inputs: Inputs,
    decoder: DecoderConfig,
    form: Form,
    kept: Kept,
) -> None:
    """Divide the values, multiply o_proj; heads that share values share their scales."""
    (o,), (v,) = linears_of(layer, out), linears_of(layer, ["self_attn.v_proj"])
    shape = (decoder.kv_heads, -1, decoder.head_dim)
    shared = inputs.mean.unflatten(0, shape).mean(1, keepdim=True)
    size = shared.expand(-1, decoder.heads // decoder.kv_heads, -1).flatten()
    scale = awq_scale([(o.weight, inputs.hessian)], size, form.grid)
    of_values = scale.unflatten(0, shape)[:, 0].flatten()
    o.weight *= scale
    v.weight /= of_values.unsqueeze(-1)
    if v.bias is not None:
        v.bias.data = (v.bias / of_values).to(kept["self_attn.v_proj.bias"]).float()
    inputs.divide(scale)


def fold_up(
    layer: nn.Module, up_name: str, down_name: tuple[str, ...], inputs: Inputs, form: Form
) -> None:
    """Divide what up_proj gives, multiply down_proj."""
    (up,), (down,) = linears_of(layer, [up_name]), linears_of(layer, down_name)
    scale = awq_scale([(down.weight, inputs.hessian)], inputs.mean, form.grid)
    down.weight *= scale
    up.weight /= scale.unsqueeze(-1)
    inputs.divide(scale)
