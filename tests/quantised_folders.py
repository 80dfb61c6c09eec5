"""GPTQ, AWQ and FP8 folders, packed here from the published formulas, beside the same weights plain."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import tiny
import tiny_v1

Tensors = dict[str, torch.Tensor]
# (random numbers, outputs N, inputs K) -> what the file holds of a layer, and its weight in float64
Pack = Callable[[np.random.Generator, int, int], tuple[Tensors, np.ndarray]]

# ---- the formats, written from their formulas --------------------------------------------------


def words(fields: np.ndarray, bits: int) -> torch.Tensor:
    """Unsigned numbers [..., 32 / bits] into words, the first in the lowest bits."""
    shifts = bits * np.arange(32 // bits, dtype=np.uint64)
    whole = (fields.astype(np.uint64) << shifts).sum(-1)
    return torch.from_numpy(whole.astype(np.uint32).view(np.int32))


def drawn(draw: np.random.Generator, n: int, k: int, bits: int, group: int) -> Any:
    """Numbers, stored zero points and scales: every field value occurs, the largest among it."""
    groups = -(-k // group)
    q = draw.integers(0, 2**bits, (k, n))
    zeros = draw.integers(0, 2**bits, (groups, n))
    zeros[:, 0] = 2**bits - 1
    scales = draw.uniform(0.001, 0.03, (groups, n)).astype(np.float16)
    return q, zeros, scales


def formula(q: np.ndarray, zeros: np.ndarray, scales: np.ndarray, g_idx: np.ndarray) -> np.ndarray:
    """W[out, in] = scale[g, out] (q[in, out] - zero[g, out])."""
    weight = np.empty(q.shape[::-1])
    for k, group in enumerate(g_idx):
        weight[:, k] = scales[group].astype(np.float64) * (q[k] - zeros[group])
    return weight


def gptq(bits: int, group: int, *, order: bool = False, one_less: bool = True) -> Pack:
    def pack(draw: np.random.Generator, n: int, k: int) -> tuple[Tensors, np.ndarray]:
        size = k if group == -1 else group
        q, fields, scales = drawn(draw, n, k, bits, size)
        g_idx = np.arange(k) // size
        if order:
            draw.shuffle(g_idx)
        a_word = 32 // bits
        tensors = {
            "qweight": words(q.reshape(k // a_word, a_word, n).swapaxes(1, 2), bits),
            "qzeros": words(fields.reshape(len(fields), n // a_word, a_word), bits),
            "scales": torch.from_numpy(scales),
            "g_idx": torch.from_numpy(g_idx.astype(np.int32)),
        }
        return tensors, formula(q, fields + one_less, scales, g_idx)

    return pack


def awq(group: int) -> Pack:
    def pack(draw: np.random.Generator, n: int, k: int) -> tuple[Tensors, np.ndarray]:
        q, zeros, scales = drawn(draw, n, k, 4, group)
        order = [0, 2, 4, 6, 1, 3, 5, 7]  # nibble i holds column order[i]
        tensors = {
            "qweight": words(q.reshape(k, n // 8, 8)[..., order], 4),
            "qzeros": words(zeros.reshape(len(zeros), n // 8, 8)[..., order], 4),
            "scales": torch.from_numpy(scales),
        }
        return tensors, formula(q, zeros, scales, np.arange(k) // group)

    return pack


def fp8(scale_dtype: torch.dtype) -> Pack:
    def pack(draw: np.random.Generator, n: int, k: int) -> tuple[Tensors, np.ndarray]:
        values = torch.from_numpy(draw.uniform(-448, 448, (n, k))).to(torch.float8_e4m3fn)
        scales = torch.from_numpy(draw.uniform(1e-4, 1e-3, (-(-n // 128), -(-k // 128))))
        scales = scales.to(scale_dtype)
        weight = values.double().numpy().copy()
        for row in range(0, n, 128):
            for col in range(0, k, 128):
                scale = scales[row // 128, col // 128].item()
                weight[row : row + 128, col : col + 128] *= scale
        return {"weight": values, "weight_scale_inv": scales}, weight

    return pack


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
FORMATS: dict[str, tuple[dict[str, Any], Pack]] = {
    "gptq": (GPTQ, gptq(4, 128)),
    "gptq-8": (GPTQ | {"bits": 8}, gptq(8, 128)),
    "gptq-act-order": (GPTQ | {"desc_act": True}, gptq(4, 128, order=True)),
    "gptq-8-act-order": (GPTQ | {"bits": 8, "desc_act": True}, gptq(8, 64, order=True)),
    "gptq-v2": (GPTQ | {"checkpoint_format": "gptq_v2"}, gptq(4, 128, one_less=False)),
    "gptq-one-group": (GPTQ | {"group_size": -1}, gptq(4, -1)),
    "awq": (AWQ, awq(128)),
    "awq-32": (AWQ | {"group_size": 32}, awq(32)),
    "fp8": (FP8, fp8(torch.float32)),
    "fp8-bf16-scales": (FP8, fp8(torch.bfloat16)),
}
FORMATS["gptq-8-act-order"][0]["group_size"] = 64
KEPT_IN_INT4 = ("gptq", "gptq-v2", "awq")

# ---- folders -----------------------------------------------------------------------------------

EXPERTS = 3
WIDE: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 256}
MIXTURE = {"num_experts": EXPERTS, "moe_intermediate_size": 128}
HEADS = {  # so that o_proj too has inputs in groups of 128
    "qwen2_vl": 8,
    "qwen2_5_vl": 8,
    "qwen3_vl": 16,
    "qwen3_vl_moe": 16,
}


def is_quantised(name: str) -> bool:
    return "layers." in name and name.endswith("_proj.weight")


def save_quantised(
    folder: Path,
    generation: str,
    kind: str,
    *,
    naming: Literal["hub", "newer"] = "hub",
    plain: Callable[[str], bool] = lambda name: False,
    **config: Any,
) -> Path:
    """folder/quantised in three shards, and folder/plain with the same weights in fp32."""
    out = "hidden_size" if generation == "qwen2_vl" else "out_hidden_size"
    changes = WIDE | {"num_attention_heads": HEADS[generation]}
    changes |= (MIXTURE if generation == "qwen3_vl_moe" else {}) | config
    vision = {out: changes["hidden_size"]}
    whole = folder / "plain"
    tiny.save_tiny(whole, generation, naming=naming, vision=vision, dtype=torch.float16, **changes)
    stored = one_by_one(load_file(whole / "model.safetensors"))
    quantised, draw = dict(stored), np.random.default_rng(5)
    values, pack = FORMATS[kind]
    for name in sorted(stored):
        if is_quantised(name) and not plain(name):
            tensors, weight = pack(draw, *stored[name].shape)
            stored[name] = torch.from_numpy(weight).float()
            del quantised[name]
            module = name.removesuffix("weight")
            quantised |= {module + leaf: tensor for leaf, tensor in tensors.items()}
    save_file(stored, whole / "model.safetensors")
    made = folder / "quantised"
    shutil.copytree(whole, made, ignore=lambda *_: ["model.safetensors"])
    write_shards(made, quantised)
    set_quantisation(made, values)
    return made


FIRST_LAYERS = ("c_attn.weight", "c_proj.weight", ".w1.weight", ".w2.weight")


def is_quantised_in_the_first(name: str) -> bool:
    """Which linear layers of the decoder, by their published names."""
    return ".h." in name and name.endswith(FIRST_LAYERS)


def save_first_quantised(folder: Path) -> Tensors:
    """Qwen-VL-Chat-Int4 as it was published, in three shards; returns the same weights plain.

    q, k and v of a layer lie in one, and every layer has a bias: one of zeros where it has none.
    """
    config = tiny_v1.config_json(
        intermediate_size=2 * 256, torch_dtype="float16", quantization_config=GPTQ | {"sym": True}
    )
    tiny_v1.save_all_but_weights(folder, config)
    plain = {name: tensor.half() for name, tensor in tiny_v1.tensors(config).items()}
    stored, draw = dict(plain), np.random.default_rng(5)
    for name in sorted(plain):
        if is_quantised_in_the_first(name):
            packed, weight = FORMATS["gptq"][1](draw, *plain[name].shape)
            plain[name] = torch.from_numpy(weight)
            module, outputs = name.removesuffix("weight"), len(stored.pop(name))
            stored |= {module + leaf: tensor for leaf, tensor in packed.items()}
            stored.setdefault(module + "bias", torch.zeros(outputs).half())
    write_shards(folder, stored)
    return plain


def one_by_one(tensors: Tensors) -> Tensors:
    """Each expert's layers under their own names."""
    single: Tensors = {}
    for name, tensor in tensors.items():
        before, _, leaf = name.rpartition(".")
        if not before.endswith(".experts"):
            single[name] = tensor
            continue
        for expert, matrix in enumerate(tensor):  # [outputs, inputs], as transformers 5 saves it
            parts = matrix.chunk(2) if leaf == "gate_up_proj" else (matrix,)
            for leaf_of_one, part in zip(LEAVES[leaf], parts, strict=True):
                single[f"{before}.{expert}.{leaf_of_one}.weight"] = part.contiguous()
    return single


