"""Pixels become patches exactly as in transformers; its own processor is the oracle."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as reference

from qvl.errors import ImageAspectError, InvalidParamError
from qvl.processing.patches import PixelRules, smart_resize, to_patches, token_count

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


def rules(patch_px: int, mean, std, min_px: int, max_px: int) -> PixelRules:
    return PixelRules(
        patch_px=patch_px,
        merge=2,
        temporal_patch=2,
        min_px=min_px,
        max_px=max_px,
        mean=mean,
        std=std,
    )


RULES = {
    "qwen2_vl": rules(14, CLIP_MEAN, CLIP_STD, 3136, 12845056),
    "qwen3_vl": rules(16, HALF, HALF, 65536, 16777216),
    "qwen2_vl, small budget": rules(14, CLIP_MEAN, CLIP_STD, 4 * 28 * 28, 40 * 28 * 28),
    "qwen3_vl, small budget": rules(16, HALF, HALF, 32 * 32, 9 * 32 * 32),
}

# (height, width)
SIZES = [
    (28, 28),
    (32, 32),
    (42, 70),  # 1.5 and 2.5 times 28: half to even
    (70, 42),
    (48, 80),  # 1.5 and 2.5 times 32
    (112, 144),  # 3.5 and 4.5 times 32
    (1, 1),
    (1, 200),
    (13, 600),  # rounds to a height of 0
    (57, 331),
    (240, 320),
    (333, 517),
]


def random_pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )


def reference_patches(pixels: np.ndarray, how: PixelRules) -> tuple[np.ndarray, list[int]]:
    processor = reference.Qwen2VLImageProcessorPil(
        patch_size=how.patch_px,
        merge_size=how.merge,
        temporal_patch_size=how.temporal_patch,
        image_mean=list(how.mean),
        image_std=list(how.std),
        size={"shortest_edge": how.min_px, "longest_edge": how.max_px},
    )
    made = processor(images=[pixels], return_tensors="np", input_data_format="channels_last")
    return made["pixel_values"], made["image_grid_thw"][0].tolist()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("generation", RULES)
def test_patches_are_bit_equal_to_the_reference(generation: str, size: tuple[int, int]):
    pixels = random_pixels(*size)
    ours = to_patches(pixels, RULES[generation])
    rows, grid = reference_patches(pixels, RULES[generation])
    assert list(ours.grid) == grid
    assert ours.rows.dtype == rows.dtype == np.float32
    assert np.array_equal(ours.rows.view(np.uint32), rows.view(np.uint32))


@pytest.mark.parametrize("how", RULES.values(), ids=RULES)
def test_every_level_of_every_channel_is_bit_equal_to_the_reference(how: PixelRules):
    side = how.patch_px * how.merge * 8
    ramp = np.resize(np.arange(256, dtype=np.uint8), (side, side, 1))
    pixels = np.concatenate([ramp, ramp[::-1], ramp.transpose(1, 0, 2)], axis=2)
    rows, _ = reference_patches(pixels, how)
    assert np.array_equal(to_patches(pixels, how).rows, rows)


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 20000),
    width=st.integers(1, 20000),
    factor=st.sampled_from([28, 32]),
    min_px=st.integers(1, 200_000),
    more_px=st.integers(0, 20_000_000),
)
def test_smart_resize_is_the_reference_s(height, width, factor, min_px, more_px):
    assume(max(height, width) <= 200 * min(height, width))
    ours = smart_resize(height, width, factor_px=factor, min_px=min_px, max_px=min_px + more_px)
    assert ours == reference.smart_resize(height, width, factor, min_px, min_px + more_px)


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 5000), width=st.integers(1, 5000))
def test_sides_are_whole_tokens_and_the_area_is_within_bounds(height, width):
    assume(max(height, width) <= 20 * min(height, width))
    tall, wide = smart_resize(height, width, factor_px=32, min_px=65536, max_px=1048576)
    assert tall % 32 == wide % 32 == 0
    assert 65536 <= tall * wide <= 1048576


@pytest.mark.parametrize("size", [(10, 2001), (2001, 10), (1, 201)])
def test_one_side_over_200_times_the_other_is_refused(size: tuple[int, int]):
    with pytest.raises(ImageAspectError, match=f"{size[1]}x{size[0]} px"):
        smart_resize(*size, factor_px=28, min_px=3136, max_px=12845056)


def test_one_side_200_times_the_other_is_taken():
    size = smart_resize(10, 2000, factor_px=28, min_px=3136, max_px=12845056)
    assert size == reference.smart_resize(10, 2000, 28, 3136, 12845056)


def test_a_row_is_channel_then_time_then_y_then_x_and_tokens_stay_together():
    """Each pixel of an unresized picture is found where the documented order puts it."""
    how = rules(2, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1, 10**6)
    pixels = random_pixels(8, 12)
    made = to_patches(pixels, how)
    assert made.grid == (1, 4, 6)
    got = np.round(made.rows * 255).astype(int).reshape(2, 3, 2, 2, 3, 2, 2, 2)
    for down, across, y2, x2, c, time, y, x in itertools.product(*map(range, got.shape)):
        pixel = pixels[down * 4 + y2 * 2 + y, across * 4 + x2 * 2 + x, c]
        assert got[down, across, y2, x2, c, time, y, x] == pixel


@pytest.mark.parametrize("how", RULES.values(), ids=RULES)
def test_the_token_count_is_rows_over_merged_area(how: PixelRules):
    made = to_patches(random_pixels(240, 320), how)
    assert token_count(made.grid, how.merge) == len(made.rows) // how.merge**2


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((0, 10, 3), np.uint8),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_other_arrays_are_refused(pixels: np.ndarray):
    with pytest.raises(InvalidParamError):
        to_patches(pixels, RULES["qwen2_vl"])
