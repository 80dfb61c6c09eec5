"""What int8 and int4 cost: peak memory while quantising a checkpoint at load, and distance to bf16.

    python -m benchmarks.checkpoints Qwen2-VL-2B FOLDER
    python -m benchmarks.quantisation FOLDER | tee benchmarks/quantisation.md

Main path: main -> one child process a precision (load, peak, logits of one prompt with a picture of
noise) -> a table. The peak is that of resident memory without what an interpreter holds that has
only imported torch, over the bytes of the loaded weights. The cosine is between the logits of the
last LAST tokens and those of bf16, the smallest of them. Linux only. On random weights the logits
are noise, which suffers most: trained models keep nearer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import cast

import numpy as np
import torch
from benchmarks.loading import peak_bytes

PRECISIONS = ("bf16", "int8", "int4")
LAST = 16


def measure(folder: Path, dtype: str, logits: Path) -> tuple[int, int]:
    """Peak while loading and bytes of the weights; the logits [LAST, vocab] go to the file."""
    from qvl.loading.model import load_model
    from qvl.models.attention import PackedCausal
    from qvl.models.batch import ForwardBatch
    from qvl.types import DType

    loaded = load_model(folder, dtype=cast("DType", dtype))
    peak, model, config = peak_bytes(), loaded.model, loaded.config
    weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    side = 8 * config.vision.merge
    draw = torch.Generator().manual_seed(0)
    channels = config.vision.in_channels * config.vision.temporal_patch
    rows = torch.randn(side**2, channels * config.vision.patch_px**2, generator=draw)
    with torch.inference_mode():
        vision = model.encode_images(rows, [(1, side, side)])
        tokens = len(vision.rows_vd) + LAST
        batch = ForwardBatch(
            ids_t=torch.randint(0, 1000, (tokens,), generator=draw),
            positions_3t=torch.arange(tokens).expand(3, -1),
            attend=PackedCausal([0, tokens]),
            wanted_b=torch.arange(tokens - LAST, tokens),
            vision=vision,
            vision_at_v=torch.arange(len(vision.rows_vd)),
        )
        np.save(logits, model(batch).numpy())
    return peak, weights


def in_child(*arguments: str) -> tuple[int, int]:
    command = [sys.executable, "-m", "benchmarks.quantisation", "--child", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    peak, weights = json.loads(done.stdout)
    return peak, weights


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        folder, dtype, logits = sys.argv[2:]
        print(
            json.dumps(measure(Path(folder), dtype, Path(logits)) if dtype else (peak_bytes(), 0))
        )
        return
    from qvl.loading.machine import processor_name, usable_cores

    idle, _ = in_child(sys.argv[1], "", "")
    print(
        f"{date.today()}, {processor_name()}, {usable_cores()} threads, torch {torch.__version__}.\n"
    )
    print(
        "| precision | weights, GB | peak while loading, x the weights | cosine to bf16, smallest |"
    )
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for dtype in PRECISIONS:
            file = Path(temporary) / f"{dtype}.npy"
            peak, weights = in_child(sys.argv[1], dtype, str(file))
            ours, exact = (np.load(f).astype(np.float64) for f in (file, file.with_stem("bf16")))
            norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(exact, axis=1)
            cosine = ((ours * exact).sum(1) / norms).min()
            ratio = (peak - idle) / weights
            print(f"| {dtype} | {weights / 1e9:.2f} | {ratio:.2f} | {cosine:.4f} |", flush=True)


if __name__ == "__main__":
    main()
