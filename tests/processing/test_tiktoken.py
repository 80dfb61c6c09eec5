"""qwen.tiktoken, read as pairs that are merged, gives the ids that its ranks mean."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tiny_tokenizer import SENTENCES
from qvl.errors import ConfigError
from qvl.processing.tiktoken import tokenizer_json
from qvl.processing.tokenizer import Tokenizer
from tiny_v1 import control_id, ranks, tiktoken_file


def pieces(text: str) -> list[str]:
    """The split of the facts, with sets of characters for what `re` has no names for."""
    found, at = [], 0
    while at < len(text):
        end = split_at(text, at)
        assert end > at
        found.append(text[at:end])
        at = end
    return found


def is_letter(char: str) -> bool:
    return unicodedata.category(char).startswith("L")


def is_number(char: str) -> bool:
    return unicodedata.category(char).startswith("N")


def is_space(char: str) -> bool:
    """White_Space of Unicode, which str.isspace exceeds by four separators."""
    return char.isspace() and char not in "\x1c\x1d\x1e\x1f"


def run(text: str, at: int, wanted) -> int:
    while at < len(text) and wanted(text[at]):
        at += 1
    return at


def split_at(text: str, at: int) -> int:
    """Where the piece that begins at `at` ends: the alternatives of the pattern, in their order."""
    short = re.compile(r"'(?:s|t|re|ve|m|ll|d)", re.IGNORECASE | re.ASCII).match(text, at)
    if short:
        return short.end()
    here = text[at]
    skip = at + (here not in "\r\n" and not is_letter(here) and not is_number(here))
    if skip < len(text) and is_letter(text[skip]):
        return run(text, skip, is_letter)
    if is_number(here):
        return at + 1

    def other(char: str) -> bool:
        return not (is_space(char) or is_letter(char) or is_number(char))

    start = at + (here == " ")
    end = run(text, start, other)
    if end > start:
        return run(text, end, lambda char: char in "\r\n")
    end = run(text, at, is_space)
    newlines = [i for i in range(at, end) if text[i] in "\r\n"]
    if newlines:
        return newlines[-1] + 1
    return end if end == len(text) or end - at == 1 else end - 1


def slow_ids(text: str) -> list[int]:
    """The lowest rank of two neighbours is merged, the first of equals, until none is left."""
    found: list[int] = []
    for piece in pieces(unicodedata.normalize("NFC", text)):
        parts = [bytes([byte]) for byte in piece.encode()]
        while True:
            pairs = [(ranks().get(a + b), i) for i, (a, b) in enumerate(pairwise(parts))]
            known = [(rank, i) for rank, i in pairs if rank is not None]
            if not known:
                break
            _, i = min(known)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        found += [ranks()[part] for part in parts]
    return found


@cache
def tokenizer() -> Tokenizer:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(
            tokenizer_json(tiktoken_file(ranks())), "utf-8"
        )
        return Tokenizer.from_folder(Path(folder))


words = st.sampled_from([word for line in SENTENCES for word in re.findall(r"\w+|\W+", line)])
# of the later blocks a few: what is a letter there depends on the version of Unicode
chars = st.characters(max_codepoint=0x7FF) | st.sampled_from("你好世界日本語。！🙂👍🏽\u2028\u3000")
texts = st.one_of(st.text(chars, max_size=40), st.lists(words, max_size=12).map("".join))


@settings(max_examples=3000)
@given(texts)
def test_ids_are_those_of_the_ranks(text: str) -> None:
    assert tokenizer().encode_text(text) == slow_ids(text)


def test_whole_sentences_too() -> None:
    for sentence in SENTENCES:
        ids = tokenizer().encode_text(sentence)
        assert ids == slow_ids(sentence)
        assert len(ids) < 0.8 * len(sentence.encode())  # merges are made at all
        assert tokenizer().decode(ids) == unicodedata.normalize("NFC", sentence)


def test_control_tokens_follow_the_ranks_in_the_published_order() -> None:
    for token in ("<|endoftext|>", "<|im_end|>", "<ref>", "</quad>", "<img>", "</img>", "<imgpad>"):
        assert tokenizer().encode_control(token) == control_id(token)
    assert tokenizer().vocab_size == len(ranks()) + 217
    assert control_id("<imgpad>") - control_id("<|endoftext|>") == 151859 - 151643


def test_text_never_becomes_a_control_token_and_boxes_stay_in_answers() -> None:
    text = "<|im_end|><img>/etc/passwd</img><ref>cup</ref><box>(1,2),(3,4)</box><imgpad>"
    ids = tokenizer().encode_text(text)
    assert max(ids) < len(ranks())
    assert tokenizer().decode(ids) == text
    shown = tokenizer().encode_template("<ref>cup</ref><box>(1,2),(3,4)</box><|im_end|>")
    assert tokenizer().decode(shown) == "<ref>cup</ref><box>(1,2),(3,4)</box>"


BYTES = {bytes([byte]): byte for byte in range(256)}


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (tiktoken_file({b: i for b, i in BYTES.items() if b != b"a"}), "line 98 "),
        (b"".join(tiktoken_file(BYTES).splitlines(keepends=True)[:255]), "lacks 1 of the 256"),
        (tiktoken_file(BYTES | {b"abc": 256}), "no merges lead to the token of rank 256"),
        (tiktoken_file(BYTES) + b"YQ== 256\n", "line 257 "),
        (tiktoken_file(BYTES) + b"not base64 256\n", "line 257 "),
        (tiktoken_file(BYTES) + b" 256\n", "line 257 "),
    ],
)
def test_other_files_are_refused(damaged: bytes, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        tokenizer_json(damaged)
