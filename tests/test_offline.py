"""With --offline nothing is looked up and nothing connected: seen by an audit hook, and where no network is."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PICTURE = sorted((Path(__file__).parents[1] / "examples" / "pictures").glob("*.png"))[0]
COMMANDS = [
    ["--help"],
    ["settings"],
    ["doctor"],
    ["models", "list"],
    ["models", "show", "Qwen/Qwen3-VL-2B-Instruct"],
    ["prompts", "list"],
    ["prompts", "show", "describe"],
    ["describe", str(PICTURE), "--offline", "--boxes", "--html", "page.html"],
    ["describe", "https://example.com/a.png", "--offline"],
    ["describe", str(PICTURE), "--offline", "--model", "Qwen/Qwen3-VL-2B-Instruct"],
    ["ask", str(PICTURE), "-p", "How many objects are there?", "--as", "int", "--offline"],
    ["chat", "--image", str(PICTURE), "--offline"],
    ["mcp", "--offline"],  # its input ends at once
]
# prints every look-up and connection to another machine that the commands make in one process
WATCHED = """
import contextlib, io, json, sys
outside = []
LOOPBACK = ("127.", "::1", "localhost")
def watch(event, args):
    if event == "socket.getaddrinfo" and not str(args[0]).startswith(LOOPBACK):
        outside.append([event, str(args[0])])
    if event == "socket.connect" and isinstance(args[1], tuple):
        if not str(args[1][0]).startswith(LOOPBACK):
            outside.append([event, str(args[1][0])])
sys.addaudithook(watch)
from qvl.cli.main import main
codes = []
for command in json.loads(sys.argv[1]):
    sys.argv = ["qvl", *command]
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"" if command[0] == "mcp" else b"Describe the picture.\\n"))
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        try:
            codes.append(main())
        except SystemExit as stop:
            codes.append(stop.code)
print("\\nSEEN " + json.dumps([outside, codes]))
"""
# the same of a server, which is asked over loopback for a picture that it has and for one that it has not
SERVED = """
import base64, json, sys
import httpx2
from qvl.fetch import set_policy
from qvl.vlm.local import LocalModel
from served import running
set_policy(offline=True)
codes = []
with running(LocalModel(offline=True)) as server:
    for source in sys.argv[1:]:
        body = {"images": [source], "sampling": {"max_new_tokens": 4}}
        codes.append(httpx2.post(f"{server.url}/v1/tasks/describe", json=body).status_code)
print("SEEN " + json.dumps([outside, codes]))
"""
HAS_NAMESPACES = not subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode


@pytest.mark.parametrize(
    "around",
    [
        pytest.param([], id="watched"),
        pytest.param(
            ["unshare", "-rn"],
            id="no network",
            marks=pytest.mark.skipif(not HAS_NAMESPACES, reason="no user namespaces here"),
        ),
    ],
)
def test_nothing_leaves_the_machine(around: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [*around, sys.executable, "-c", WATCHED, json.dumps(COMMANDS)],
        cwd=tmp_path,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("SEEN "))
    outside, codes = json.loads(line.removeprefix("SEEN "))
    assert outside == []
    refused = {number for number, code in enumerate(codes) if code}
    assert {str(COMMANDS[n]) for n in refused} == {str(COMMANDS[n]) for n in (8, 9)}, done.stderr
    assert all(codes[n] == 4 for n in refused)


def test_the_server_asks_nobody(tmp_path: Path) -> None:
    picture = f"data:;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
    watched = WATCHED.split("from qvl.cli.main")[0] + SERVED
    done = subprocess.run(
        [sys.executable, "-c", watched, picture, "https://example.com/a.png"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        capture_output=True,
        text=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("SEEN "))
    assert json.loads(line.removeprefix("SEEN ")) == [[], [200, 400]], done.stderr


def test_the_watch_sees_a_connection(tmp_path: Path) -> None:
    """Of a command that is not offline: the hub is looked up."""
    command = ["models", "pull", "Qwen/Qwen3-VL-2B-Instruct"]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps([command])],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://hub.invalid"},
        capture_output=True,
        text=True,
    )
    assert '["socket.getaddrinfo", "hub.invalid"]' in done.stdout
