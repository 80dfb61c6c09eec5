"""`qvl doctor`: what this machine has, what that means for qvl, and what to do about each gap.

Main path: doctor -> diagnose -> one function per check. Every check reads what is there and opens no
socket, except `--online`, which connects to the model hub once. Limits of a container count as the
machine's own (cgroup v1 and v2).
"""

from __future__ import annotations

import importlib.util
import json
import locale
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import typer

import qvl
from qvl.loading.catalogue import CATALOGUE
from qvl.loading.machine import bf16_instructions, memory_bytes, processor_name, usable_cores
from qvl.log import wants_colour

Status = Literal["ok", "warn", "missing"]
GIB = 1024**3
COLOURS = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "missing": typer.colors.RED}
UNUSABLE_MODEL = 4  # exit code
EMBEDDED = Path(qvl.__file__).parent / "vlm" / "sprout"
EMBEDDED_FILES = ("config.json", "tokenizer.json", "model.safetensors")
# Below these the embedded model still runs, but little else does.
LOW_MEMORY_BYTES = 2 * GIB
LOW_DISK_BYTES = 5 * GIB
# Left for features, the KV cache and the rest of the program beside a model's weights.
SPARE_GIB = 1.5
CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report; `advice` is empty where there is nothing to do."""

    name: str
    status: Status
    found: str
    advice: str = ""


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    online: Annotated[
        bool, typer.Option("--online", help="Also connect to the model hub.")
    ] = False,
) -> None:
    """Show what this machine has, what can run on it, and what to do about each gap."""
    checks = diagnose(online=online)
    for check in checks:
        print(_json_line(check) if as_json else _text_lines(check))
    if any(check.status == "missing" for check in checks):
        raise typer.Exit(UNUSABLE_MODEL)


def diagnose(*, online: bool = False) -> list[Check]:
    """All checks, in the order of the report; takes the seconds that torch needs to load."""
    return [
        check_python(),
        check_torch(),
        check_processor(),
        check_kernels(),
        check_graphics(),
        check_memory(),
        check_models_that_fit(),
        check_embedded_model(),
        check_model_cache(hub_cache()),
        check_folder(Path.cwd()),
        check_pillow(),
        check_picture_formats(),
        check_hub(online=online),
        check_encoding(),
    ]


def _json_line(check: Check) -> str:
    row = {"id": check.name, "text": check.found, "status": check.status, "advice": check.advice}
    return json.dumps(row, ensure_ascii=False)


def _text_lines(check: Check) -> str:
    mark = f"{check.status:<8}"
    if wants_colour(sys.stdout):
        mark = typer.style(mark, fg=COLOURS[check.status])
    line = f"{mark}{check.name:<16}{check.found}"
    return f"{line}\n{'':24}-> {check.advice}" if check.advice else line


def check_python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("Python", "ok", f"{found}; qvl {qvl.__version__}")


def check_torch() -> Check:
    try:
        import torch
    except (ImportError, OSError) as err:  # OSError: one of its own libraries does not load
        return Check("torch", "missing", f"does not load: {err}", "run 'make setup' again")
    return Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")


def check_processor() -> Check:
    name = processor_name() or platform.processor() or platform.machine()
    found = f"{name}, {usable_cores()} of {os.cpu_count()} cores usable"
    if fast := bf16_instructions():
        return Check("processor", "ok", f"{found}, bf16 by {' and '.join(fast)}")
    return Check("processor", "ok", f"{found}, no bf16 instructions")


def check_kernels() -> Check:
    try:
        from qvl.kernels.build import library
    except (ImportError, OSError):
        return Check("CPU kernels", "warn", "unknown without torch")
    if os.environ.get("QVL_NO_CC") == "1":
        return Check("CPU kernels", "warn", "turned off by QVL_NO_CC=1", "unset QVL_NO_CC")
    if library() is None:
        return Check(
            "CPU kernels",
            "warn",
            "not compiled: bf16, int8 and int4 run several times slower on the processor",
            "install a C compiler such as gcc",
        )
    return Check("CPU kernels", "ok", "compiled for this processor: bf16, int8, int4")


def check_graphics() -> Check:
    try:
        import torch
    except (ImportError, OSError):
        return Check("graphics card", "warn", "unknown without torch")
    if torch.cuda.is_available():
        return Check("graphics card", "ok", "; ".join(_cuda_devices()))
    if Path("/dev/nvidia0").exists():
        return Check(
            "graphics card",
            "warn",
            f"an NVIDIA card is here, but torch {torch.__version__} cannot use it",
            "install a build of torch with CUDA, and a driver that is new enough for it",
        )
    return Check("graphics card", "ok", "none that torch can use; models run on the processor")


def _cuda_devices() -> Iterator[str]:
    import torch

    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield f"cuda:{index} {name}, {_gib(free)} of {_gib(total)} free"


def check_memory() -> Check:
    memory = memory_bytes()
    if memory is None:
        return Check("memory", "warn", "unknown on this system", "see the models' sizes below")
    total, available = memory
    found = f"{_gib(available)} of {_gib(total)} available"
    if available < LOW_MEMORY_BYTES:
        return Check("memory", "warn", found, "close other programs, or give the container more")
    return Check("memory", "ok", found)


def check_models_that_fit() -> Check:
    """Which published sizes the free memory holds, by the numbers of the catalogue."""
    room = _room_gib()
    if room is None:
        return Check("what will run", "warn", "unknown: this system does not say its free memory")
    sizes = {
        row.hub_id.removeprefix("Qwen/").removesuffix("-Instruct"): row.weights_gib
        for row in CATALOGUE
        if row.hub_id.endswith(("-Instruct", "/Qwen-VL"))
    }
    half = [name for name, gib in sizes.items() if gib + SPARE_GIB <= room]
    full = [name for name in half if 2 * sizes[name] + SPARE_GIB <= room]
    if not half:
        smallest = min(sizes.values()) + SPARE_GIB
        found = f"sprout; the smallest published size needs {smallest:.1f} GiB free"
        return Check(
            "what will run", "warn", found, "close other programs, or use a bigger machine"
        )
    found = f"sprout; in bf16 {', '.join(half)}; in fp32 {', '.join(full) or 'none of them'}"
    return Check("what will run", "ok", found)


def _room_gib() -> float | None:
    """Memory for one model: the best CUDA device's, else the machine's."""
    try:
        import torch
    except (ImportError, OSError):
        return None
    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        return max(torch.cuda.mem_get_info(index)[0] for index in devices) / GIB
    memory = memory_bytes()
    return memory and memory[1] / GIB


def check_embedded_model(folder: Path = EMBEDDED) -> Check:
    absent = [name for name in EMBEDDED_FILES if not (folder / name).is_file()]
    if absent:
        return Check(
            "embedded model",
            "missing",
            f"sprout has no {', no '.join(absent)}",
            "install qvl again: its files are incomplete",
        )
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return Check("embedded model", "ok", f"sprout, {size / 1e6:.0f} MB")


def hub_cache() -> Path:
    """Where downloaded models lie, by the hub library's own rules, which a test compares."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{cache}/huggingface")
    folder = os.environ.get("HF_HUB_CACHE", os.environ.get("HUGGINGFACE_HUB_CACHE", f"{home}/hub"))
    return Path(os.path.expandvars(folder)).expanduser()


