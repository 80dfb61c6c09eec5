"""Text to token ids and back, with control tokens kept out of the reach of text.

Main path: Tokenizer.from_folder -> encode_text (anybody's text), encode_template (our own text).

The byte-level BPE holds the ordinary tokens only: the added tokens (`<|im_end|>`, `<think>`, ...)
are taken out of its vocabulary and stand in a table beside it, in which only templates are looked
up. So text cannot become one of them, however it is written. (`encode_special_tokens` of the
`tokenizers` library stops the special ones only; `<tool_call>` and `<think>` are not special.)

The one form that is read is that of Qwen2 to Qwen3-VL, as in transformers 5.23
models/qwen2/tokenization_qwen2.py: NFC, one split pattern, bytes in the GPT-2 alphabet, BPE.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from qvl.errors import ConfigError, InvalidParamError, ModelFormatError

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LOOKS_LIKE_CONTROL = re.compile(r"<\|\w+\|>")


def _byte_alphabet() -> dict[str, int]:
    """The 256 characters that stand for bytes in a vocabulary (GPT-2's encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


BYTE_OF_CHAR = _byte_alphabet()


@dataclass(frozen=True, slots=True)
class _Added:
    id: int
    text: str
    special: bool


def family_bpe(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> tokenizers.Tokenizer:
    """The family's byte-level BPE, without its added tokens."""
    bpe = tokenizers.Tokenizer(models.BPE(vocab=dict(vocab), merges=list(merges)))
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return bpe


class Tokenizer:
    """Raises ConfigError for a vocabulary that could lose text, or make text an added token."""

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        added: Sequence[_Added],
    ) -> None:
        _check_ids(vocab, added)
        added_texts = {token.text for token in added}
        ordinary = {text: i for text, i in vocab.items() if text not in added_texts}
        _check_bpe(ordinary, merges)
        self._bpe = family_bpe(ordinary, merges)
        self.control = {token.text: token.id for token in added}  # the id of each added token
        self._control_pattern = _any_of(self.control)
        self._added_bytes = {t.id: b"" if t.special else t.text.encode() for t in added}
        self._texts = {i: text for text, i in ordinary.items()}
        self.special_ids = frozenset(token.id for token in added if token.special)
        self.added_ids = frozenset(token.id for token in added)
        ids = self._texts.keys() | self._added_bytes.keys()
        self.vocab_size = max(ids) + 1  # rows of the head from here on are never valid

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a checkpoint: tokenizer.json, else vocab.json with merges.txt.

        Raises ModelFormatError if neither is there, ConfigError for any other kind of tokenizer.
        """
        if (folder / "tokenizer.json").is_file():
            return cls.from_json(_read_text(folder / "tokenizer.json"))
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            if not (folder / name).is_file():
                raise ModelFormatError(
                    f"the checkpoint has no tokenizer.json and no {name}",
                    hint="download it again with all of its tokenizer files",
                )
        return cls(*_parse_separate_files(folder))

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """That of the text of a tokenizer.json. Raises ConfigError."""
        return cls(*_parse_tokenizer_json(_parse_json(text, "tokenizer.json")))

    def encode_text(self, text: str) -> list[int]:
        """Ids of anybody's text; never an added token's.

        Raises InvalidParamError for a lone surrogate.
        """
        check_text(text)
        return self._bpe.encode(text, add_special_tokens=False).ids

    def encode_control(self, token: str) -> int:
        """The id of one added token. Raises ConfigError if the checkpoint has no such token."""
        if token not in self.control:
            raise ConfigError(
                f"the checkpoint's tokenizer has no control token {token!r}",
                hint="its template needs it: use the tokenizer files that belong to the model",
            )
        return self.control[token]

    def split_template(self, text: str) -> list[int | str]:
        """Ids of the control tokens in our own template text, and the plain text between them.

        Raises ConfigError for a `<|...|>` that the checkpoint does not know.
        """
        for token in _LOOKS_LIKE_CONTROL.findall(text):
            self.encode_control(token)
        return [
            self.control.get(piece, piece) for piece in self._control_pattern.split(text) if piece
        ]

    def encode_template(self, text: str) -> list[int]:
        """Ids of our own template text, control tokens recognised; not for anybody else's text."""
        pieces = self.split_template(text)
        return list(
            chain.from_iterable([p] if isinstance(p, int) else self.encode_text(p) for p in pieces)
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids without special tokens (other added ones stay); broken UTF-8 is U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes a token adds to a text: none for a special token or an id that has no token.

        Raises InvalidParamError for an id of vocab_size or more.
        """
        if not 0 <= id < self.vocab_size:
            raise InvalidParamError(f"token id {id} is outside 0 to {self.vocab_size - 1}")
        if id in self._added_bytes:
            return self._added_bytes[id]
        return bytes(BYTE_OF_CHAR[char] for char in self._texts.get(id, ""))


def check_text(text: str) -> None:
    """Raises InvalidParamError for a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as err:
        raise InvalidParamError(
            f"the text has a lone surrogate, U+{ord(text[err.start]):04X}",
            hint="it is no character: read the text as UTF-8, or leave it out",
        ) from err


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that captures the leftmost, longest of the texts, and nothing if there are none."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("(" + ("|".join(map(re.escape, longest_first)) or r"(?!)") + ")")


def _check_ids(vocab: Mapping[str, int], added: Sequence[_Added]) -> None:
    """An id stands for one token, and a token has one id."""
    owner: dict[int, str] = {}
    tokens = chain(vocab.items(), ((token.text, token.id) for token in added))
    for text, i in tokens:
        # type(), not isinstance: True would be id 1
        if type(i) is not int or not 0 <= i < 2**32:
            raise ConfigError(f"the tokenizer gives {text!r} the id {i!r:.40}, not a whole number")
        if owner.setdefault(i, text) != text:
            raise ConfigError(f"the tokenizer gives id {i} to {owner[i]!r} and to {text!r}")
    ids: dict[str, int] = {}
    for token in added:
        known = vocab.get(token.text, ids.setdefault(token.text, token.id))
        if known != token.id:
            raise ConfigError(f"the tokenizer gives {token.text!r} the ids {known} and {token.id}")
    if len(ids) != len(added):
        raise ConfigError("the tokenizer lists an added token twice")


def _check_bpe(vocab: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> None:
    """Every byte has a token, every token is bytes, every merge joins two tokens into one."""
    missing = sum(char not in vocab for char in BYTE_OF_CHAR)
    if missing:
        raise ConfigError(f"the tokenizer lacks {missing} of the 256 bytes: text would be lost")
    if "" in vocab or not BYTE_OF_CHAR.keys() >= set("".join(vocab)):  # all at once: it is quick
        wrong = next(text for text in vocab if not text or not BYTE_OF_CHAR.keys() >= set(text))
        raise ConfigError(f"the tokenizer's token {wrong!r} is not written in bytes")
    for left, right in merges:
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise ConfigError(
                f"the tokenizer merges {left!r} and {right!r}, which are not all ordinary tokens"
            )


def _parse_tokenizer_json(
    config: object,
) -> tuple[dict[str, int], list[tuple[str, str]], list[_Added]]:
    if not isinstance(config, dict):
        raise ConfigError("tokenizer.json is not an object")
    model = _section(config, "model", type="BPE")
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        _require(model.get(key) or None, None, f"model.{key}")
    for key in ("byte_fallback", "ignore_merges"):
        _require(bool(model.get(key)), False, f"model.{key}")
    _section(config, "normalizer", type="NFC")
    _section(config, "decoder", type="ByteLevel")
    if config.get("post_processor") is not None:
        _section(config, "post_processor", type="ByteLevel")
    _check_pre_tokenizer(_section(config, "pre_tokenizer", type="Sequence"))
    vocab, merges = model.get("vocab"), model.get("merges")
    added = config.get("added_tokens") or []
    if not isinstance(vocab, dict) or not isinstance(merges, list) or not isinstance(added, list):
        raise ConfigError(
            "tokenizer.json has no vocabulary, merges or added tokens that we can read"
        )
    return vocab, [_parse_merge(merge) for merge in merges], [_parse_added(a) for a in added]


def _check_pre_tokenizer(config: dict[str, Any]) -> None:
    steps = config.get("pretokenizers")
    if not isinstance(steps, list) or len(steps) != 2:
        raise ConfigError("tokenizer.json: pre_tokenizer is not a split and a byte step")
    named = {"split": steps[0], "bytes": steps[1]}
    split = _section(named, "split", type="Split", behavior="Isolated", invert=False)
    _require(split.get("pattern"), {"Regex": SPLIT_PATTERN}, "the split pattern")
    _section(named, "bytes", type="ByteLevel", add_prefix_space=False, use_regex=False)


def _section(config: dict[str, Any], name: str, **wanted: object) -> dict[str, Any]:
    section = config.get(name)
    if not isinstance(section, dict):
        raise ConfigError(f"tokenizer.json: {name} is {section!r:.80}, not an object")
    for key, value in wanted.items():
        _require(section.get(key), value, f"{name}.{key}")
    return section


def _require(value: object, wanted: object, what: str) -> None:
    if value != wanted:
        raise ConfigError(
            f"tokenizer.json: {what} is {value!r:.200}, not {wanted!r}",
            hint="only the tokenizers of Qwen2-VL to Qwen3-VL are read",
        )


def _parse_merge(merge: object) -> tuple[str, str]:
    """Two strings, or one with a space between (files written before tokenizers 0.20)."""
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if isinstance(pair, list) and len(pair) == 2:  # a match statement takes four times as long
        left, right = pair
        if isinstance(left, str) and isinstance(right, str):
            return left, right
    raise ConfigError(f"the tokenizer has a merge {merge!r:.80}, not two tokens")


def _parse_added(token: object) -> _Added:
    """Tokens that swallow the space around them are refused: templates would change under them."""
    entry = token if isinstance(token, dict) else {}
    i, text = entry.get("id"), entry.get("content")
    if not isinstance(i, int) or not isinstance(text, str) or not text or not text.isprintable():
        raise ConfigError(f"the tokenizer has an added token {token!r:.80} without an id or a text")
    for key in ("lstrip", "rstrip", "single_word"):
        if entry.get(key):
            raise ConfigError(f"the tokenizer's added token {text!r:.80} has {key} set")
    return _Added(i, text, bool(entry.get("special")))


def _parse_separate_files(
    folder: Path,
) -> tuple[dict[str, int], list[tuple[str, str]], list[_Added]]:
    vocab = _read_json(folder / "vocab.json")
    config = _read_json(folder / "tokenizer_config.json")
    added = config.get("added_tokens_decoder") if isinstance(config, dict) else None
    if not isinstance(vocab, dict) or not isinstance(added, dict):
        raise ConfigError("vocab.json or tokenizer_config.json's added tokens are not an object")
    # not splitlines(): that also splits at U+0085, which may stand for a byte
    lines = _read_text(folder / "merges.txt").replace("\r\n", "\n").split("\n")
    merges = [_parse_merge(line) for line in lines if line and not line.startswith("#version")]
    return vocab, merges, [_parse_added_entry(key, token) for key, token in added.items()]


def _parse_added_entry(key: str, token: object) -> _Added:
    if not re.fullmatch("[0-9]{1,10}", key) or not isinstance(token, dict):
        raise ConfigError(f"tokenizer_config.json has an added token {key!r:.80} without an id")
    return _parse_added(token | {"id": int(key)})


def _read_json(path: Path) -> object:
    return _parse_json(_read_text(path), path.name)


def _parse_json(text: str, name: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as err:  # ValueError also for a number of 5000 digits
        raise ConfigError(f"{name} is not JSON") from err


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as err:
        raise ConfigError(f"{path.name} is not UTF-8") from err
