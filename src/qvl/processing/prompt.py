"""A conversation as what a model reads: token ids, their positions, the pictures' patches.

Main path: build_prompt -> chat.render -> pictures read and cut -> ids -> mrope_positions.

Positions are the family's three: time, row, column. A text token has the same number on all three;
a picture of h x w visual tokens that starts at s has time s, rows s..s+h-1, columns s..s+w-1, and
the text after it goes on at the largest number so far plus one. (transformers 5.23 models/qwen2_vl
and qwen3_vl, get_rope_index, for pictures.) The first Qwen-VL counts every token as text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qvl.errors import ConfigError, InvalidParamError
from qvl.processing import chat
from qvl.processing.image import Picture, read_image
from qvl.processing.patches import Patches, PixelRules, to_patches
from qvl.processing.tokenizer import Tokenizer
from qvl.types import Image, ImageInfo, Message, Tool


@dataclass(frozen=True, slots=True, eq=False)
class PromptImage:
    patches: Patches
    start: int  # index in ids of its first visual token
    tokens: int
    sha256: str  # what its features depend on: the file's sha256 and the size it was resized to
    info: ImageInfo


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    ids: np.ndarray  # int64 [T]
    positions: np.ndarray  # int64 [3, T]: time, row, column
    next_position: int  # of the first generated token, on all three axes
    images: tuple[PromptImage, ...]


@dataclass(frozen=True, slots=True)
class VisionSpan:
    """A run of visual tokens: its first index in ids; time, rows, columns in tokens."""

    start: int
    extent: tuple[int, int, int]

    @property
    def tokens(self) -> int:
        time, rows, columns = self.extent
        return time * rows * columns


def build_prompt(
    messages: Sequence[Message],
    *,
    tokenizer: Tokenizer,
    rules: PixelRules,
    generation: str,
    image_token_id: int,
    tools: Sequence[Tool] = (),
    thinks: bool = False,
    read: Callable[[Image], Picture] = read_image,
) -> Prompt:
    """The prompt of a conversation, ready for an answer; equal pictures are read and cut once.

    Ids equal those of the checkpoint's own template, tokenised as one text, as long as nobody
    types control tokens; those that somebody types stay text. The length is not checked here.
    Raises InputError for a picture, InvalidParamError for a conversation that cannot be used,
    ConfigError for a tokenizer that does not fit.
    """
    marks = chat.vision_marks(generation)
    if tokenizer.encode_control(marks[1]) != image_token_id:
        raise ConfigError(
            f"config.json says image token {image_token_id}, "
            f"the tokenizer's {marks[1]} is {tokenizer.encode_control(marks[1])}",
            hint="use the tokenizer files that belong to the model",
        )
    # all text before the first picture: a text that is refused costs no reading
    segments = chat.render(messages, generation=generation, tools=tools, thinks=thinks)
    encoded = list(_encode(segments, tokenizer, marks))
    pictures = _read_pictures((i for i in encoded if isinstance(i, Image)), rules, read)
    ids: list[int] = []
    images: list[PromptImage] = []
    for item in encoded:
        if isinstance(item, Image):
            images.append(_place(item, *pictures[item.source], start=len(ids)))
            ids += [image_token_id] * images[-1].tokens
        else:
            ids.append(item)
    ids_t = np.array(ids, np.int64)
    if generation in chat.FIRST:
        positions_3t, next_position = span_positions(len(ids), ())
    else:
        positions_3t, next_position = mrope_positions(
            ids_t,
            image_token_id=image_token_id,
            grids=[image.patches.grid for image in images],
            merge=rules.merge,
        )
    return Prompt(ids_t, positions_3t, next_position, tuple(images))


def mrope_positions(
    ids: np.ndarray, *, image_token_id: int, grids: Sequence[tuple[int, int, int]], merge: int
) -> tuple[np.ndarray, int]:
    """Positions [3, T] of ids [T], and the next one, given the grids (t, h, w in patches) in order.

    Raises InvalidParamError if the runs of image tokens in ids are not those of the grids.
    """
    if any(height % merge or width % merge for _, height, width in grids):
        raise InvalidParamError(f"a grid of {list(grids)} is not a multiple of {merge}")
    spans: list[VisionSpan] = []
    at = np.flatnonzero(ids == image_token_id)
    taken = 0
    for time, height, width in grids:
        extent = (time, height // merge, width // merge)
        span = VisionSpan(int(at[taken]) if taken < len(at) else len(ids), extent)
        taken += span.tokens
        spans.append(span)
    wanted = [np.arange(span.start, span.start + span.tokens) for span in spans]
    if not np.array_equal(at, np.concatenate([*wanted, np.empty(0, np.int64)])):
        raise InvalidParamError(
            f"the prompt has {len(at)} image tokens, its {len(grids)} pictures make {taken} "
            "in unbroken runs"
        )
    return span_positions(len(ids), spans)


def span_positions(tokens: int, spans: Iterable[VisionSpan]) -> tuple[np.ndarray, int]:
    """Positions [3, tokens] and the next one; spans in order, everything between them is text."""
    positions_3t = np.empty((3, tokens), np.int64)
    done = following = 0
    for span in spans:
        positions_3t[:, done : span.start] = following + np.arange(span.start - done)
        following += span.start - done
        done = span.start + span.tokens
        positions_3t[:, span.start : done] = following + np.indices(span.extent).reshape(3, -1)
        following += max(span.extent)
    positions_3t[:, done:] = following + np.arange(tokens - done)
    return positions_3t, following + tokens - done


def _encode(
    segments: Iterable[chat.Segment], tokenizer: Tokenizer, marks: tuple[str, str, str]
) -> Iterator[int | Image]:
    """Token ids, and pictures where their visual tokens go."""
    for piece in _join_text(_pieces(segments, tokenizer, marks)):
        if isinstance(piece, str):
            yield from tokenizer.encode_text(piece)
        else:
            yield piece


def _pieces(
    segments: Iterable[chat.Segment], tokenizer: Tokenizer, marks: tuple[str, str, str]
) -> Iterator[int | str | Image]:
    """Control tokens as ids, everybody's plain text, and pictures between their two marks."""
    for segment in segments:
        match segment:
            case chat.Literal_(text):
                yield from tokenizer.split_template(text)
            case chat.UserText(text):
                yield text
            case chat.Picture(image):
                yield tokenizer.encode_control(marks[0])
                yield image
                yield tokenizer.encode_control(marks[2])


