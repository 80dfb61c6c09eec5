"""What a request and its completion are made of; every layer above the engine speaks only these.

Frozen, and free of torch, numpy and Pillow, so that the server, a batch record and a test can build
them without loading a model.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal

from qvl.errors import InvalidParamError

Role = Literal["system", "user", "assistant", "tool"]
# what the weights are kept in; "auto" never quantises plain weights
DType = Literal["auto", "fp32", "bf16", "fp8", "int8", "int4"]
# "loop": the model repeated itself without end, and was stopped; "reasoning": the tokens ended before
# the reasoning did, so there is no answer
FinishReason = Literal["stop", "length", "loop", "cancelled", "reasoning"]
# what the authors of Qwen3-VL give a Thinking edition, reasoning and answer together
MAX_NEW_TOKENS = 40_960
NEW_TOKENS = 512  # of an answer of which nothing says how long it may be
BACKGROUND = 1000  # a priority from which on a request is worked at while nobody needs the engine
MAX_CHOICES = 8  # answers to one request
MAX_PICTURES = 32  # and videos, of one request
TEXT_PER_POSITION = 8  # characters of a prompt for each position of the model's context
Detail = Literal["auto", "low", "high", "original"]
FIRST_ALONE = "the first one is used"  # ends the note on a file of which more could be seen
# of pictures and documents in a folder; a file named outright is opened whatever its name
PICTURE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
        ".heic",
        ".heif",
        ".pdf",
    ]
)
# of files that are videos; of a folder, whose videos may be long, only pictures are taken
VIDEO_SUFFIXES = frozenset(
    [".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv"]
)


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Url:
    """An http(s) address, fetched when the picture is read; see `qvl.fetch`."""

    address: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture by path, by its encoded bytes or by address; `name` is how messages about it call it.

    Of a PDF it is page number `page`, counted from 1. `detail` is OpenAI's: a server is told it; here
    "low" is 512 x 512 pixels' worth at most, and all others are what the checkpoint likes best.
    """

    source: Path | bytes | Url
    name: str = "image"
    page: int | None = None
    detail: Detail = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.source, Path | bytes | Url):
            raise _no_source("picture", self.source)

    @classmethod
    def of(cls, source: str | Path | bytes) -> Image:
        """An Image named after its file or address; bytes are called "image".

        Raises InvalidParamError for what is neither, such as an array.
        """
        if not isinstance(source, str | bytes | PathLike):
            raise _no_source("picture", source)
        if isinstance(source, bytes):
            return cls(source)
        if is_address(str(source)):
            return cls(Url(str(source)), without_password(str(source)))
        return cls(Path(source), str(source))


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """A video by path or by its encoded bytes, or as pictures of one size in the order of time.

    Of a file, `fps` frames a second (None: the checkpoint's own rate) or `frames` in all are looked
    at, between `start_s` and `end_s`. Of pictures, all are, and `fps` says how fast they were taken
    (None: two a second). `name` is how messages about it call it.
    """

    source: Path | bytes | Url | tuple[Image, ...]
    name: str = "video"
    fps: float | None = None
    frames: int | None = None
    start_s: float | None = None
    end_s: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, Path | bytes | Url | tuple):
            raise _no_source("video", self.source)

    @classmethod
    def of(cls, source: str | Path) -> Video:
        """The whole video of a file or an address, named after it."""
        if is_address(str(source)):
            return cls(source=Url(str(source)), name=without_password(str(source)))
        return cls(source=Path(source), name=str(source))


def _no_source(what: str, source: object) -> InvalidParamError:
    """An object of some library: its type is told, and no more of it, as its repr may be anything."""
    kind = f"{type(source).__module__}.{type(source).__name__}".removeprefix("builtins.")
    shape = "".join(
        f", {name} {getattr(source, name)}" for name in ("dtype", "shape") if hasattr(source, name)
    )
    return InvalidParamError(
        f"a {what} is a {kind}{shape}, not a path, an address or the bytes of a file",
        hint="save it as PNG, into a file or an io.BytesIO, and give the path or the bytes",
    )


def is_address(source: str) -> bool:
    return source[:8].lower().startswith(("http://", "https://"))


