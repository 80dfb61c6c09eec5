"""What loading a model of 2 billion parameters costs in memory and time, ours beside transformers.

    python -m benchmarks.loading | tee benchmarks/loading.md

Main path: main -> write_checkpoint (random weights in the shapes of Qwen3-VL-2B, two bf16 shards) ->
one child process for each way of loading -> a table. A child reads every parameter once, so that
mapped pages count, and reports the peak of its resident memory (VmHWM); the table gives that also
without what an interpreter holds that has only imported torch. Linux only; 4.3 GB of temporary disk.
Exit status 1 if our net peak is over LIMIT times the weights.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

# a child imports this module: qvl and transformers are imported where they are used

LIMIT = 1.15
GB = 1e9
SHARDS = 2
VISUAL = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")


def config_json(ids: Sequence[int]) -> dict[str, Any]:
    """Qwen3-VL-2B's config.json, with the ids that its tokenizer gives to VISUAL."""
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "tie_word_embeddings": True,
        "image_token_id": ids[0],
        "video_token_id": ids[1],
        "vision_start_token_id": ids[2],
        "vision_end_token_id": ids[3],
        "text_config": {
            "model_type": "qwen3_vl_text",
            "dtype": "bfloat16",
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "hidden_act": "silu",
            "max_position_embeddings": 262144,
            "rms_norm_eps": 1e-06,
            "rope_theta": 5000000,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [24, 20, 20],
                "rope_type": "default",
            },
            "attention_bias": False,
            "tie_word_embeddings": True,
            "vocab_size": 151936,
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "deepstack_visual_indexes": [5, 11, 17],
            "depth": 24,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 1024,
            "in_channels": 3,
            "intermediate_size": 4096,
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": 2048,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


def write_checkpoint(folder: Path) -> int:
    """A folder in the hub's layout; returns the bytes of its weights."""
    from safetensors.torch import save_file

    from qvl.loading.config import model_config
    from qvl.models.qwen_vl import QwenVL
    from qvl.processing.tokenizer import Tokenizer
    from qvl.vlm.chat_model import EMBEDDED_FOLDER

    for file in ("tokenizer.json", "preprocessor_config.json"):
        shutil.copy(EMBEDDED_FOLDER / file, folder)
    tokenizer = Tokenizer.from_folder(folder)
    config = config_json([tokenizer.encode_control(token) for token in VISUAL])
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in QwenVL(model_config(config)).named_parameters()}
    parameters = sum(shape.numel() for shape in shapes.values())
    # a million random numbers over and over: no loader looks at them
    numbers = (torch.randn(2**20, generator=torch.Generator().manual_seed(0)) / 50).bfloat16()
    weight_map: dict[str, str] = {}
    placed = 0
    for name, shape in shapes.items():
        shard = placed * SHARDS // parameters
        weight_map[name] = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        placed += shape.numel()
    for file in sorted(set(weight_map.values())):
        names = [name for name in shapes if weight_map[name] == file]
        tensors = {name: repeated(numbers, shapes[name]) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    weights_bytes = parameters * numbers.itemsize
    index = {"metadata": {"total_size": weights_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return weights_bytes


def repeated(numbers: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    times = -(-shape.numel() // len(numbers))
    return numbers.repeat(times)[: shape.numel()].reshape(shape)


# ---- in a child process ------------------------------------------------------------------------


def load_nothing(_: Path) -> list[torch.Tensor]:
    return []


def load_ours(folder: Path) -> list[torch.Tensor]:
    from qvl.loading.model import load_model

    return list(load_model(folder, dtype="bf16").model.parameters())


def load_theirs(folder: Path) -> list[torch.Tensor]:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    kind = transformers.Qwen3VLForConditionalGeneration
    return list(kind.from_pretrained(folder, dtype=torch.bfloat16).parameters())


WAYS: dict[str, Callable[[Path], list[torch.Tensor]]] = {
    "nothing but torch": load_nothing,
    "qvl": load_ours,
    "transformers": load_theirs,
}


@dataclass(frozen=True, slots=True)
class Measured:
    load_s: float  # with the imports of the library that loads
    touch_s: float
    peak_bytes: int


def measure(way: str, folder: Path) -> Measured:
    began = time.monotonic()
    parameters = WAYS[way](folder)
    loaded = time.monotonic()
    for parameter in parameters:
        parameter.detach().sum()
    return Measured(loaded - began, time.monotonic() - loaded, peak_bytes())


def peak_bytes() -> int:
    """The most memory that was resident in this process since it began."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell VmHWM")


# ---- in the parent -----------------------------------------------------------------------------


def in_child(way: str, folder: Path) -> Measured:
    command = [sys.executable, "-m", "benchmarks.loading", "--child", way, str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return Measured(**json.loads(done.stdout))


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(asdict(measure(sys.argv[2], Path(sys.argv[3])))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        weights = write_checkpoint(Path(temporary))
        measured = {way: in_child(way, Path(temporary)) for way in WAYS}
    print_table(weights, measured)
    if net_ratio("qvl", weights, measured) > LIMIT:
        raise SystemExit(f"qvl's net peak is over {LIMIT} times the weights")


def net_bytes(way: str, measured: dict[str, Measured]) -> int:
    return measured[way].peak_bytes - measured["nothing but torch"].peak_bytes


def net_ratio(way: str, weights: int, measured: dict[str, Measured]) -> float:
    return net_bytes(way, measured) / weights


def print_table(weights: int, measured: dict[str, Measured]) -> None:
    from qvl.loading.machine import processor_name, usable_cores

    machine = f"{processor_name() or 'unknown processor'}, {usable_cores()} cores"
    print("# Loading Qwen3-VL-2B's shapes, random bf16 weights in two shards, on the CPU\n")
    print(
        f"{date.today()}, {machine}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, transformers {version('transformers')};"
    )
    print(f"weights {weights / GB:.2f} GB, just written, so in the page cache.")
    print("`python -m benchmarks.loading` prints this page.\n")
    print(
        "| loaded by | import and load, s | then read once, s | peak, GB | net peak, GB | net / weights |"
    )
    print("|---|---|---|---|---|---|")
    for way, found in measured.items():
        cells = (
            way,
            f"{found.load_s:.1f}",
            f"{found.touch_s:.1f}",
            f"{found.peak_bytes / GB:.2f}",
            f"{net_bytes(way, measured) / GB:.2f}",
            f"{net_ratio(way, weights, measured):.2f}",
        )
        print(f"| {' | '.join(cells)} |")
    print("\nPeak: the most memory resident at once (VmHWM), pages of mapped files included.")
    print("Net: without that of an interpreter which has only imported torch.")


if __name__ == "__main__":
    main()
