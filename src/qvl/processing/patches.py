"""Pixels to the rows that a vision tower reads: resize, normalise, cut into patches.

Main path: to_patches (a picture), to_frame_patches (frames of a video). Bit-identical to transformers
5.23 models/qwen2_vl/image_processing_pil_qwen2_vl.py, which serves every generation from Qwen2-VL on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from qvl.errors import ImageAspectError, InvalidParamError
from qvl.types import Detail

MAX_ASPECT = 200
# what OpenAI's models see of a picture of low detail; Qwen3-VL's 256 tokens
LOW_DETAIL_PX = 512 * 512


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


def largest_px(detail: Detail, *, min_px: int, max_px: int) -> int:
    """The bound of the area of a picture of that detail, for a checkpoint with these bounds."""
    return min(max_px, max(min_px, LOW_DETAIL_PX)) if detail == "low" else max_px


@dataclass(frozen=True, slots=True, eq=False)
class FramePatches:
    """As Patches, of one temporal patch of a video, and a fourth of its size until `rows` are asked for.

    blocks: uint8 [S, 3, temporal_patch, patch_px, patch_px].
    """

    blocks: np.ndarray
    grid: tuple[int, int, int]
    rules: PixelRules

    @property
    def rows(self) -> np.ndarray:
        return _normalised(self.blocks, self.rules)


def to_patches(pixels: np.ndarray, rules: PixelRules) -> Patches:
    """Patches of one picture, uint8 [H, W, 3]; a still picture fills every frame of a temporal patch.

    Memory: 4 * 3 * temporal_patch bytes for each resized pixel.
    Raises ImageAspectError as smart_resize, InvalidParamError for another shape or dtype.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InvalidParamError(
            f"pixels are {pixels.dtype} {list(pixels.shape)}, not uint8 [height, width, 3]"
        )
    size = (rules.square_px, rules.square_px)
    if not rules.square_px:
        size = smart_resize(
            *pixels.shape[:2],
            factor_px=rules.patch_px * rules.merge,
            min_px=rules.min_px,
            max_px=rules.max_px,
        )
    blocks = _blocks(resize(pixels, size), rules)
    return Patches(_normalised(blocks[:, :, None], rules), _grid(size, rules))


def to_frame_patches(frames: Sequence[np.ndarray], rules: PixelRules) -> FramePatches:
    """One temporal patch of `temporal_patch` frames that are resized already, uint8 [H, W, 3] each."""
    height, width, _ = frames[0].shape
    blocks = np.stack([_blocks(frame, rules) for frame in frames], axis=2)
    return FramePatches(blocks, _grid((height, width), rules), rules)


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels uint8 [H, W, 3] at the size (height, width): Pillow's bicubic filter."""
    height, width = size
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _grid(size: tuple[int, int], rules: PixelRules) -> tuple[int, int, int]:
    return 1, size[0] // rules.patch_px, size[1] // rules.patch_px


def _blocks(resized: np.ndarray, rules: PixelRules) -> np.ndarray:
    """Pixels [H, W, 3] as patches [S, 3, patch_px, patch_px] in merge order."""
    patch, merge = rules.patch_px, rules.merge
    _, down, across = _grid(resized.shape[:2], rules)
    blocks = resized.reshape(down // merge, merge, patch, across // merge, merge, patch, 3)
    # -> down, across, y and x within a token, channel, y and x within a patch
    blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5)
    return blocks.reshape(down * across, 3, patch, patch)


def _normalised(blocks: np.ndarray, rules: PixelRules) -> np.ndarray:
    """Rows of blocks [S, 3, T, p, p], where T of 1 fills every frame of a temporal patch."""
    patches, _, _, *patch = blocks.shape
    rows = np.empty((patches, 3, rules.temporal_patch, *patch), np.float32)
    for channel, level in enumerate(_levels(rules)):
        rows[:, channel] = level[blocks[:, channel]]
    return rows.reshape(patches, -1)


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
