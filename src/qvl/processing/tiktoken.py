"""The vocabulary file of the first Qwen-VL, qwen.tiktoken, in the one form that tokenizer.py reads.

The file gives each token's bytes (base64) and rank, a line each; the lowest rank is merged first.
The other form lists the pairs that are merged. A token's pair is what merging its own bytes, all but
the last merge, comes to: the same wherever the token stands, as merges beyond its ends would have
taken its bytes away. So both forms give the same ids.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from itertools import pairwise

from tokenizers import AddedToken, decoders

from qvl.errors import ConfigError
from qvl.processing.tokenizer import BYTE_OF_CHAR, family_bpe

# in this order behind the ranks; those that an answer's text shows are not special
TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
CONTROL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *(f"<|extra_{i}|>" for i in range(205)),
    *TAGS,
    *("<img>", "</img>", "<imgpad>"),
)
MAX_TOKEN_BYTES = 256


def tokenizer_json(ranks_file: bytes) -> str:
    """What tokenizer.json holds, for the bytes of a qwen.tiktoken; seconds for 150 000 tokens.

    Raises ConfigError for another format, and for a token that merging could never make.
    """
    ranks = parse_ranks(ranks_file)
    char_of_byte = {byte: char for char, byte in BYTE_OF_CHAR.items()}

    def written(token: bytes) -> str:
        return "".join(char_of_byte[byte] for byte in token)

    merges = []
    for token, rank in ranks.items():
        if len(token) > 1:
            pair = last_pair(token, ranks)
            if pair is None:
                raise ConfigError(f"qwen.tiktoken: no merges lead to the token of rank {rank}")
            merges.append((written(pair[0]), written(pair[1])))
    vocab = {written(token): rank for token, rank in ranks.items()}
    bpe = family_bpe(vocab, merges)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_tokens([AddedToken(t, special=t not in TAGS, normalized=False) for t in CONTROL])
    return bpe.to_str()


def parse_ranks(ranks_file: bytes) -> dict[bytes, int]:
    """Each token's rank, in rising order: 0, 1, 2 ... without a gap, every single byte among them.

    Raises ConfigError, naming the line.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(ranks_file.splitlines()):
        coded, _, rank = line.partition(b" ")
        try:
            token = base64.b64decode(coded, validate=True)
        except (binascii.Error, ValueError):
            token = b""
        if not 1 <= len(token) <= MAX_TOKEN_BYTES or token in ranks or rank != b"%d" % number:
            raise ConfigError(
                f"qwen.tiktoken: line {number + 1} is {line[:80]!r}, not a new token in base64 "
                f"and the rank {number}"
            )
        ranks[token] = number
    if missing := sum(bytes([byte]) not in ranks for byte in range(256)):
        raise ConfigError(f"qwen.tiktoken lacks {missing} of the 256 bytes: text would be lost")
    return ranks


def last_pair(token: bytes, ranks: Mapping[bytes, int]) -> Sequence[bytes] | None:
    """The two tokens whose merge makes this one, None if merging its bytes ends in more."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        lowest = min(joined)
        if lowest == len(ranks):
            return None
        at = joined.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
