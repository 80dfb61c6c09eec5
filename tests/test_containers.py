"""Dockerfile and compose.yaml: no engine runs here, so they are linted, read, and held against the package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent))
PINNED = re.compile(r"\S+:v?\d+\.\d+\.\d+\S*")
SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)\b", re.IGNORECASE)


def instructions() -> list[tuple[str, str]]:
    """(name, arguments) of each, lines that go on joined, comments left out."""
    lines = (line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    whole = "\n".join(lines).replace("\\\n", " ")
    return [(n, rest) for n, _, rest in (line.partition(" ") for line in whole.splitlines()) if n]


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Name -> what the stage is made from, and its instructions."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for name, rest in instructions():
        if name == "FROM":
            base, stage = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
            found[stage] = (base, [])
        else:
            list(found.values())[-1][1].append((name, rest))
    return found


def chain(stage: str) -> list[tuple[str, str]]:
    """The instructions of a stage and of those that it is made from, first to last."""
    known = stages()
    base, own = known[stage]
    return [*(chain(base) if base in known else []), *own]


@pytest.mark.skipif(HADOLINT is None, reason="hadolint has no wheel for this machine")
def test_hadolint_has_nothing_to_say() -> None:
    assert HADOLINT is not None
    done = subprocess.run(
        [HADOLINT, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True
    )
    assert done.stdout == ""
    assert done.returncode == 0


def test_everything_from_outside_is_pinned() -> None:
    bases = [base for base, _ in stages().values() if base not in stages()]
    images = [one["image"] for one in COMPOSE["services"].values() if "build" not in one]
    assert bases
    assert images
    assert all(PINNED.fullmatch(image) for image in [*bases, *images])


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_a_target_runs_as_nobody_in_particular_and_says_how_it_is(stage: str) -> None:
    done = chain(stage)
    (user,) = [rest for name, rest in done if name == "USER"]
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    assert any(name == "HEALTHCHECK" and "/livez" in rest for name, rest in done)
    assert ("ENTRYPOINT", '["qvl"]') in done
    last, copied = done[-1]
    assert (last, copied) == ("COPY", f"--from=build-{stage} /opt/qvl /opt/qvl")


def test_what_is_installed_is_what_the_project_says() -> None:
    torch = next(one for one in PROJECT["dependencies"] if one.startswith("torch"))
    assert f'"{torch}"' in DOCKERFILE
    installed = re.findall(r'"qvl\[([a-z,]+)\] @ file:///src"', DOCKERFILE)
    assert len(installed) == 2
    for extras in installed:
        assert set(extras.split(",")) == set(PROJECT["optional-dependencies"]) - {
            "clients",
            "dev",
            "evals",
            "ray",  # a cluster has images of its own, with the Ray of the cluster
            "training",
        }


def test_what_is_copied_is_let_in_and_nothing_else() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    copied = [
        rest.split()[:-1] for name, rest in instructions() if name == "COPY" and "--" not in rest
    ]
    assert {name.removeprefix("./") for names in copied for name in names} == let_in
    assert (ROOT / ".dockerignore").read_text().startswith("*\n")
    assert all((ROOT / name).exists() for name in let_in)


def test_no_secret_is_written_down() -> None:
    for name, rest in instructions():
        assert name not in ("ENV", "ARG") or not SECRET.search(rest)
    for service in COMPOSE["services"].values():
        assert not any(SECRET.search(str(one)) for one in service.get("environment", ()))
    assert COMPOSE["secrets"] == {"keys": {"file": "./keys"}}


def test_only_this_machine_reaches_the_services() -> None:
    for name, service in COMPOSE["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        if "build" in service:
            assert service["build"]["target"] in stages()
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
            assert "--api-key-file=/run/secrets/keys" in service["command"]
        else:
            assert "healthcheck" in service
            assert "ports" not in service


def test_the_commands_of_our_services_have_flags_that_there_are() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "qvl", "serve", "--help"], capture_output=True, text=True, check=True
    ).stdout
    ours = [one["command"] for one in COMPOSE["services"].values() if "build" in one]
    assert all(command[0] == "serve" for command in ours)
    assert all(flag.split("=")[0] in told for command in ours for flag in command[1:])
