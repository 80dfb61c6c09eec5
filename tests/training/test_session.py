"""A run from data to a checkpoint: what it learns, how it goes on, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import oracle
import tiny
from qvl.errors import (
    InputError,
    InvalidParamError,
    OutOfMemoryError,
    RunChangedError,
    RunLockedError,
)
from qvl.loading.adapted import adapted
from qvl.loading.adapter import read_adapter
from qvl.loading.merged import convert_merged
from qvl.loading.model import load_model
from qvl.models.qwen_vl import QwenVL
from qvl.training import session
from qvl.training.data import Share
from qvl.training.passes import Loss
from qvl.training.report import read_log
from qvl.training.run import opened_run
from qvl.training.session import Wish, fit, prepare
from qvl.training.trainable import load_base, make_trainable

WORDS = ("hello", "the end", "three of them", "on the table")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.save_tiny(folder, "qwen3_vl")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows about five pictures."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(5):
        image = oracle.picture(56 + 28 * number, 84, seed=number)
        assert isinstance(image.source, bytes)
        (folder / f"{number}.png").write_bytes(image.source)
    lines = []
    for number in range(12):
        asked = [{"image": f"{number % 5}.png"}, {"text": f"what is {number // 5}?"}]
        answer = WORDS[number % len(WORDS)]
        messages = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answer},
        ]
        lines.append(json.dumps({"messages": messages}))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "data.jsonl"


@pytest.fixture
def wish(checkpoint: Path, data: Path, tmp_path: Path) -> Wish:
    return Wish(
        data=(data,),
        model="tiny",
        folder=checkpoint,
        out=tmp_path / "run",
        method="full",
        dtype="fp32",
        steps=12,
        batch=4,
        tokens=256,
        rate=3e-3,
        save_every=4,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "state.safetensors")


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def stop_after(steps: int) -> dict[str, Any]:
    """Arguments of `fit` that end it as Ctrl-C does."""
    done: list[int] = []
    return {"told": lambda line: done.append(line["step"]), "stopping": lambda: len(done) >= steps}


def test_a_run_learns_and_gives_a_checkpoint(wish: Wish) -> None:
    long = replace(wish, steps=60)
    prepared = prepare(long)
    assert "12 rows" in prepared.summary()
    target = fit(prepared)
    log = read_log(wish.out)
    assert [line["step"] for line in log] == list(range(1, 61))
    first, last = (sum(line["loss"] for line in part) / 5 for part in (log[:5], log[-5:]))
    assert last < 0.3 * first
    assert target is not None
    loaded = load_model(target, dtype="fp32")
    trained = load_file(wish.out / "state.safetensors")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    kept = dict(loaded.model.named_parameters())[name]
    assert (kept - trained[name]).abs().max() < 0.01 * trained[name].abs().max()  # bf16
    page = (wish.out / "report.html").read_text("utf-8")
    assert page.count("<polyline") == 2
    assert "http" not in page.replace("http-equiv", "")


def test_stopped_and_gone_on_is_never_stopped(wish: Wish, tmp_path: Path) -> None:
    fit(prepare(wish))
    parts = replace(wish, out=tmp_path / "parts")
    assert fit(prepare(parts), **stop_after(3)) is None
    assert fit(prepare(parts), **stop_after(5)) is None
    assert fit(prepare(parts)) is not None
    assert same(weights(wish.out), weights(parts.out))
    losses = [[line["loss"] for line in read_log(folder)] for folder in (wish.out, parts.out)]
    assert losses[0] == losses[1]


def test_killed_and_gone_on_is_never_stopped(wish: Wish, tmp_path: Path) -> None:
    """Killed by the system between two saves, twice."""
    fit(prepare(wish))
    killed = replace(wish, out=tmp_path / "killed")
    script = (
        "import sys, time; from pathlib import Path; from qvl.training.session import *\n"
        f"wish = {killed!r}\n".replace("PosixPath", "Path")
        + "fit(prepare(wish), told=lambda line: (print(line['step'], flush=True), time.sleep(0.05)))"
    )
    for until in (6, 10):
        command = [sys.executable, "-c", script]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) == until:
                    os.kill(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    fit(prepare(killed))
    assert same(weights(wish.out), weights(killed.out))


def test_the_size_of_passes_changes_nothing_but_memory(wish: Wish, tmp_path: Path) -> None:
    prepared = prepare(wish)
    longest = max(unit.tokens for unit in prepared.order.units)
    small = prepare(replace(wish, out=tmp_path / "small", tokens=longest))
    assert small.order.units == prepared.order.units
    assert len(next(small.order.steps(0))) > len(next(prepared.order.steps(0)))
    fit(prepared)
    fit(small)
    for one, other in zip(read_log(wish.out), read_log(tmp_path / "small"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_the_best_weights_are_kept_and_a_stale_run_ends(wish: Wish) -> None:
    stale = replace(wish, steps=200, rate=0.3, eval_share=0.3, eval_every=2, patience=3)
    target = fit(prepare(stale))
    assert target is not None
    log = read_log(wish.out)
    evaluated = {line["step"]: line["eval_loss"] for line in log if "eval_loss" in line}
    best = min(evaluated, key=evaluated.__getitem__)
    assert len(log) < 200
    assert log[-1]["step"] - max(s for s, line in enumerate(log, 1) if line.get("best")) >= 6
    kept = json.loads(json.dumps(evaluated[best]))
    assert kept == min(evaluated.values())
    name = "model.language_model.norm.weight"
    model = dict(load_model(target, dtype="fp32").model.named_parameters())
    last, lowest = weights(wish.out)[name], load_file(wish.out / "best.safetensors")[name]
    assert torch.allclose(model[name], lowest, rtol=0.01, atol=0)
    assert not torch.allclose(model[name], last, rtol=0.01, atol=0)


def test_rows_held_back_share_no_picture_with_those_learnt(wish: Wish) -> None:
    prepared = prepare(replace(wish, eval_share=0.4))
    learnt = {n for unit in prepared.order.units for n in unit.rows}
    held = {n for share in prepared.held_back for unit in share.units for n in unit.rows}
    assert learnt | held == set(range(12))
    assert not {n % 5 for n in learnt} & {n % 5 for n in held}


def test_bad_rows_are_listed_before_the_first_step(wish: Wish, data: Path, tmp_path: Path) -> None:
    good = data.read_text("utf-8").splitlines()[0].replace('"0.png"', f'"{data.parent}/0.png"')
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nrest")
    file = tmp_path / "some.jsonl"
    bad = [good.replace(f"{data.parent}/0.png", str(broken)), good.replace("0.png", "9.png"), "{"]
    file.write_text("\n".join([good, *bad, good]) + "\n", encoding="utf-8")
    ours = replace(wish, data=(file,))
    with pytest.raises(InputError) as caught:
        prepare(ours)
    assert not wish.out.exists()
    assert "3 rows cannot" in caught.value.message
    assert all(f"some.jsonl:{number}" in caught.value.message for number in (2, 3, 4))
    prepared = prepare(replace(ours, skip_bad=True))
    assert [problem.name for problem in prepared.problems] == [
        f"some.jsonl:{number}" for number in (4, 2, 3)
    ]
    assert sum(len(unit.rows) for unit in prepared.order.units) == 2


def test_a_row_too_long_for_a_pass_is_named(wish: Wish) -> None:
    with pytest.raises(InputError, match="at most 20 fit a pass"):
        prepare(replace(wish, tokens=20))


def test_another_recipe_and_another_process_are_refused(wish: Wish) -> None:
    fit(prepare(wish), **stop_after(1))
    with pytest.raises(RunChangedError, match=r"begun with rate 0\.003, now it is 0\.1"):
        fit(prepare(replace(wish, rate=0.1)))
    with opened_run(wish.out, prepare(wish).recipe), pytest.raises(RunLockedError):
        fit(prepare(wish))


def test_too_little_memory_is_told_before_the_start(
    wish: Wish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "free_bytes", lambda device: 1 << 20)
    with pytest.raises(OutOfMemoryError, match="GiB are free"):
        prepare(wish)


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 0},
        {"batch": 0},
        {"eval_share": 1.0},
        {"method": "full", "dtype": "int4"},
        {"sections": ("tower",), "method": "full", "dtype": "int8"},
    ],
)
def test_wishes_that_cannot_be(wish: Wish, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidParamError):
        prepare(replace(wish, **change))
    assert not wish.out.exists()


def test_a_rate_too_high_ends_the_run_and_keeps_what_was_saved(wish: Wish) -> None:
    with pytest.raises(InvalidParamError, match="the loss of step 2 is"):
        fit(prepare(replace(wish, rate=1e30, save_every=1)))
    assert [line["step"] for line in read_log(wish.out)] == [1]
    assert (wish.out / "state.safetensors").exists()


def test_only_the_named_parts_change(wish: Wish, checkpoint: Path) -> None:
    target = fit(prepare(replace(wish, sections=("merger",), steps=2)))
    assert target is not None
    before, after = (load_file(f / "model.safetensors") for f in (checkpoint, target))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".merger." in name or "deepstack_merger" in name for name in changed)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapter_says_elsewhere_what_it_learnt_here(wish: Wish, method: Any) -> None:
    """Trained, saved, read again onto the model: the same losses; merged into a checkpoint, too."""
    ours = replace(wish, method=method, sections=("decoder", "tower"), steps=30, rank=4)
    prepared = prepare(ours)
    target = fit(prepared)
    assert target is not None
    assert target == wish.out / "adapter"
    loaded = load_model(wish.folder, dtype="fp32")
    adapter = read_adapter(target, loaded.config)
    convert_merged(wish.folder, wish.out / "merged", target)
    merged = load_model(wish.out / "merged", dtype="fp32")
    passages = [prepared.reader.passage(Share((unit,))) for unit in prepared.order.units]

    def mean(model: QwenVL) -> float:
        with torch.no_grad():
            whole = sum(Loss(model)(passage).item() for passage in passages)
        return whole / sum(len(passage.targets) for passage in passages)

    before, after = mean(loaded.model), mean(adapted(loaded.model, adapter))
    assert after < before - 1
    trained = load_base(wish.folder, loaded.config, "fp32", torch.device("cpu"))
    make_trainable(trained, method, ours.sections, rank=4, alpha=8)
    state = load_file(wish.out / "state.safetensors")
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(state[name])
    trained.requires_grad_(False)  # so that both compute pictures one by one
    assert after == pytest.approx(mean(trained), rel=1e-4)
    assert after == pytest.approx(mean(merged.model), rel=0.05)  # rounded to the checkpoint's bf16


def by_command(wish: Wish, out: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    flags = {
        "--model": wish.folder,
        "--out": out,
        "--method": wish.method,
        "--dtype": wish.dtype,
        "--steps": wish.steps,
        "--batch": wish.batch,
        "--tokens": wish.tokens,
        "--rate": wish.rate,
        "--save-every": wish.save_every,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    command = [sys.executable, "-m", "qvl", "train", str(wish.data[0]), *words, *more]
    environ = os.environ | environment
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
    )


def test_the_command(wish: Wish, tmp_path: Path) -> None:
    out = tmp_path / "by-command"
    with by_command(wish, out, "--plan") as process:
        _, told = process.communicate()
    assert "12 steps of 4 rows" in told
    assert not out.exists()
    with by_command(wish, out) as process:
        while not (out / "log.jsonl").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode in (0, 130)  # 0 where it was quicker than the signal
    if process.returncode:
        assert "the same command goes on" in told
    with by_command(wish, out) as process:
        found, _ = process.communicate()
    assert found.strip() == str(out / "model")
    fit(prepare(wish))
    assert same(weights(out), weights(wish.out))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_processes_are_one(wish: Wish, tmp_path: Path, method: Any) -> None:
    """Through PyTorch's FSDP2 and gloo, as torchrun starts them."""
    wish = replace(wish, method=method, tokens=64, rank=4)
    fit(prepare(wish))
    out = tmp_path / "two"
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    both = [
        by_command(wish, out, "--rank", "4", RANK=str(number), LOCAL_RANK=str(number), **shared)
        for number in range(2)
    ]
    told = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert told[0][0].strip() == str(out / ("model" if method == "full" else "adapter"))
    assert told[1] == ("", "")
    for one, other in zip(read_log(wish.out), read_log(out), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-3)
        assert one["said"] == other["said"]
    alone, together = weights(wish.out), weights(out)
    assert alone.keys() == together.keys()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
