"""The embedded model's vocabulary, for tests of what is done with one."""

from __future__ import annotations

from functools import cache

from qvl.processing.tokenizer import Tokenizer
from qvl.structured.grammar import Grammars
from qvl.vlm.chat_model import EMBEDDED_FOLDER


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(EMBEDDED_FOLDER)


@cache
def grammars() -> Grammars:
    words = tokenizer()
    return Grammars(
        token_bytes=words.token_bytes,
        encode=words.encode_text,
        vocab_size=words.vocab_size,
        end_ids=[words.encode_control("<|im_end|>")],
    )
