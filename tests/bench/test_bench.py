"""`qvl bench` end to end on the embedded model, and its peer on the same requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from qvl.bench import report
from qvl.bench.limits import Limits
from qvl.bench.peer_transformers import batched, run_transformers
from qvl.bench.work import Timed, asked, run_ours
from qvl.cli.main import made
from qvl.processing.prompt import build_prompt
from qvl.vlm.chat_model import EMBEDDED_FOLDER
from qvl.vlm.local import LocalModel


@pytest.fixture(scope="module")
def sprout() -> LocalModel:
    return LocalModel(dtype="fp32")


def test_the_table_has_a_line_for_each_workload(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["bench", "--new-tokens", "2", "--repeat", "1", "--batch", "1,2"]
    done = CliRunner().invoke(made(["bench"]), command)
    assert done.exit_code == 0, done.output
    assert "| one request |" in done.stdout
    assert "| 2 at once |" in done.stdout
    assert "times sooner" in done.stdout
    done = CliRunner().invoke(made(["bench"]), [*command, "--json"])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["id"] for row in rows] == ["one request", "2 at once"]
    assert [row["ours"][0]["requests"] for row in rows] == [1, 2]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--against", "nobody"], "'nobody' is not known"),
        (["--against", "openai:localhost"], "has no address"),
        (["--batch", "1,x"], "no list of numbers"),
        (["--batch", "0"], "no list of numbers"),
        (["--batch", ""], "no list of numbers"),
    ],
)
def test_a_wrong_flag_is_said_before_anything_is_loaded(flags: list[str], said: str) -> None:
    done = CliRunner().invoke(made(["bench"]), ["bench", *flags])
    assert said in str(done.exception)


def test_answers_are_as_long_as_asked(sprout: LocalModel) -> None:
    requests = [asked(7, sprout.end_ids) for _ in range(3)]
    for completion in sprout.generate(requests):
        assert completion.usage.completion_tokens == 7
    found = run_ours(sprout.generate)(requests)
    assert found.requests == 3
    assert 0 < found.first_token_s <= found.total_s
    assert found.tokens_s > 0


def test_the_peer_times_the_same_requests(sprout: LocalModel) -> None:
    runner = run_transformers(EMBEDDED_FOLDER, "fp32")
    found = runner([asked(5, sprout.end_ids) for _ in range(2)])
    assert found.requests == 2
    assert 0 < found.first_token_s < found.total_s
    assert found.tokens_s == pytest.approx(4 / (found.total_s - found.first_token_s))


def test_shorter_prompts_are_padded_on_the_left(sprout: LocalModel) -> None:
    loaded = sprout._loaded
    prompts = [
        build_prompt(
            asked(2, (), text=text).messages,
            tokenizer=loaded.tokenizer,
            rules=loaded.rules,
            generation=loaded.config.generation,
            image_token_id=loaded.config.image_token_id,
        )
        for text in ("What?", "What is there in this picture?")
    ]
    inputs = batched(prompts, loaded.config.image_token_id)
    short = len(prompts[0].ids)
    assert inputs["input_ids"][0, -short:].tolist() == prompts[0].ids.tolist()
    assert inputs["attention_mask"].sum(1).tolist() == [len(p.ids) for p in prompts]
    assert torch.equal(
        inputs["attention_mask"][0, :-short], torch.zeros(len(prompts[1].ids) - short)
    )


def test_ratios_are_of_medians_and_over_one_when_we_are_faster() -> None:
    ours = (Timed(1, 9, 1.0, 10.0, 4.0), Timed(1, 9, 3.0, 30.0, 6.0), Timed(1, 9, 2.0, 20.0, 5.0))
    peer = tuple(Timed(1, 8, t.first_token_s * 4, t.tokens_s / 2, t.total_s * 3) for t in ours)
    row = report.Row("one request", ours, peer)
    lines = list(report.markdown([row], Limits(1e9, 1e9), 10**7, "other"))
    assert lines[-1] == "A prompt has 9 tokens, most of them the picture's; 8 with other."
    cells = [cell.strip() for cell in lines[-3].split("|")[1:-1]]
    assert cells == [
        "one request", "2.00 (1.00-3.00)", "20.00 (10.00-30.00)", "0.200 (0.167-0.250)", "20%",
        "4.00", "2.00", "3.00",
    ]  # fmt: skip
