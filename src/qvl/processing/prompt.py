"""A conversation as what a model reads: token ids, their positions, the pictures' patches.

Main path: build_prompt -> chat.render -> pictures and videos read and cut -> ids -> span_positions.

Positions are the family's three: time, row, column. A text token has the same number on all three;
a picture of h x w visual tokens that starts at s has time s, rows s..s+h-1, columns s..s+w-1, and
the text after it goes on at the largest number so far plus one. (transformers 5.23 models/qwen2_vl
and qwen3_vl, get_rope_index, for pictures.) A video is one run of tokens whose time goes on with each
temporal patch (Qwen2-VL, Qwen2.5-VL), or each of its temporal patches stands as a picture does, after
its time as text, `<0.3 seconds>` (Qwen3-VL). To the vision tower temporal patches are always pictures
of their own, so nothing else has to know of videos. The first Qwen-VL counts every token as text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qvl.errors import ConfigError, InvalidParamError
from qvl.processing import chat
from qvl.processing.image import Picture, read_image
from qvl.processing.patches import (
    FramePatches,
    Patches,
    PixelRules,
    largest_px,
    to_patches,
    token_count,
)
from qvl.processing.tokenizer import Tokenizer, check_text
from qvl.processing.video import CutVideo, VideoRules, read_video
from qvl.types import Detail, Image, ImageInfo, Message, Tool, Url, Video, VideoInfo

VIDEO_PAD = "<|video_pad|>"


@dataclass(frozen=True, slots=True, eq=False)
class PromptImage:
    """A picture, or one temporal patch of a video, which has no info of its own."""

    patches: Patches | FramePatches
    start: int  # index in ids of its first visual token
    tokens: int
    sha256: str  # what its features depend on: the file's sha256 and the size it was resized to
    info: ImageInfo | None


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    ids: np.ndarray  # int64 [T]
    positions: np.ndarray  # int64 [3, T]: time, row, column
    next_position: int  # of the first generated token, on all three axes
    images: tuple[PromptImage, ...]  # in the order of their tokens
    videos: tuple[VideoInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class VisionSpan:
    """A run of visual tokens: its first index in ids; time, rows, columns in tokens.

    Time goes on by `step` positions, cut to a whole number after the product as the reference does.
    """

    start: int
    extent: tuple[int, int, int]
    step: float = 1.0

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
    video_rules: VideoRules | None = None,
    read: Callable[[Image], Picture] = read_image,
) -> Prompt:
    """The prompt of a conversation, ready for an answer; equal pictures are read and cut once.

    Ids equal those of the checkpoint's own template, tokenised as one text, as long as nobody
    types control tokens; those that somebody types stay text. The length is not checked here.
    Raises InputError for a picture or a video, InvalidParamError for a conversation that cannot be
    used (a video without video_rules, too), ConfigError for a tokenizer that does not fit.
    """
    marks = chat.vision_marks(generation)
    if tokenizer.encode_control(marks[1]) != image_token_id:
        raise ConfigError(
            f"config.json says image token {image_token_id}, "
            f"the tokenizer's {marks[1]} is {tokenizer.encode_control(marks[1])}",
            hint="use the tokenizer files that belong to the model",
        )
    segments = chat.render(messages, generation=generation, tools=tools, thinks=thinks)
    for segment in segments:  # before the first picture: a text that is refused costs no reading
        if isinstance(segment, chat.UserText):
            check_text(segment.text)
    pictures = _read_pictures(
        (s.image for s in segments if isinstance(s, chat.Picture)), rules, read
    )
    shown = [s.video for s in segments if isinstance(s, chat.Clip)]
    videos: dict[Video, CutVideo] = {}
    runs: dict[Video, list[_Run]] = {}
    if shown:
        if video_rules is None:
            raise InvalidParamError("this model takes no videos", hint="give it pictures")
        videos = {v: read_video(v, rules, video_rules, read) for v in dict.fromkeys(shown)}
        runs = {v: _runs(cut, video_rules) for v, cut in videos.items()}
    ids: list[int] = []
    images: list[PromptImage] = []
    spans: list[VisionSpan] = []
    for item in _encode(segments, tokenizer, marks, runs):
        if isinstance(item, int):
            ids.append(item)
            continue
        start = len(ids)
        if isinstance(item, Image):
            placed, step = [_place(item, *pictures[_shown_as(item)], start=start)], 1.0
            pad = image_token_id
        else:
            placed, step = item.placed(start, rules.merge), item.step
            pad = tokenizer.encode_control(VIDEO_PAD)
        _, rows, columns = placed[0].patches.grid
        extent = (len(placed), rows // rules.merge, columns // rules.merge)
        spans.append(VisionSpan(start, extent, step))
        ids += [pad] * spans[-1].tokens
        images += placed
    if generation in chat.FIRST:
        spans = []
    positions_3t, next_position = span_positions(len(ids), spans)
    infos = tuple(videos[video].info for video in shown)
    return Prompt(np.array(ids, np.int64), positions_3t, next_position, tuple(images), infos)


def answer_ids(
    answer: Message, *, tokenizer: Tokenizer, generation: str, thinks: bool = False
) -> list[int]:
    """What a model says, after build_prompt's ids, when this message is its answer: up to the token
    that ends it, reasoning and calls too.

    Raises InvalidParamError for a message that the generation's model cannot say.
    """
    asked = (Message.user("?"),)
    before = chat.render(asked, generation=generation, thinks=thinks, add_generation_prompt=False)
    both = (*asked, answer)
    said = chat.render(both, generation=generation, thinks=thinks, add_generation_prompt=False)
    first = chat.render(asked, generation=generation, thinks=thinks)[len(before) :]
    begun = "".join(segment.text for segment in first if isinstance(segment, chat.Literal_))
    tail = list(said[len(before) :])
    while begun and tail:  # what the prompt has said already
        opening = tail.pop(0)
        if not isinstance(opening, chat.Literal_) or not begun.startswith(opening.text):
            raise InvalidParamError("the answer does not begin as the model's answers do")
        begun = begun[len(opening.text) :]
    ids: list[int] = []
    for item in _encode(tail, tokenizer, chat.vision_marks(generation), {}):
        if not isinstance(item, int):
            raise InvalidParamError("an answer has a picture or a video, which no model says")
        ids.append(item)
    if generation == "qwen_vl_base":
        return [*ids, tokenizer.encode_control("<|endoftext|>")]
    end = tokenizer.encode_control("<|im_end|>")
    return ids[: len(ids) - ids[::-1].index(end)]


def span_positions(tokens: int, spans: Iterable[VisionSpan]) -> tuple[np.ndarray, int]:
    """Positions [3, tokens] and the next one; spans in order, everything between them is text."""
    positions_3t = np.empty((3, tokens), np.int64)
    done = following = 0
    for span in spans:
        positions_3t[:, done : span.start] = following + np.arange(span.start - done)
        following += span.start - done
        done = span.start + span.tokens
        inside = np.indices(span.extent).reshape(3, -1)
        inside[0] = inside[0].astype(np.float32) * np.float32(span.step)
        positions_3t[:, span.start : done] = following + inside
        following += int(inside.max()) + 1
    positions_3t[:, done:] = following + np.arange(tokens - done)
    return positions_3t, following + tokens - done


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Temporal patches of a video whose tokens follow each other, and the text before them."""

    video: CutVideo
    parts: range
    step: float = 1.0
    before: str = ""

    def placed(self, start: int, merge: int) -> list[PromptImage]:
        """The temporal patches from that index in ids on."""
        images = []
        for part in self.parts:
            patches = self.video.patches[part]
            tokens = token_count(patches.grid, merge)
            images.append(PromptImage(patches, start, tokens, self.video.contents[part], None))
            start += tokens
        return images


