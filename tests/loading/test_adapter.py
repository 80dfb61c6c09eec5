"""Adapters in PEFT's format: read as PEFT computes them, onto weights of every kind, merged, written."""

from __future__ import annotations

import copy
import json
import math
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import low_rank
import tiny
import tiny_v1
from oracle import (
    largest_difference,
    load_theirs,
    ours,
    picture,
    prompt_of,
    their_inputs,
    theirs,
)
from qvl.errors import (
    ConfigError,
    InvalidParamError,
    ModelFormatError,
    QvlError,
    UnsafeCheckpointError,
)
from qvl.kernels.quantised import GpuKind, Int4WeightLinear
from qvl.loading.adapted import adapted, merge
from qvl.loading.adapter import CONFIG_FILE, WEIGHTS_FILE, read_adapter, write_adapter
from qvl.loading.config import model_config
from qvl.loading.gpu import to_gpu
from qvl.loading.merged import convert_merged
from qvl.loading.model import CPU, LoadedModel, load_model
from qvl.loading.offload import StreamedLayer, tensors
from qvl.models.lora import Adapted, Adapter, LowRank
from qvl.models.qwen_vl import QwenVL
from qvl.types import DType, Message

CLOSE = 1e-4
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "r": 8},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"^model\.visual\.blocks\.1\.attn\.qkv": 7},
        "alpha_pattern": {"layers.1.self_attn.k_proj": 3, "down_proj": 9, "linear_fc[12]": 5},
    },
    "all of it at once": {
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2, r"layers\.0\.self_attn\.v_proj": 5},
        "alpha_pattern": {"v_proj": 3.5},
    },
    "layers by a regular expression": {
        "target_modules": r".*(language_model\.layers\.[02]\..*_proj|blocks\.1\.attn\.qkv)"
    },
    "some layers": {
        "target_modules": ["q_proj", "down_proj"],
        "layers_to_transform": [1],
        "exclude_modules": ["k_proj"],
    },
    "all linear layers": {"target_modules": "all-linear", "init_lora_weights": "gaussian"},
}
MESSAGES = [Message.user(picture(120, 90, seed=1), "what is on the right?")]
ROPE = {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"}
# widths of the compiled calls, of int4's groups and of fp8's sixteens
WIDE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "head_dim": 32,
    "rope_scaling": ROPE,
    "vision": {"out_hidden_size": 128, "hidden_size": 64, "intermediate_size": 128},
}
EVERYWHERE = ("q_proj", "k_proj", "o_proj", "gate_proj", "down_proj", "qkv", "fc1", "lm_head")
Checkpoints = dict[str, tuple[Path, LoadedModel]]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Of each generation, and of a wide one, the folder, and ours of it in fp32."""
    folders = {g: tmp_path_factory.mktemp(g) / "model" for g in (*tiny.GENERATIONS, "wide")}
    for generation, folder in folders.items():
        if generation == "wide":
            tiny.save_tiny(folder, "qwen3_vl", **WIDE)
        else:
            tiny.save_tiny(folder, generation)
    return {g: (folder, load_model(folder, dtype="fp32")) for g, folder in folders.items()}


def logits(loaded: LoadedModel, model: QwenVL | None = None) -> Tensor:
    chosen = loaded if model is None else replace(loaded, model=model)
    return ours(chosen, prompt_of(loaded, MESSAGES)).logits_tv


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("generation", tiny.GENERATIONS)
def test_unmerged_merged_and_peft_say_the_same(
    checkpoints: Checkpoints, tmp_path: Path, generation: str, kind: str
) -> None:
    folder, loaded = checkpoints[generation]
    peft = low_rank.peft_model(tiny.hf_model(generation), generation, **KINDS[kind])
    adapter = read_adapter(low_rank.save_peft(peft, tmp_path / "adapter"), loaded.config)
    prompt = prompt_of(loaded, MESSAGES)
    plain = ours(loaded, prompt)
    view = adapted(loaded.model, adapter)
    computed = ours(replace(loaded, model=view), prompt)
    expected = theirs(peft.base_model.model, their_inputs(prompt, loaded.config.image_token_id))
    for a, b in zip(computed.vision, expected.vision, strict=True):
        assert largest_difference(a, b) < CLOSE
    assert largest_difference(computed.logits_tv, expected.logits_tv) < CLOSE
    assert largest_difference(computed.logits_tv, plain.logits_tv) > 0.1
    assert torch.equal(ours(loaded, prompt).logits_tv, plain.logits_tv)  # the base is what it was
    own = load_model(folder, dtype="fp32")
    merge(own.model, adapter)
    assert largest_difference(ours(own, prompt).logits_tv, computed.logits_tv) < CLOSE


# ---- onto weights of every kind ----------------------------------------------------------------


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4"])
def test_beside_packed_layers_it_does_what_it_does_beside_plain_ones(
    checkpoints: Checkpoints, dtype: DType, dora: bool
) -> None:
    """Each part of what is packed side by side gets its own; the error is that of the packing."""
    folder, plain = checkpoints["wide"]
    packed = load_model(folder, dtype=dtype)
    base = largest_difference(logits(packed), logits(plain))
    for end in EVERYWHERE:
        adapter = low_rank.random_adapter(plain.model, [end], seed=4, size=1.5, dora=dora)
        exact = logits(plain, adapted(plain.model, adapter))
        effect = largest_difference(exact, logits(plain))
        error = largest_difference(logits(packed, adapted(packed.model, adapter)), exact)
        assert error < 3 * base + 0.02 * effect, end
        assert effect > 10 * error or effect > 0.1, end


@pytest.mark.parametrize("kind", ["fp8", "int4", None])
def test_beside_layers_of_a_gpu_and_those_that_are_streamed(checkpoints: Checkpoints, kind) -> None:
    _, plain = checkpoints["wide"]
    adapter = low_rank.random_adapter(plain.model, EVERYWHERE, seed=5, dora=True)
    whole, streamed = copy.deepcopy(plain.model), copy.deepcopy(plain.model)
    to_gpu(whole, kind, torch.float32, CPU, room_bytes=1 << 40)
    before = logits(plain, whole)
    room = sum(t.nbytes for t in tensors(whole).values()) - 1
    to_gpu(streamed, kind, torch.float32, CPU, room_bytes=room)
    assert any(isinstance(module, StreamedLayer) for module in streamed.modules())
    computed = logits(plain, adapted(whole, adapter))
    assert torch.equal(logits(plain, adapted(streamed, adapter)), computed)
    assert torch.equal(logits(plain, streamed), before)
    assert torch.equal(logits(plain, whole), before)
    if kind == "fp8":  # it rounds what it multiplies, too
        return
    dense = copy.deepcopy(plain.model)
    for path, module in whole.named_modules():  # the quantised weights, as plain ones
        if isinstance(module, Int4WeightLinear):
            dense.get_submodule(path).weight = nn.Parameter(module.weight(), requires_grad=False)
    merge(dense, adapter)
    assert largest_difference(logits(plain, dense), computed) < CLOSE


@pytest.mark.parametrize("kind", ["fp8", "int4", None])
def test_what_is_streamed_is_computed_with_the_copies_on_the_card(
    checkpoints: Checkpoints, kind: GpuKind | None
) -> None:
    """The weights in host memory are no numbers here: a layer that takes its own shows it."""
    _, plain = checkpoints["wide"]
    whole, streamed = copy.deepcopy(plain.model), copy.deepcopy(plain.model)
    to_gpu(whole, kind, torch.float32, CPU, room_bytes=1 << 40)
    room = sum(t.nbytes for t in tensors(whole).values()) - 1
    to_gpu(streamed, kind, torch.float32, CPU, room_bytes=room)
    made = [
        low_rank.random_adapter(plain.model, ends, seed=seed, dora=seed == 1)
        for seed, ends in enumerate((("layers.0.self_attn.q_proj",), EVERYWHERE, ("down_proj",)))
    ]
    views = {model: [model, *(adapted(model, one) for one in made)] for model in (whole, streamed)}
    for module in streamed.modules():
        if isinstance(module, StreamedLayer):
            own = tensors(module.layer)
            module.bus._sources[module.index] = {n: t.clone() for n, t in own.items()}
            for tensor in own.values():
                tensor.data = torch.full_like(tensor, 0 if tensor.itemsize == 1 else math.nan)
    expected = [logits(plain, view) for view in views[whole]]
    for index in (1, 0, 2, 3, 2, 0, 1):  # in turn, over the same buffers
        assert torch.equal(logits(plain, views[streamed][index]), expected[index]), index


def test_packed_experts_and_their_router_take_one_too(checkpoints: Checkpoints) -> None:
    folder, plain = checkpoints["qwen3_vl_moe"]
    ends = ("mlp.gate", "experts.1.up_proj", "experts.2.gate_proj", "experts.2.down_proj")
    adapter = low_rank.random_adapter(plain.model, ends, seed=6)
    assert len(adapter.layers) == 3 * len(ends)
    view = adapted(plain.model, adapter)
    own = copy.deepcopy(plain.model)
    merge(own, adapter)
    assert largest_difference(logits(plain, view), logits(plain, own)) < CLOSE
    packed = load_model(folder, dtype="bf16")
    computed = logits(packed, adapted(packed.model, adapter))
    assert largest_difference(computed, logits(packed)) > 0
    experts = [
        n for n, m in adapted(packed.model, adapter).named_modules() if isinstance(m, Adapted)
    ]
    assert sum(".experts.2." in name for name in experts) == 6
    assert sum(name.endswith("gate_up_proj") for name in experts) == 6


def test_merging_is_for_plain_weights(checkpoints: Checkpoints) -> None:
    folder, plain = checkpoints["qwen3_vl"]
    adapter = low_rank.random_adapter(plain.model, ["q_proj"], seed=1)
    with pytest.raises(InvalidParamError, match="plain weights only"):
        merge(load_model(folder, dtype="int8").model, adapter)


# ---- merged into a checkpoint ------------------------------------------------------------------


@pytest.mark.parametrize("generation", tiny.GENERATIONS)
def test_a_merged_checkpoint_is_one_that_transformers_loads(
    checkpoints: Checkpoints, tmp_path: Path, generation: str
) -> None:
    folder, loaded = checkpoints[generation]
    peft = low_rank.peft_model(tiny.hf_model(generation), generation, use_dora=True)
    low_rank.save_peft(peft, tmp_path / "adapter")
    convert_merged(folder, tmp_path / "merged", tmp_path / "adapter")
    inputs = their_inputs(prompt_of(loaded, MESSAGES), loaded.config.image_token_id)
    expected = theirs(peft.base_model.model, inputs).logits_tv
    computed = theirs(load_theirs(tmp_path / "merged", generation), inputs).logits_tv
    assert largest_difference(computed, expected) < CLOSE
    merged = load_model(tmp_path / "merged", dtype="fp32")
    assert largest_difference(logits(merged), expected) < CLOSE


def test_a_merged_checkpoint_keeps_files_names_and_dtype(tmp_path: Path) -> None:
    """Of experts that lie in one tensor, the adapted one alone changes."""
    source, target = tmp_path / "source", tmp_path / "target"
    tiny.save_tiny(source, "qwen3_vl_moe", shards=True, dtype=torch.bfloat16)
    loaded = load_model(source, dtype="fp32")
    ends = ("experts.1.up_proj", "layers.2.self_attn.v_proj")
    adapter = low_rank.random_adapter(loaded.model, ends, seed=1, size=2)
    written(tmp_path / "adapter", adapter, "qwen3_vl_moe")
    convert_merged(source, target, tmp_path / "adapter")
    assert {p.name for p in source.iterdir()} == {p.name for p in target.iterdir()}
    before, after = all_tensors(source), all_tensors(target)
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {
        n: (t.shape, t.dtype) for n, t in after.items()
    }
    changed = {n for n, tensor in before.items() if not torch.equal(tensor, after[n])}
    assert changed == {
        "model.language_model.layers.2.self_attn.v_proj.weight",
        *(f"model.language_model.layers.{i}.mlp.experts.gate_up_proj" for i in range(3)),
    }
    own = copy.deepcopy(loaded.model)
    merge(own, adapter)
    for (name, a), b in zip(
        own.named_parameters(), load_model(target, dtype="fp32").model.parameters(), strict=True
    ):
        assert torch.equal(a.bfloat16(), b.bfloat16()), name


def all_tensors(folder: Path) -> dict[str, Tensor]:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def test_what_cannot_be_merged_is_told_and_leaves_nothing(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder, loaded = checkpoints["qwen2_vl"]
    adapter = low_rank.random_adapter(loaded.model, ["q_proj"], seed=1)
    written(tmp_path / "adapter", adapter, "qwen2_vl")
    with pytest.raises(InvalidParamError, match="not an empty folder"):
        convert_merged(folder, folder, tmp_path / "adapter")
    other, _ = checkpoints["wide"]
    with pytest.raises(ModelFormatError, match="of another shape"):
        convert_merged(other, tmp_path / "merged", tmp_path / "adapter")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


# ---- written -----------------------------------------------------------------------------------


def written(folder: Path, adapter: Adapter, generation: str) -> Path:
    write_adapter(folder, adapter.layers, generation=generation, base_name="tiny")
    return folder


@pytest.mark.parametrize("generation", tiny.GENERATIONS)
def test_what_is_written_is_what_peft_and_we_read(
    checkpoints: Checkpoints, tmp_path: Path, generation: str
) -> None:
    from peft import PeftModel

    _, loaded = checkpoints[generation]
    ends = ("q_proj", "down_proj", "qkv", "linear_fc1", "merger.linear_fc2", "lm_head")
    dora = generation == "qwen3_vl"
    made = low_rank.random_adapter(loaded.model, ends, seed=3, dora=dora).layers
    made = {path: low for path, low in made.items() if ".experts." not in path}
    some = next(path for path in made if "layers.1" in path)
    made[some] = LowRank(made[some].a_rk[:2], made[some].b_nr[:, :2], 1.25, made[some].magnitude_n)
    adapter = Adapter.of("made", made)
    written(tmp_path / "adapter", adapter, generation)
    read = read_adapter(tmp_path / "adapter", loaded.config)
    assert (read.name, read.rank) == ("adapter", 4)
    assert read.digest == adapter.digest
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layer that PEFT would miss is a warning
        warnings.filterwarnings("ignore", category=FutureWarning)
        peft = PeftModel.from_pretrained(tiny.hf_model(generation), tmp_path / "adapter").eval()
    inputs = their_inputs(prompt_of(loaded, MESSAGES), loaded.config.image_token_id)
    expected = theirs(peft.base_model.model, inputs).logits_tv
    assert largest_difference(logits(loaded, adapted(loaded.model, adapter)), expected) < CLOSE
    assert largest_difference(logits(loaded), expected) > 0.01


def test_half_an_adapter_is_not_written(checkpoints: Checkpoints, tmp_path: Path) -> None:
    _, loaded = checkpoints["qwen3_vl"]
    plain = low_rank.random_adapter(loaded.model, ["q_proj"], seed=1).layers
    dora = low_rank.random_adapter(loaded.model, ["v_proj"], seed=1, dora=True).layers
    for layers in ({}, {**plain, **dora}):
        with pytest.raises(InvalidParamError):
            write_adapter(tmp_path / "x", layers, generation="qwen3_vl", base_name="tiny")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(InvalidParamError, match="not an empty folder"):
        write_adapter(tmp_path / "full", plain, generation="qwen3_vl", base_name="tiny")
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_the_digest_names_all_that_an_adapter_does(checkpoints: Checkpoints) -> None:
    _, loaded = checkpoints["qwen3_vl"]
    layers = low_rank.random_adapter(loaded.model, ["q_proj"], seed=1, dora=True).layers
    path, low = next(iter(layers.items()))
    assert low.magnitude_n is not None
    others = [
        {path: low},
        {**layers, path: replace(low, scale=0.5)},
        {**layers, path: replace(low, magnitude_n=2 * low.magnitude_n)},
        {**layers, path: replace(low, magnitude_n=None)},
        {**layers, path: replace(low, a_rk=-low.a_rk)},
        {**layers, path: replace(low, b_nr=-low.b_nr)},
        {f"{p}x": one for p, one in layers.items()},
    ]
    digests = {Adapter.of("a", one).digest for one in (layers, *others)}
    assert len(digests) == len(others) + 1
    backwards = dict(reversed(list(layers.items())))
    assert Adapter.of("b", backwards).digest in digests


# ---- other namings -----------------------------------------------------------------------------


@pytest.mark.parametrize("generation", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_older_names_of_layers_are_the_same_layers(
    checkpoints: Checkpoints, tmp_path: Path, generation: str
) -> None:
    """As transformers before 4.52 had the modules."""
    _, loaded = checkpoints[generation]
    adapter = low_rank.random_adapter(loaded.model, ("q_proj", "attn.qkv", "fc2"), seed=1)
    folder = written(tmp_path / "adapter", adapter, generation)
    named = load_file(folder / WEIGHTS_FILE)
    older = {
        name.replace(".model.model.visual.", ".model.visual.").replace(
            ".model.model.language_model.", ".model.model."
        ): tensor
        for name, tensor in named.items()
    }
    assert older.keys() & named.keys() == set()
    save_file(older, folder / WEIGHTS_FILE)
    assert read_adapter(folder, loaded.config).digest == adapter.digest


def test_the_first_qwen_vl_has_q_k_and_v_in_one(tmp_path: Path) -> None:
    config = model_config(tiny_v1.config_json())
    width = config.decoder.hidden
    layer = "transformer.h.0.attn.c_attn"
    a, b = torch.randn(3, width), torch.randn(3 * width, 3)
    stored = {"lora_A": a, "lora_B": b}
    tmp_path.joinpath(CONFIG_FILE).write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 6}')
    named = {f"base_model.model.{layer}.{name}.weight": t for name, t in stored.items()}
    save_file(named, tmp_path / WEIGHTS_FILE)
    layers = read_adapter(tmp_path, config).layers
    assert sorted(path.rpartition(".")[2] for path in layers) == ["k_proj", "q_proj", "v_proj"]
    for index, one in enumerate("qkv"):
        low = layers[f"model.language_model.layers.0.self_attn.{one}_proj"]
        assert torch.equal(low.a_rk, a)
        assert torch.equal(low.b_nr, b[index * width : (index + 1) * width])
        assert low.scale == 2


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_of_the_first_qwen_vl_comes_back(tmp_path: Path, dora: bool) -> None:
    """Under the names of its own code, and doing the same, if of more ranks."""
    config = model_config(tiny_v1.config_json())
    torch.manual_seed(0)
    model = QwenVL(config)
    ends = (*(f"self_attn.{one}_proj" for one in "qkvo"), "gate_proj", "resblocks.1.attn.in_proj")
    layers = low_rank.random_adapter(model, ends, seed=1, dora=dora).layers
    write_adapter(tmp_path / "adapter", layers, generation="qwen_vl", base_name="tiny")
    stored = {
        name.rpartition(".lora_")[0] for name in load_file(tmp_path / "adapter" / WEIGHTS_FILE)
    }
    assert stored == {
        "base_model.model.transformer.visual.transformer.resblocks.1.attn.in_proj",
        *(
            f"base_model.model.transformer.h.{layer}.{leaf}"
            for layer in range(config.decoder.layers)
            for leaf in ("attn.c_attn", "attn.c_proj", "mlp.w2")
        ),
    }
    read = read_adapter(tmp_path / "adapter", config).layers
    assert read.keys() == layers.keys()
    for path, low in layers.items():
        weight = model.get_parameter(f"{path}.weight")
        assert largest_difference(read[path].merged(weight), low.merged(weight)) < 1e-6
    layers = {path: low for path, low in layers.items() if "0.self_attn.k_proj" not in path}
    with pytest.raises(InvalidParamError, match="some of q, k and v"):
        write_adapter(tmp_path / "x", layers, generation="qwen_vl", base_name="tiny")


# ---- refused -----------------------------------------------------------------------------------

Q = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "no method": ({"peft_type": None}, "peft_type is missing"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "biases": ({"bias": "lora_only"}, "bias is 'lora_only'"),
    "a bias of B": ({"lora_bias": True}, "lora_bias"),
    "parameters": ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters"),
    "a start": ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    "turned": ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    "a later field": ({"use_something": {"new": 1}}, "use_something"),
    "replicated": ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
    "no rank": ({"r": 0}, "r is 0"),
    "a rank in words": ({"r": "four"}, "r is 'four'"),
    "another rank": ({"r": 5}, "has rank 4"),
    "another rank of one": ({"rank_pattern": {"q_proj": 6}}, "has rank 4"),
    "no pattern": ({"alpha_pattern": {"(": 1}}, "no regular expression"),
    "a slow pattern": ({"alpha_pattern": {"(a*)*b": 1}}, "repeats too much"),
    "alpha in words": ({"alpha_pattern": {"q_proj": "much"}}, "alpha_pattern.q_proj"),
    "no magnitudes": ({"use_dora": True}, "no lora_magnitude_vector"),
    "dora in words": ({"use_dora": "yes"}, "use_dora"),
}
CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "no B": (lambda t: t.pop(f"{Q}.lora_B.weight"), "has no lora_B"),
    "no A": (lambda t: t.pop(f"{Q}.lora_A.weight"), "has no lora_A"),
    "magnitudes": (
        lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(96)}),
        "a lora_magnitude_vector",
    ),
    "an unknown layer": (
        lambda t: t.update({Q.replace("q_proj", "z_proj") + ".lora_A.weight": torch.ones(4, 64)}),
        "z_proj",
    ),
    "a layer too many": (
        lambda t: t.update({Q.replace("s.0.", "s.9.") + ".lora_A.weight": torch.ones(4, 64)}),
        "layers.9.self_attn",
    ),
    "an embedding": (
        lambda t: t.update(
            {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 320)}
        ),
        "lora_embedding_A",
    ),
    "a whole weight": (
        lambda t: t.update({"base_model.model.lm_head.base_layer.weight": torch.ones(320, 64)}),
        "lm_head.base_layer",
    ),
    "not of PEFT": (lambda t: t.update({"q_proj.lora_A.weight": torch.ones(4, 64)}), "q_proj"),
    "a narrow A": (
        lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 63)}),
        "maps 63 to 96",
    ),
    "a short B": (lambda t: t.update({f"{Q}.lora_B.weight": torch.ones(90, 4)}), "64 to 90"),
    "factors apart": (lambda t: t.update({f"{Q}.lora_B.weight": torch.ones(96, 3)}), "[96, 3]"),
    "a vector": (lambda t: t.update({f"{Q}.lora_B.weight": torch.ones(96)}), "[96]"),
    "no number": (
        lambda t: t[f"{Q}.lora_A.weight"].fill_(float("nan")),
        "not finite",
    ),
    "integers": (
        lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 64, dtype=torch.int8)}),
        "is I8",
    ),
    "twice": (
        lambda t: t.update(
            {n.replace(".language_model.", "."): x.clone() for n, x in list(t.items())}
        ),
        "under two names",
    ),
    "nothing": (lambda t: t.clear(), "no tensor"),
}


@pytest.fixture(scope="module")
def small(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    _, loaded = checkpoints["qwen3_vl"]
    adapter = low_rank.random_adapter(loaded.model, ("q_proj", "v_proj"), seed=1)
    return written(tmp_path_factory.mktemp("small") / "adapter", adapter, "qwen3_vl")


def refusal(folder: Path, checkpoints: Checkpoints, kind: type[QvlError], of: str) -> None:
    with pytest.raises(kind) as told:
        read_adapter(folder, checkpoints["qwen3_vl"][1].config)
    assert of in told.value.message
    assert str(folder.parent) not in f"{told.value.message} {told.value.hint}"


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_asks_for_more_is_refused_by_its_key(
    checkpoints: Checkpoints, small: Path, tmp_path: Path, case: str
) -> None:
    changes, of = CONFIGS[case]
    folder = shutil.copytree(small, tmp_path / "adapter")
    config = json.loads((folder / CONFIG_FILE).read_text()) | changes
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    kind = ModelFormatError if of.startswith(("has ", "no lora")) else ConfigError
    refusal(folder, checkpoints, kind, of)


@pytest.mark.parametrize(
    ("options", "of"),
    [
        ({"modules_to_save": ["merger"]}, "modules_to_save is ['merger']"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"target_parameters": ["embed_tokens.weight"]}, "target_parameters"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "lora_embedding_A"),
    ],
    ids=lambda case: "" if isinstance(case, str) else min(case),
)
def test_what_peft_itself_writes_and_is_not_kept_is_refused_by_its_name(
    checkpoints: Checkpoints, tmp_path: Path, options: dict[str, Any], of: str
) -> None:
    peft = low_rank.peft_model(tiny.hf_model("qwen3_vl"), "qwen3_vl", **options)
    kind = ModelFormatError if "embedding" in of else ConfigError
    refusal(low_rank.save_peft(peft, tmp_path / "adapter"), checkpoints, kind, of)


@pytest.mark.parametrize("case", CHANGES)
def test_tensors_that_do_not_fit_are_refused_by_name(
    checkpoints: Checkpoints, small: Path, tmp_path: Path, case: str
) -> None:
    change, of = CHANGES[case]
    folder = shutil.copytree(small, tmp_path / "adapter")
    stored = load_file(folder / WEIGHTS_FILE)
    change(stored)
    save_file(stored, folder / WEIGHTS_FILE)
    refusal(folder, checkpoints, ModelFormatError, of)


def test_files_that_are_none_are_refused(
    checkpoints: Checkpoints, small: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    refusal(folder, checkpoints, ModelFormatError, f"{CONFIG_FILE} is missing")
    shutil.copy(small / CONFIG_FILE, folder)
    refusal(folder, checkpoints, ModelFormatError, f"{WEIGHTS_FILE} is missing")
    (folder / "adapter_model.bin").write_bytes(b"a pickle")
    refusal(folder, checkpoints, UnsafeCheckpointError, "adapter_model.bin is a pickle")
    data = (small / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(data[:-1])
    refusal(folder, checkpoints, ModelFormatError, WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).unlink()
    (tmp_path / "elsewhere").write_bytes(data)
    (folder / WEIGHTS_FILE).symlink_to(tmp_path / "elsewhere")
    refusal(folder, checkpoints, UnsafeCheckpointError, "leaves the model folder")
    refusal(tmp_path / "elsewhere", checkpoints, ModelFormatError, "is a file")


def test_an_adapter_of_a_tied_head_is_refused(tmp_path: Path) -> None:
    """The head is the embedding table: merged, it would change that too."""
    config = tiny.tiny_config("qwen3_vl", tie_word_embeddings=True)
    layers = {"lm_head": LowRank(torch.ones(2, 64), torch.ones(320, 2), 1.0)}
    write_adapter(tmp_path / "adapter", layers, generation="qwen3_vl", base_name="tiny")
    with pytest.raises(ModelFormatError, match="lm_head"):
        read_adapter(tmp_path / "adapter", config)
