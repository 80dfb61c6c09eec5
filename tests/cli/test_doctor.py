"""`qvl doctor`: each line tells what is there, and each gap comes with what to do."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from qvl.cli import doctor
from qvl.cli.doctor import EMBEDDED_FILES, GIB, Check, diagnose
from qvl.loading.catalogue import CATALOGUE

HUB_VARIABLES = (
    "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "HF_TOKEN",
    "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "HTTP_PROXY", "http_proxy",
    "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch):
    for name in HUB_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch):
    """Sets what the machine seems to have free, in GiB; no graphics card."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def set_memory(available_gib: float) -> None:
        sizes = (64 * GIB, int(available_gib * GIB))
        monkeypatch.setattr(doctor, "memory_bytes", lambda: sizes)

    return set_memory


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(doctor.doctor)
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout


def checks(*found: Check):
    return lambda *, online: list(found)


def test_this_machine_is_described_without_a_socket(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    found = diagnose()
    assert len({check.name for check in found}) == len(found) == 14
    assert all(check.found for check in found)
    assert all(check.advice for check in found if check.status != "ok")


def test_a_missing_part_ends_with_4_and_a_warning_with_0(monkeypatch: pytest.MonkeyPatch):
    warning = Check("memory", "warn", "1 GiB", "buy more")
    monkeypatch.setattr(doctor, "diagnose", checks(warning))
    assert run() == (0, "warn    memory          1 GiB\n                        -> buy more\n")
    monkeypatch.setattr(doctor, "diagnose", checks(warning, Check("torch", "missing", "x")))
    assert run()[0] == 4


def test_json_is_one_object_a_line(monkeypatch: pytest.MonkeyPatch):
    found = [Check("memory", "ok", "много"), Check("torch", "missing", "x", "y")]
    monkeypatch.setattr(doctor, "diagnose", checks(*found))
    code, output = run("--json")
    assert code == 4
    assert [json.loads(line) for line in output.splitlines()] == [
        {"id": "memory", "text": "много", "status": "ok", "advice": ""},
        {"id": "torch", "text": "x", "status": "missing", "advice": "y"},
    ]


def test_torch_that_does_not_load_is_said_by_every_line_that_needs_it(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = {check.name: check for check in diagnose()}
    assert found["torch"].status == "missing"
    assert found["graphics card"].status == "warn"


def test_what_runs_follows_the_free_memory(memory):
    memory(1)
    assert doctor.check_memory().status == "warn"
    nothing = doctor.check_models_that_fit()
    assert nothing.status == "warn"
    assert "needs 5.5 GiB free" in nothing.found
    memory(6)
    assert doctor.check_memory().status == "ok"
    assert doctor.check_models_that_fit().found == (
        "sprout; in bf16 Qwen2-VL-2B, Qwen3-VL-2B; in fp32 none of them"
    )
    memory(10)
    assert doctor.check_models_that_fit().found.endswith("; in fp32 Qwen2-VL-2B, Qwen3-VL-2B")


def test_only_models_stored_in_bf16_are_promised(memory):
    memory(10_000)
    promised = doctor.check_models_that_fit().found
    for row in CATALOGUE:
        if "bf16" not in row.weights_as_gib:
            continue
        size = re.sub("-(Instruct|Thinking|Chat)$", "", row.hub_id.split("/")[1])
        assert size in re.split("[;, ]+", promised)
    assert not re.search("AWQ|GPTQ|FP8", promised)


def test_a_graphics_card_counts_with_its_own_memory(memory, monkeypatch: pytest.MonkeyPatch):
    memory(100)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda index: ((4 + 2 * index) * GIB, 8 * GIB))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: f"Card {index}")
    assert doctor.check_graphics().found == (
        "cuda:0 Card 0, 4.0 GiB of 8.0 GiB free; cuda:1 Card 1, 6.0 GiB of 8.0 GiB free"
    )
    assert "in bf16 Qwen2-VL-2B, Qwen3-VL-2B;" in doctor.check_models_that_fit().found


def test_an_incomplete_embedded_model_is_missing(tmp_path: Path):
    for name in EMBEDDED_FILES[:-1]:
        (tmp_path / name).write_text("{}")
    absent = doctor.check_embedded_model(tmp_path)
    assert (absent.status, absent.found) == ("missing", f"sprout has no {EMBEDDED_FILES[-1]}")
    (tmp_path / EMBEDDED_FILES[-1]).write_bytes(bytes(2_000_000))
    assert doctor.check_embedded_model(tmp_path) == Check("embedded model", "ok", "sprout, 2 MB")


def test_cached_models_are_named_as_people_name_them(tmp_path: Path):
    (tmp_path / "models--Qwen--Qwen3-VL-2B-Instruct").mkdir()
    (tmp_path / "datasets--some--thing").mkdir()
    found = doctor.check_model_cache(tmp_path).found
    assert found.startswith(f"{tmp_path}: Qwen/Qwen3-VL-2B-Instruct; ")
    assert "no models yet" in doctor.check_model_cache(tmp_path / "absent" / "hub").found


def test_a_small_or_read_only_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=GIB))
    assert doctor.check_model_cache(tmp_path).status == "warn"
    assert doctor.check_folder(tmp_path).status == "ok"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for check in (doctor.check_model_cache(tmp_path), doctor.check_folder(tmp_path)):
        assert check.status == "warn"
        assert "not writable" in check.found


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HF_HOME": "/models"},
        {"HF_HOME": "~/models"},
        {"XDG_CACHE_HOME": "/var/cache"},
        {"HF_HOME": "/models", "XDG_CACHE_HOME": "/var/cache", "HF_HUB_CACHE": "$HOME/hub"},
        {"HUGGINGFACE_HUB_CACHE": "/old"},
    ],
)
def test_the_cache_is_where_the_hub_library_puts_it(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert str(doctor.hub_cache()) == result.stdout.strip()


def test_a_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert doctor.check_hub(online=False).found.endswith("; HF_TOKEN is set")


def test_offline_beats_online(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert doctor.check_hub(online=True).found.startswith("offline by HF_HUB_OFFLINE")


def test_online_connects_to_the_hub(listener: socket.socket, monkeypatch: pytest.MonkeyPatch):
    port = listener.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert doctor.check_hub(online=True).status == "ok"
    listener.close()
    refused = doctor.check_hub(online=True)
    assert refused.status == "warn"
    assert refused.found.startswith("127.0.0.1 does not answer: ")


def test_online_connects_to_the_proxy_where_one_is_set(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
):
    port = listener.getsockname()[1]
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("https_proxy", f"http://name:secret@127.0.0.1:{port}")
    found = doctor.check_hub(online=True)
    assert (found.status, found.found) == ("ok", "127.0.0.1 answers; HF_TOKEN is not set")


def test_a_locale_without_utf_8_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("locale.getencoding", lambda: "KOI8-R")
    assert doctor.check_encoding().status == "warn"
    monkeypatch.setattr("locale.getencoding", lambda: "utf-8")
    assert doctor.check_encoding() == Check("text", "ok", "UTF-8")


def test_an_old_pillow_says_what_protects_from_its_faults(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("PIL.__version__", "12.3.0")
    assert "process of their own" in doctor.check_pillow().found
    monkeypatch.setattr("PIL.__version__", "13.0.0")
    assert doctor.check_pillow() == Check("Pillow", "ok", "13.0.0")


def test_a_pillow_without_avif_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("PIL.features.check", lambda name: name != "avif")
    assert doctor.check_picture_formats().status == "warn"