LEAVES = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def all_in_one(tensors: Tensors) -> Tensors:
    """The experts' layers as the hub's files have them: [experts, inputs, outputs], scales alike."""
    rest = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for prefix in sorted({n.split(".experts.")[0] for n in tensors if ".experts." in n}):
        for fused, leaves in LEAVES.items():
            for tail, end in (("weight", ""), ("weight_scale_inv", "_scale_inv")):
                experts = [
                    np.concatenate(
                        [octets(tensors[f"{prefix}.experts.{e}.{x}.{tail}"]) for x in leaves]
                    )
                    for e in range(EXPERTS)
                ]
                like = tensors[f"{prefix}.experts.0.{leaves[0]}.{tail}"].dtype
                whole = torch.from_numpy(np.stack(experts).swapaxes(1, 2).copy())
                rest[f"{prefix}.experts.{fused}{end}"] = whole.view(like).flatten(2)
    return rest


def octets(tensor: torch.Tensor) -> np.ndarray:
    """[N, K, bytes of a number]; numpy knows neither e4m3 nor bf16."""
    return tensor.unsqueeze(-1).view(torch.uint8).numpy()


def write_shards(folder: Path, tensors: Tensors, *, shards: int = 3) -> None:
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    weight_map = {name: files[i % shards] for i, name in enumerate(sorted(tensors))}
    for file in files:
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file)
    index = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)


def set_quantisation(folder: Path, values: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": values}))


def change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    """Another tensor of that name in a sharded folder, or none."""
    tensors = {n: t for f in folder.glob("*.safetensors") for n, t in load_file(f).items()}
    tensors.pop(name, None)
    write_shards(folder, tensors | ({} if tensor is None else {name: tensor}))


def stored_tensor(folder: Path, name: str) -> torch.Tensor:
    return next(
        t for f in folder.glob("*.safetensors") for n, t in load_file(f).items() if n == name
    )
