"""What a request may ask for and how much is done at once: one table, shown at /v1/limits.

Constants bound a single request and are part of the published API document; `Limits` is how much
this server does at once, which its operator may change. Limits of pictures, videos and sampling are
those of the parts that keep them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from qvl import fetch
from qvl.batch.json_lines import MAX_REQUEST_BYTES, MAX_REQUESTS
from qvl.processing import image, patches, pdf, source, video
from qvl.processing.chat import MAX_TOOLS
from qvl.types import (
    MAX_CHOICES,
    MAX_NEW_TOKENS,
    MAX_PICTURES,
    SAMPLING_RANGES,
    TEXT_PER_POSITION,
)

MESSAGES = 256
PARTS = 1024  # of all messages together
PICTURES = MAX_PICTURES
CHOICES = MAX_CHOICES
TOP_LOGPROBS = 20
LOGIT_BIASES = 300
TOKEN_IDS = 1024
STOPS, STOP_CHARACTERS = 8, 256
TOOLS = MAX_TOOLS
SCHEMA_BYTES, SCHEMA_DEPTH = 64 * 2**10, 32
DEFAULT_MAX_TOKENS = 1024
JSON_NESTING = 64
JSON_VALUES, JSON_KEYS = 200_000, 30_000
FILE_BYTES, FILE_LINES = MAX_REQUEST_BYTES, MAX_REQUESTS  # of a batch
BATCH_HOURS = 24 * 30  # of a completion window
METADATA, METADATA_KEY, METADATA_VALUE = 16, 64, 512  # pairs of a batch, and their characters
# a request's share of the queue before anything of it is read: a guess that need not be exact
CHARACTERS_PER_TOKEN, TOKENS_PER_PICTURE = 4, 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`running` and `queued` count answers (a request with n choices is n) and requests that wait;
    the tokens of those that wait together fill at most `queued_contexts` contexts of the model: four
    times an engine's cache. Of batches `batches` go on at a time, with `batch_running` requests together
    while nobody else asks anything. The limits of a key hold only where there are keys, but for those of
    what is kept for it. `step_s` is how long
    a step of the engine may take before it counts as stuck.
    """

    body_bytes: int = 32 * 2**20
    body_s: float = 30
    header_bytes: int = 32 * 2**10
    header_count: int = 100
    header_s: float = 10
    keep_alive_s: int = 5
    running: int = 64
    queued: int = 64
    queued_contexts: int = 32
    request_s: float = 300
    step_s: float = 60
    ping_s: float = 15
    key_requests_per_minute: int = 60
    key_running: int = 8
    drain_s: float = 30
    upload_s: float = 600
    batches: int = 4
    batch_running: int = 16
    key_batches: int = 100  # that have not ended
    key_files: int = 1000
    key_file_bytes: int = 20 * 2**30

    @classmethod
    def of(cls, device: str) -> Limits:
        """A processor may take minutes for the step that reads a large picture."""
        own = cls()
        return own if device.startswith("cuda") else replace(own, step_s=4 * own.step_s)

    def table(self, context: int) -> dict[str, object]:
        """All limits by name, for a model with that many positions."""
        return {
            **asdict(self),
            "context_tokens": context,
            "max_tokens_default": DEFAULT_MAX_TOKENS,
            "max_tokens": MAX_NEW_TOKENS,
            "prompt_characters": TEXT_PER_POSITION * context,
            "messages": MESSAGES,
            "content_parts": PARTS,
            "images": PICTURES,
            "image_bytes": source.MAX_BYTES,
            "image_pixels": image.MAX_PIXELS,
            "image_aspect": patches.MAX_ASPECT,
            "video_bytes": video.MAX_BYTES,
            "video_seconds": video.MAX_SECONDS,
            "video_frames": video.MAX_SAMPLED,
            "video_frame_pixels": video.MAX_FRAME_PIXELS,
            "pdf_bytes": source.MAX_PDF_BYTES,
            "pdf_pages": pdf.MAX_PAGES,
            "pdf_page_pixels": pdf.MAX_PIXELS,
            "fetch_s": source.FETCH_S,
            "video_fetch_s": video.FETCH_S,
            "fetch_connect_s": fetch.CONNECT_S,
            "fetch_redirects": fetch.MAX_REDIRECTS,
            "n": CHOICES,
            "top_logprobs": TOP_LOGPROBS,
            "logit_bias": LOGIT_BIASES,
            "stop": STOPS,
            "stop_characters": STOP_CHARACTERS,
            "tools": TOOLS,
            "schema_bytes": SCHEMA_BYTES,
            "schema_depth": SCHEMA_DEPTH,
            "file_bytes": FILE_BYTES,
            "file_lines": FILE_LINES,
            "batch_hours": BATCH_HOURS,
            "json_nesting": JSON_NESTING,
            "json_values": JSON_VALUES,
            "json_keys": JSON_KEYS,
            **{
                name: list(bounds) for name, bounds in SAMPLING_RANGES.items() if name != "logprobs"
            },
        }
