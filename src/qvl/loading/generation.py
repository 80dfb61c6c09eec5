"""How a checkpoint's authors sample, and which form of prompt it takes: generation_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qvl.loading.family import FALLBACKS, FIRST_STOPS
from qvl.loading.section import Section, json_file
from qvl.models.config import ModelConfig
from qvl.processing.tokenizer import Tokenizer

FILE = "generation_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """How the checkpoint's authors sample. Temperature 0 is greedy; top_k 0 and top_p 1 are off."""

    stop_ids: tuple[int, ...]
    do_sample: bool
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    presence_penalty: float = 0.0


def parse_generation_defaults(
    folder: Path, config: ModelConfig, tokenizer: Tokenizer
) -> GenerationDefaults:
    """What generation_config.json says; without it, greedy until the family's stop tokens.

    Raises ConfigError for values out of range and for stop ids outside the vocabulary.
    """
    part = json_file(folder, FILE) if (folder / FILE).exists() else Section(FILE, "", {})
    do_sample = part.values.get("do_sample", False)
    if not isinstance(do_sample, bool):
        raise part.bad("do_sample", "neither true nor false")
    temperature = part.real("temperature", 0.0, 100.0, 1.0)
    return GenerationDefaults(
        stop_ids=_stop_ids(part, config, tokenizer),
        do_sample=do_sample and temperature > 0,
        temperature=temperature if do_sample else 0.0,
        top_p=part.real("top_p", 1e-6, 1.0, 1.0),
        top_k=part.whole("top_k", 0, 2**20, 50),  # 50: transformers' own, when a file is silent
        repetition_penalty=part.real("repetition_penalty", 0.01, 10.0, 1.0),
    )


def _stop_ids(part: Section, config: ModelConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    key, last = "eos_token_id", config.decoder.vocab_size - 1
    is_first = config.generation == "qwen_vl"
    known = FIRST_STOPS if is_first else FALLBACKS[config.generation].stop_tokens
    own_ids = tuple(tokenizer.encode_control(token) for token in known)
    if not part.has(key):
        return own_ids
    if isinstance(part.values[key], list):
        stop_ids = part.numbers(key, (int,), 0, last, ())
    else:
        stop_ids = (part.whole(key, 0, last),)
    if not stop_ids:
        raise part.bad(key, "no stop id at all")
    # Qwen-VL's own code stops at all of them, its file names one
    return (*stop_ids, *own_ids) if is_first else stop_ids


def parse_template(folder: Path, config: ModelConfig) -> str:
    """What processing.chat calls the form of a prompt: the generation, and Qwen-VL's plain texts.

    Raises ConfigError for a chat_format that we do not know.
    """
    if config.generation != "qwen_vl" or not (folder / FILE).exists():
        return config.generation
    part = json_file(folder, FILE)
    part.one_of("chat_format", ("raw", "chatml"), "an unknown form of prompts")
    return "qwen_vl_base" if part.values.get("chat_format") == "raw" else "qwen_vl"
