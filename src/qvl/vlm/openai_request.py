"""A Request in the words of OpenAI's chat API, for any server that speaks it.

Main path: chat_body -> _message, _picture_part. Calls have no ids in a Request: they are counted here.

- A picture goes as the bytes of its file, where any decoder makes the same pixels of them; one that was
  turned, lies on a transparent ground or has a format of its own goes as what `processing.image` makes
  of it.
- A video goes as pictures, each after its time (`<0.5 seconds>`, as Qwen3-VL's template has it): every
  server takes those, few take a video, and each of these picks other frames of it.
- What is beyond OpenAI's own API (top_k, thinking_token_budget, ...) is sent where it is asked for;
  KNOWN says which servers heed it, a note of the completion that another one may not.
"""

from __future__ import annotations

import base64
import io
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image as Pillow

from qvl.errors import InvalidParamError
from qvl.loading.family import FALLBACKS
from qvl.models.config import Generation
from qvl.processing.chat import check_conversation
from qvl.processing.image import Picture, read_original
from qvl.processing.patches import largest_px, smart_resize
from qvl.processing.video import read_frames
from qvl.types import (
    Detail,
    Image,
    ImageInfo,
    Message,
    Part,
    Request,
    Sampling,
    Text,
    Tool,
    ToolCall,
    Video,
    VideoInfo,
)
from qvl.vlm.chat_model import check_asked
from qvl.vlm.tool_calls import demanded_tools, offered_tools

