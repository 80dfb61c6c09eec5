"""Rows as what a model is trained on: ids, positions, the next token where an answer is being said.

Main path: Encoder.example (processing.prompt) -> Example; several about the same pictures are joined,
so that what they have in common is computed once, and none sees another's question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from qvl.errors import InvalidParamError, PromptTooLongError
from qvl.loading.model import Parts
from qvl.processing.image import Picture, read_image
from qvl.processing.prompt import Prompt, PromptImage, answer_ids, build_prompt
from qvl.training.rows import Row
from qvl.types import Image, Message

IGNORE = -100  # no token is to be said here


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """ids int64 [T], positions int64 [3, T], targets int64 [T]: the next token where it belongs to an
    answer, else IGNORE. branch int64 [T]: 0 is the beginning, which all see; tokens of a branch 1, 2,
    ... see the beginning and their own branch before them.
    """

    name: str
    ids: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    branch: np.ndarray
    images: tuple[PromptImage, ...] = ()

    @property
    def said(self) -> int:
        """How many tokens are learnt."""
        return int((self.targets != IGNORE).sum())


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model's tokenizer, template and rules for pictures; `thinks` for a Thinking edition; `read` is
    how pictures are read.
    """

    parts: Parts
    thinks: bool
    read: Callable[[Image], Picture] = read_image

    def example(self, row: Row) -> Example:
        """All answers of the conversation are learnt, each as the model would say it.

        Raises InputError for a picture or a video, InvalidParamError for a conversation that the
        model's template cannot say, PromptTooLongError for one longer than its context.
        """
        prompt, answer = row.messages[:-1], row.messages[-1]
        built = self.prompt(prompt, row)
        said = self.answer(answer)
        beginning = built.ids.tolist()
        ids = np.array(beginning + said, np.int64)
        targets = np.full(len(ids), IGNORE)
        targets[len(beginning) - 1 : -1] = said
        for turn, message in enumerate(prompt):
            if message.role == "assistant" and turn:
                start = len(self.prompt(prompt[:turn], row).ids)
                earlier = self.answer(message)
                if beginning[start : start + len(earlier)] != earlier:
                    continue  # joined with the template's text, or without its reasoning
                targets[start - 1 : start - 1 + len(earlier)] = earlier
        decoder = self.parts.config.decoder
        limit = decoder.stretch_from or decoder.max_positions
        if len(ids) > limit:
            raise PromptTooLongError(f"{len(ids)} tokens, the model learns from up to {limit}")
        following = built.next_position + np.arange(len(said))
        positions = np.concatenate([built.positions, np.tile(following, (3, 1))], axis=1)
        return Example(row.name, ids, positions, targets, np.zeros_like(ids), built.images)

    def prompt(self, messages: Sequence[Message], row: Row) -> Prompt:
        parts = self.parts
        return build_prompt(
            messages,
            tokenizer=parts.tokenizer,
            rules=parts.rules,
            generation=parts.template,
            image_token_id=parts.config.image_token_id,
            tools=row.tools,
            thinks=self.thinks,
            video_rules=parts.video_rules,
            read=self.read,
        )

    def answer(self, message: Message) -> list[int]:
        return answer_ids(
            message,
            tokenizer=self.parts.tokenizer,
            generation=self.parts.template,
            thinks=self.thinks,
        )


def joined(examples: Sequence[Example]) -> Example:
    """Examples that begin alike, with the same pictures, as one: the beginning, then a branch for each.

    Raises InvalidParamError where a picture stands behind what is common.
    """
    first = examples[0]
    if len(examples) == 1:
        return first
    shared = common_beginning(examples)
    if any(image.start + image.tokens > shared for e in examples for image in e.images):
        raise InvalidParamError("pictures of examples to be joined differ")
    branches = [np.full(len(e.ids) - shared, n, np.int64) for n, e in enumerate(examples, 1)]
    return Example(
        first.name,
        np.concatenate([first.ids[:shared], *(e.ids[shared:] for e in examples)]),
        np.concatenate(
            [first.positions[:, :shared], *(e.positions[:, shared:] for e in examples)], axis=1
        ),
        np.concatenate([first.targets[:shared], *(e.targets[shared:] for e in examples)]),
        np.concatenate([np.zeros(shared, np.int64), *branches]),
        first.images,
    )


def common_beginning(examples: Iterable[Example]) -> int:
    """How many tokens all have in common, before the last of them says something that is learnt."""
    first, *others = examples
    shared = len(first.ids)
    for example in (first, *others):
        length = min(shared, len(example.ids))
        alike = first.ids[:length] == example.ids[:length]
        alike &= (first.positions[:, :length] == example.positions[:, :length]).all(0)
        alike &= example.targets[:length] == IGNORE
        shared = length if alike.all() else int(alike.argmin())
    return shared
