"""Ours equals transformers on a prompt with a picture, a video longer than wide, and text after it.

transformers 5.23 gives text after such a video of Qwen2-VL and Qwen2.5-VL wrong positions (it goes on
after the larger side, not after the last time), so it is given ours, which tests/data/rope_check.py
has counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import oracle
import tiny
from data.rope_check import mrope_positions as plain_positions
from qvl.loading.model import LoadedModel, load_model
from qvl.processing.prompt import Prompt
from qvl.types import Message, Video
from test_parity import LOGITS_TOLERANCE, VISION_TOLERANCE

NEW_TOKENS = 12
FILM = Video(source=tuple(oracle.picture(96, 64, seed=s) for s in range(19)), fps=3.0)


def is_video(prompt: Prompt) -> list[bool]:
    return [image.info is None for image in prompt.images]


def joined_rows(prompt: Prompt, *, video: bool) -> Tensor:
    chosen = [i for i, v in zip(prompt.images, is_video(prompt), strict=True) if v == video]
    return torch.cat([torch.from_numpy(image.patches.rows) for image in chosen])


def their_inputs(loaded: LoadedModel, prompt: Prompt) -> dict[str, Tensor]:
    """The temporal patches as the one video that they are."""
    grids = [image.patches.grid for image in prompt.images]
    video = [grid for grid, v in zip(grids, is_video(prompt), strict=True) if v]
    picture = [grid for grid, v in zip(grids, is_video(prompt), strict=True) if not v]
    return {
        "pixel_values": joined_rows(prompt, video=False),
        "image_grid_thw": torch.tensor(picture),
        "pixel_values_videos": joined_rows(prompt, video=True),
        "video_grid_thw": torch.tensor([(len(video), *video[0][1:])]),
    }


@torch.inference_mode()
def their_logits(model: Any, inputs: dict[str, Tensor], ids: Sequence[int], at: Tensor) -> Tensor:
    ids_bt = torch.tensor([list(ids)])
    mask = torch.ones_like(ids_bt)
    return model(
        **inputs, input_ids=ids_bt, attention_mask=mask, position_ids=at[:, None], use_cache=False
    ).logits[0]


def counted_positions(loaded: LoadedModel, prompt: Prompt) -> tuple[np.ndarray, int]:
    """By the slow rule, from the ids and what FILM is: 19 frames, three a second, 10 patches of two."""
    visual = (loaded.config.image_token_id, loaded.config.video_token_id)
    layout: list[Any] = []
    at = 0
    whole = loaded.config.generation in ("qwen2_vl", "qwen2_5_vl")
    spans: list[Any] = [("span", prompt.images[0].patches.grid)]
    grid = prompt.images[1].patches.grid
    if whole:
        step = (2 * 2 / 3,) if loaded.config.generation == "qwen2_5_vl" else ()
        spans.append(("span", (10, *grid[1:]), *step))
    else:
        spans += [("span", grid)] * 10
    for span in spans:
        text = int(np.isin(prompt.ids[at:], visual).argmax())
        time, rows, columns = span[1]
        layout += [("text", text), span]
        at += text + time * rows * columns // 4
    layout.append(("text", len(prompt.ids) - at))
    return plain_positions(layout)


@pytest.mark.parity
@pytest.mark.parametrize("generation", tiny.GENERATIONS)
def test_a_video_equals_transformers(
    generation: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    tiny.save_tiny(tmp_path, generation)
    loaded = load_model(tmp_path, dtype="fp32")
    assert loaded.video_rules is not None
    # frames of 2 x 3 tokens as they are, so that ten temporal patches are longer than wide
    small = replace(
        loaded.video_rules, min_px=1, max_px=96 * 64 * (20 if generation in tiny.QWEN3 else 1)
    )
    loaded = replace(loaded, video_rules=small)
    picture = oracle.picture(224, 96, seed=1)
    prompt = oracle.prompt_of(
        loaded, [Message.user("First ", picture, " then:", FILM, "What happens after that?")]
    )
    assert is_video(prompt) == [False] + [True] * 10
    positions, following = counted_positions(loaded, prompt)
    assert np.array_equal(prompt.positions, positions)
    assert prompt.next_position == following

    reference = oracle.load_theirs(tmp_path, generation)
    inputs = their_inputs(loaded, prompt)
    found = oracle.ours(loaded, prompt)
    with torch.inference_mode():
        seen = [
            reference.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]),
            reference.model.get_video_features(
                inputs["pixel_values_videos"], inputs["video_grid_thw"]
            ),
        ]
    theirs = [torch.cat(level) for level in zip(*map(oracle.levels_of, seen), strict=True)]
    vision = max(
        oracle.largest_difference(*pair) for pair in zip(found.vision, theirs, strict=True)
    )
    assert vision <= VISION_TOLERANCE

    at = torch.from_numpy(positions)
    expected = their_logits(reference, inputs, prompt.ids.tolist(), at)
    logits = oracle.largest_difference(found.logits_tv, expected)
    assert logits <= LOGITS_TOLERANCE
    assert expected.std(1).min() > 100 * LOGITS_TOLERANCE

    ids = prompt.ids.tolist()
    never = oracle.never_generated(loaded)
    for k in range(NEW_TOKENS):
        at_k = torch.cat([at, torch.full((3, k), 0) + following + torch.arange(k)], dim=1)
        last = their_logits(reference, inputs, ids, at_k)[-1].clone()
        last[never] = -torch.inf
        ids.append(int(last.argmax()))
    for budget in (2048, 16):
        (told,) = oracle.our_greedy(loaded, [prompt], new_tokens=NEW_TOKENS, token_budget=budget)
        assert told == ids[len(prompt.ids) :]
    row = (generation, "picture and video", f"{vision:.1e}", f"{logits:.1e}", NEW_TOKENS, "")
    record_property("parity", row)
