"""A folder as published, or saved again, becomes the same model with the same weights."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from qvl.errors import (
    ConfigError,
    InvalidParamError,
    ModelFormatError,
    OutOfMemoryError,
    QvlError,
    UnsafeCheckpointError,
)
from qvl.kernels.linear import Int4Linear, Int8Linear, PackedLinear
from qvl.loading import model as loading
from qvl.loading.model import choose_dtype, load_model
from qvl.models.config import DecoderConfig
from qvl.models.qwen_vl import QwenVL

RENAMED_BEFORE_QWEN3 = (
    (".merger.ln_q.", ".merger.norm."),
    (".merger.mlp.0.", ".merger.linear_fc1."),
    (".merger.mlp.2.", ".merger.linear_fc2."),
    (".mlp.fc1.", ".mlp.linear_fc1."),
    (".mlp.fc2.", ".mlp.linear_fc2."),
)


def ours(oracle: Any, generation: str) -> dict[str, torch.Tensor]:
    """The oracle's own weights under our names; transformers already uses the newer prefixes."""
    weights = {}
    for name, tensor in oracle.state_dict().items():
        if generation not in tiny.QWEN3:
            for old, new in RENAMED_BEFORE_QWEN3:
                name = name.replace(old, new)
        head, _, last = name.rpartition(".")
        if not head.endswith(".experts"):
            weights[name] = tensor
            continue
        for expert, matrix in enumerate(tensor):  # [outputs, inputs]
            parts = [matrix] if last == "down_proj" else matrix.chunk(2)
            names = ["down_proj"] if last == "down_proj" else ["gate_proj", "up_proj"]
            for part, one in zip(names, parts, strict=True):
                weights[f"{head}.{expert}.{part}.weight"] = one
    return weights


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good folder, to be copied and spoilt."""
    folder = tmp_path_factory.mktemp("good") / "tiny"
    tiny.save_tiny(folder, "qwen2_vl")
    return folder


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "tiny"))


@pytest.mark.parametrize("generation", tiny.GENERATIONS)
@pytest.mark.parametrize("naming", ["hub", "newer"])
@pytest.mark.parametrize("shards", [False, True])
def test_every_parameter_equals_the_stored_tensor(
    generation: str, naming: Any, shards: bool, tmp_path: Path
) -> None:
    oracle = tiny.save_tiny(tmp_path, generation, naming=naming, shards=shards, seed=3)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 if shards else True
    loaded = load_model(tmp_path, dtype="fp32")
    expected = ours(oracle, generation)
    found = dict(loaded.model.named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        assert torch.equal(parameter, expected[name]), name
        assert not parameter.requires_grad
    assert not [name for name, b in loaded.model.named_buffers() if b.is_meta]
    assert not loaded.model.training


@pytest.mark.parametrize("generation", tiny.GENERATIONS)
@pytest.mark.parametrize("naming", ["hub", "newer"])
def test_a_tied_head_is_the_embedding(generation: str, naming: Any, tmp_path: Path) -> None:
    tiny.save_tiny(tmp_path, generation, naming=naming, tie_word_embeddings=True)
    stored = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in stored) == (naming == "newer")
    if naming == "newer":  # even where the stored head differs
        stored["lm_head.weight"] = torch.zeros_like(stored["lm_head.weight"])
        save_file(stored, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path, dtype="fp32")
    assert "lm_head.weight" not in dict(loaded.model.named_parameters())
    assert loaded.model.lm_head is None  # the embedding is the head


def test_a_save_of_the_base_model_loads_when_its_head_is_tied(tmp_path: Path) -> None:
    oracle = tiny.save_tiny(tmp_path, "qwen3_vl", tie_word_embeddings=True)
    tensors = {
        name.removeprefix("model."): tensor.clone()
        for name, tensor in oracle.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path)
    expected = ours(oracle, "qwen3_vl")
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_a_missing_head_that_is_not_tied_is_an_error(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    del stored["lm_head.weight"]
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(ModelFormatError, match=r"1 missing: 'lm_head\.weight'"):
        load_model(folder)


def test_a_config_of_other_sizes_names_both_shapes(folder: Path) -> None:
    config = tiny.config_json("qwen2_vl", intermediate_size=128)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFormatError) as raised:
        load_model(folder)
    assert "9 of another shape" in raised.value.message
    assert "mlp.down_proj.weight is [64, 96], config.json asks for [64, 128]" in str(raised.value)


def test_the_loaded_parts_belong_together(source: Path) -> None:
    loaded = load_model(source)
    assert loaded.config == tiny.tiny_config("qwen2_vl")
    assert loaded.tokenizer.encode_control("<|image_pad|>") == loaded.config.image_token_id
    assert loaded.rules.patch_px == 14
    assert loaded.defaults.stop_ids == (
        loaded.tokenizer.encode_control("<|im_end|>"),
        loaded.tokenizer.encode_control("<|endoftext|>"),
    )
    assert (loaded.dtype, loaded.device) == ("fp32", "cpu")


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_dtype_asked_for_is_given(stored: torch.dtype, dtype: Any, tmp_path: Path) -> None:
    oracle = tiny.save_tiny(tmp_path, "qwen3_vl", dtype=stored)
    loaded = load_model(tmp_path, dtype=dtype)
    wanted = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    assert loaded.dtype == dtype
    expected = ours(oracle, "qwen3_vl")
    weights = weights_of(loaded.model)
    assert weights.keys() >= {name for name in expected if name != "lm_head.weight"}
    for name, weight in weights.items():
        assert torch.equal(weight.to(wanted), expected[name].to(wanted)), name


def weights_of(model: QwenVL) -> dict[str, torch.Tensor]:
    """What every layer computes with, unpacked, by the names of the checkpoint."""
    weights: dict[str, torch.Tensor] = {
        re.sub(r"(?<!self_attn)\.([qk]_norm)\.", r".self_attn.\1.", name): parameter
        for name, parameter in model.named_parameters()
    }
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            for part, rows in parts_of(name, module.out_features, model.config.decoder):
                weights[f"{part}.weight"] = module.weight()[rows]
                if module.bias is not None:
                    weights[f"{part}.bias"] = module.bias[rows]
    return weights


def parts_of(name: str, outputs: int, config: DecoderConfig) -> Iterator[tuple[str, slice]]:
    """The layers that a packed one holds side by side, and their outputs."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    of_a_layer = {
        "qkv_proj": {"q_proj": q, "k_proj": kv, "v_proj": kv},
        "gate_up_proj": {"gate_proj": outputs // 2, "up_proj": outputs // 2},
    }
    before, _, last = name.rpartition(".")
    if last in ("qkv_proj", "o_proj"):
        before += ".self_attn"
    start = 0
    for part, size in of_a_layer.get(last, {last: outputs}).items():
        yield f"{before}.{part}".lstrip("."), slice(start, start + size)
        start += size