def page_apart(source: str) -> tuple[str, int | None]:
    """A path, address or data URL without the `#page=N` behind it, as in RFC 8118, and that N."""
    rest, mark, number = source.rpartition("#page=")
    if mark and re.fullmatch("[0-9]{1,6}", number):
        return rest, int(number)
    return source, None


def without_password(address: str) -> str:
    """For names, which messages and results repeat; such an address is refused when it is fetched."""
    return re.sub(r"(?<=://)[^/?#]*@", "", address, count=1)


Part = Text | Image | Video


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model asks for; `arguments` are JSON values by name."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """A turn of a conversation. The role "tool" answers a call of the assistant's turn before it.

    `reasoning` and `tool_calls` are the assistant's: what its Completion held beside the text.
    """

    role: Role
    content: tuple[Part, ...]
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    @classmethod
    def user(cls, *parts: Part | str) -> Message:
        return cls("user", tuple(Text(p) if isinstance(p, str) else p for p in parts))


# name -> (smallest, largest); the ranges are the product's, the same in every door
SAMPLING_RANGES: Mapping[str, tuple[float, float]] = {
    "max_new_tokens": (1, MAX_NEW_TOKENS),
    "thinking_tokens": (1, MAX_NEW_TOKENS),
    "temperature": (0.1, 2.0),
    "top_p": (0.05, 1.0),
    "top_k": (1, 1000),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.1, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "logprobs": (0, 20),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen. None means: the checkpoint's own default; temperature 0 is greedy.

    `max_new_tokens` None is what `Request.tokens_allowed` says; of a Thinking edition they count
    reasoning and answer together. `thinking_tokens` is for the Thinking editions:
    reasoning that has not ended after so many tokens is closed, and the answer follows; None takes
    three quarters of `max_new_tokens`.

    `logit_bias` is added to the logits of token ids, `allowed_token_ids` (empty: all) are the only
    ones chosen, `stop_token_ids` end the text besides the checkpoint's own; with `logprobs` the
    completion tells that many of the likeliest tokens at each place. The text ends before the first
    of the strings `stop`, and where it repeats itself without end if `stop_loops`.

    What is asked for must lie in SAMPLING_RANGES (`checked`); a checkpoint's defaults need not.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}  # where it comes as JSON

    max_new_tokens: int | None = None
    thinking_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    logprobs: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_loops: bool = True

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
        self._check_types()
        if len(self.stop) > 8 or any(not 1 <= len(s) <= 256 for s in self.stop):
            raise InvalidParamError("at most 8 stop strings of 1 to 256 characters")
        if any(not -100 <= bias <= 100 for _, bias in self.logit_bias):
            raise InvalidParamError("a logit bias lies outside -100 to 100")
        return self

    def _check_types(self) -> None:
        """Raises InvalidParamError for a list that does not hold what it should."""
        if not isinstance(self.stop, tuple) or any(not isinstance(s, str) for s in self.stop):
            raise InvalidParamError("stop is not a tuple of strings", hint='as in stop=("\\n",)')
        for name in ("allowed_token_ids", "stop_token_ids"):
            ids = getattr(self, name)
            if not isinstance(ids, tuple) or any(type(one) is not int for one in ids):
                raise InvalidParamError(f"{name} is not a tuple of token ids")
        pairs = self.logit_bias
        if not isinstance(pairs, tuple) or not all(map(_is_bias, pairs)):
            raise InvalidParamError(
                "logit_bias is not a tuple of token ids with their biases",
                hint="as in logit_bias=((42, 5.0),)",
            )


def _is_bias(pair: object) -> bool:
    match pair:
        case (int(token_id), int() | float()):
            return not isinstance(token_id, bool)
    return False


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """The form that an answer must have; `value` is a JSON schema or a JSON list of choices as text,
    a regular expression, or a grammar in Lark's language (as llguidance reads it).

    An answer that ends with "stop" has it, unless a `stop` of the sampling cut it; one that ends with
    "length" is the beginning of one that has. What a model says up to its `</think>` is free, the
    form begins after that. A schema that could not be kept exactly is refused with InvalidParamError,
    which names the keyword.
    """

    kind: Literal["json_schema", "choice", "regex", "lark"]
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked. Of requests that wait, a lower `priority` goes first, and of those from BACKGROUND on
    our own engine computes one at a time while there are others; from `deadline_s` seconds
    after it was asked it is given up; requests of another `tenant` share no work with it.

    `tool_choice` "auto" leaves it to the model whether to call one of the `tools`, "none" forbids it,
    "required" demands a call, and a tool's name demands a call of that one.

    `adapter` is the name of one that the model was opened with, "" for the model itself.

    `new_tokens` is how long the answer may be where the sampling does not say it; see `tokens_allowed`.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    response_format: ResponseFormat | None = None
    priority: int = 0
    deadline_s: float | None = None
    tenant: str = ""
    id: str = ""
    new_tokens: int = NEW_TOKENS
    adapter: str = ""

    def tokens_allowed(self, *, reasoning_room: int | None = None) -> int:
        """How many tokens the answer may have: as the sampling says; else, of a model that reasons
        first, as many as there is room for, up to MAX_NEW_TOKENS; else `new_tokens`."""
        if self.sampling.max_new_tokens is not None:
            return self.sampling.max_new_tokens
        if reasoning_room is not None:
            return max(1, min(MAX_NEW_TOKENS, reasoning_room))
        return self.new_tokens


def choices(request: Request, n: int) -> list[Request]:
    """`n` requests for as many answers to one; together they compute their prompt once.

    Choice 0 has the request's own seed, or one that is drawn now. Choice i has the first 63 bits of
    SHA-256 of the text "SEED/i", so it is the same however many there are. Greedy choices are all
    alike. Raises InvalidParamError for an `n` outside 1 to MAX_CHOICES.
    """
    if not 1 <= n <= MAX_CHOICES:
        raise InvalidParamError(
            f"n is {n}, outside 1 to {MAX_CHOICES}", hint="ask again for more, with other seeds"
        )
    first = request.sampling.seed
    first = secrets.randbits(63) if first is None else first
    digests = [hashlib.sha256(f"{first}/{i}".encode()).digest() for i in range(1, n)]
    seeds = [first, *(int.from_bytes(digest[:8]) >> 1 for digest in digests)]
    return [replace(request, sampling=replace(request.sampling, seed=seed)) for seed in seeds]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens; of the prompt's, `image_tokens` are of pictures and videos, and `cached_tokens` were
    computed before; of the completion's, `reasoning_tokens` came before the answer. `cost` is by the
    prices of the settings, None where they have none.
    """

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float | None = None


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
class VideoInfo:
    """What became of one video: as ImageInfo, and when each frame that was looked at is shown.

    Times are the file's own, in seconds from its beginning.
    """

    name: str
    sha256: str
    width_px: int
    height_px: int
    resized_width_px: int
    resized_height_px: int
    tokens: int
    frame_times_s: tuple[float, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How a completion came to be: enough to ask for the same words again."""

    model: str
    revision: str | None
    generation: str
    dtype: str
    device: str
    seed: int | None
    sampling: Sampling
    images: tuple[ImageInfo, ...]
    version: str
    videos: tuple[VideoInfo, ...] = ()
    adapter: str = ""

    @property
    def unseen(self) -> tuple[str, ...]:
        """What of the pictures was not looked at: all pages or frames of a file but the first."""
        return tuple(
            f"{image.name}: {note}"
            for image in self.images
            for note in image.notes
            if note.endswith(FIRST_ALONE)
        )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token as its bytes, and the natural logarithm of the probability that the model gave it.

    It is of what the model itself thought, before penalties, grammars, temperature and cuts; 0 for a
    token that there was no choice about. `best` are the likeliest tokens at that place with theirs.
    """

    token: bytes
    logprob: float
    best: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """`text` is the answer alone: `reasoning` came before it, and well-formed `tool_calls`, where tools
    were offered, are taken out of it. A call that cannot be read stays in the text, as `notes` say.
    """

    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...]
    confidence: float  # mean probability that the model gave to its own tokens, 0..1
    usage: Usage
    timings: Timings
    provenance: Provenance
    id: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()  # one for each of the answer's tokens, if asked
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a stream: whole characters of the answer's `text`, or of the `reasoning` before it;
    the last one carries the completion.
    """

    text: str
    completion: Completion | None = None
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Box:
    """A labelled rectangle in pixels of the upright original picture."""

    label: str
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True, slots=True)
class Point:
    """A labelled point in pixels of the upright original picture."""

    label: str
    x: float
    y: float


def field_names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind))
