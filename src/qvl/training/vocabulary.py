"""`sprout`'s vocabulary: a byte-level BPE over Russian, English and Chinese with Qwen's special tokens.

The merges come from word lists, never from running text, so that a Chinese phrase of the training
scenes does not become one token: frequent words of the three languages (the `wordfreq` package's
tables) and every word that the product's prompts and scenes use.
Run: python -m qvl.training.vocabulary FOLDER
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from qvl import scenes
from qvl.errors import ConfigError
from qvl.processing.tokenizer import family_bpe
from qvl.scenes.kinds import Kind, by_key
from qvl.tasks.prompts import shipped, tasks_with_prompts

VOCABULARY = 12288
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
ADDED = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>",
    "<think>", "</think>",
)  # fmt: skip


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that must be there. Raises ConfigError."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ConfigError(f"the tokenizer has no {token}", hint="make it anew with this module")
    return found


EXAMPLES = 20  # scenes of each kind whose answers are read
ROLES = ("user", "assistant", "system", "tool")


def product_words() -> set[str]:
    """Every word of the product's wordings, of questions and answers about scenes, and of what is
    printed in them.
    """
    texts = [w for t in tasks_with_prompts() for ws in shipped(t).values() for w in ws.values()]
    for kind in by_key().values():
        texts += [getattr(kind, name) for name in Kind.__slots__ if name not in ("icon", "counted")]
    for name in sorted(scenes.KINDS):
        for seed in range(EXAMPLES):
            texts += [job.answer for job in scenes.draw(name, "train", seed).jobs]
    texts += ROLES
    found = {w for t in texts for w in re.findall(r"\w+|[^\w\s]+", re.sub(r"\{\w+\}", " ", t))}
    # a run of five or more Chinese characters is a phrase, not a word
    found = {w for w in found if len(w) < 5 or not "\u4e00" <= w[0] <= "\u9fff"}
    return found | {word.capitalize() for word in found}


def weighted_words() -> Iterator[str]:
    """Words as often as they should count; Latin and Cyrillic ones as they stand after a space too."""
    from wordfreq import get_frequency_dict

    for word in product_words():
        yield from [f" {word}", word] * 700
    for language, size in (("ru", 60_000), ("en", 40_000), ("zh", 30_000)):
        for word, frequency in list(get_frequency_dict(language, "best").items())[:size]:
            times = min(1000, int(frequency * (1e6 if language == "zh" else 5e5)))
            yield from [word if language == "zh" else f" {word}"] * times
            yield from [word.capitalize()] * (times // 8)


def train() -> Tokenizer:
    tokenizer = family_bpe({}, ())
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - len(ADDED),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(weighted_words(), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED])
    return tokenizer


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    train().save(str(folder / "tokenizer.json"))
