"""GGUF files of a checkpoint, for `qvl bench --against llama.cpp`.

    LLAMA_CPP=SOURCES python -m benchmarks.gguf FOLDER F16     # or F32: model-F16.gguf, mmproj-F16.gguf
    LLAMA_CPP=SOURCES python -m benchmarks.gguf FOLDER Q8_0    # or Q4_0: model-Q8_0.gguf

FOLDER is what `benchmarks/checkpoints.py` wrote. SOURCES is a checkout of llama.cpp: its converter
does the work, in this project's own environment (it asks for transformers, torch and gguf-py, which
lies in the checkout), and the server is built from it with

    cmake -B build -DCMAKE_BUILD_TYPE=Release && cmake --build build -t llama-server llama-quantize

Put build/bin on PATH. Q8_0 and Q4_0 are made from F16 by llama-quantize with its defaults, so they
are what its users run: with Q4_0 the embedding, which is the head too, stays in Q6_K. The vision
tower is F16 with each of them, as its users have it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

KINDS = ("F32", "F16", "Q8_0", "Q4_0")


def convert(folder: Path, target: Path, kind: str, sources: Path) -> None:
    """model-KIND.gguf and mmproj-KIND.gguf of F32 or F16 in `target`, by llama.cpp's converter."""
    sys.path[:0] = [str(sources), str(sources / "gguf-py")]
    import conversion.base as base
    import convert_hf_to_gguf as converter

    def is_qwen2(self: Any, tokenizer: Any) -> str:
        # The converter knows published vocabularies by a hash; ours splits text by the same rule.
        return "qwen2"

    for name, flags in (("model", []), ("mmproj", ["--mmproj"])):
        file = target / f"{name}-{kind}.gguf"
        command = ["", str(folder), "--outtype", kind.lower(), "--outfile", str(file), *flags]
        with (
            patch.object(base.TextModel, "get_vocab_base_pre", is_qwen2),
            # it tries a vocabulary of sentencepiece first, and would need that package
            patch.object(
                base.TextModel, "_set_vocab_sentencepiece", base.TextModel._set_vocab_gpt2
            ),
            patch.object(sys, "argv", command),
        ):
            converter.main()


def quantize(folder: Path, kind: str) -> None:
    program = shutil.which("llama-quantize")
    if program is None:
        raise SystemExit(
            "llama-quantize is not on PATH; this file's docstring says how to build it"
        )
    source, target = folder / "model-F16.gguf", folder / f"model-{kind}.gguf"
    if not source.exists():
        raise SystemExit(f"{source} is not there: run this with F16 first")
    subprocess.run([program, str(source), str(target), kind], check=True)


def sources_of_llama_cpp() -> Path:
    """The checkout that LLAMA_CPP names."""
    sources = Path(os.environ.get("LLAMA_CPP") or "llama.cpp")
    if not (sources / "convert_hf_to_gguf.py").exists():
        raise SystemExit(f"{sources} is no checkout of llama.cpp: set LLAMA_CPP to one")
    return sources


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 2 or arguments[1] not in KINDS:
        raise SystemExit((__doc__ or "").strip())
    folder, kind = Path(arguments[0]), arguments[1]
    if kind.startswith("Q"):
        quantize(folder, kind)
    else:
        convert(folder, folder, kind, sources_of_llama_cpp())


if __name__ == "__main__":
    main(sys.argv[1:])
