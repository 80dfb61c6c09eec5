"""How a checkpoint wants pictures and videos: preprocessor_config.json and its like.

Main path: parse_pixel_rules, parse_video_rules. Errors as in config.py.
"""

from __future__ import annotations

import logging
from pathlib import Path

from qvl.errors import ConfigError
from qvl.loading.family import FALLBACKS, QWEN2_VL, QWEN3
from qvl.loading.section import Section, json_file
from qvl.models.config import ModelConfig, VisionConfig
from qvl.processing.patches import PixelRules
from qvl.processing.video import VideoRules

log = logging.getLogger(__name__)
MAX_IMAGE_PX = 50_000_000  # of the product; a checkpoint may only ask for less


def parse_pixel_rules(folder: Path, config: ModelConfig) -> PixelRules:
    """How pictures become patches.

    From processor_config.json, where transformers 5 nests the rules, else preprocessor_config.json.
    Raises ConfigError for rules that we do not know or that contradict config.json.
    """
    if config.generation == "qwen_vl":
        return _square_rules(config.vision)
    part = _rules_section(folder, "image_processor", "preprocessor_config.json")
    if not part.values:
        log.warning(
            "the model folder has no preprocessor_config.json; using the family's pixel rules"
        )
    known, vision = FALLBACKS[config.generation], config.vision
    for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        part.one_of(key, (True,), "which is not supported")
    part.one_of("resample", (3,), "another filter than bicubic (3)")
    if abs(part.real("rescale_factor", 0, 1, 1 / 255) - 1 / 255) > 1e-9:
        raise part.bad("rescale_factor", f"not {1 / 255}")
    _check_sizes(part, vision, "but the model's is {} (config.json)")
    rules = PixelRules(
        patch_px=vision.patch_px,
        merge=vision.merge,
        temporal_patch=vision.temporal_patch,
        min_px=_area(part, "min_pixels", "shortest_edge", known.min_px),
        max_px=_area(part, "max_pixels", "longest_edge", known.max_px),
        mean=_per_channel(part, "image_mean", -10.0, known.mean),
        std=_per_channel(part, "image_std", 1e-3, known.std),
    )
    token_px = (vision.patch_px * vision.merge) ** 2
    if not max(rules.min_px, token_px) <= rules.max_px:
        raise ConfigError(
            f"{part.file}: at most {rules.max_px} pixels a picture, but at least {rules.min_px} "
            f"and {token_px} for one visual token"
        )
    return rules


def _square_rules(vision: VisionConfig) -> PixelRules:
    """Of the first Qwen-VL, whose files do not say them."""
    side_px = vision.pos_grid * vision.merge * vision.patch_px
    return PixelRules(
        patch_px=vision.patch_px,
        merge=vision.merge,
        temporal_patch=vision.temporal_patch,
        min_px=side_px**2,
        max_px=side_px**2,
        mean=QWEN2_VL.mean,
        std=QWEN2_VL.std,
        square_px=side_px,
    )


def parse_video_rules(folder: Path, config: ModelConfig, pixels: PixelRules) -> VideoRules | None:
    """Which frames of videos become patches, and how large; None for the first Qwen-VL.

    Qwen3-VL's files say it, as parse_pixel_rules' do. Before, no file does: the bounds are those of
    qwen-vl-utils 0.0.14 (128 to 768 visual tokens a frame, together nine tenths of the context), for
    Qwen2-VL with the total of its own days. A video may never ask for more than that share.
    Raises ConfigError for rules that we do not know or that contradict the pictures'.
    """
    if config.generation == "qwen_vl":
        return None
    token_px = (pixels.patch_px * pixels.merge) ** 2
    share = int(0.9 * config.decoder.max_positions)
    if config.generation not in QWEN3:
        vision = json_file(folder, "config.json").section("vision_config")
        is_first = config.generation == "qwen2_vl"
        return VideoRules(
            stamps=False,
            min_px=128 * token_px,
            max_px=768 * token_px,
            total_px=(min(share, 24576) if is_first else share) * token_px,
            positions_per_second=(
                None if is_first else vision.real("tokens_per_second", 0.01, 1000, 2.0)
            ),
        )
    part = _rules_section(folder, "video_processor", "video_preprocessor_config.json")
    _check_sizes(part, pixels, "but the pictures' is {}")
    for key, low, expected in (("image_mean", -10.0, pixels.mean), ("image_std", 1e-3, pixels.std)):
        if _per_channel(part, key, low, expected) != expected:
            raise part.bad(key, f"but the pictures' is {list(expected)}")
    most_px = share * pixels.temporal_patch * token_px
    return VideoRules(
        stamps=True,
        min_px=_area(part, "min_pixels", "shortest_edge", 4096),
        max_px=min(_area(part, "max_pixels", "longest_edge", 24576 * 1024), most_px),
        fps=part.real("fps", 0.01, 1000, 2.0),
    )


def _rules_section(folder: Path, nested: str, own_file: str) -> Section:
    """The rules of one kind: nested in processor_config.json, or in a file of their own, or none."""
    for file in ("processor_config.json", own_file):
        if not (folder / file).exists():
            continue
        whole = json_file(folder, file)
        if file == own_file:
            return whole
        part = whole.section(nested)
        if part.values:
            return part
    return Section(own_file, "", {})


def _check_sizes(part: Section, known: VisionConfig | PixelRules, why: str) -> None:
    """Raise ConfigError for a patch of another size than the known one, which `why` has a place for."""
    for key, expected in (
        ("patch_size", known.patch_px),
        ("merge_size", known.merge),
        ("temporal_patch_size", known.temporal_patch),
    ):
        if part.whole(key, 1, 256, expected) != expected:
            raise part.bad(key, why.format(expected))


def _area(part: Section, legacy: str, edge: str, fallback: int) -> int:
    """Pixels of a picture; the legacy key wins, `size` holds areas despite the names in it."""
    if part.has(legacy):
        return part.whole(legacy, 1, MAX_IMAGE_PX)
    return part.section("size").whole(edge, 1, MAX_IMAGE_PX, fallback)


def _per_channel(
    part: Section, key: str, low: float, fallback: tuple[float, float, float]
) -> tuple[float, float, float]:
    values = part.numbers(key, (int, float), low, 10.0, fallback)
    if len(values) != 3:
        raise part.bad(key, "not three numbers (red, green, blue)")
    return float(values[0]), float(values[1]), float(values[2])
