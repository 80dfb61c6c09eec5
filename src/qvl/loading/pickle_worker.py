"""The process that reads one pickled file of weights: a hostile file can spoil this process alone.

Started by pickled.py as `python -I -B pickle_worker.py SOURCE TARGET FOLDER_OF_TORCH ..`; imports
torch and the standard library only. Writes SOURCE's tensors to TARGET as safetensors and prints one
JSON object: {}, {"refused": why} or {"unwritten": why}. torch's weights-only reader makes tensors and
plain containers by a list of its own and calls nothing that a file names; what it made is looked at
again here, and by the caller.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

if __name__ == "__main__":
    sys.path += sys.argv[3:]  # -I hides PYTHONPATH and the user's site folder

import torch

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
ROOM_BYTES = 256 << 20
NOT_WEIGHTS = "it holds other things than plain tensors by name, or it is damaged"


def limit_resources(file_bytes: int) -> None:
    """Room for the mapped file and a copy of its largest tensor, beside what is taken now."""
    statm = Path("/proc/self/statm")
    limits = {resource.RLIMIT_FSIZE: file_bytes + ROOM_BYTES, resource.RLIMIT_CORE: 0}
    # elsewhere the address space cannot be limited; the caller's clock still runs
    if statm.exists():
        taken = int(statm.read_text().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = taken + 2 * file_bytes + ROOM_BYTES
    for kind, wanted in limits.items():
        hard = resource.getrlimit(kind)[1]
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (limit, limit))


def is_plain(values: object, file_bytes: int) -> bool:
    """Whether it is a state dict that a file of that size can hold."""
    if not isinstance(values, dict) or not values:
        return False
    size = 0
    for name, tensor in values.items():
        if type(name) is not str or type(tensor) is not torch.Tensor:
            return False
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            return False
        if tensor.dtype not in DTYPES:
            return False
        size += tensor.nbytes
    return size <= file_bytes  # a stride of 0 makes much of little


def write(values: Mapping[str, torch.Tensor], target: str) -> None:
    """As huggingface/safetensors:README.md says; one tensor's bytes in memory at a time."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, tensor in values.items():
        end = begin + tensor.nbytes
        place = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape)}
        entries[name] = {**place, "data_offsets": [begin, end]}
        begin = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 64)
    with open(target, "xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in values.values():
            file.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def main(source: str, target: str) -> dict[str, str]:
    file_bytes = os.path.getsize(source)
    limit_resources(file_bytes)
    try:
        values = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        if not is_plain(values, file_bytes):
            return {"refused": NOT_WEIGHTS}
    except Exception:  # noqa: BLE001 - whatever a foreign file sets off
        return {"refused": NOT_WEIGHTS}
    try:
        write(values, target)
    except OSError as err:
        return {"unwritten": err.strerror or "an output error"}
    return {}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:3])))
