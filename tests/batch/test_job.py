"""What a run's answers depend on is told by its job, and nothing else is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qvl.batch.asked import Asked
from qvl.batch.guards import Guards
from qvl.batch.job import Job
from qvl.errors import RunChangedError
from qvl.runs import identity
from qvl.runs.run import Run
from qvl.vlm.chat_model import EMBEDDED_FOLDER
from scripted import Scripted

INFO = Scripted("x").info
ASKED = Asked(
    task="describe",
    options={"style": "plain"},
    seed=1,
    guards=Guards(forbidden=("лучш*",), profile="ozon"),
)


def test_a_job_is_the_one_that_its_run_was_begun_with() -> None:
    job = Job(asked=ASKED, model="sprout", dtype="fp32")
    assert Job.of(job.identity(INFO)) == job


def test_other_weights_end_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED_FOLDER, folder)
    job = Job(asked=ASKED, model=str(folder))
    before = job.identity(INFO)
    with Run.create(tmp_path / "run", before, []):
        pass
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (changed,) = identity.changes(before, job.identity(INFO))
    assert changed[0] == "model.files.model.safetensors"
    with pytest.raises(RunChangedError, match=r"model\.safetensors"):
        Run.open(tmp_path / "run", job.identity(INFO))


def test_another_device_is_told_and_no_reason() -> None:
    cpu, gpu = Job(asked=ASKED, model="sprout"), Job(asked=ASKED, model="sprout", device="cuda")
    assert cpu.identity(INFO) == gpu.identity(INFO)
    assert cpu.environment(INFO)["device"] == INFO.device