@pytest.mark.parametrize("generation", tiny.GENERATIONS)
@pytest.mark.parametrize(("dtype", "lost"), [("int8", 0.015), ("int4", 0.15)])
def test_a_quantised_model_stays_near_its_own(generation: str, dtype: Any, lost: float, tmp_path):
    oracle = tiny.save_tiny(tmp_path, generation)
    loaded = load_model(tmp_path, dtype=dtype)
    assert (loaded.dtype, loaded.model.dtype) == (dtype, torch.float32)
    expected = ours(oracle, generation)
    for name, weight in weights_of(loaded.model).items():
        if name in expected:
            assert (weight - expected[name]).norm() <= lost * expected[name].norm(), name
    coarse = [m for m in loaded.model.modules() if isinstance(m, Int4Linear)]
    tower = [m for m in loaded.model.model.visual.modules() if isinstance(m, Int8Linear)]
    assert tower
    assert not any(isinstance(m, Int4Linear) for m in loaded.model.model.visual.modules())
    assert isinstance(loaded.model.lm_head, Int8Linear)
    assert bool(coarse) == (dtype == "int4" and loaded.config.decoder.hidden % 128 == 0)


# ---- what does not load ------------------------------------------------------------------------


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    tokens = tiny.tokenizer_json("qwen2_vl")
    for added in tokens["added_tokens"]:
        added["id"] += 1
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(ConfigError, match=r"<\|image_pad\|> is 278 in the tokenizer, 277 in"):
        load_model(folder)


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder: Path) -> None:
    tokens = tiny.tokenizer_json("qwen2_vl")
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False}
    tokens["added_tokens"].append({"id": 320, "content": "<|extra|>", **flags})
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(ConfigError, match=r"the tokenizer has 321 tokens.* vocab_size is 320"):
        load_model(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_no_file_may_be_a_link_out_of_the_folder(name: str, folder: Path) -> None:
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    with pytest.raises(UnsafeCheckpointError, match=f"{name} is a link that leaves"):
        load_model(folder)


def test_a_fifo_as_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(ConfigError, match=r"config\.json is not a regular file"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("model.pt", UnsafeCheckpointError, "model.pt is a pickle"),
        ("model.gguf", ModelFormatError, "'model.gguf' is a file, not a model folder"),
    ],
)
def test_a_file_is_not_a_model_folder(
    name: str, kind: type[QvlError], words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(kind) as raised:
        load_model(tmp_path / name)
    assert words in raised.value.message


def test_a_folder_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="'gone' cannot be read"):
        load_model(tmp_path / "gone")
    with pytest.raises(ModelFormatError, match=r"no config\.json"):
        load_model(tmp_path)


