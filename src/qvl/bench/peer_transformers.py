"""The same requests through transformers, on prompts and pixels that our own processing made.

transformers is no dependency of ours: it is used where it is installed. Its static batch computes all
prompts, padded on the left, and then generates for all of them at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from qvl.bench.work import Runner, Timed
from qvl.errors import UsageError
from qvl.loading.config import parse_config
from qvl.loading.rules import parse_pixel_rules
from qvl.loading.template import opens_reasoning
from qvl.processing.prompt import Prompt, build_prompt
from qvl.processing.tokenizer import Tokenizer
from qvl.types import Request

log = logging.getLogger(__name__)
KINDS = {
    "qwen2_vl": "Qwen2VL",
    "qwen2_5_vl": "Qwen2_5_VL",
    "qwen3_vl": "Qwen3VL",
    "qwen3_vl_moe": "Qwen3VLMoe",
}


def run_transformers(folder: Path, dtype: str) -> Runner:
    """Raises UsageError where transformers is not installed."""
    try:
        import transformers
    except ModuleNotFoundError as err:
        raise UsageError(
            "transformers is not installed here", hint="pip install 'transformers==5.23.*'"
        ) from err
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what counts of it we say ourselves
    config, tokenizer = parse_config(folder), Tokenizer.from_folder(folder)
    thinks = opens_reasoning(folder)
    rules = parse_pixel_rules(folder, config)
    kind = getattr(transformers, f"{KINDS[config.generation]}ForConditionalGeneration")
    precision = torch.float32 if dtype == "fp32" else torch.bfloat16
    model, found = kind.from_pretrained(
        folder, dtype=precision, local_files_only=True, output_loading_info=True
    )
    if missing := sorted(found["missing_keys"]):
        log.warning(
            "transformers finds no weights for %d tensors (%s), and takes random ones",
            len(missing),
            missing[0],
        )
    model.eval()

    def run(requests: Sequence[Request]) -> Timed:
        prompts = [
            build_prompt(
                request.messages,
                tokenizer=tokenizer,
                rules=rules,
                generation=config.generation,
                image_token_id=config.image_token_id,
                thinks=thinks,
            )
            for request in requests
        ]
        inputs = batched(prompts, config.image_token_id)
        sampling = requests[0].sampling
        never = [token_id for token_id, _ in sampling.logit_bias]
        times_s = token_times_s(model, inputs, requests[0].tokens_allowed(), never)
        rate = (len(times_s) - 1) / (times_s[-1] - times_s[0])
        return Timed(
            requests=len(requests),
            prompt_tokens=round(median(len(prompt.ids) for prompt in prompts)),
            first_token_s=times_s[0],
            tokens_s=rate,
            total_s=times_s[-1],
        )

    return run


def batched(prompts: Sequence[Prompt], image_token_id: int) -> dict[str, Tensor]:
    longest = max(len(p.ids) for p in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt.ids) :] = torch.from_numpy(prompt.ids)
        mask[row, longest - len(prompt.ids) :] = 1
    images = [image for prompt in prompts for image in prompt.images]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": torch.cat([torch.from_numpy(i.patches.rows) for i in images]),
        "image_grid_thw": torch.tensor([i.patches.grid for i in images]),
        "mm_token_type_ids": (ids == image_token_id).long(),
    }


@torch.inference_mode()
def token_times_s(
    model: Any, inputs: dict[str, Tensor], new_tokens: int, never: Sequence[int]
) -> list[float]:
    """When each token was there, in seconds since the call."""
    from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

    began, times_s = time.perf_counter(), []

    class Clock(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            times_s.append(time.perf_counter() - began)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=new_tokens,
        suppress_tokens=list(never) or None,
        pad_token_id=0,
    )
    model.generate(**inputs, stopping_criteria=StoppingCriteriaList([Clock()]))
    return times_s
