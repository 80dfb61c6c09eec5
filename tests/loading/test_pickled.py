"""`qvl models convert` of the first Qwen-VL: pickles are read apart, and what is no weights is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

import qvl.loading.pickled
import tiny
from command import Run
from qvl.errors import InvalidParamError, ModelFormatError, QvlError, UnsafeCheckpointError
from qvl.loading.model import load_model
from qvl.loading.pickle_worker import is_plain
from qvl.loading.pickled import convert_pickled
from tiny_v1 import save_published

FIRST = "pytorch_model-00001-of-00002.bin"
INDEX = "pytorch_model.bin.index.json"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_converted_folder_has_the_same_tensors_and_says_where_from(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    published, target = tmp_path / "published", tmp_path / "converted"
    tensors = save_published(published, dtype=dtype)
    size_bytes = convert_pickled(published, target)
    assert size_bytes == sum(f.stat().st_size for f in target.glob("*.safetensors"))
    loaded = load_model(target, dtype="fp32")
    ours = dict(loaded.model.named_parameters())
    assert loaded.parameters == sum(tensor.numel() for tensor in tensors.values())
    fused = tensors["transformer.h.1.attn.c_attn.weight"].float()
    attention = "model.language_model.layers.1.self_attn"
    parts = [ours[f"{attention}.{n}_proj.weight"].data for n in "qkv"]
    assert torch.equal(torch.cat(parts), fused)
    gate = ours["model.language_model.layers.0.mlp.gate_proj.weight"]
    assert torch.equal(gate, tensors["transformer.h.0.mlp.w2.weight"].float())
    proj = ours["model.visual.proj"]
    assert torch.equal(proj, tensors["transformer.visual.proj"].float())
    sources = json.loads((target / "converted.json").read_text())["from"]
    for name, digest in sources.items():
        assert digest == hashlib.sha256((published / name).read_bytes()).hexdigest()
    assert {FIRST, "qwen.tiktoken", "config.json", INDEX} <= sources.keys()
    assert not list(target.glob("*.bin"))


def test_a_single_file_and_an_ordered_dict_will_do(tmp_path: Path) -> None:
    tensors = save_published(tmp_path / "one")
    for path in (tmp_path / "one").glob("pytorch_model*"):
        path.unlink()
    torch.save(OrderedDict(tensors), tmp_path / "one" / "pytorch_model.bin")
    convert_pickled(tmp_path / "one", tmp_path / "converted")
    load_model(tmp_path / "converted")


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def save(value: object, path: Path) -> None:
    torch.save(value, path)


def save_plain(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("how", [save, save_plain])
def test_a_pickle_that_would_run_code_is_refused_and_its_code_is_not_run(
    how, tmp_path: Path
) -> None:
    mark = tmp_path / "was run"
    tensors = save_published(tmp_path / "published")
    how({**tensors, "transformer.bomb": Bomb(mark)}, tmp_path / "published" / FIRST)
    if how is save:  # the file is as dangerous as it is meant to be
        torch.load(tmp_path / "published" / FIRST, weights_only=False)
        assert mark.is_dir()
        mark.rmdir()
    with pytest.raises(UnsafeCheckpointError, match=FIRST):
        convert_pickled(tmp_path / "published", tmp_path / "out")
    assert not mark.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["published"]  # nothing is left


HUGE = torch.zeros(1).expand(2**20, 2**20)  # 4 TiB, written in a few bytes


def test_only_tensors_of_weights_by_name_are_plain() -> None:
    assert is_plain({"a": torch.zeros(2), "b": torch.zeros(3, dtype=torch.bfloat16)}, 14)
    for value in (
        [torch.zeros(2)],
        {},
        {"a": 1.5},
        {"a": {"b": torch.zeros(2)}},
        {3: torch.zeros(2)},
        {"a": torch.zeros(2, dtype=torch.int64)},
        {"a": torch.zeros(2, 2).to_sparse()},
        {"a": torch.nn.Parameter(torch.zeros(2))},
        {"a": torch.zeros(2), "b": torch.zeros(3)},
    ):
        assert not is_plain(value, 14)


@pytest.mark.parametrize("value", [{"a": [torch.zeros(2)]}, {"a": HUGE}, torch.nn.Linear(2, 2)])
def test_what_is_no_plain_state_dict_is_refused(value: object, tmp_path: Path) -> None:
    save_published(tmp_path / "published")
    torch.save(value, tmp_path / "published" / FIRST)
    with pytest.raises(UnsafeCheckpointError, match="plain tensors by name"):
        convert_pickled(tmp_path / "published", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def cut(folder: Path) -> None:
    data = (folder / FIRST).read_bytes()
    (folder / FIRST).write_bytes(data[: len(data) // 2])


def leave_one_out(folder: Path) -> None:
    tensors = torch.load(folder / FIRST, weights_only=True)
    tensors.popitem()
    torch.save(tensors, folder / FIRST)


def reach_out(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": f"../{FIRST}"}}))


def another_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(tiny.config_json("qwen2_vl")))


def quantised(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "error", "why"),
    [
        (cut, UnsafeCheckpointError, FIRST),
        (leave_one_out, ModelFormatError, "1 missing"),
        (reach_out, UnsafeCheckpointError, r"\.\./"),
        (another_model, ModelFormatError, "only Qwen-VL is converted"),
        (quantised, QvlError, "awq"),
        (lambda folder: (folder / FIRST).unlink(), ModelFormatError, f"{FIRST} is missing"),
        (lambda folder: (folder / "qwen.tiktoken").unlink(), ModelFormatError, "qwen.tiktoken"),
    ],
)
def test_a_folder_that_does_not_fit_together_leaves_nothing(
    damage, error: type[QvlError], why: str, tmp_path: Path
) -> None:
    save_published(tmp_path / "published")
    damage(tmp_path / "published")
    with pytest.raises(error, match=why):
        convert_pickled(tmp_path / "published", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


def test_the_reading_process_is_killed_when_it_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_published(tmp_path / "published")
    monkeypatch.setattr(qvl.loading.pickled, "START_S", 0.001)
    monkeypatch.setattr(qvl.loading.pickled, "BYTES_A_SECOND", 10**12)
    with pytest.raises(UnsafeCheckpointError, match="reading it took more than"):
        convert_pickled(tmp_path / "published", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


def test_a_target_that_exists_stays(tmp_path: Path) -> None:
    save_published(tmp_path / "published")
    with pytest.raises(InvalidParamError, match="exists"):
        convert_pickled(tmp_path / "published", tmp_path / "published")


@pytest.fixture
def run(qvl: Run) -> Run:
    return qvl


def test_the_command_converts_and_every_other_command_names_it(run, tmp_path: Path) -> None:
    save_published(tmp_path / "published")
    picture = next(Path(__file__).parents[2].glob("examples/pictures/*.png"))
    for command in (
        ("describe", str(picture), "--model", "published"),
        ("models", "show", "published"),
        ("models", "convert", "published", "packed", "--quantize", "int8"),
    ):
        code, _, err = run(*command)
        assert code == 4
        assert "is a pickle" in err
        assert "qvl models convert FOLDER TARGET" in err
    code, out, err = run("models", "convert", "published", "converted")
    assert (code, err) == (0, "")
    assert out.startswith("converted: safetensors, ")
    assert "qwen_vl" in run("models", "show", "converted")[1]
    code, out, _ = run("describe", str(picture), "--model", "converted", "--max-new-tokens", "3")
    assert code == 0
    code, _, err = run("models", "convert", "converted", "packed", "--quantize", "int8")
    assert (code, err) == (0, "")
    assert run("describe", str(picture), "--model", "packed", "--max-new-tokens", "3")[0] == 0