def _runs(video: CutVideo, rules: VideoRules) -> list[_Run]:
    parts = range(len(video.patches))
    if rules.stamps:
        return [
            _Run(video, range(i, i + 1), before=f"<{video.times_s[i]:.1f} seconds>") for i in parts
        ]
    if rules.positions_per_second is None:
        return [_Run(video, parts)]
    return [_Run(video, parts, video.step_s * rules.positions_per_second)]


def _encode(
    segments: Iterable[chat.Segment],
    tokenizer: Tokenizer,
    marks: tuple[str, str, str],
    runs: Mapping[Video, Sequence[_Run]],
) -> Iterator[int | Image | _Run]:
    """Token ids, and pictures and runs of videos where their tokens go."""
    for piece in _join_text(_pieces(segments, tokenizer, marks, runs)):
        if isinstance(piece, str):
            yield from tokenizer.encode_text(piece)
        else:
            yield piece


def _pieces(
    segments: Iterable[chat.Segment],
    tokenizer: Tokenizer,
    marks: tuple[str, str, str],
    runs: Mapping[Video, Sequence[_Run]],
) -> Iterator[int | str | Image | _Run]:
    """Control tokens as ids, everybody's plain text, and what is seen between its two marks."""
    start, end = (tokenizer.encode_control(mark) for mark in marks[::2])
    for segment in segments:
        match segment:
            case chat.Literal_(text):
                yield from tokenizer.split_template(text)
            case chat.UserText(text):
                yield text
            case chat.Picture(image):
                yield from (start, image, end)
            case chat.Clip(video):
                for run in runs[video]:
                    yield from (run.before, start, run, end)


def _join_text(
    pieces: Iterable[int | str | Image | _Run],
) -> Iterator[int | str | Image | _Run]:
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


Shown = tuple[Path | bytes | Url, int | None, Detail]  # a source, of a PDF one page


def _read_pictures(
    images: Iterable[Image], rules: PixelRules, read: Callable[[Image], Picture]
) -> dict[Shown, tuple[Patches, ImageInfo]]:
    """Each source read once, each content cut once; pixels are let go before the next is read."""
    pictures: dict[Shown, tuple[Patches, ImageInfo]] = {}
    patches: dict[tuple[str, int], Patches] = {}  # by the file's sha256 and the largest area
    for image in images:
        if _shown_as(image) not in pictures:
            picture = read(image)
            largest = largest_px(image.detail, min_px=rules.min_px, max_px=rules.max_px)
            if (picture.sha256, largest) not in patches:
                within = replace(rules, max_px=largest)
                patches[picture.sha256, largest] = to_patches(picture.pixels, within)
            cut = patches[picture.sha256, largest]
            pictures[_shown_as(image)] = cut, _image_info(picture, cut, rules)
    return pictures


def _shown_as(image: Image) -> Shown:
    return image.source, image.page, image.detail


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
