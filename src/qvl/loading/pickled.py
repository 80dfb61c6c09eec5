"""The first Qwen-VL as it was published, pickled, into a folder like all others: `qvl models convert`.

Main path: convert_pickled -> read_apart (one process a file, pickle_worker.py) -> the checks that
every checkpoint passes. Tensor names stay the published ones, which names.py knows; qwen.tiktoken
becomes tokenizer.json; converted.json says from which files, by their SHA-256, it was made.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import qvl
from qvl.errors import ModelFormatError, StorageError, UnsafeCheckpointError
from qvl.loading.checkpoint import INDEX_FILE, MAX_HEADER_BYTES, read_header
from qvl.loading.config import parse_config
from qvl.loading.convert import check_space, check_target, copy_rest, whole_or_nothing
from qvl.loading.files import read_json, regular_file, shown
from qvl.loading.model import empty_model, open_source, read_parts
from qvl.loading.ranks import RANKS_FILE, tokenizer_of_ranks

log = logging.getLogger(__name__)
PICKLED_INDEX, PICKLED_FILE = "pytorch_model.bin.index.json", "pytorch_model.bin"
WORKER = Path(__file__).with_name("pickle_worker.py")
START_S, BYTES_A_SECOND = 120, 4 * 2**20  # the time that a file may take


def convert_pickled(source: Path, target: Path) -> int:
    """Write the folder `target` of the pickled Qwen-VL in `source`; returns its weights' bytes.

    Raises ModelFormatError and ConfigError for another model, UnsafeCheckpointError for a file that
    is not a plain state dict, InvalidParamError and StorageError as convert does.
    """
    check_target(target)
    config = parse_config(source)
    if config.generation != "qwen_vl":
        raise ModelFormatError(
            f"{source.name!r} is pickled {config.generation}; only Qwen-VL is converted",
            hint="use its safetensors files: they were published too",
        )
    tokenizer = tokenizer_of_ranks(source)
    shards = pickled_shards(source)
    check_space(target, sum(regular_file(source, shard).stat().st_size for shard in shards))
    weight_map: dict[str, str] = {}
    weights_bytes = 0
    with whole_or_nothing(target) as made:
        used = [*shards, RANKS_FILE, *copy_rest(source, made)]
        used += [PICKLED_INDEX] if (source / PICKLED_INDEX).exists() else []
        (made / "tokenizer.json").write_text(tokenizer, "utf-8")
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            log.info("reading %s, %d of %d", shard, number, len(shards))
            read_apart(source, shard, made / name)
            tensors, size = read_header(made, name)
            weight_map |= dict.fromkeys(tensors, name)
            weights_bytes += size
        write_json(made / INDEX_FILE, {"metadata": {}, "weight_map": weight_map})
        sources = {name: sha256(regular_file(source, name)) for name in used}
        write_json(made / "converted.json", {"made_by": f"qvl {qvl.__version__}", "from": sources})
        read_parts(made)
        open_source(made, empty_model(config))
    return weights_bytes


def pickled_shards(source: Path) -> list[str]:
    """The names of the pickled files, all in the folder itself."""
    if not (source / PICKLED_INDEX).exists():
        return [PICKLED_FILE]
    index = read_json(source, PICKLED_INDEX, limit_bytes=MAX_HEADER_BYTES, error=ModelFormatError)
    listed = index.get("weight_map")
    names = set(listed.values()) if isinstance(listed, dict) else set()
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".bin"):
            raise UnsafeCheckpointError(f"{PICKLED_INDEX} names the file {shown(name)}")
    if not names:
        raise ModelFormatError(f"{PICKLED_INDEX} has no weight_map")
    return sorted(names)


def read_apart(folder: Path, shard: str, target: Path) -> None:
    """The tensors of a pickled file as safetensors, read in a process that can do nothing else.

    Raises UnsafeCheckpointError unless it holds tensors by name alone, StorageError where the disk
    is full. The process is killed when it takes too long, and when this one is interrupted.
    """
    pickled = regular_file(folder, shard)
    libraries = sorted({str(Path(str(library.__file__)).parents[1]) for library in (torch, np)})
    command = [sys.executable, "-I", "-B", str(WORKER), str(pickled), str(target.absolute())]
    limit_s = START_S + pickled.stat().st_size / BYTES_A_SECOND
    try:
        done = subprocess.run(
            [*command, *libraries],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd="/",
            env={},
            timeout=limit_s,
            check=False,
        )
        told = json.loads(done.stdout) if done.returncode == 0 else {"refused": "reading it failed"}
    except subprocess.TimeoutExpired:
        told = {"refused": f"reading it took more than {limit_s:.0f} s"}
    if "unwritten" in told:
        raise StorageError(f"{target.name} cannot be written: {told['unwritten']}")
    if "refused" in told:
        raise UnsafeCheckpointError(
            f"{shard} is refused: {told['refused']}",
            hint="do not use this checkpoint, unless it comes whole from its publisher",
        )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