def test_unknown_devices_and_dtypes_are_refused(source: Path) -> None:
    for device in ("tpu9", "meta", ""):
        with pytest.raises(InvalidParamError, match=f"'{device}'"):
            load_model(source, device=device)
    with pytest.raises(InvalidParamError, match="'cuda:99' is not available"):
        load_model(source, device="cuda:99")
    with pytest.raises(InvalidParamError, match="'fp9'"):
        load_model(source, dtype="fp9")  # type: ignore[arg-type]
    with pytest.raises(InvalidParamError, match="fp8 runs on a GPU"):
        load_model(source, dtype="fp8")


def test_weights_that_cannot_fit_are_refused_before_they_are_read(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(loading, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(loading, "fill", never)
    with pytest.raises(OutOfMemoryError, match=r"GiB in fp32, 0\.00 GiB are free"):
        load_model(source)


# ---- dtype "auto" ------------------------------------------------------------------------------

GIB = 2**30


@pytest.mark.parametrize(
    ("stored", "computes_bf16", "free_bytes", "chosen"),
    [
        ("F32", True, 100 * GIB, "fp32"),
        ("F32", False, 100 * GIB, "fp32"),
        ("BF16", True, 100 * GIB, "bf16"),
        ("F16", True, 100 * GIB, "bf16"),
        ("BF16", False, 7 * GIB, "fp32"),  # 4 GiB of 7: 57 %
        ("F16", False, 7 * GIB, "fp32"),
        ("BF16", False, 6 * GIB, "bf16"),  # 4 GiB of 6: 67 %
        ("BF16", False, None, "fp32"),
        ("BF16", True, None, "bf16"),
    ],
)
def test_auto_takes_what_the_device_computes(
    stored: str, computes_bf16: bool, free_bytes: int | None, chosen: str
) -> None:
    found = choose_dtype(
        "auto",
        stored_dtype=stored,
        parameters=GIB,
        free_bytes=free_bytes,
        computes_bf16=computes_bf16,
    )
    assert found == chosen


@pytest.mark.parametrize(
    ("asked", "free_bytes", "numbers"),
    [
        ("auto", GIB, ["2.00 GiB in bf16", "1.00 GiB"]),
        ("fp32", 3 * GIB, ["4.00 GiB in fp32", "3.00 GiB"]),
    ],
)
def test_too_little_memory_names_both_numbers(
    asked: str, free_bytes: int, numbers: list[str]
) -> None:
    with pytest.raises(OutOfMemoryError) as raised:
        choose_dtype(
            asked, stored_dtype="BF16", parameters=GIB, free_bytes=free_bytes, computes_bf16=True
        )
    assert all(number in raised.value.message for number in numbers)
    assert raised.value.exit_code == 9