def _join_text(pieces: Iterable[int | str | Image]) -> Iterator[int | str | Image]:
    r"""Neighbouring texts as one: a token may reach over the border, as `\n\n` from `user\n`."""
    text = ""
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        if text:
            yield text
            text = ""
        yield piece
    if text:
        yield text


def _read_pictures(
    images: Iterable[Image], rules: PixelRules, read: Callable[[Image], Picture]
) -> dict[Path | bytes, tuple[Patches, ImageInfo]]:
    """Each source read once, each content cut once; pixels are let go before the next is read."""
    pictures: dict[Path | bytes, tuple[Patches, ImageInfo]] = {}
    patches: dict[str, Patches] = {}  # by the sha256 of the file
    for image in images:
        if image.source not in pictures:
            picture = read(image)
            if picture.sha256 not in patches:
                patches[picture.sha256] = to_patches(picture.pixels, rules)
            cut = patches[picture.sha256]
            pictures[image.source] = cut, _image_info(picture, cut, rules)
    return pictures


def _image_info(picture: Picture, patches: Patches, rules: PixelRules) -> ImageInfo:
    height_px, width_px = picture.pixels.shape[:2]
    time, rows, columns = patches.grid
    resized_px = (columns * rules.patch_px, rows * rules.patch_px)
    notes = picture.notes
    if resized_px != (width_px, height_px):
        notes += (f"resized from {width_px}x{height_px} to {resized_px[0]}x{resized_px[1]} px",)
    return ImageInfo(
        name=picture.name,
        sha256=picture.sha256,
        width_px=width_px,
        height_px=height_px,
        resized_width_px=resized_px[0],
        resized_height_px=resized_px[1],
        tokens=time * rows * columns // rules.merge**2,
        notes=notes,
    )


def _place(image: Image, patches: Patches, info: ImageInfo, *, start: int) -> PromptImage:
    size = f"{info.resized_width_px}x{info.resized_height_px}"
    return PromptImage(
        patches=patches,
        start=start,
        tokens=info.tokens,
        sha256=f"{info.sha256}:{size}",
        info=replace(info, name=image.name),
    )
