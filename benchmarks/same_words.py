"""What the embedded model says in llama.cpp's server, beside what it says here: greedy, token by token.

    PATH=SOURCES/build/bin:$PATH LLAMA_CPP=SOURCES python -m benchmarks.same_words [--kind F32]

SOURCES is a checkout of llama.cpp, built as `benchmarks/gguf.py` says, whose converter makes the files
of FOLDER here. Jobs of drawn scenes in three languages go as one request each through our own door in
fp32 and through that of a remote server, without a form of the answer, which the two keep in ways of
their own.

llama.cpp resizes pictures by rules of its own: to 8 to 4096 tokens, whatever the checkpoint says, and with
black bars where sides must become multiples of 32, in place of stretching. So each picture is brought to
the size that the checkpoint asks for before either sees it, and is resized by neither; `--as-drawn` leaves
that out. Clips are left out: the remote door sends their frames as pictures.

Prints how many texts are equal, of the tokens that both say how far their log-probabilities lie apart,
and of each text that differs the first token that does, with how much likelier each side finds its own
than the other's. Where that is less than NEAR, the two tokens are as good as alike, and rounding
decides. Exit code 1 where a text differs by more.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gguf import convert, sources_of_llama_cpp
from PIL import Image as Pillow

from qvl.bench.peer_llama_cpp import started
from qvl.loading.model import read_parts
from qvl.processing.patches import PixelRules, smart_resize
from qvl.scenes import KINDS, draw
from qvl.scenes.asked import request_of
from qvl.types import Completion, Request, Sampling, TokenLogprob
from qvl.vlm.chat_model import EMBEDDED_FOLDER
from qvl.vlm.local import LocalModel
from qvl.vlm.remote import RemoteModel

FIRST_SEED = 70_000  # of scenes that no training has seen
NEW_TOKENS = 96
ALTERNATIVES = 5  # tokens whose probabilities are asked for at each place
ROOM = 4096  # tokens of a prompt and its answer
NEAR = {"F32": 0.05, "F16": 0.1}  # in log-probability
SIDES = tuple((w, h) for w in range(128, 225, 32) for h in range(128, 225, 32))
# what the F16 of its defaults would be beside weights in F32: the cache, and attention over it
WHOLE = ("--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off")


@dataclass(frozen=True, slots=True)
class Item:
    name: str  # kind, seed, skill and language
    request: Request


@dataclass(frozen=True, slots=True)
class Compared:
    """`apart`: of the tokens before the first that differs, the largest distance of log-probabilities;
    `margins`: how much likelier than the other's each finds its own token there, ours first.
    """

    item: Item
    ours: str
    theirs: str
    apart: float
    tokens: tuple[bytes, bytes] = (b"", b"")
    margins: tuple[float, float] = (0.0, 0.0)

    @property
    def is_same(self) -> bool:
        return self.ours == self.theirs


def items(count: int, rules: PixelRules | None) -> Iterator[Item]:
    """Of each kind of scene in turn, a language and a size at random; `rules` None: as drawn."""
    rng = random.Random(11)
    kinds, seed = list(KINDS), FIRST_SEED
    made = 0
    while made < count:
        for kind in kinds:
            language = rng.choice(("ru", "en", "zh"))
            scene = draw(kind, "held-out", seed, rng.choice(SIDES))
            jobs = [job for job in scene.jobs if job.options["language"] == language]
            if made == count or scene.times_s or not jobs:
                continue
            job = rng.choice(jobs)
            if rules:
                scene = replace(scene, pictures=tuple(fitted(p, rules) for p in scene.pictures))
            greedy = Sampling(
                temperature=0, max_new_tokens=NEW_TOKENS, logprobs=ALTERNATIVES, stop_loops=False
            )
            request = replace(request_of(job, scene), sampling=greedy, response_format=None)
            yield Item(f"{kind} {seed}, {job.skill}, {language}", request)
            made += 1
        seed += 1


def fitted(picture: Pillow.Image, rules: PixelRules) -> Pillow.Image:
    height, width = smart_resize(
        picture.height,
        picture.width,
        factor_px=rules.patch_px * rules.merge,
        min_px=rules.min_px,
        max_px=rules.max_px,
    )
    return picture.resize((width, height), Pillow.Resampling.BICUBIC)


def compared(item: Item, ours: Completion, theirs: Completion) -> Compared:
    # the end of a text, which one side may tell as a token, is none
    pairs = list(zip(ours.logprobs, theirs.logprobs, strict=False))
    same = next((n for n, (a, b) in enumerate(pairs) if a.token != b.token), len(pairs))
    apart = max((abs(a.logprob - b.logprob) for a, b in pairs[:same]), default=0.0)
    found = Compared(item, ours.text, theirs.text, apart)
    if found.is_same:
        return found
    if same == len(pairs):  # one ends where the other goes on
        return replace(found, margins=(math.inf, math.inf))
    a, b = pairs[same]
    margins = (a.logprob - of(b.token, a), b.logprob - of(a.token, b))
    return replace(found, tokens=(a.token, b.token), margins=margins)


def of(token: bytes, place: TokenLogprob) -> float:
    """The log-probability of a token there; of one that is not among the likeliest, that of the last."""
    told = dict(place.best)
    return told.get(token, min(told.values(), default=-math.inf))


def compare(folder: Path, kind: str, asked: Sequence[Item], flags: Sequence[str]) -> list[Compared]:
    """Raises what either door does."""
    requests = [item.request for item in asked]
    model = LocalModel(str(folder), dtype="fp32")
    ours = model.generate(requests)
    model.close()
    with tempfile.TemporaryDirectory() as made:
        convert(folder, Path(made), kind, sources_of_llama_cpp())
        logging.getLogger().setLevel(logging.ERROR)  # the converter has turned it on for all
        weights, tower = (Path(made) / f"{name}-{kind}.gguf" for name in ("model", "mmproj"))
        with started(weights, tower, device="cpu", at_once=1, room=ROOM, flags=flags) as server:
            there = RemoteModel(f"openai:sprout@{server.url}/v1")
            theirs = there.generate(requests)
            there.close()
    return [compared(*each) for each in zip(asked, ours, theirs, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=EMBEDDED_FOLDER)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--kind", choices=NEAR, default="F32", help="of the weights there")
    parser.add_argument("--as-drawn", action="store_true", help="each resizes by itself")
    args = parser.parse_args()
    rules = read_parts(args.folder).rules
    asked = list(items(args.items, None if args.as_drawn else rules))
    found = compare(args.folder, args.kind, asked, WHOLE if args.kind == "F32" else ())
    unequal = [one for one in found if not one.is_same]
    print(
        f"{len(found) - len(unequal)} of {len(found)} texts are equal, ours in fp32 and llama.cpp's"
        f" in {args.kind}; log-probabilities of the same tokens lie at most"
        f" {max(one.apart for one in found):.4f} apart"
    )
    for one in unequal:
        told = [token.decode("utf-8", "replace") for token in one.tokens]
        verdict = "near" if max(one.margins) <= NEAR[args.kind] else "WRONG"
        print(
            f"{verdict}: {one.item.name}: ours {told[0]!r} by {one.margins[0]:.4f},"
            f" theirs {told[1]!r} by {one.margins[1]:.4f}\n  ours   {one.ours!r}"
            f"\n  theirs {one.theirs!r}"
        )
    return int(any(max(one.margins) > NEAR[args.kind] for one in unequal))


if __name__ == "__main__":
    sys.exit(main())
