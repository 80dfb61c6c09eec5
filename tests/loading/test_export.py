"""Exported folders are what the formats say, load as that, and lose little."""

from __future__ import annotations

import errno
import io
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from safetensors.torch import load_file, save_file

import tiny
from quantised_folders import HEADS, MIXTURE, WIDE, one_by_one
from qvl.errors import (
    InvalidParamError,
    ModelFormatError,
    QvlError,
    StorageError,
    UnsafeCheckpointError,
)
from qvl.kernels.rounding import Grid, awq_scale, gptq, nearest
from qvl.kernels.stored import fp8_tensors
from qvl.loading import convert as convert_module
from qvl.loading import export as export_module
from qvl.loading.convert import convert
from qvl.loading.export import EXPORTS, ExportName, export
from qvl.loading.model import load_model
from qvl.types import Image, Message, Text

Tensors = dict[str, torch.Tensor]
GENERATIONS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")


def picture(number: int) -> Image:
    draw = np.random.default_rng(number)
    small = Picture.fromarray(draw.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((84, 56)).save(buffer, "PNG")
    return Image(buffer.getvalue(), f"picture {number}")


def talk(count: int) -> list[tuple[Message, ...]]:
    answer = Message("assistant", (Text("hello there"),))
    return [(Message.user(picture(n), f"tell me of {n}"), answer) for n in range(count)]


def save_source(folder: Path, generation: str, **changes: Any) -> Path:
    """With linear layers whose inputs come in groups of 128."""
    out = "hidden_size" if generation == "qwen2_vl" else "out_hidden_size"
    sizes = WIDE | {"num_attention_heads": HEADS[generation]}
    if generation == "qwen3_vl_moe":
        sizes |= MIXTURE | {"moe_intermediate_size": 256}
    sizes |= changes
    vision = {out: sizes["hidden_size"]}
    tiny.save_tiny(folder, generation, vision=vision, dtype=torch.bfloat16, **sizes)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_source(tmp_path_factory.mktemp("source"), "qwen2_vl")


def stored(folder: Path) -> Tensors:
    return {n: t for f in folder.glob("*.safetensors") for n, t in load_file(f).items()}


# ---- the formats, read by their formulas -------------------------------------------------------


def fields(words: torch.Tensor, bits: int) -> np.ndarray:
    """[..., words, fields a word], the lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return (words.numpy().view(np.uint32)[..., None] >> shifts) & (2**bits - 1)


def gptq_weight(layer: Tensors, bits: int) -> np.ndarray:
    inputs, outputs = len(layer["g_idx"]), layer["scales"].shape[1]
    q = fields(layer["qweight"], bits).swapaxes(1, 2).reshape(inputs, outputs).astype(np.float32)
    zeros = fields(layer["qzeros"], bits).reshape(-1, outputs).astype(np.float32) + 1
    scales, groups = layer["scales"].numpy().astype(np.float32), layer["g_idx"].numpy()
    return ((q - zeros[groups]) * scales[groups]).T


def awq_weight(layer: Tensors) -> np.ndarray:
    order = [0, 4, 1, 5, 2, 6, 3, 7]  # which nibble outputs 0, 1, 2 .. of a word are in
    inputs, groups = len(layer["qweight"]), len(layer["scales"])
    q = fields(layer["qweight"], 4)[..., order].reshape(inputs, -1).astype(np.float32)
    zeros = fields(layer["qzeros"], 4)[..., order].reshape(groups, -1).astype(np.float32)
    each = np.arange(inputs) // (inputs // groups)
    return ((q - zeros[each]) * layer["scales"].numpy().astype(np.float32)[each]).T


def fp8_weight(layer: Tensors) -> np.ndarray:
    weight = layer["weight"].float().numpy()
    scales = layer["weight_scale_inv"].numpy().repeat(128, 0).repeat(128, 1)
    return weight * scales[: weight.shape[0], : weight.shape[1]]


READ = {
    "gptq": lambda layer: gptq_weight(layer, 4),
    "int8": lambda layer: gptq_weight(layer, 8),
    "awq": awq_weight,
    "fp8": fp8_weight,
}
LEAVES = ("qweight", "qzeros", "scales", "g_idx", "weight_scale_inv")


def layers_of(tensors: Tensors) -> dict[str, Tensors]:
    """The rounded linear layers by name, and what the file has of each."""
    found: dict[str, Tensors] = {}
    rounded = {name.rpartition(".")[0] for name in tensors if name.endswith(LEAVES)}
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        if layer in rounded and leaf != "bias":
            found.setdefault(layer, {})[leaf] = tensor
    return found


def ours(name: str) -> str:
    return name if "language_model" in name else name.replace("model.", "model.language_model.", 1)


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_folder_loads_as_what_its_format_says(
    generation: str, kind: ExportName, tmp_path: Path
) -> None:
    source = save_source(tmp_path / "source", generation)
    made = export(source, tmp_path / "made", kind, talk(4))
    tensors, before = stored(tmp_path / "made"), one_by_one(stored(source))
    layers = layers_of(tensors)
    assert {f"{name}.weight" for name in layers} == {
        name for name in before if "layers." in name and name.endswith("_proj.weight")
    }
    model = load_model(tmp_path / "made", dtype="fp32").model
    for name, layer in layers.items():
        weight = torch.from_numpy(READ[kind](layer).copy())
        assert torch.equal(model.get_parameter(f"{ours(name)}.weight"), weight), name
        if kind != "awq":  # whose columns are multiplied
            off = (weight - before[f"{name}.weight"].float()).norm() / weight.norm()
            assert off < {"gptq": 0.2, "int8": 0.02, "fp8": 0.04}[kind], name
    rest = {n: t for n, t in tensors.items() if n.rpartition(".")[0] not in layers}
    folded = ("layernorm.weight", "v_proj.bias", "mlp.gate.weight") if kind == "awq" else ()
    for name, tensor in rest.items():
        assert tensor.dtype == before[name].dtype
        assert (name.endswith(folded) and folded) or torch.equal(tensor, before[name]), name
    assert made.loss is not None
    if generation != "qwen3_vl_moe":  # where a near tie of random experts may fall otherwise
        assert made.loss.cosine > (0.85 if kind in ("gptq", "awq") else 0.99)
    assert made.weights_bytes == sum(
        f.stat().st_size for f in (tmp_path / "made").glob("*.safetensors")
    )


def test_transformers_reads_fp8_as_we_do(tmp_path: Path) -> None:
    import transformers

    source = save_source(tmp_path / "source", "qwen3_vl")
    export(source, tmp_path / "made", "fp8")
    found = load_model(tmp_path / "made", dtype="fp32").model
    how = transformers.FineGrainedFP8Config(
        dequantize=True, **{
            key: value
            for key, value in quantisation(tmp_path / "made").items()
            if key in ("modules_to_not_convert", "weight_block_size")
        },
    )  # fmt: skip
    theirs = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        tmp_path / "made", quantization_config=how, dtype=torch.float32
    )
    for name, parameter in theirs.named_parameters():
        assert torch.equal(parameter.float(), found.get_parameter(name)), name


def quantisation(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def test_shards_and_all_other_files_are_as_the_source_has_them(tmp_path: Path) -> None:
    source = tmp_path / "source"
    sizes = WIDE | {"num_attention_heads": 8}
    tiny.save_tiny(source, "qwen2_vl", shards=True, vision={"hidden_size": 128}, **sizes)
    export(source, tmp_path / "made", "gptq", talk(3))
    names = {path.name for path in source.iterdir()}
    assert {path.name for path in (tmp_path / "made").iterdir()} == names
    for name in names:
        if name.endswith((".safetensors", ".index.json")) or name == "config.json":
            continue
        assert (tmp_path / "made" / name).read_bytes() == (source / name).read_bytes()
    index = json.loads((tmp_path / "made" / "model.safetensors.index.json").read_text())
    held = {
        tensor: file.name
        for file in (tmp_path / "made").glob("*.safetensors")
        for tensor in load_file(file)
    }
    assert index["weight_map"] == held
    before = json.loads((source / "config.json").read_text())
    after = json.loads((tmp_path / "made" / "config.json").read_text())
    assert after.pop("quantization_config")["quant_method"] == "gptq"
    assert after == before


def test_the_same_conversations_give_the_same_files(source: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export(source, tmp_path / name, "awq", talk(5))
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


# ---- what rounding loses -----------------------------------------------------------------------


def correlated(rows: int, inputs: int, *, outliers: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(rows, inputs // 4, generator=draw) @ torch.randn(
        inputs // 4, inputs, generator=draw
    )
    x += 0.3 * torch.randn(rows, inputs, generator=draw)
    if outliers:
        x[:, torch.randperm(inputs, generator=draw)[:outliers]] *= 40
    return x


def lost(x: torch.Tensor, weight: torch.Tensor, other: torch.Tensor) -> float:
    return float((x @ (other - weight).T).square().mean())


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_loses_less_of_the_outputs_than_rounding_to_the_nearest(bits: int) -> None:
    x, weight = correlated(600, 256), torch.randn(64, 256)
    grid = Grid(bits, 128, symmetric=True)
    plain = nearest(weight, grid).weight()
    found = gptq(weight, x.T @ x, grid).weight()
    assert lost(x, weight, found) < 0.5 * lost(x, weight, plain)
    assert (found - weight).square().mean() > (plain - weight).square().mean()


def test_gptq_of_inputs_never_seen_is_rounding_to_the_nearest() -> None:
    weight, grid = torch.randn(16, 256), Grid(4, 128, symmetric=True)
    found = gptq(weight, torch.zeros(256, 256), grid)
    assert torch.equal(found.weight(), nearest(weight, grid).weight())


def test_awq_loses_less_where_some_inputs_are_large() -> None:
    x, weight = correlated(600, 256, outliers=6), torch.randn(64, 256)
    grid, hessian = Grid(4, 128, symmetric=False), x.T @ x
    scale = awq_scale([(weight, hessian)], x.abs().mean(0), grid)
    scaled = hessian / (scale.unsqueeze(-1) * scale)
    found = nearest(weight * scale, grid, scaled).weight() / scale
    assert lost(x, weight, found) < 0.5 * lost(x, weight, nearest(weight, grid).weight())


def test_a_grid_holds_zero_and_the_largest_numbers() -> None:
    for symmetric in (True, False):
        grid = Grid(4, 4, symmetric=symmetric)
        weight = torch.tensor([[0.0, 1.0, 2.0, 3.0], [-4.0, -1.0, -1.0, 0.0], [0.0] * 4])
        found = nearest(weight, grid).weight()
        assert torch.equal(found == 0, weight == 0) or symmetric
        assert (found - weight).abs().max() <= 4 / 15 + 1e-3


def test_fp8_is_the_nearest_number_of_the_format() -> None:
    weight = torch.randn(200, 300).bfloat16()
    weight[:128, 128:256] = 0
    found = fp8_tensors(weight)
    assert found["weight_scale_inv"].shape == (2, 3)
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    every = every[every.isfinite()]
    for row in range(0, 200, 128):
        for column in range(0, 300, 128):
            block = weight[row : row + 128, column : column + 128].float()
            scale = found["weight_scale_inv"][row // 128, column // 128]
            assert scale == (block.abs().max() / 448 if block.any() else 1)
            mine = found["weight"][row : row + 128, column : column + 128].float()
            off = (mine - block / scale).abs()
            nearest_off = (every - (block / scale).flatten().unsqueeze(-1)).abs().amin(-1)
            assert torch.equal(off.flatten(), nearest_off)


# ---- what cannot be exported -------------------------------------------------------------------


def refused(error: type[QvlError], words: str, source: Path, target: Path, **how: Any) -> None:
    before = sorted(path.name for path in target.parent.iterdir())
    given: dict[str, Any] = {"kind": "gptq", "conversations": talk(3)}
    given |= how
    with pytest.raises(error, match=words):
        export(source, target, **given)
    assert sorted(path.name for path in target.parent.iterdir()) == before


def test_sources_that_are_rounded_already_or_pickled_are_refused(
    source: Path, tmp_path: Path
) -> None:
    export(source, tmp_path / "awq", "awq", talk(3))
    refused(ModelFormatError, r"quantised already \(awq\)", tmp_path / "awq", tmp_path / "made")
    convert(source, tmp_path / "packed", "int8")
    refused(ModelFormatError, "packed for a processor", tmp_path / "packed", tmp_path / "made")
    pickled = Path(shutil.copytree(source, tmp_path / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused(UnsafeCheckpointError, "pytorch_model.bin", pickled, tmp_path / "made")


def test_groups_that_do_not_fit_say_what_does(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source", "qwen2_vl", intermediate_size=96)
    words = r"layers\.0\.mlp\.down_proj has 96 inputs .* groups of 128"
    refused(ModelFormatError, words, source, tmp_path / "made")
    with pytest.raises(ModelFormatError) as told:
        export(source, tmp_path / "made", "gptq", talk(3))
    assert told.value.hint == "groups of 32 fit it; fp8 holds layers of any size"
    for kind in ("gptq", "awq"):
        export(source, tmp_path / kind, kind, talk(3), group=32)
        assert quantisation(tmp_path / kind)["group_size"] == 32
        down = layers_of(stored(tmp_path / kind))["model.layers.0.mlp.down_proj"]
        model = load_model(tmp_path / kind, dtype="fp32").model
        weight = model.get_parameter("model.language_model.layers.0.mlp.down_proj.weight")
        assert torch.equal(weight, torch.from_numpy(READ[kind](down).copy()))
    export(source, tmp_path / "fp8", "fp8")


@pytest.mark.parametrize("kind", ["gptq", "awq", "int8"])
def test_without_enough_to_calibrate_on_nothing_is_made(
    kind: ExportName, source: Path, tmp_path: Path
) -> None:
    for rows in ([], talk(1)):
        refused(
            InvalidParamError,
            "at least 2",
            source,
            tmp_path / "made",
            kind=kind,
            conversations=rows,
        )


def test_fp8_needs_no_data_and_measures_with_what_there_is(source: Path, tmp_path: Path) -> None:
    assert export(source, tmp_path / "one", "fp8").loss is None
    made = export(source, tmp_path / "two", "fp8", talk(4))
    assert made.loss is not None
    assert made.loss.conversations == 4


def test_a_picture_that_cannot_be_read_is_named_and_left_out(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = talk(4)
    rows[2] = (Message.user(Image(b"no picture", "broken.png"), "what is it"),)
    made = export(source, tmp_path / "made", "gptq", rows)
    assert made.sample is not None
    assert (len(made.sample.calibrating), len(made.sample.held), made.sample.left_out) == (2, 1, 1)
    assert "conversation 3 is left out" in caplog.text
    assert "broken.png" in caplog.text


def test_weights_that_are_no_numbers_are_named(source: Path, tmp_path: Path) -> None:
    spoilt = Path(shutil.copytree(source, tmp_path / "spoilt"))
    tensors = load_file(spoilt / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, spoilt / "model.safetensors", metadata={"format": "pt"})
    words = r"layers\.1\.mlp\.up_proj\.weight holds NaN"
    refused(ModelFormatError, words, spoilt, tmp_path / "made")


def test_activations_that_are_no_numbers_are_named(source: Path, tmp_path: Path) -> None:
    spoilt = Path(shutil.copytree(source, tmp_path / "spoilt"))
    tensors = load_file(spoilt / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"][3] = float("inf")
    save_file(tensors, spoilt / "model.safetensors", metadata={"format": "pt"})
    words = r"inputs of a layer's self_attn\.q_proj are not finite"
    refused(ModelFormatError, words, spoilt, tmp_path / "made")


def test_a_target_that_exists_stays_as_it_is(source: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine").write_text("mine")
    refused(InvalidParamError, "not an empty folder", source, tmp_path / "made")
    assert (tmp_path / "made" / "mine").read_text() == "mine"


def test_whatever_stops_the_work_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def until_second(layers: Sequence[int], total: int) -> Iterable[int]:
        yield layers[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(source, tmp_path / "made", "gptq", talk(3), watched=until_second)
    assert not list(tmp_path.iterdir())
    usage = shutil.disk_usage("/")._replace(free=50_000)
    with monkeypatch.context() as patch:
        patch.setattr(convert_module.shutil, "disk_usage", lambda path: usage)
        refused(StorageError, "GiB are free", source, tmp_path / "made")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export_module, "write_tensor", full)
    refused(StorageError, "No space left", source, tmp_path / "made")
