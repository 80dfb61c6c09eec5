"""The vocabulary of the first Qwen-VL in a model folder: qwen.tiktoken, published without a tokenizer.json."""

from __future__ import annotations

from pathlib import Path

from qvl.errors import ModelFormatError
from qvl.loading.files import regular_file
from qvl.processing.tiktoken import tokenizer_json

RANKS_FILE = "qwen.tiktoken"
MAX_RANKS_BYTES = 64 * 2**20


def has_ranks_alone(folder: Path) -> bool:
    return (folder / RANKS_FILE).exists() and not (folder / "tokenizer.json").exists()


def tokenizer_of_ranks(folder: Path) -> str:
    """What its tokenizer.json would hold; seconds. Raises ModelFormatError, ConfigError."""
    path = regular_file(folder, RANKS_FILE)
    if path.stat().st_size > MAX_RANKS_BYTES:
        raise ModelFormatError(f"{RANKS_FILE} is larger than {MAX_RANKS_BYTES} bytes")
    return tokenizer_json(path.read_bytes())