def check_model_cache(folder: Path) -> Check:
    models = sorted(
        path.name.removeprefix("models--").replace("--", "/") for path in folder.glob("models--*")
    )
    free, writable = _disk(folder)
    found = f"{folder}: {', '.join(models) or 'no models yet'}; {_gib(free)} free"
    if not writable:
        return Check(
            "model cache", "warn", f"{found}, not writable", "set HF_HOME to another folder"
        )
    if free < LOW_DISK_BYTES:
        return Check("model cache", "warn", found, "free space, or set HF_HOME to another disk")
    return Check("model cache", "ok", found)


def check_folder(folder: Path) -> Check:
    free, writable = _disk(folder)
    found = f"{folder}: {_gib(free)} free"
    if not writable:
        advice = "work in a folder that you may write to, or name one with each output"
        return Check("this folder", "warn", f"{found}, not writable", advice)
    return Check("this folder", "ok", found)


def _disk(folder: Path) -> tuple[int, bool]:
    """(free bytes, whether files can be made) of a folder or, until it exists, of its parent."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free, os.access(folder, os.W_OK | os.X_OK)


def check_pillow() -> Check:
    import PIL

    if int(PIL.__version__.split(".")[0]) >= 13:
        return Check("Pillow", "ok", PIL.__version__)
    return Check(
        "Pillow",
        "ok",
        f"{PIL.__version__}, without the fixes of 13 until the web interface's library takes it; "
        "pictures are decoded in a process of their own with limits",
    )


def check_picture_formats() -> Check:
    from PIL import features

    absent = [name for name in ("jpg", "webp", "avif") if not features.check(name)]
    heif = "HEIC" if importlib.util.find_spec("pillow_heif") else "no HEIC"
    if absent:
        advice = "install Pillow's own wheel instead of a system build"
        return Check("formats", "warn", f"no {', no '.join(absent)}; {heif}", advice)
    return Check("formats", "ok", f"JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF; {heif}")


def check_hub(*, online: bool) -> Check:
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    token = "HF_TOKEN is set" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
    offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE", "")
    if offline.upper() in {"1", "ON", "YES", "TRUE"}:
        return Check("model hub", "ok", f"offline by HF_HUB_OFFLINE; {token}")
    if not online:
        return Check("model hub", "ok", f"not contacted (--online does); {token}")
    host, port = _address(endpoint)
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
    except OSError as err:
        return Check(
            "model hub",
            "warn",
            f"{host} does not answer: {err.strerror or err}; {token}",
            "the embedded model needs no network; for others check it, or use a folder on this disk",
        )
    return Check("model hub", "ok", f"{host} answers; {token}")


def _address(url: str) -> tuple[str, int]:
    """The host and port that a request for the URL first connects to: a proxy's, where one is set."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.netloc):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def check_encoding() -> Check:
    # The locale's own, not sys.stdout's, which the command line has set to UTF-8 by now.
    encoding = locale.getencoding()
    if encoding.lower().replace("-", "") == "utf8":
        return Check("text", "ok", "UTF-8")
    return Check("text", "warn", f"the locale's encoding is {encoding}", "set LANG=C.UTF-8")


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
