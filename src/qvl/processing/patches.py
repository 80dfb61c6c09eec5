"""Pixels to the rows that a vision tower reads: resize, normalise, cut into patches.

Main path: to_patches -> smart_resize. Bit-identical to transformers 5.23
models/qwen2_vl/image_processing_pil_qwen2_vl.py, which serves every generation from Qwen2-VL on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from qvl.errors import ImageAspectError, InvalidParamError

MAX_ASPECT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelRules:
    """How a checkpoint wants its pictures; min_px and max_px bound the area after resizing."""

    patch_px: int
    merge: int
    temporal_patch: int
    min_px: int
    max_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    square_px: int = 0  # every picture is squeezed into a square of this side; 0: of its own shape


@dataclass(frozen=True, slots=True)
class Patches:
    """rows: float32 [S, 3 * temporal_patch * patch_px ** 2]; grid: (time, rows, columns) of patches.

    The merge x merge patches of one visual token follow each other; a row is channel, time, y, x.
    """

    rows: np.ndarray
    grid: tuple[int, int, int]


def smart_resize(
    height_px: int, width_px: int, *, factor_px: int, min_px: int, max_px: int
) -> tuple[int, int]:
    """Return (height, width): multiples of factor_px, area within [min_px, max_px], aspect nearly kept.

    Half-to-even rounding, and no floor of one factor before the area is compared: both as in
    transformers, where 13x600 with factor 28 becomes 28x392. A thin picture may pass max_px a little.
    Raises ImageAspectError if one side is over MAX_ASPECT times the other.
    """
    if min(height_px, width_px) < 1:
        raise InvalidParamError(f"a picture of {width_px}x{height_px} px has no pixels")
    if max(height_px, width_px) / min(height_px, width_px) > MAX_ASPECT:
        ratio = max(height_px, width_px) / min(height_px, width_px)
        raise ImageAspectError(
            f"the picture is {width_px}x{height_px} px: one side is {ratio:.4g} times the other, "
            f"the limit is {MAX_ASPECT}",
            hint="cut it into several pictures",
        )
    height = round(height_px / factor_px) * factor_px
    width = round(width_px / factor_px) * factor_px
    if height * width > max_px:
        shrink = math.sqrt((height_px * width_px) / max_px)
        height = max(factor_px, math.floor(height_px / shrink / factor_px) * factor_px)
        width = max(factor_px, math.floor(width_px / shrink / factor_px) * factor_px)
    elif height * width < min_px:
        grow = math.sqrt(min_px / (height_px * width_px))
        height = math.ceil(height_px * grow / factor_px) * factor_px
        width = math.ceil(width_px * grow / factor_px) * factor_px
    return height, width


def to_patches(pixels: np.ndarray, rules: PixelRules) -> Patches:
    """Patches of one picture, uint8 [H, W, 3]; a still picture fills every frame of a temporal patch.

    Memory: 4 * 3 * temporal_patch bytes for each resized pixel.
    Raises ImageAspectError as smart_resize, InvalidParamError for another shape or dtype.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InvalidParamError(
            f"pixels are {pixels.dtype} {list(pixels.shape)}, not uint8 [height, width, 3]"
        )
    patch, merge = rules.patch_px, rules.merge
    height = width = rules.square_px
    if not rules.square_px:
        height, width = smart_resize(
            *pixels.shape[:2], factor_px=patch * merge, min_px=rules.min_px, max_px=rules.max_px
        )
    resized = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    down, across = height // patch, width // patch
    blocks = resized.reshape(down // merge, merge, patch, across // merge, merge, patch, 3)
    # -> down, across, y and x within a token, channel, y and x within a patch
    blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(down * across, 3, patch, patch)
    rows = np.empty((down * across, 3, rules.temporal_patch, patch, patch), np.float32)
    for channel, level in enumerate(_levels(rules)):
        rows[:, channel] = level[blocks[:, channel]][:, None]
    return Patches(rows.reshape(down * across, -1), (1, down, across))


def token_count(grid: tuple[int, int, int], merge: int) -> int:
    """Visual tokens that a grid of patches becomes."""
    time, down, across = grid
    return time * (down // merge) * (across // merge)


def _levels(rules: PixelRules) -> np.ndarray:
    """[3, 256] float32: what each 8-bit value becomes in each channel.

    The reference scales in float64, rounds to float32 and normalises in float32; so does this, once
    for 256 values instead of for each pixel.
    """
    scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    mean, std = np.array(rules.mean, np.float32), np.array(rules.std, np.float32)
    return (scaled[None] - mean[:, None]) / std[:, None]
