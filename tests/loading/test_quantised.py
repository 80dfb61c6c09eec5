"""GPTQ, AWQ and FP8 folders load as what they stand for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from quantised_folders import (
    EXPERTS,
    FORMATS,
    FP8,
    GPTQ,
    KEPT_IN_INT4,
    Tensors,
    all_in_one,
    change,
    save_quantised,
    set_quantisation,
    stored_tensor,
    write_shards,
)
from qvl.errors import ModelFormatError
from qvl.kernels.linear import Int4Linear, Int8Linear, PackedLinear
from qvl.kernels.quantised import Fp8Linear, Int4WeightLinear
from qvl.loading.config import parse_config
from qvl.loading.convert import convert
from qvl.loading.gpu import to_gpu
from qvl.loading.model import choose_dtype, empty_model, fill, load_model, open_source
from qvl.loading.quantised import own_dtypes
from qvl.models.attention import PackedCausal
from qvl.models.batch import ForwardBatch
from qvl.models.qwen_vl import QwenVL

CPU = torch.device("cpu")


@torch.inference_mode()
def logits(model: QwenVL) -> torch.Tensor:
    ids, at = torch.arange(40, 60), torch.arange(20)
    return model(ForwardBatch(ids, at.expand(3, -1), PackedCausal([0, 20]), at))


def packed_weights(model: QwenVL) -> Tensors:
    linears = ((n, m) for n, m in model.named_modules() if isinstance(m, PackedLinear))
    return {name: module.weight() for name, module in linears}


@pytest.fixture(scope="module")
def awq_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_quantised(tmp_path_factory.mktemp("awq"), "qwen2_vl", "awq")


@pytest.fixture
def folder(awq_folder: Path, tmp_path: Path) -> Path:
    """A good folder, to be spoilt."""
    return Path(shutil.copytree(awq_folder, tmp_path / "awq"))


# ---- the same model ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generation", "kind"),
    [
        *(("qwen2_vl", kind) for kind in FORMATS),
        ("qwen2_5_vl", "awq"),
        ("qwen3_vl", "fp8"),
        *(("qwen3_vl_moe", kind) for kind in ("gptq-8", "awq", "fp8")),
    ],
)
def test_dequantised_it_is_the_model_with_those_weights(
    kind: str, generation: str, tmp_path: Path
) -> None:
    quantised = save_quantised(tmp_path, generation, kind)
    found, expected = (load_model(f, dtype="fp32").model for f in (quantised, tmp_path / "plain"))
    theirs = dict(expected.named_parameters())
    assert dict(found.named_parameters()).keys() == theirs.keys()
    for name, parameter in found.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
        assert not parameter.requires_grad
    assert torch.equal(logits(found), logits(expected))
    assert not list(found.buffers())


@pytest.mark.parametrize("naming", ["hub", "newer"])
@pytest.mark.parametrize(
    ("key", "prefix"),
    [("modules_to_not_convert", "visual"), ("ignored_layers", "model.visual"), (None, "")],
)
def test_modules_left_out_are_known_whatever_the_list_calls_them(
    naming: Any, key: str | None, prefix: str, tmp_path: Path
) -> None:
    quantised = save_quantised(tmp_path, "qwen3_vl", "fp8", naming=naming)
    if key is not None:
        set_quantisation(quantised, FP8 | {key: [f"{prefix}.blocks.0.attn.qkv", "lm_head"]})
    found, expected = (load_model(f, dtype="fp32").model for f in (quantised, tmp_path / "plain"))
    assert torch.equal(logits(found), logits(expected))


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
@pytest.mark.parametrize("kind", ["gptq-8", "gptq-act-order", "awq", "fp8"])
def test_packed_otherwise_it_is_the_model_with_those_weights_packed(
    dtype: Any, kind: str, tmp_path: Path
) -> None:
    quantised = save_quantised(tmp_path, "qwen2_vl", kind)
    found, expected = (load_model(f, dtype=dtype).model for f in (quantised, tmp_path / "plain"))
    assert torch.equal(logits(found), logits(expected))


def test_blocks_at_the_edges_are_smaller(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 144, "intermediate_size": 200, "num_attention_heads": 7}
    sizes |= {"num_key_value_heads": 1}
    quantised = save_quantised(tmp_path, "qwen3_vl", "fp8", **sizes)
    down = "model.language_model.layers.0.mlp.down_proj.weight_scale_inv"
    assert stored_tensor(quantised, down).shape == (2, 2)
    found, expected = (load_model(f, dtype="fp32").model for f in (quantised, tmp_path / "plain"))
    assert torch.equal(logits(found), logits(expected))


@pytest.mark.parametrize("scales", ["fp8", "fp8-bf16-scales"])
def test_experts_may_lie_in_one_tensor(scales: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 256, "moe_intermediate_size": 384}
    quantised = save_quantised(tmp_path, "qwen3_vl_moe", scales, **sizes)
    single = {n: t for f in quantised.glob("*.safetensors") for n, t in load_file(f).items()}
    write_shards(quantised, all_in_one(single))
    prefix = "model.language_model.layers.0.mlp.experts."
    assert stored_tensor(quantised, prefix + "gate_up_proj").shape == (EXPERTS, 256, 768)
    assert stored_tensor(quantised, prefix + "gate_up_proj_scale_inv").shape == (EXPERTS, 2, 6)
    found, expected = (load_model(f, dtype="fp32").model for f in (quantised, tmp_path / "plain"))
    assert torch.equal(logits(found), logits(expected))
    for name, parameter in expected.named_parameters():
        assert torch.equal(found.get_parameter(name), parameter), name


def test_fp8_experts_that_share_scales_are_refused(tmp_path: Path) -> None:
    quantised = save_quantised(tmp_path, "qwen3_vl_moe", "fp8", moe_intermediate_size=192)
    single = {n: t for f in quantised.glob("*.safetensors") for n, t in load_file(f).items()}
    write_shards(quantised, all_in_one(single))
    with pytest.raises(ModelFormatError, match=r"experts\.gate_up_proj_scale_inv"):
        load_model(quantised)


# ---- without loss ------------------------------------------------------------------------------


def joined_layers(generation: str) -> Iterator[tuple[str, list[str]]]:
    """What a packed layer is called, and the stored ones that are side by side in it."""
    yield "qkv_proj", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    yield "o_proj", ["self_attn.o_proj"]
    experts = [f"experts.{e}." for e in range(EXPERTS)] if generation == "qwen3_vl_moe" else [""]
    for expert in experts:
        mlp = f"mlp.{expert}"
        yield f"{mlp}gate_up_proj", [f"{mlp}gate_proj", f"{mlp}up_proj"]
        yield f"{mlp}down_proj", [f"{mlp}down_proj"]


@pytest.mark.parametrize(
    ("generation", "kind"),
    [
        *(("qwen2_vl", kind) for kind in KEPT_IN_INT4),
        ("qwen3_vl", "gptq"),
        ("qwen3_vl_moe", "awq"),
    ],
)
def test_int4_keeps_the_stored_integers(
    kind: str, generation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quantised = save_quantised(tmp_path, generation, kind)
    loaded = load_model(quantised)
    assert loaded.dtype == "int4"
    assert not caplog.messages
    expected = load_model(tmp_path / "plain", dtype="fp32").model.get_parameter
    for number, layer in enumerate(loaded.model.model.language_model.layers):
        prefix = f"model.language_model.layers.{number}."
        for joined, parts in joined_layers(generation):
            packed = layer.get_submodule(joined)
            assert isinstance(packed, Int4Linear)
            weight = torch.cat([expected(f"{prefix}{part}.weight") for part in parts])
            assert torch.equal(packed.weight(), weight), joined
            # 127 in each group: inputs that 8 bits hold as they are
            x = torch.randint(-127, 128, (3, packed.in_features)).float()
            x[:, ::128] = 127
            y = x.double() @ weight.double().T
            y = y if packed.bias is None else y + packed.bias.double()
            assert (packed(x) - y).abs().max() <= 1e-6 * y.abs().max()
    assert isinstance(loaded.model.lm_head, Int8Linear)


def test_int4_of_an_odd_number_of_outputs_keeps_them_too() -> None:
    values = torch.randint(0, 16, (21, 2, 128), dtype=torch.uint8)
    scales, zeros = torch.rand(21, 2).half(), torch.randint(0, 17, (21, 2), dtype=torch.uint8)
    layer = Int4Linear.of_integers(values, scales, zeros, None)
    weight = (values.float() - zeros.unsqueeze(-1)) * scales.float().unsqueeze(-1)
    assert torch.equal(layer.weight(), weight.flatten(1))


def test_what_int4_does_not_keep_is_rounded_again_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quantised = save_quantised(tmp_path, "qwen2_vl", "gptq-8")
    found, expected = (load_model(f, dtype="int4").model for f in (quantised, tmp_path / "plain"))
    assert torch.equal(logits(found), logits(expected))
    assert "14 quantised layers are not stored as int4 keeps them" in caplog.text


def on_a_gpu(folder: Path, kind: Any) -> QwenVL:
    """With a CPU in its place."""
    model = empty_model(parse_config(folder))
    checkpoint, stored = open_source(folder, model)
    mapped = fill(model, stored, checkpoint, dtype=None, device=CPU)
    to_gpu(model, kind, torch.float32, CPU, room_bytes=1 << 40, mapped=mapped)
    return model


@pytest.mark.parametrize("name", KEPT_IN_INT4)
def test_int4_of_a_gpu_keeps_the_stored_integers(name: str, tmp_path: Path) -> None:
    model = on_a_gpu(save_quantised(tmp_path, "qwen2_vl", name), "int4")
    expected = load_model(tmp_path / "plain", dtype="fp32").model
    found = {n: m for n, m in model.named_modules() if isinstance(m, Int4WeightLinear)}
    assert len(found) == 14
    for path, module in found.items():
        assert torch.equal(module.weight(), expected.get_parameter(f"{path}.weight")), path
    assert (logits(model) - logits(expected)).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["int4", "fp8", None])
@pytest.mark.parametrize("name", ["gptq-8", "fp8"])
def test_on_a_gpu_all_else_is_made_from_those_weights(kind: Any, name: str, tmp_path: Path) -> None:
    model = on_a_gpu(save_quantised(tmp_path, "qwen2_vl", name), kind)
    layer = model.get_submodule("model.language_model.layers.1.mlp.up_proj")
    assert isinstance(layer, {"fp8": Fp8Linear, "int4": Int4WeightLinear, None: nn.Linear}[kind])
    assert torch.equal(logits(model), logits(on_a_gpu(tmp_path / "plain", kind)))


@pytest.mark.parametrize(("name", "kind"), [("awq", "int4"), ("gptq-8", "int8"), ("fp8", "bf16")])
def test_a_converted_folder_is_the_model_packed_while_loading(
    name: str, kind: Any, tmp_path: Path
) -> None:
    quantised = save_quantised(tmp_path, "qwen2_vl", name)
    convert(quantised, tmp_path / "packed", kind)
    found, expected = load_model(tmp_path / "packed"), load_model(quantised, dtype=kind)
    assert found.dtype == expected.dtype == kind
    ours, theirs = packed_weights(found.model), packed_weights(expected.model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert torch.equal(logits(found.model), logits(expected.model))


# ---- in which dtype ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("awq", ("int4",)),
        ("awq-32", ("bf16", "int8")),
        ("gptq", ("int4",)),
        ("gptq-act-order", ("bf16", "int8")),
        ("gptq-8", ("int8",)),
        ("fp8", ("bf16", "int8")),
    ],
)
def test_the_dtypes_that_a_checkpoint_runs_in_by_itself(
    kind: str, expected: tuple[str, ...], tmp_path: Path
) -> None:
    model = empty_model(parse_config(save_quantised(tmp_path, "qwen2_vl", kind)))
    open_source(tmp_path / "quantised", model)
    assert own_dtypes(model, CPU) == expected
    mps = ("bf16",)
    assert own_dtypes(model, torch.device("mps")) == mps


def test_a_layer_left_plain_in_the_decoder_is_not_rounded_to_int4(tmp_path: Path) -> None:
    kept = "layers.1.mlp.down_proj.weight"
    quantised = save_quantised(tmp_path, "qwen2_vl", "awq", plain=lambda name: name.endswith(kept))
    model = empty_model(parse_config(quantised))
    open_source(quantised, model)
    assert own_dtypes(model, CPU) == ("bf16", "int8")
    found, expected = (load_model(f, dtype="fp32").model for f in (quantised, tmp_path / "plain"))
    assert torch.equal(logits(found), logits(expected))


@pytest.mark.parametrize(("free", "chosen"), [(2.1, "bf16"), (1.9, "int8"), (None, "bf16")])
def test_auto_takes_the_first_that_fits(free: float | None, chosen: str) -> None:
    found = choose_dtype(
        "auto",
        stored_dtype="F16",
        parameters=2**30,
        free_bytes=None if free is None else round(free * 2**30),
        computes_bf16=False,
        own=("bf16", "int8"),
    )
    assert found == chosen


# ---- what does not load ------------------------------------------------------------------------

UP = "model.layers.0.mlp.up_proj."


@pytest.mark.parametrize(
    ("leaf", "tensor", "words"),
    [
        (
            "qweight",
            torch.zeros(128, 31, dtype=torch.int32),
            r"qweight is \[128, 31\], .*\[128, 32\]",
        ),
        ("qweight", torch.zeros(128, 32), "qweight is F32, not I32"),
        ("qzeros", torch.zeros(1, 32, dtype=torch.int64), "qzeros is I64, not I32"),
        ("qzeros", None, "1 missing: 'model.language_model.layers.0.mlp.up_proj.qzeros'"),
        ("scales", torch.zeros(2, 256).half(), r"scales is \[2, 256\], .*\[1, 256\]"),
        ("scales", torch.zeros(1, 256, dtype=torch.int32), "scales is I32"),
    ],
)
def test_what_does_not_fit_is_named(
    leaf: str, tensor: torch.Tensor | None, words: str, folder: Path
) -> None:
    change(folder, UP + leaf, tensor)
    with pytest.raises(ModelFormatError, match=words):
        load_model(folder)


def test_the_form_and_config_json_must_agree(folder: Path) -> None:
    for values in (GPTQ, FP8):
        set_quantisation(folder, values)
        with pytest.raises(ModelFormatError, match=r"missing: .*up_proj|missing: .*down_proj"):
            load_model(folder)


def test_fp8_without_its_scales_is_refused(tmp_path: Path) -> None:
    quantised = save_quantised(tmp_path, "qwen3_vl", "fp8")
    up = "model.language_model.layers.0.mlp.up_proj.weight"
    change(quantised, up + "_scale_inv", None)
    with pytest.raises(ModelFormatError, match=f"{up} is F8_E4M3"):
        load_model(quantised)


def test_biases_of_zero_that_older_files_hold_change_nothing(tmp_path: Path) -> None:
    quantised = save_quantised(tmp_path, "qwen2_vl", "gptq")
    change(quantised, UP + "bias", torch.zeros(256).half())
    plain = load_model(tmp_path / "plain", dtype="fp32").model
    assert torch.equal(logits(load_model(quantised, dtype="fp32").model), logits(plain))
    convert(quantised, tmp_path / "packed", "int4")
    found, expected = load_model(tmp_path / "packed"), load_model(quantised, dtype="int4")
    assert torch.equal(logits(found.model), logits(expected.model))

    change(quantised, UP + "bias", torch.full((256,), 0.5).half())
    for load in (load_model, lambda folder: convert(folder, tmp_path / "other", "int4")):
        with pytest.raises(ModelFormatError, match=r"layers\.0\.mlp\.up_proj\.bias is not zero"):
            load(quantised)


@pytest.mark.parametrize("group", [-1, 2])
def test_a_group_that_is_not_there_is_refused(group: int, tmp_path: Path) -> None:
    quantised = save_quantised(tmp_path, "qwen2_vl", "gptq")
    down = "model.layers.0.mlp.down_proj.g_idx"
    change(quantised, down, stored_tensor(quantised, down).index_fill(0, torch.tensor(7), group))
    with pytest.raises(ModelFormatError, match=r"down_proj\.g_idx holds .*, there are 2 groups"):
        load_model(quantised)
