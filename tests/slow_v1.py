"""The first Qwen-VL, slow and plain in float64, straight from its formulas; tensors by published names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

Weights = Mapping[str, np.ndarray]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def layer_norm(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def linear(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, causal: bool) -> np.ndarray:
    """One head, query by query."""
    rows = []
    for i, query in enumerate(q):
        seen = i + 1 if causal else len(k)
        scores = np.array([query @ key for key in k[:seen]]) / math.sqrt(len(query))
        rows.append(softmax(scores) @ v[:seen])
    return np.array(rows)


# ---- pictures ----------------------------------------------------------------------------------


def pixels(picture: Image.Image, side_px: int) -> np.ndarray:
    """[3, side, side], squeezed to the square as 8-bit colours, then normalised."""
    small = picture.convert("RGB").resize((side_px, side_px), Image.Resampling.BICUBIC)
    scaled = np.asarray(small).astype(np.float64) / 255
    return ((scaled - MEAN) / STD).transpose(2, 0, 1)


def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75."""
    a, d = -0.75, abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def weights_of(size: int) -> np.ndarray:
    """[2 size, size]: what each place of a line twice as fine takes of each place of the line."""
    taken = np.zeros((2 * size, size))
    for i in range(2 * size):
        at = (i + 0.5) / 2 - 0.5
        for tap in range(math.floor(at) - 1, math.floor(at) + 3):
            taken[i, min(max(tap, 0), size - 1)] += cubic(at - tap)
    return taken


def table_twice_as_fine(table: np.ndarray) -> np.ndarray:
    side = math.isqrt(len(table))
    taken = weights_of(side)
    grid = table.reshape(side, side, -1)
    fine = np.einsum("ai,bj,ijd->abd", taken, taken, grid)
    return fine.reshape(4 * side * side, -1)


def features(x: np.ndarray, w: Weights, *, heads: int, patch: int = 14) -> np.ndarray:
    """Rows [visual tokens, D] of one picture [3, H, W]."""
    name = "transformer.visual"
    kernel = w[f"{name}.conv1.weight"]
    side = x.shape[1] // patch
    rows = []
    for r in range(side):
        for c in range(side):
            cut = x[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
            rows.append([(cut * one).sum() for one in kernel])
    y = np.array(rows) + table_twice_as_fine(w[f"{name}.positional_embedding"])
    y = layer_norm(y, w, f"{name}.ln_pre")
    blocks = {key.split(".")[4] for key in w if key.startswith(f"{name}.transformer.resblocks.")}
    for block in range(len(blocks)):
        prefix = f"{name}.transformer.resblocks.{block}"
        mixed = linear(layer_norm(y, w, f"{prefix}.ln_1"), w, f"{prefix}.attn.in_proj")
        width = mixed.shape[1] // (3 * heads)
        out = []
        for head in range(heads):  # each head has its query, key and value beside each other
            own = mixed[:, 3 * width * head : 3 * width * (head + 1)]
            parts = [own[:, i * width : (i + 1) * width] for i in range(3)]
            out.append(attend(*parts, causal=False))
        y = y + linear(np.concatenate(out, 1), w, f"{prefix}.attn.out_proj")
        inner = linear(layer_norm(y, w, f"{prefix}.ln_2"), w, f"{prefix}.mlp.c_fc")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        y = y + linear(inner, w, f"{prefix}.mlp.c_proj")
    y = layer_norm(resampled(y, w), w, f"{name}.ln_post")
    return y @ w[f"{name}.proj"]


def resampled(y: np.ndarray, w: Weights) -> np.ndarray:
    name = "transformer.visual.attn_pool"
    kv = layer_norm(y @ w[f"{name}.kv_proj.weight"].T, w, f"{name}.ln_kv")
    table = w[f"{name}.pos_embed"]
    queries = layer_norm(w[f"{name}.query"], w, f"{name}.ln_q") + table
    keys = kv + table_twice_as_fine(table)
    width = queries.shape[1]
    in_weight, in_bias = w[f"{name}.attn.in_proj_weight"], w[f"{name}.attn.in_proj_bias"]
    q, k, v = (
        x @ in_weight[i * width : (i + 1) * width].T + in_bias[i * width : (i + 1) * width]
        for i, x in enumerate((queries, keys, kv))
    )
    heads = [
        attend(q[:, a : a + 128], k[:, a : a + 128], v[:, a : a + 128], causal=False)
        for a in range(0, width, 128)
    ]
    return linear(np.concatenate(heads, 1), w, f"{name}.attn.out_proj")


# ---- text --------------------------------------------------------------------------------------


def turned(x: np.ndarray, position: int, base: float) -> np.ndarray:
    """One head of one token at its place: pairs (i, i + half) turned by position base^(-2i / width)."""
    half = len(x) // 2
    y = np.empty_like(x)
    for i in range(half):
        angle = position * base ** (-2 * i / len(x))
        y[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        y[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return y


def logits(
    ids: Sequence[int],
    rows: np.ndarray,
    image_id: int,
    w: Weights,
    *,
    heads: int,
    prompt_tokens: int,
    start: int,
) -> np.ndarray:
    """[T, vocab]; rows take the places of the image tokens.

    The first `prompt_tokens` ids were there at once; beyond `start` tokens all is stretched.
    """
    alpha = max(2 ** math.ceil(math.log2(prompt_tokens / start) + 1) - 1, 1)
    x = w["transformer.wte.weight"][list(ids)].copy()
    x[np.array(ids) == image_id] = rows
    layers = {key.split(".")[2] for key in w if key.startswith("transformer.h.")}
    for layer in range(len(layers)):
        name = f"transformer.h.{layer}"
        mixed = linear(rms_norm(x, w[f"{name}.ln_1.weight"]), w, f"{name}.attn.c_attn")
        q, k, v = np.split(mixed, 3, axis=1)  # unlike in the tower
        width = q.shape[1] // heads
        base = 10_000.0 * alpha ** (width / (width - 2))
        out = []
        for a in range(0, q.shape[1], width):
            turned_q, turned_k = (
                np.array([turned(row[a : a + width], p, base) for p, row in enumerate(part)])
                for part in (q, k)
            )
            for p in range(start, len(ids)):
                turned_q[p] *= math.log(p + 1) / math.log(start)
            out.append(attend(turned_q, turned_k, v[:, a : a + width], causal=True))
        x = x + linear(np.concatenate(out, 1), w, f"{name}.attn.c_proj")
        y = rms_norm(x, w[f"{name}.ln_2.weight"])
        up, gate = linear(y, w, f"{name}.mlp.w1"), linear(y, w, f"{name}.mlp.w2")
        x = x + linear(up * gate / (1 + np.exp(-gate)), w, f"{name}.mlp.c_proj")
    return rms_norm(x, w["transformer.ln_f.weight"]) @ w["lm_head.weight"].T
