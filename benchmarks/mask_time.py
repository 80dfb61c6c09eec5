"""What answers of a given form cost beside the model: seconds for one mask, and to compile a schema.

    python -m benchmarks.mask_time [--step 0.12] | tee benchmarks/mask_time.md

Main path: main -> vocabulary -> measure, for each of the fifty schemas in tests/schemas.py -> a table.
A mask is all that the engine's mask thread does for one token: llguidance's bits, and from them the
ids that are banned. Seconds are this thread's on the processor, so that neighbours do not count.
The vocabulary has the size of the published checkpoints, 151,936: the embedded model's 12,288 tokens,
and pairs of them joined, 6.6 bytes long on average. An answer is what a model would say that wants to
say anything at all and likes to come to an end.
Exit status 1 if the median is over LIMIT of a decode step.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version

import numpy as np
import torch
from tests.schemas import SCHEMAS, text_of

from qvl.loading.machine import processor_name, usable_cores
from qvl.processing.tokenizer import Tokenizer
from qvl.structured.grammar import Grammars
from qvl.types import ResponseFormat
from qvl.vlm.chat_model import EMBEDDED_FOLDER

LIMIT = 0.05
SIZE = 151_936
ANSWERS, TOKENS = 3, 200  # of each schema, and at most of each answer
STEPS = {"bf16": 0.12, "int4": 0.04}  # seconds for a token of Qwen3-VL-2B on two cores


@dataclass(slots=True)
class Measured:
    compile_s: list[float] = field(default_factory=list)
    mask_s: list[float] = field(default_factory=list)


def vocabulary(tokenizer: Tokenizer) -> list[bytes]:
    """The tokenizer's tokens and pairs of them, up to SIZE, no two alike."""
    tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    ordinary = [token for token in tokens if 0 < len(token) < 9]
    known = set(tokens)
    rng = random.Random(7)
    while len(tokens) < SIZE:
        pair = rng.choice(ordinary) + rng.choice(ordinary)
        if len(pair) < 9 and pair not in known:
            known.add(pair)
            tokens.append(pair)
    return tokens


def liking(tokens: list[bytes], end: int) -> np.ndarray:
    """What is added to the noise of each token: most for what closes strings, lists and objects."""
    closing = [0 < len(token) <= 2 and bool(set(token) & set(b'"]}')) for token in tokens]
    liking_v = np.where(closing, 8.0, 0.0)
    liking_v[end] = 12
    return liking_v


def measure(grammars: Grammars, schema: str, liking_v: np.ndarray, end: int) -> Measured:
    measured = Measured()
    never_v = torch.zeros(SIZE, dtype=torch.bool)
    for seed in range(ANSWERS):
        rng = np.random.default_rng(seed)
        began = time.thread_time()
        grammar = grammars.compile(ResponseFormat("json_schema", schema))
        measured.compile_s.append(time.thread_time() - began)
        for _ in range(TOKENS):
            began = time.thread_time()
            banned_v = never_v.clone()
            banned_v.logical_or_(grammar.allowed().logical_not())
            measured.mask_s.append(time.thread_time() - began)
            scores_v = liking_v + rng.gumbel(size=SIZE)
            scores_v[banned_v.numpy()] = -np.inf
            chosen = int(scores_v.argmax())
            if chosen == end:
                break
            grammar.accept(chosen)
            for token_id in grammar.forced():
                grammar.accept(token_id)
            if grammar.is_complete:
                break
    return measured


def high(seconds: list[float]) -> float:
    """The 99th percentile."""
    return float(np.percentile(seconds, 99))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--step", type=float, help="seconds of a decode step to compare with")
    asked = parser.parse_args().step
    steps = STEPS if asked is None else {f"{asked} s": asked}
    tokenizer = Tokenizer.from_folder(EMBEDDED_FOLDER)
    tokens = vocabulary(tokenizer)
    end = tokenizer.encode_control("<|im_end|>")
    began = time.thread_time()
    grammars = Grammars(
        token_bytes=tokens.__getitem__,
        encode=tokenizer.encode_text,
        vocab_size=SIZE,
        end_ids=[end],
    )
    once_s = time.thread_time() - began
    liking_v = liking(tokens, end)
    found = {name: measure(grammars, text_of(s), liking_v, end) for name, s in SCHEMAS.items()}
    print_tables(found, once_s, steps)
    median_s = statistics.median(s for m in found.values() for s in m.mask_s)
    if median_s > LIMIT * min(steps.values()):
        raise SystemExit(f"a mask takes more than {LIMIT:.0%} of a decode step")


def print_tables(found: dict[str, Measured], once_s: float, steps: dict[str, float]) -> None:
    machine = f"{processor_name() or 'unknown processor'}, {usable_cores()} cores"
    print(f"# Masks over {SIZE:,} tokens, for {len(found)} JSON schemas\n")
    print(f"{date.today()}, {machine}, llguidance {version('llguidance')};")
    print(
        f"{once_s:.2f} s once for the vocabulary. `python -m benchmarks.mask_time` prints this.\n"
    )
    masks = [s for m in found.values() for s in m.mask_s]
    compiles = [s for m in found.values() for s in m.compile_s]
    print("| | median, ms | 99th percentile, ms | most, ms |\n|---|---|---|---|")
    for what, seconds in (("one mask", masks), ("to compile", compiles)):
        numbers = (statistics.median(seconds), high(seconds), max(seconds))
        print(f"| {what} | {' | '.join(f'{1e3 * n:.2f}' for n in numbers)} |")
    print("\n| decode step | median's share | 99th percentile's share |\n|---|---|---|")
    for name, step_s in steps.items():
        shares = (statistics.median(masks) / step_s, high(masks) / step_s)
        print(f"| {name}, {step_s} s | {' | '.join(f'{share:.2%}' for share in shares)} |")
    print("\n| schema | masks | median, ms | 99th percentile, ms | to compile, ms |")
    print("|---|---|---|---|---|")
    for name, m in found.items():
        numbers = (statistics.median(m.mask_s), high(m.mask_s), statistics.median(m.compile_s))
        cells = (str(len(m.mask_s)), *(f"{1e3 * n:.2f}" for n in numbers))
        print(f"| {name} | {' | '.join(cells)} |")
    print(
        "\nA mask is made beside the forward pass, so that on a free core it costs no time at all."
    )


if __name__ == "__main__":
    main()