MOST_FRAMES = 32  # of a video's file
SEED_BITS = 31  # what every server takes
_BEYOND = frozenset(
    {
        "top_k",
        "min_p",
        "repetition_penalty",
        "allowed_token_ids",
        "stop_token_ids",
        "thinking_token_budget",
        "priority",
        "cache_salt",
        "reasoning_content",
    }
)
# by the `owned_by` of their /v1/models
KNOWN: Mapping[str, frozenset[str]] = {
    "vllm": _BEYOND,
    "qvl": _BEYOND - {"cache_salt"} | {"detail"},
    "sglang": _BEYOND
    & {"top_k", "min_p", "repetition_penalty", "stop_token_ids", "reasoning_content"},
    "llamacpp": _BEYOND & {"top_k", "min_p", "repetition_penalty", "reasoning_content"},
}
_MAGIC = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
}


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent, and what is told of it in the completion."""

    fields: dict[str, Any]
    sampling: Sampling  # with the seed that was drawn
    images: tuple[ImageInfo, ...]
    videos: tuple[VideoInfo, ...]
    notes: tuple[str, ...]


def chat_body(
    request: Request, *, model: str, server_kind: str, generation: Generation | None
) -> Body:
    """The body of a streamed chat completion, without the form of the answer.

    `generation` None: pictures are resized in a way that is not known. Raises InvalidParamError for
    what no model takes, and the errors of `read_image` and `read_video`.
    """
    sampling = replace(request.sampling.checked(), max_new_tokens=request.tokens_allowed())
    if sampling.temperature != 0 and sampling.seed is None:
        sampling = replace(sampling, seed=secrets.randbits(SEED_BITS))
    check_conversation(request.messages, request.tools)
    check_asked(request)
    tools, demanded = offered_tools(request), demanded_tools(request)
    fields: dict[str, Any] = {
        "model": model,
        "max_tokens": sampling.max_new_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed"):
        if (value := getattr(sampling, name)) is not None:
            fields[name] = value
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token_id): bias for token_id, bias in sampling.logit_bias}
    if sampling.logprobs or server_kind in KNOWN:  # the confidence is made of them
        fields |= {"logprobs": True, "top_logprobs": max(1, sampling.logprobs)}
    if tools:
        fields["tools"] = [_tool(tool) for tool in tools]
        fields["tool_choice"] = request.tool_choice
        if demanded and request.tool_choice != "required":
            named = {"name": request.tool_choice}
            fields["tool_choice"] = {"type": "function", "function": named}
    beyond = {
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "allowed_token_ids": list(sampling.allowed_token_ids),
        "stop_token_ids": list(sampling.stop_token_ids),
        "thinking_token_budget": sampling.thinking_tokens,
        "priority": request.priority or None,
        "cache_salt": request.tenant or None,
    }
    beyond = {name: value for name, value in beyond.items() if value not in (None, [])}
    if any(message.reasoning for message in request.messages):
        beyond["reasoning_content"] = None  # sent within the messages
    unsure = beyond.keys() - KNOWN.get(server_kind, frozenset())
    parts = [part for message in request.messages for part in message.content]
    if any(isinstance(part, Image) and part.detail != "auto" for part in parts):
        # OpenAI's own, which some servers take and do not heed
        unsure |= {"detail"} - KNOWN.get(server_kind, frozenset({"detail"}))
    if server_kind == "llamacpp" and "repetition_penalty" in beyond:
        beyond["repeat_penalty"] = beyond.pop("repetition_penalty")
    fields |= {name: value for name, value in beyond.items() if name != "reasoning_content"}
    shown = _Shown(generation, server_kind)
    calls: list[str] = []  # the ids of those that no result has answered yet
    fields["messages"] = [
        _message(message, number, shown, calls) for number, message in enumerate(request.messages)
    ]
    notes = (f"the server may not heed {', '.join(sorted(unsure))}",) if unsure else ()
    return Body(fields, sampling, tuple(shown.images), tuple(shown.videos), notes)


@dataclass(slots=True)
class _Shown:
    """The pictures and videos of a conversation; equal pictures are read once."""

    generation: Generation | None
    server_kind: str
    images: list[ImageInfo] = field(default_factory=list)
    videos: list[VideoInfo] = field(default_factory=list)
    _read: dict[Image, tuple[str, ImageInfo]] = field(default_factory=dict)

    def picture(self, image: Image) -> dict[str, Any]:
        if image not in self._read:
            encoded, picture = read_original(image)
            heeded = image.detail if self.server_kind == "qvl" else "auto"
            info = _info(picture, self.generation, heeded)
            self._read[image] = _data_url(encoded, picture), info
        url, info = self._read[image]
        self.images.append(info)
        return _image_part(url, image.detail)

    def video(self, video: Video) -> Iterator[dict[str, Any]]:
        frames, info = read_frames(
            video, lambda picture: _encoded(picture, "JPEG"), most=MOST_FRAMES
        )
        self.videos.append(info)
        for frame, time_s in zip(frames, info.frame_times_s, strict=True):
            yield {"type": "text", "text": f"<{time_s:.1f} seconds>"}
            yield _image_part(_as_url(frame, "jpeg"))


def _message(message: Message, number: int, shown: _Shown, calls: list[str]) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": _content(message.content, shown)}
    if message.role == "tool":
        if not calls:
            raise InvalidParamError(
                f"message {number + 1} has the role 'tool', and no call before it is unanswered"
            )
        said["tool_call_id"] = calls.pop(0)
    if message.role == "assistant":
        calls[:] = [f"call_{number}_{i}" for i in range(len(message.tool_calls))]
        if calls:
            said["tool_calls"] = [
                _call(call, call_id)
                for call, call_id in zip(message.tool_calls, calls, strict=True)
            ]
        if message.reasoning:
            said["reasoning_content"] = message.reasoning
    return said


def _content(parts: Sequence[Part], shown: _Shown) -> str | list[dict[str, Any]]:
    """A string where there is only text, since not every server takes parts in every role."""
    if all(isinstance(part, Text) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, Text))
    content: list[dict[str, Any]] = []
    for part in parts:
        match part:
            case Text(text):
                content.append({"type": "text", "text": text})
            case Image():
                content.append(shown.picture(part))
            case Video():
                content += shown.video(part)
            case _:
                raise InvalidParamError(
                    f"a message has a part of type {type(part).__name__!r}",
                    hint="content is a tuple of Text, Image and Video",
                )
    return content


def _tool(tool: Tool) -> dict[str, Any]:
    parameters = json.loads(_json(tool.parameters, f"the tool {tool.name!r}"))
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _call(call: ToolCall, call_id: str) -> dict[str, Any]:
    arguments = _json(call.arguments, f"the arguments of {call.name!r}")
    function = {"name": call.name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def _json(value: Mapping[str, Any], what: str) -> str:
    try:
        return json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as err:
        raise InvalidParamError(f"{what} is not JSON", hint="use plain JSON values") from err


def _data_url(encoded: bytes, picture: Picture) -> str:
    kind = next((kind for magic, kind in _MAGIC.items() if encoded.startswith(magic)), None)
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        kind = "webp"
    if kind and picture.as_stored:
        return _as_url(encoded, kind)
    # a photo, which JPEG made in the first place, would be ten times as large as a PNG
    if kind == "jpeg":
        return _as_url(_encoded(picture, "JPEG"), "jpeg")
    return _as_url(_encoded(picture, "PNG"), "png")


def _encoded(picture: Picture, kind: str) -> bytes:
    file = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    Pillow.fromarray(picture.pixels).save(file, kind, **options)
    return file.getvalue()


def _as_url(encoded: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def _image_part(url: str, detail: Detail = "auto") -> dict[str, Any]:
    asked = {"url": url} if detail == "auto" else {"url": url, "detail": detail}
    return {"type": "image_url", "image_url": asked}


def _info(picture: Picture, generation: Generation | None, detail: Detail) -> ImageInfo:
    """Resized as the generation's published checkpoints do; where that is not known, not at all."""
    height_px, width_px = picture.pixels.shape[:2]
    height, width, tokens = height_px, width_px, 0
    if generation in FALLBACKS:
        rules = FALLBACKS[generation]
        factor_px = rules.patch_px * rules.merge
        largest = largest_px(detail, min_px=rules.min_px, max_px=rules.max_px)
        height, width = smart_resize(
            height_px, width_px, factor_px=factor_px, min_px=rules.min_px, max_px=largest
        )
        tokens = height * width // factor_px**2
    return ImageInfo(
        name=picture.name,
        sha256=picture.sha256,
        width_px=width_px,
        height_px=height_px,
        resized_width_px=width,
        resized_height_px=height,
        tokens=tokens,
        notes=picture.notes,
    )
