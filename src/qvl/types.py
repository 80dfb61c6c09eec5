"""What a request and its completion are made of; every layer above the engine speaks only these.

Frozen, and free of torch, numpy and Pillow, so that the server, a batch record and a test can build
them without loading a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from qvl.errors import InvalidParamError

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "cancelled"]
MAX_NEW_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture by path or by its encoded bytes; `name` is how messages about it call it."""

    source: Path | bytes
    name: str = "image"

    @classmethod
    def of(cls, source: str | Path | bytes) -> Image:
        """An Image named after its file; bytes are called "image"."""
        if isinstance(source, bytes):
            return cls(source)
        return cls(Path(source), str(source))


Part = Text | Image


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: tuple[Part, ...]

    @classmethod
    def user(cls, *parts: Part | str) -> Message:
        return cls("user", tuple(Text(p) if isinstance(p, str) else p for p in parts))


# name -> (smallest, largest); the ranges are the product's, the same in every door
SAMPLING_RANGES: Mapping[str, tuple[float, float]] = {
    "max_new_tokens": (1, MAX_NEW_TOKENS),
    "temperature": (0.1, 2.0),
    "top_p": (0.05, 1.0),
    "top_k": (1, 1000),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.1, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen. None means: the checkpoint's own default; temperature 0 is greedy.

    What is asked for must lie in SAMPLING_RANGES (`checked`); a checkpoint's defaults need not.
    """

    max_new_tokens: int = 512
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def checked(self) -> Sampling:
        """Itself; raises InvalidParamError for a value outside SAMPLING_RANGES."""
        for name, (low, high) in SAMPLING_RANGES.items():
            value = getattr(self, name)
            if value is None or (name == "temperature" and value == 0):
                continue
            wants_int = isinstance(low, int)
            if isinstance(value, bool) or not isinstance(value, int if wants_int else (int, float)):
                raise InvalidParamError(f"{name} is {value!r}, not a number")
            if not math.isfinite(value) or not low <= value <= high:
                zero = " (or 0 for greedy)" if name == "temperature" else ""
                raise InvalidParamError(
                    f"{name} is {value}, outside {low} to {high}{zero}",
                    hint=f"give a {name} from {low} to {high}{zero}",
                )
        if len(self.stop) > 8 or any(not 1 <= len(s) <= 256 for s in self.stop):
            raise InvalidParamError("at most 8 stop strings of 1 to 256 characters")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    image_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds, by a monotonic clock: until the first token, and in all."""

    first_token_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """What became of one picture: sizes in pixels (width, height) before and after resizing."""

    name: str
    sha256: str
    width_px: int
    height_px: int
    resized_width_px: int
    resized_height_px: int
    tokens: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How a completion came to be: enough to ask for the same words again."""

    model: str
    revision: str | None
    dtype: str
    device: str
    seed: int | None
    sampling: Sampling
    images: tuple[ImageInfo, ...]
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...]
    confidence: float  # mean probability that the model gave to its own tokens, 0..1
    usage: Usage
    timings: Timings
    provenance: Provenance
    id: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a stream: whole characters; the last one carries the completion."""

    text: str
    completion: Completion | None = None


@dataclass(frozen=True, slots=True)
class Box:
    """A labelled rectangle in pixels of the upright original picture."""

    label: str
    x1: float
    y1: float
    x2: float
    y2: float


def field_names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind))
