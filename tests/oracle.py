"""One prompt through transformers and through our own code: what the parity tests compare."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

import tiny
from qvl.engine.engine import Engine, banned_ids
from qvl.engine.request import EngineImage, EngineRequest, Finished, SamplingParams, Token
from qvl.loading.model import LoadedModel
from qvl.models.attention import PackedCausal
from qvl.models.batch import ForwardBatch
from qvl.processing.patches import PixelRules
from qvl.processing.prompt import Prompt, build_prompt
from qvl.types import Image, Message


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@dataclass(frozen=True, slots=True)
class Computed:
    """vision: [V, D], the rows and then every deepstack level; logits_tv: [T, vocab]."""

    vision: tuple[Tensor, ...]
    logits_tv: Tensor


def picture(width_px: int, height_px: int, *, seed: int) -> Image:
    """Noise over a gradient, so that every patch and every place differs."""
    noise = np.random.default_rng(seed).integers(0, 128, (height_px, width_px, 3))
    ramp = np.linspace(0, 127, width_px)[None, :, None] * [1.0, 0.5, 0.0]
    ramp = ramp + np.linspace(0, 127, height_px)[:, None, None] * [0.0, 0.5, 1.0]
    file = io.BytesIO()
    PILImage.fromarray((noise + ramp).astype(np.uint8)).save(file, "png")
    return Image(file.getvalue(), f"{width_px}x{height_px}")


def prompt_of(loaded: LoadedModel, messages: Sequence[Message]) -> Prompt:
    return build_prompt(
        messages,
        tokenizer=loaded.tokenizer,
        rules=loaded.rules,
        generation=loaded.config.generation,
        image_token_id=loaded.config.image_token_id,
        video_rules=loaded.video_rules,
    )


def rows_of(prompt: Prompt) -> Tensor:
    return torch.cat([torch.from_numpy(image.patches.rows) for image in prompt.images])


# ---- ours --------------------------------------------------------------------------------------


@torch.inference_mode()
def ours(loaded: LoadedModel, prompt: Prompt) -> Computed:
    """Without the engine and its cache: the whole prompt in one pass."""
    features = None
    if prompt.images:
        grids = [image.patches.grid for image in prompt.images]
        features = loaded.model.encode_images(rows_of(prompt), grids)
    places = [torch.arange(i.start, i.start + i.tokens) for i in prompt.images]
    tokens = len(prompt.ids)
    logits_tv = loaded.model(
        ForwardBatch(
            ids_t=torch.from_numpy(prompt.ids),
            positions_3t=torch.from_numpy(prompt.positions),
            attend=PackedCausal([0, tokens]),
            wanted_b=torch.arange(tokens),
            vision=features,
            vision_at_v=torch.cat(places) if places else None,
        )
    )
    vision = () if features is None else (features.rows_vd, *features.deepstack_vd)
    return Computed(vision, logits_tv)


def our_greedy(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    *,
    new_tokens: int,
    token_budget: int,
    stop_ids: frozenset[int] = frozenset(),
) -> list[list[int]]:
    """Through the engine, all prompts at once, in parts of at most `token_budget` tokens."""
    engine = Engine(
        loaded.model,
        token_bytes=loaded.tokenizer.token_bytes,
        vocab_size=loaded.tokenizer.vocab_size,
        token_budget=token_budget,
    )
    params = SamplingParams(max_new_tokens=new_tokens, seed=0, temperature=0.0, stop_ids=stop_ids)
    for number, prompt in enumerate(prompts):
        engine.add(
            EngineRequest(
                id=str(number),
                ids=prompt.ids,
                positions=prompt.positions,
                next_position=prompt.next_position,
                params=params,
                images=tuple(
                    EngineImage(
                        rows=i.patches.rows, grid=i.patches.grid, start=i.start, tokens=i.tokens
                    )
                    for i in prompt.images
                ),
            )
        )
    generated: list[list[int]] = [[] for _ in prompts]
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, Token):
                generated[int(event.request_id)].append(event.token_id)
            elif isinstance(event, Finished) and event.error is not None:
                raise event.error
    return generated


def never_generated(loaded: LoadedModel) -> list[int]:
    """The ids that our engine forbids itself."""
    return banned_ids(loaded.config, loaded.tokenizer.vocab_size).nonzero().flatten().tolist()


# ---- transformers ------------------------------------------------------------------------------


def load_theirs(folder: Path, generation: str) -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    kind = getattr(transformers, f"{tiny.NAMES[generation]}ForConditionalGeneration")
    return kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def is_older() -> bool:
    """4.57, the version whose form of the models is published, in place of 5.23.

    `pip install --target DIR "transformers==4.57.*" "huggingface-hub<1"`, then `PYTHONPATH=DIR make parity`.
    """
    import transformers

    return transformers.__version__.startswith("4.")


def their_processor(folder: Path, rules: PixelRules) -> Any:
    import transformers

    if is_older():  # of Pillow, it does not read the bounds that Qwen3-VL's file calls size
        bounds = {"min_pixels": rules.min_px, "max_pixels": rules.max_px}
        return transformers.Qwen2VLImageProcessor.from_pretrained(folder, **bounds)
    return transformers.Qwen2VLImageProcessorPil.from_pretrained(folder)


def their_inputs(prompt: Prompt, image_token_id: int) -> dict[str, Tensor]:
    ids = torch.from_numpy(prompt.ids)[None]
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if not prompt.images:
        return text
    pixels = {
        "pixel_values": rows_of(prompt),
        "image_grid_thw": torch.tensor([image.patches.grid for image in prompt.images]),
    }
    if is_older():  # it finds the pictures by their token's id
        return text | pixels
    return text | pixels | {"mm_token_type_ids": (ids == image_token_id).long()}


def levels_of(features: Any) -> tuple[Tensor, ...]:
    """The rows of all pictures together, and those of each deepstack level."""
    if not isinstance(features, tuple):
        levels = getattr(features, "deepstack_features", None) or []
        return tuple(torch.cat(list(rows)) for rows in (features.pooler_output, *levels))
    # of 4.57, where Qwen3-VL's is a pair
    last, levels = features if isinstance(features[-1], list) else (features, [])
    return (torch.cat(list(last)), *levels)


@torch.inference_mode()
def theirs(model: Any, inputs: dict[str, Tensor]) -> Computed:
    if "pixel_values" not in inputs:
        return Computed((), model(**inputs, use_cache=False).logits[0])
    features = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    vision = levels_of(features)
    return Computed(vision, model(**inputs, use_cache=False).logits[0])


@torch.inference_mode()
def their_greedy(
    model: Any,
    inputs: dict[str, Tensor],
    *,
    new_tokens: int,
    never: Sequence[int],
    stop_ids: frozenset[int] = frozenset(),
) -> tuple[list[int], float]:
    """The tokens, and the smallest lead of a chosen token's logit over the next best one."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=new_tokens,
        suppress_tokens=list(never),
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=0,
    )
    out = model.generate(**inputs, output_scores=True, return_dict_in_generate=True)
    best = torch.cat(out.scores).topk(2).values
    prompt_tokens = inputs["input_ids"].shape[1]
    return out.sequences[0, prompt_tokens:].tolist(), (best[:, 0] - best[:, 1]).min().item()
