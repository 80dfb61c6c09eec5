"""cpu.c -> a shared library for the processor of this machine, compiled at first use and kept.

Without a compiler, or with QVL_NO_CC=1, there is none, and linear.py computes the same in PyTorch.
ctypes and no extension module: the file needs neither Python's nor torch's headers, so any C compiler
builds it in a second; loaded after torch it shares torch's OpenMP threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch  # noqa: F401 - brings the OpenMP library that cpu.c is linked against
from platformdirs import user_cache_path

from qvl.errors import StorageError

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("cpu.c")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno")
COMPILE_S = 120
CPUINFO = Path("/proc/cpuinfo")
P, L, F = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
SIGNATURES = {
    "qvl_linear": (P, P, P, P, L),
    "qvl_norm": (P, P, F, P, L, L),
    "qvl_silu_mul": (P, P, L, L),
    "qvl_gate": (P, F, F, L),
    "qvl_rotate": (P, P, P, F, P, P, L, L, L, L),
    "qvl_before_attention": (P, P, P, P, P, P, P, L),
    "qvl_after_attention": (P, P, P, P, P, P, L),
    "qvl_layers": (P, L, P, P, P, P, L, L, P, P, P, P, P, P, P, L),
    "qvl_attend_whole": (P, P, P, L, P, L, P, L, L),
    "qvl_attend": (P, P, P, L, L, P, L, L, P, P, P, P, L, L, L, L),
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had; the reason goes to the log, once."""
    if os.environ.get("QVL_NO_CC") == "1":
        return None
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc")
    if compiler is None:
        log.warning("no C compiler found: quantised models run slower (install gcc)")
        return None
    try:
        return declared(ctypes.CDLL(str(compiled(compiler))))
    except (OSError, subprocess.SubprocessError, StorageError) as err:
        log.warning("the CPU kernels cannot be compiled, quantised models run slower: %s", err)
        return None


def declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    for name, arguments in SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, None
    return loaded


def compiled(compiler: str) -> Path:
    """The library's path; compiled now unless that happened before on such a machine."""
    folder = user_cache_path("qvl") / "kernels"
    path = folder / f"cpu-{fingerprint(compiler)}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / path.name
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(made), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_S)
        if done.returncode != 0:
            first = done.stderr.strip().splitlines()[:1]
            raise StorageError(f"{Path(compiler).name} failed: {''.join(first)}")
        os.replace(made, path)
    return path


def fingerprint(compiler: str) -> str:
    """Changes with the source, the compiler and the processor, which -march=native compiles for."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=COMPILE_S).stdout
    digest = hashlib.sha256(SOURCE.read_bytes() + version + " ".join(FLAGS).encode())
    if CPUINFO.exists():
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
        kind = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
        digest.update("\n".join(kind[:2]).encode())
    return digest.hexdigest()[:16]
