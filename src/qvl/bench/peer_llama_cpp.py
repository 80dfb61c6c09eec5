"""The same requests through llama.cpp: its server on a port of loopback, with as many threads as we use.

Its files lie beside ours in the model's folder. Of its formats the one with as many bits as ours is
taken; the vision tower is F16 with each of them, as its users have it.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import torch

from qvl.bench.peer_openai import run_openai
from qvl.bench.work import Runner, Timed
from qvl.errors import EngineError, QvlError, UsageError
from qvl.types import Request

FORMATS = {"fp32": ("F32", "F16"), "bf16": ("F16",), "int8": ("Q8_0",), "int4": ("Q4_0",)}
PROMPT_TOKENS = 1024  # room for one prompt of the bench, far more than it has
START_S = 600  # reading gigabytes from a cold disk
STOP_S = 10
LOG_LINES = 15


@dataclass(frozen=True, slots=True)
class Server:
    """One that runs, and the file that it logs into."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def llama_server(
    folder: Path, *, dtype: str, device: str, at_once: int, new_tokens: int
) -> Iterator[Runner]:
    """A runner on a server of its own, which ends with the block; raises what `started` does."""
    server_program()  # without it there is no use in files
    weights, tower = gguf_files(folder, dtype)
    room = at_once * (PROMPT_TOKENS + new_tokens)
    with started(weights, tower, device=device, at_once=at_once, room=room) as server:
        yield told_of_its_end(run_openai(server.url), server.process, server.log)


@contextmanager
def started(
    weights: Path, tower: Path, *, device: str, at_once: int, room: int, flags: Sequence[str] = ()
) -> Iterator[Server]:
    """A server of its own, which ends with the block; `room`: tokens of all that it answers at once.

    Raises UsageError where the program is missing, EngineError with the last lines of its log when
    it ends by itself.
    """
    program = server_program()
    threads = str(torch.get_num_threads())
    on_cpu = device == "cpu"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        program, "--model", str(weights), "--mmproj", str(tower),
        "--host", "127.0.0.1", "--port", str(port),
        "--threads", threads, "--threads-batch", threads,
        "--parallel", str(at_once), "--ctx-size", str(room),
        "--n-gpu-layers", "0" if on_cpu else "999",
        "--no-mmproj-offload" if on_cpu else "--mmproj-offload",
        *flags,
    ]  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as temporary,
        (log := Path(temporary) / "log").open("wb") as to,
    ):
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=to, stderr=subprocess.STDOUT
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(process, url, log)
            yield Server(url, process, log)
        finally:
            stop(process)


def server_program() -> str:
    program = shutil.which("llama-server")
    if program is None:
        raise UsageError(
            "llama-server is not on PATH",
            hint="build llama.cpp (cmake -B build && cmake --build build -t llama-server)"
            " and put its build/bin on PATH",
        )
    return program


def gguf_files(folder: Path, dtype: str) -> tuple[Path, Path]:
    """Weights with as many bits as `dtype`, and the vision tower."""
    choices = [folder / f"model-{kind}.gguf" for kind in FORMATS[dtype]]
    weights = next((file for file in choices if file.exists()), choices[-1])
    tower = folder / "mmproj-F16.gguf"
    missing = [file.name for file in (weights, tower) if not file.exists()]
    if missing:
        kind = FORMATS[dtype][-1]
        raise UsageError(
            f"{folder} has no {' and no '.join(missing)}, which llama.cpp needs for {dtype}",
            hint="llama.cpp's convert_hf_to_gguf.py and llama-quantize make them; for a checkpoint"
            f" of benchmarks/checkpoints.py: python -m benchmarks.gguf {folder} F16"
            + (f", then {kind}" if kind != "F16" else ""),
        )
    return weights, tower


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + START_S
    with httpx2.Client(trust_env=False) as client:
        while time.monotonic() < until:
            if process.poll() is not None:
                raise ended(process, log)
            try:
                if client.get(f"{url}/health").is_success:
                    return
            except httpx2.TransportError:
                pass  # not listening yet
            time.sleep(0.2)
    raise EngineError(f"llama-server was not ready after {START_S} s", hint=last_lines(log))


def told_of_its_end(runner: Runner, process: subprocess.Popen[bytes], log: Path) -> Runner:
    """The runner, but a connection that broke because the server died is told as that."""

    def run(requests: Sequence[Request]) -> Timed:
        try:
            return runner(requests)
        except QvlError as err:
            try:
                process.wait(2)  # its connections close a moment earlier
            except subprocess.TimeoutExpired:
                raise err from None
            raise ended(process, log) from err

    return run


def ended(process: subprocess.Popen[bytes], log: Path) -> EngineError:
    return EngineError(
        f"llama-server ended by itself with status {process.returncode}", hint=last_lines(log)
    )


def last_lines(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join(["the last lines of its log:", *lines])


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
