"""`qvl serve` before it serves: what it refuses, and that nobody pays for it who does not ask."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qvl.cli.main import main
from qvl.serve.process import bound_socket, is_loopback
from qvl.settings import explain_settings


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """(exit code, stderr) of the command, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def called(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["qvl", "serve", *arguments])
        try:
            code = main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        assert told.out == ""
        return code, told.err

    return called


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_others_are_not_let_in_without_a_key(run, host: str) -> None:
    code, err = run("--host", host, "--port", "0")
    assert code == 2
    assert "there is no API key" in err
    assert "--no-auth" in err


def test_a_port_in_use_is_one_line(run) -> None:
    with bound_socket("127.0.0.1", 0) as taken:
        taken.listen()
        code, err = run("--port", str(taken.getsockname()[1]))
    assert code == 4
    assert err.startswith("error: 127.0.0.1 port ")
    assert "in use" in err.splitlines()[0]


@pytest.mark.parametrize("flag", ["--ssl-keyfile", "--tls-key", "--ssl-certfile"])
def test_a_wish_for_tls_is_not_answered_with_plain_http(run, flag: str) -> None:
    """F010: the server speaks plain HTTP alone, so a certificate is refused before anything is served."""
    code, err = run(flag, "key.pem", "--port", "0")
    assert code == 2
    assert flag in err
    assert "serving" not in err


def test_an_address_of_another_machine_cannot_be_served(run) -> None:
    assert run("--host", "192.0.2.1", "--no-auth", "--port", "0")[0] == 4


def test_keys_come_from_a_file_or_the_environment(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text("anna:short\n")
    code, err = run("--api-key-file", "keys")
    assert (code, "'anna'" in err, "short\n" in err) == (2, True, False)
    assert run("--api-key-file", "nowhere")[0] == 2
    monkeypatch.setenv("QVL_API_KEYS", "anna:key-of-anna,anna:key-of-ben")
    code, err = run()
    assert (code, "two keys are called 'anna'" in err) == (2, True)
    monkeypatch.setenv("QVL_API_KEYS", "anna:key-of-anna")
    code, err = run("--no-auth")
    assert (code, "key-of" in err) == (2, False)


def test_the_keys_of_the_environment_are_no_setting_and_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QVL_API_KEYS", "anna:key-of-anna")
    (row,) = (row for row in explain_settings() if row.key == "QVL_API_KEYS")
    assert row.value == "(hidden)"


def test_what_only_this_machine_reaches() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.1.2.3", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.0.2.1", "localhost.example", ""]))


def test_the_command_itself_imports_no_server() -> None:
    code = "import qvl.cli.main, sys; print([m for m in sys.modules if '.' not in m])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"fastapi", "uvicorn", "starlette", "prometheus_client", "torch"} & set(
        json.loads(told.stdout.replace("'", '"'))
    )


def test_a_socket_that_is_not_listened_on_lets_nobody_wait() -> None:
    """Until the model is loaded a client is refused at once instead of hanging."""
    with bound_socket("127.0.0.1", 0) as sock, pytest.raises(ConnectionRefusedError):
        socket.create_connection(sock.getsockname(), timeout=5)


def test_an_adapter_needs_a_name_of_its_own(run) -> None:
    code, err = run("--port", "0", "--adapter", "a=x", "--adapter", "a=y")
    assert code == 2
    assert "two adapters are called 'a'" in err
