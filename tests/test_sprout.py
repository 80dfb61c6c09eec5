"""The embedded model's folder is a hub checkpoint: transformers loads it and writes the same words."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

import oracle
from qvl.loading.model import LoadedModel, load_model
from qvl.scenes import draw
from qvl.tasks.prompts import wording
from qvl.types import Image, Message, Video
from qvl.vlm.chat_model import EMBEDDED_FOLDER

NEW_TOKENS = 64
LANGUAGES = ("ru", "en", "zh")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(EMBEDDED_FOLDER, dtype="fp32")


@pytest.fixture(scope="module")
def reference() -> Any:
    return oracle.load_theirs(EMBEDDED_FOLDER, "qwen3_vl")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_transformers_reads_and_writes_the_same(
    seed: int, loaded: LoadedModel, reference: Any
) -> None:
    """The same pixels and ids in, the same greedy words out, in three languages."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

    scene = draw("pair", "held-out", seed, (160, 160)).pictures[0]
    file = io.BytesIO()
    scene.save(file, "png")
    picture = Image(file.getvalue(), f"scene {seed}")
    asked = [(Message.user(picture, wording("describe", "plain", lang)),) for lang in LANGUAGES]
    prompts = [oracle.prompt_of(loaded, messages) for messages in asked]
    pixels = Qwen2VLImageProcessorPil.from_pretrained(EMBEDDED_FOLDER)(scene, return_tensors="pt")
    tokenizer: Any = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    stop_ids = frozenset(loaded.defaults.stop_ids)
    found = oracle.our_greedy(
        loaded, prompts, new_tokens=NEW_TOKENS, token_budget=2048, stop_ids=stop_ids
    )
    for prompt, ids in zip(prompts, found, strict=True):
        assert torch.equal(oracle.rows_of(prompt), pixels["pixel_values"])
        assert tokenizer(tokenizer.decode(prompt.ids))["input_ids"] == prompt.ids.tolist()
        expected, _ = oracle.their_greedy(
            reference,
            oracle.their_inputs(prompt, loaded.config.image_token_id),
            new_tokens=NEW_TOKENS,
            never=oracle.never_generated(loaded),
            stop_ids=stop_ids,
        )
        assert ids == expected
        text = loaded.tokenizer.decode(ids)
        assert text == tokenizer.decode(expected, skip_special_tokens=True)
        assert text


def test_a_minute_of_video_fits_its_context(loaded: LoadedModel) -> None:
    file = io.BytesIO()
    draw("object", "held-out", 0, (160, 160)).pictures[0].save(file, "png")
    film = Video(source=(Image(file.getvalue()),) * 120)
    prompt = oracle.prompt_of(loaded, [Message.user(film, "Describe the video.")])
    assert len(prompt.images) == 60
    assert len(prompt.ids) < loaded.config.decoder.max_positions // 2


def test_transformers_finds_every_tensor_and_no_other() -> None:
    from transformers import Qwen3VLForConditionalGeneration

    kind: Any = Qwen3VLForConditionalGeneration
    _, report = kind.from_pretrained(
        EMBEDDED_FOLDER, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    assert not any(report.values()), report
