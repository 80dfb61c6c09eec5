"""What the shell and the system around a command may do to it: it ends as it should, and tells no secret.

The ids are those of the table of bad inputs. Each command is a process of its own, as a person starts it.
"""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import pytest

from telling_nothing import leaks

PICTURE = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.png"))[0]
QVL = [sys.executable, "-m", "qvl"]
SHORT = ["--max-new-tokens", "8"]


def command(
    *args: str,
    folder: Path,
    program: list[str] | None = None,
    stdout: int | IO[bytes] = subprocess.PIPE,
    around: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """In that folder, with the variables of `around` changed; "" takes one away."""
    place = {**os.environ, "XDG_CONFIG_HOME": str(folder), "XDG_STATE_HOME": str(folder)}
    place |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    place |= around or {}
    done = subprocess.run(
        [*(program or QVL), *args],
        cwd=folder,
        env={name: value for name, value in place.items() if value},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=100,
    )
    assert leaks(done.stderr.decode()) == []
    return done


def test_a_reader_that_stops_early_ends_it_quietly(tmp_path: Path) -> None:
    """K002: as `qvl prompts list | head -1` does, with a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        done = command("models", "list", folder=tmp_path, stdout=nobody)
    assert done.returncode == 141
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("args", "code"), [(["describe"], 2), (["describe", "-"], 4), (["chat"], 0), ([], 2)]
)
def test_without_input_it_ends(args: list[str], code: int, tmp_path: Path) -> None:
    """K003: stdin is no terminal and holds nothing."""
    done = command(*args, folder=tmp_path)
    assert done.returncode == code
    assert code == 0 or done.stderr or done.stdout


def test_another_encoding_costs_no_letter(tmp_path: Path) -> None:
    """K004."""
    around = {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": ""}
    done = command("describe", str(PICTURE), "--language", "ru", folder=tmp_path, around=around)
    assert done.returncode == 0
    assert any("а" <= letter <= "я" for letter in done.stdout.decode())


@pytest.mark.parametrize(
    "around", [{"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "20"}, {"FORCE_COLOR": "1"}]
)
def test_what_goes_into_a_pipe_is_plain(around: dict[str, str], tmp_path: Path) -> None:
    """K005."""
    told = [
        command("prompts", "show", "describe", folder=tmp_path, around=around),
        command("describe", "--help", folder=tmp_path, around=around),
        command("describe", "gone.png", "--style", "plane", folder=tmp_path, around=around),
    ]
    assert [done.returncode for done in told] == [0, 0, 2]
    assert not any(b"\x1b" in done.stdout + done.stderr for done in told)


@pytest.mark.parametrize(
    "args",
    [
        ["serve", "--api-key", "SECRET-of-anna"],
        ["describe", str(PICTURE), "--api-key=SECRET-of-anna"],
    ],
)
def test_a_key_is_no_argument(args: list[str], tmp_path: Path) -> None:
    """K007: all users of a machine see the arguments of a process, so there is no such flag."""
    done = command(*args, folder=tmp_path)
    assert done.returncode == 2
    assert b"SECRET" not in done.stdout + done.stderr
    assert b"--api-key" in done.stderr


@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_a_key_file_that_others_may_read_is_told(mode: int, tmp_path: Path) -> None:
    """K008: the warning comes before anything is loaded, here before the port is found to be taken."""
    keys = tmp_path / "keys"
    keys.write_text("anna:SECRET-of-anna\n")
    keys.chmod(mode)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = command("serve", "--api-key-file", "keys", "--port", port, folder=tmp_path)
    assert done.returncode == 4
    assert (b"can be read by others" in done.stderr) is (mode != 0o600)
    assert (b"chmod 600" in done.stderr) is (mode != 0o600)
    assert b"SECRET" not in done.stderr
    assert stat.S_IMODE(keys.stat().st_mode) == mode


@pytest.mark.parametrize(
    "around",
    [
        {"HOME": ""},
        {"HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere", "HF_HOME": "/proc/nowhere"},
    ],
)
def test_a_home_that_is_not_there_is_not_needed(around: dict[str, str], tmp_path: Path) -> None:
    """K009."""
    folders = {"XDG_CONFIG_HOME": "", "XDG_STATE_HOME": "", "XDG_CACHE_HOME": "", "HF_HOME": ""}
    around = folders | around
    done = command("describe", str(PICTURE), "--offline", *SHORT, folder=tmp_path, around=around)
    assert done.returncode == 0, done.stderr


HIJACKED = ("json", "typing", "torch", "numpy", "tomllib", "pathlib", "typer")


@pytest.mark.parametrize("program", [QVL, [str(Path(sys.executable).with_name("qvl"))]])
def test_files_of_the_folder_are_not_imported(program: list[str], tmp_path: Path) -> None:
    """K013: a folder of pictures may hold a json.py, too."""
    if not Path(program[0]).exists():
        pytest.skip("the command is not installed here")
    for name in HIJACKED:
        (tmp_path / f"{name}.py").write_text(f"open('was-run', 'a').write({name!r})\n")
    described = ["describe", str(PICTURE), *SHORT]
    done = command(*described, folder=tmp_path, program=program)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "was-run").exists()
