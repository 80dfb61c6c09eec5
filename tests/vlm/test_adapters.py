"""Adapters behind our own door: by name, of every dtype, beside each other and one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from low_rank import random_adapter
from oracle import picture
from qvl.api import VLM
from qvl.errors import InvalidParamError, ModelFormatError, UnknownModelError
from qvl.loading.adapter import write_adapter
from qvl.loading.model import load_model
from qvl.types import Completion, DType, Message, Request, Sampling
from qvl.vlm.local import LocalModel
from qvl.vlm.open_model import open_model
from qvl.vlm.with_adapter import WithAdapter
from tiny import save_tiny

KINDS: tuple[DType, ...] = ("fp32", "bf16", "int8", "int4")
# so that no width falls back to a finer kind, and the base takes the compiled path
ROPE = {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"}
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "rope_scaling": ROPE}
VISION = {"out_hidden_size": 128, "hidden_size": 64, "intermediate_size": 128}
LANGUAGE = ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")
NAMES = ("", "one", "two", "tower")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model, and adapters of it by name."""
    root = tmp_path_factory.mktemp("adapters")
    save_tiny(root / "model", "qwen3_vl", vision=VISION, **WIDE)
    model = load_model(root / "model", dtype="fp32").model
    adapters = {
        "one": random_adapter(model, LANGUAGE, seed=1, size=1),
        "two": random_adapter(model, ("k_proj", "up_proj", "lm_head"), seed=2, rank=5, dora=True),
        "tower": random_adapter(model, ("attn.qkv", "linear_fc1"), seed=3, size=2),
    }
    for name, adapter in adapters.items():
        write_adapter(root / name, adapter.layers, generation="qwen3_vl", base_name="tiny")
    return {name: root / name for name in ("model", *adapters)}


def opened(folders: dict[str, Path], dtype: DType = "fp32") -> LocalModel:
    adapters = {name: folder for name, folder in folders.items() if name != "model"}
    return LocalModel(str(folders["model"]), device="cpu", dtype=dtype, adapters=adapters)


def request(number: int, adapter: str = "") -> Request:
    size = ((64, 96), (128, 64), (96, 96))[number % 3]
    parts = (picture(*size, seed=number), f"what is it? {number}") if number % 4 else ("hello",)
    return Request(
        messages=(Message.user(*parts),),
        sampling=Sampling(max_new_tokens=9, temperature=1.0 if number % 2 else 0, seed=number),
        id=f"{adapter} {number}",
        adapter=adapter,
    )


@pytest.mark.parametrize("dtype", KINDS)
def test_tokens_are_the_same_alone_and_beside_other_adapters(folders, dtype) -> None:
    requests = [request(number, name) for number in range(4) for name in NAMES]
    together = {c.id: c for c in opened(folders, dtype).generate(requests)}
    single = opened(folders, dtype)
    for asked in requests:
        (alone,) = single.generate([asked])
        assert alone.token_ids == together[asked.id].token_ids
        assert alone.confidence == pytest.approx(together[asked.id].confidence, rel=1e-6)
        assert alone.provenance.adapter == asked.adapter
    for name in NAMES[1:]:
        said = [together[f"{name} {n}"].token_ids != together[f" {n}"].token_ids for n in range(4)]
        assert any(said), name


def test_only_the_named_adapter_answers_and_the_base_stays(folders) -> None:
    bare = LocalModel(str(folders["model"]), device="cpu", dtype="fp32")
    (plain,) = bare.generate([request(1)])
    model = opened(folders)
    assert model.generate([request(1)])[0].token_ids == plain.token_ids
    assert model.adapters == ("one", "two", "tower")
    with pytest.raises(UnknownModelError, match="no adapter 'tow'") as told:
        model.generate([request(1, "tow")])
    assert told.value.hint is not None
    assert "'tower'" in told.value.hint or "'two'" in told.value.hint
    with pytest.raises(UnknownModelError, match="no adapter 'one'"):
        next(bare.stream(request(1, "one")))


def test_another_adapter_takes_a_name_and_a_removed_one_is_gone(folders) -> None:
    model = opened(folders)
    (one,) = model.generate([request(1, "one")])
    (two,) = model.generate([request(1, "two")])
    model.add_adapter("one", folders["two"])
    (other,) = model.generate([request(1, "one")])
    assert other.token_ids == two.token_ids != one.token_ids
    model.remove_adapter("two")
    with pytest.raises(UnknownModelError, match="no adapter 'two'"):
        model.generate([request(1, "two")])
    with pytest.raises(UnknownModelError):
        model.remove_adapter("two")
    for name in ("", "a\nb"):
        with pytest.raises(InvalidParamError):
            model.add_adapter(name, folders["two"])


def test_a_stream_and_tasks_use_it_too(folders) -> None:
    vlm = VLM(str(folders["model"]), device="cpu", dtype="fp32", adapters={"one": folders["one"]})
    (whole,) = vlm.generate([request(2, "one")])
    *_, last = vlm.stream(request(2, "one"))
    assert last.completion is not None
    assert last.completion.token_ids == whole.token_ids
    using = vlm.using("one")
    assert using.generate([request(2)])[0].token_ids == whole.token_ids
    (result,) = using.results([request(2)])
    assert isinstance(result, Completion)
    assert result.token_ids == whole.token_ids
    *_, last = using.stream(request(2))
    assert last.completion is not None
    assert last.completion.token_ids == whole.token_ids
    shown = picture(64, 64, seed=5)
    for asked, name in ((using, "one"), (vlm, "")):
        completions = asked.ask(shown, question="what is it?").completions
        assert {told.provenance.adapter for told in completions} == {name}
    assert isinstance(using.model, WithAdapter)


def test_a_folder_that_is_no_adapter_is_refused_when_the_model_is_opened(folders, tmp_path) -> None:
    for folder in (folders["model"], tmp_path, tmp_path / "nothing"):
        with pytest.raises(ModelFormatError):
            LocalModel(str(folders["model"]), device="cpu", adapters={"x": folder})


def test_a_remote_model_has_none(folders) -> None:
    with pytest.raises(InvalidParamError, match="adapters of a remote model are on its server"):
        open_model("openai:m@http://127.0.0.1:9/v1", adapters={"one": folders["one"]})
