"""Tiny random models behind the engine, and requests for them: what the engine's tests share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch

from qvl.engine.engine import Engine
from qvl.engine.request import (
    EngineImage,
    EngineRequest,
    Event,
    Finished,
    SamplingParams,
    Token,
)
from qvl.errors import QvlError
from qvl.models.config import DecoderConfig, ModelConfig, VisionConfig
from qvl.models.qwen_vl import QwenVL
from qvl.structured.grammar import Grammars

GENERATIONS = ("qwen2_vl", "qwen3_vl")
ROWS, TOKENIZER_SIZE, CONTEXT = 96, 90, 128
IMAGE, VIDEO, START, END = 80, 81, 82, 83
PATCH_WIDTH = 3 * 2 * 4 * 4
TEXT = "Привет, 世界! 🙂 Hello again and again, 再见."


def token_bytes(token_id: int) -> bytes:
    """One byte a token, so that most characters are spread over several tokens."""
    data = TEXT.encode()
    return data[token_id : token_id + 1]


@cache
def tiny_model(generation: str) -> QwenVL:
    newer = generation == "qwen3_vl"
    vision = VisionConfig(
        depth=2,
        width=32,
        heads=2,
        mlp_width=48,
        out_width=64,
        patch_px=4,
        merge=2,
        temporal_patch=2,
        norm="layer",
        mlp="gelu_tanh" if newer else "quick_gelu",
        patch_bias=newer,
        pos_grid=6 if newer else 0,
        deepstack_after=(0, 1) if newer else (),
    )
    decoder = DecoderConfig(
        layers=2,
        hidden=64,
        heads=4,
        kv_heads=2,
        head_dim=32,
        mlp_width=96,
        vocab_size=ROWS,
        norm_eps=1e-6,
        rope_theta=10_000.0,
        mrope_section=(6, 5, 5),
        mrope_interleaved=newer,
        qkv_bias=not newer,
        qk_norm=newer,
        tied_head=newer,
        max_positions=CONTEXT,
    )
    torch.manual_seed(5)
    config = ModelConfig(
        generation="qwen3_vl" if newer else "qwen2_vl",
        vision=vision,
        decoder=decoder,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    model = QwenVL(config).eval().requires_grad_(False)
    # with the default deviation of 1 a tied head only ever repeats the token before
    model.model.language_model.embed_tokens.weight.mul_(0.03)
    return model


def picture(start: int, h: int, w: int, seed: int) -> EngineImage:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(h * w, PATCH_WIDTH, generator=generator)
    return EngineImage(rows=rows.numpy(), grid=(1, h, w), start=start, tokens=h * w // 4)


def prompt(request_id: str, parts: Sequence[int | tuple[int, int]], **choices) -> EngineRequest:
    """Text ids with pictures (h, w in patches) between them; positions as M-RoPE counts them."""
    ids: list[int] = []
    columns: list[tuple[int, int, int]] = []
    images: list[EngineImage] = []
    at = 0
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
            columns.append((at, at, at))
            at += 1
            continue
        h, w = part
        images.append(picture(len(ids), h, w, seed=len(images) + 10 * len(parts)))
        ids += [IMAGE] * images[-1].tokens
        columns += [(at, at + i, at + j) for i in range(h // 2) for j in range(w // 2)]
        at += max(h, w) // 2
    return EngineRequest(
        id=request_id,
        ids=ids,
        positions=torch.tensor(columns).T,
        next_position=at,
        params=replace(SamplingParams(max_new_tokens=6, seed=1, temperature=0.0), **choices),
        images=tuple(images),
    )


WITH_PICTURE = prompt("picture", [1, 2, START, (4, 6), END, 3, 4, 5])
MIX = (
    WITH_PICTURE,
    prompt("text", [7, 8, 9], max_new_tokens=9),
    prompt("sampled", [11, START, (6, 4), END, 12], temperature=1.3, top_p=0.95, seed=7),
    prompt("two", [START, (4, 4), END, 5, START, (2, 6), END], temperature=0.8, top_k=20, seed=8),
    prompt("penalised", [20, 20, 21], temperature=1.0, repetition_penalty=1.3, seed=9),
)


def new_engine(model: QwenVL, **options) -> Engine:
    return Engine(model, token_bytes=token_bytes, vocab_size=TOKENIZER_SIZE, **options)


def drain(engine: Engine) -> list[Event]:
    events: list[Event] = []
    while not engine.idle:
        events += engine.step()
    return events


def run(model: QwenVL, requests: Sequence[EngineRequest], **options) -> list[Event]:
    engine = new_engine(model, **options)
    for request in requests:
        engine.add(request)
    return drain(engine)


def ids_of(events: Sequence[Event], request_id: str) -> list[int]:
    return [e.token_id for e in events if isinstance(e, Token) and e.request_id == request_id]


def end_of(events: Sequence[Event], request_id: str) -> Finished:
    (end,) = (e for e in events if isinstance(e, Finished) and e.request_id == request_id)
    return end


def error_of(events: Sequence[Event], request_id: str) -> QvlError:
    error = end_of(events, request_id).error
    assert error is not None
    return error


def text_of(events: Sequence[Event]) -> str:
    return "".join(e.text for e in events)


def unfinished_text(events: Sequence[Event], request_id: str) -> str:
    """What the events so far do not yet show of the text of a request's tokens."""
    data = b"".join(map(token_bytes, ids_of(events, request_id)))
    shown = text_of([e for e in events if e.request_id == request_id])
    return data.decode(errors="replace").removeprefix(shown)


@cache
def letters() -> Grammars:
    """A vocabulary of the letters a to j and an end."""
    return Grammars(
        token_bytes=lambda i: b"abcdefghij"[i : i + 1],
        encode=lambda text: [ord(letter) - ord("a") for letter in text],
        vocab_size=TOKENIZER_SIZE,
        end_ids=[89],
    )


NAMED = tuple(replace(picture(0, 8, 8, seed=s), content=f"picture {s}") for s in (1, 2))


def asking(
    request_id: str, question: Sequence[int], image: EngineImage, **choices
) -> EngineRequest:
    """20 tokens of text, a picture of 16 tokens, a question: the picture ends within a block."""
    request = prompt(request_id, [*range(20), START, (8, 8), END, *question], **choices)
    return replace(request, images=(replace(image, start=request.images[0].start),))
