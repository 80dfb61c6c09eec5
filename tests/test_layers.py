"""Heavy and dangerous things stay where they belong; that imports only go down is checked by `make check`."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import qvl

SRC = Path(qvl.__file__).parent
MODULES = sorted(SRC.rglob("*.py"))

# library -> the parts of the package that may import it; () is nobody
HOMES = {
    "torch": (
        "models",
        "kernels",
        "loading",
        "structured",
        "engine",
        "vlm",
        "training",
        "bench",
        "cli",
    ),
    "huggingface_hub": ("loading/hub.py",),
    "av": ("processing/live_worker.py", "processing/video_worker.py"),
    "pypdfium2": ("processing/pdf_worker.py",),
    "openpyxl": ("batch",),
    "pyarrow": ("batch",),
    "obstore": ("batch/object_store.py",),
    "ray": ("batch/over_ray.py",),
    # what opens connections; whatever a user names is fetched by fetch.py alone
    "httpx2": ("loading/hub.py", "vlm", "bench"),
    "httpx": (),
    "requests": (),
    "aiohttp": (),
    "urllib3": (),
    "ftplib": (),
    "mcp": ("chat/mcp_tools.py", "mcp_server.py"),
    "fastapi": ("serve",),
    "transformers": ("bench/peer_transformers.py",),  # to be measured against
    "pickle": (),
    "marshal": (),
    "shelve": (),
    "dill": (),
}
# call -> the parts of the package that may make it
CALLS = {
    "urlopen": (),
    "urllib.request.urlopen": (),
    "urlretrieve": (),
    "urllib.request.urlretrieve": (),
    "http.client.HTTPConnection": (),
    "http.client.HTTPSConnection": (),
    # scenes.py opens one drawing that the package ships, never an input
    "Image.open": (
        "processing/decode_worker.py",
        "processing/video_worker.py",
        "scenes",
    ),
    "PIL.Image.open": ("processing/decode_worker.py",),
    "torch.load": ("loading/pickle_worker.py",),  # of tensors alone, in a process of its own
    "pickle.loads": (),
    "eval": (),
    "exec": (),
    "os.system": (),
}


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, top-level name) of every absolute import, late ones included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.split(".")[0]


def called(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


def violations(path: Path, root: Path = SRC) -> list[str]:
    place = path.relative_to(root).as_posix()
    tree = ast.parse(path.read_text("utf-8"))
    found = [(line, name, HOMES[name]) for line, name in imported(tree) if name in HOMES]
    found += [(line, name, CALLS[name]) for line, name in called(tree) if name in CALLS]
    return [
        f"{place}:{line}: {name} does not belong here"
        for line, name, homes in found
        if not any(place == home or place.startswith(home + "/") for home in homes)
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(SRC).as_posix())
def test_libraries_and_calls_stay_at_home(path: Path):
    assert violations(path) == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("processing/bad.py", "import torch"),
        ("tasks/bad.py", "import torch.nn.functional as F"),
        ("processing/image.py", "Image.open(source)"),
        ("loading/checkpoint.py", "from huggingface_hub import snapshot_download"),
        ("loading/checkpoint.py", "torch.load(path)"),
        ("models/bad.py", "from transformers import AutoModel"),
        ("vlm/bad.py", "import pickle"),
        ("processing/image.py", "import httpx2"),
        ("tasks/bad.py", "from urllib.request import urlopen; urlopen(url)"),
        ("tasks/bad.py", "eval(answer)"),
    ],
)
def test_a_breach_is_caught(tmp_path: Path, place: str, line: str):
    bad = tmp_path / place
    bad.parent.mkdir()
    bad.write_text(f"def late():\n    {line}\n")
    assert len(violations(bad, tmp_path)) == 1


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(SRC).as_posix())
def test_no_code_of_a_checkpoint_is_trusted(path: Path):
    assert "trust_remote_code" not in path.read_text("utf-8")


def loaded_after(statement: str) -> set[str]:
    """Top-level modules present in a fresh process after the statement."""
    code = f"{statement}\nimport sys, json\nprint(json.dumps([m for m in sys.modules if '.' not in m]))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(result.stdout))


@pytest.mark.parametrize(
    "statement",
    [
        "import qvl",
        "from qvl import Box, Completion, Delta, Image, Message, QvlError, Request, Sampling, Text",
        "import qvl.settings, qvl.log",
    ],
)
def test_the_small_names_load_nothing_heavy(statement: str):
    heavy = {
        "torch",
        "numpy",
        "PIL",
        "transformers",
        "huggingface_hub",
        "tokenizers",
        "safetensors",
    }
    assert loaded_after(statement) & heavy == set()


def test_processing_works_without_torch():
    modules = [
        "qvl.processing." + path.stem
        for path in (SRC / "processing").glob("*.py")
        if path.stem != "__init__"
    ]
    assert modules
    assert "torch" not in loaded_after("import " + ", ".join(modules))


def test_a_start_imports_only_what_it_needs():
    """Of a local folder: no hub library, and nothing of torch's compiler (sympy), over a second."""
    start = "from qvl.vlm.local import LocalModel; LocalModel()"
    assert loaded_after(start) & {"huggingface_hub", "httpx2", "sympy"} == set()
