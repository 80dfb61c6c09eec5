"""`--adapter`: of the tasks and of the models' commands; what it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command import Run
from low_rank import random_adapter
from qvl.cli.model import named_adapters
from qvl.errors import UsageError
from qvl.loading.adapter import write_adapter
from qvl.loading.model import load_model
from qvl.vlm.chat_model import EMBEDDED_FOLDER

ROOT = Path(__file__).parents[2]
SOME = sorted((ROOT / "examples" / "pictures").glob("*.png"))[0]
ENDS = ("q_proj", "v_proj", "up_proj", "mlp.linear_fc1")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the embedded model."""
    folder = tmp_path_factory.mktemp("adapters") / "shelf"
    adapter = random_adapter(load_model(EMBEDDED_FOLDER, dtype="fp32").model, ENDS, seed=1, size=3)
    write_adapter(folder, adapter.layers, generation="qwen3_vl", base_name="sprout")
    return folder


def described(qvl: Run, *flags: object) -> dict:
    ended = qvl("describe", SOME, "--json", "-n", 12, *flags)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_every_answer_of_a_command_is_the_adapters(qvl: Run, shelf: Path) -> None:
    plain, named = described(qvl), described(qvl, "--adapter", shelf)
    assert (plain["meta"]["adapter"], named["meta"]["adapter"]) == ("", "shelf")
    assert named["text"] != plain["text"]
    other = described(qvl, "--adapter", f"mine={shelf}")
    assert (other["meta"]["adapter"], other["text"]) == ("mine", named["text"])
    Path("qvl.toml").write_text(f'adapter = "{shelf}"\n')
    assert described(qvl)["text"] == named["text"]


def test_merged_it_says_the_same(qvl: Run, shelf: Path) -> None:
    ended = qvl("models", "convert", "sprout", "merged", "--adapter", shelf)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("merged: merged, ")
    flags = ("--dtype", "fp32")
    named = described(qvl, "--adapter", shelf, *flags)
    assert described(qvl, "--model", "merged", *flags)["text"] == named["text"]
    ended = qvl("models", "convert", "sprout", "x", "--adapter", shelf, "--quantize", "int8")
    assert ended.code == 2
    assert "--quantize and --adapter are given together" in ended.err


def test_show_tells_what_an_adapter_is(qvl: Run, shelf: Path) -> None:
    facts = json.loads(qvl("models", "show", shelf, "--json").out)
    assert facts["kind"] == "LoRA adapter"
    assert (facts["for"], facts["rank"], facts["alpha"]) == ("sprout", 4, 3)
    assert facts["layers"] > facts["of_the_tower"] > 0


def test_what_is_no_adapter_is_one_line(qvl: Run, shelf: Path) -> None:
    for flag, code, of in (
        (EMBEDDED_FOLDER, 4, "adapter_config.json is missing"),
        ("nowhere", 4, "nowhere"),
        ("=", 2, "NAME=FOLDER"),
    ):
        ended = qvl("describe", SOME, "--adapter", flag)
        assert (ended.code, ended.out) == (code, "")
        assert of in ended.err
    remote = ("--model", "openai:m@http://127.0.0.1:9/v1")
    ended = qvl("describe", SOME, *remote, "--adapter", shelf)
    assert ended.code == 2
    assert "on its server" in ended.err


def test_names_of_folders(tmp_path: Path) -> None:
    odd = tmp_path / "rank=8"
    odd.mkdir()
    assert named_adapters([str(odd), "b=c/d"]) == {"rank=8": str(odd), "b": "c/d"}
    assert named_adapters(["c/d/"]) == {"d": "c/d/"}
    with pytest.raises(UsageError, match="two adapters are called 'd'"):
        named_adapters(["c/d", "d=e"])
