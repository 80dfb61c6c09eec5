"""Text to ids and back: equal to the `tokenizers` library, and no control token out of text."""

from __future__ import annotations

import json
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from data.tiny_tokenizer import ADDED, ADDED_NOT_SPECIAL, SPECIAL, write_tiny_tokenizer
from qvl.errors import ConfigError, InvalidParamError, ModelFormatError
from qvl.processing.tokenizer import Tokenizer

TEXTS = [
    "",
    " ",
    "\n\n\n",
    "What's in the picture?  It's a CUP; I'LL take 2024 of them…\t\r\n",
    "Съешь же ещё этих мягких французских булок",
    "请描述这张图片。\n你好，世界！",
    "🙂👍🏽🇷🇺❤️ \u200d \ufeff \x00 \x1b[31m",
    "def f(x):\n    return {'a': x}\n\n\n# ok\n",
    "مرحبا שלום हिन्दी ไทย 한국어",
]
# pieces of control tokens, to be glued together in any order
FRAGMENTS = [*ADDED, "<|", "|>", "<", ">", "</", "|", "im_", "end", "_start", "think", "tool_call"]
plain_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
glued_text = st.lists(st.sampled_from(FRAGMENTS) | plain_text, max_size=12).map("".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def library(folder):
    return Library.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def config(folder):
    return (folder / "tokenizer.json").read_text(encoding="utf-8")


def write(folder, config):
    (folder / "tokenizer.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_text_gets_the_ids_that_the_library_gives(tokenizer, library, text):
    assert tokenizer.encode_text(text) == library.encode(text, add_special_tokens=False).ids


# text that spells a control token is ours alone to treat: see the tests below
@given(text=plain_text.filter(lambda text: not any(token in text for token in ADDED)))
@settings(deadline=None)
def test_any_text_gets_the_ids_that_the_library_gives(tokenizer, library, text):
    assert tokenizer.encode_text(text) == library.encode(text, add_special_tokens=False).ids


@given(data=st.data())
@settings(deadline=None)
def test_any_ids_decode_as_the_library_decodes_them(tokenizer, library, data):
    """Broken UTF-8 and added tokens included."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    assert tokenizer.decode(ids) == library.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("token", ADDED)
def test_an_added_token_typed_as_text_stays_text(tokenizer, token):
    ids = tokenizer.encode_text(f"a{token}b {token}\n{token}")
    assert not tokenizer.added_ids.intersection(ids)
    assert tokenizer.decode(ids) == f"a{token}b {token}\n{token}"


@given(text=glued_text)
@settings(deadline=None, max_examples=300)
def test_no_gluing_of_fragments_makes_an_added_token(tokenizer, text):
    ids = tokenizer.encode_text(text)
    assert not tokenizer.added_ids.intersection(ids)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_added_tokens_that_the_vocabulary_holds_too_are_out_of_reach(config, tmp_path):
    """A trainer told of control tokens writes them into both places."""
    both = json.loads(config)
    for token in both["added_tokens"]:
        both["model"]["vocab"][token["content"]] = token["id"]
    tokenizer = Tokenizer.from_folder(write(tmp_path, both))
    for token in ADDED:
        assert not tokenizer.added_ids.intersection(tokenizer.encode_text(token))
        assert tokenizer.encode_template(token) == [tokenizer.encode_control(token)]


def test_a_template_gets_the_ids_that_the_library_gives(tokenizer, library):
    for text in [
        "<|im_start|>user\n<|im_end|>\n",
        "a<think>\n</think>\n\nb<|im_end|><|im_end|>",
        "",
    ]:
        assert tokenizer.encode_template(text) == library.encode(text).ids


def test_control_tokens_have_their_ids(tokenizer, library):
    assert [tokenizer.encode_control(t) for t in ADDED] == [library.token_to_id(t) for t in ADDED]
    assert tokenizer.special_ids == {library.token_to_id(t) for t in SPECIAL}
    assert tokenizer.added_ids == {library.token_to_id(t) for t in ADDED}
    assert tokenizer.vocab_size == library.get_vocab_size()


def test_a_control_token_that_the_checkpoint_lacks_is_an_error(tokenizer):
    with pytest.raises(ConfigError, match=r"<\|ref\|>"):
        tokenizer.encode_control("<|ref|>")
    with pytest.raises(ConfigError, match=r"<\|ref\|>"):
        tokenizer.encode_template("<|im_start|>user\n<|ref|>")
    with pytest.raises(ConfigError):
        tokenizer.encode_control("a")  # a token, but an ordinary one


@pytest.mark.parametrize("text", [text for text in TEXTS if unicodedata.is_normalized("NFC", text)])
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(tokenizer, text):
    ids = tokenizer.encode_text(text)
    assert b"".join(tokenizer.token_bytes(i) for i in ids) == text.encode()


def test_special_tokens_have_no_bytes_and_other_added_ones_have_theirs(tokenizer):
    for token in SPECIAL:
        assert tokenizer.token_bytes(tokenizer.encode_control(token)) == b""
    for token in ADDED_NOT_SPECIAL:
        assert tokenizer.token_bytes(tokenizer.encode_control(token)) == token.encode()
    for outside in (-1, tokenizer.vocab_size):
        with pytest.raises(InvalidParamError, match=str(outside)):
            tokenizer.token_bytes(outside)


def test_an_id_between_the_others_without_a_token_is_no_text(config, tmp_path):
    gap = json.loads(config)
    gap["added_tokens"][-1]["id"] += 1000
    tokenizer = Tokenizer.from_folder(write(tmp_path, gap))
    assert tokenizer.vocab_size == gap["added_tokens"][-1]["id"] + 1
    assert tokenizer.decode([tokenizer.vocab_size - 2]) == ""


def test_composed_and_decomposed_text_have_the_same_ids(tokenizer):
    for text in ("Ёлка й é", "각"):
        decomposed = unicodedata.normalize("NFD", text)
        assert decomposed != text
        assert tokenizer.encode_text(decomposed) == tokenizer.encode_text(text)


def test_a_lone_surrogate_is_refused_by_name(tokenizer):
    with pytest.raises(InvalidParamError, match=r"U\+D83D") as caught:
        tokenizer.encode_text("ok \ud83d")
    assert caught.value.hint


@pytest.mark.parametrize(
    "unit", ["Мама мыла раму. ", " ", "a", "\n", " \n", "<|im_end|>", "你", "a\u0301"]
)
def test_long_text_takes_reasonable_time(tokenizer, unit):
    text = (unit * 200_000)[:200_000]
    start = time.perf_counter()
    ids = tokenizer.encode_text(text)
    assert time.perf_counter() - start < 10
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def write_separate_files(folder, config):
    merges = "\n".join(["#version: 0.2", *map(" ".join, config["model"]["merges"]), ""])
    added = {str(token.pop("id")): token for token in config["added_tokens"]}
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    for name, content in (
        ("vocab.json", config["model"]["vocab"]),
        ("tokenizer_config.json", {"added_tokens_decoder": added}),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def test_separate_files_make_the_same_tokenizer(tokenizer, config, tmp_path):
    write_separate_files(tmp_path, json.loads(config))
    other = Tokenizer.from_folder(tmp_path)
    for text in [*TEXTS, *ADDED]:
        assert other.encode_text(text) == tokenizer.encode_text(text)
        assert other.encode_template(text) == tokenizer.encode_template(text)
    everything = range(tokenizer.vocab_size)
    assert other.vocab_size == tokenizer.vocab_size
    assert other.special_ids == tokenizer.special_ids
    assert [other.token_bytes(i) for i in everything] == [
        tokenizer.token_bytes(i) for i in everything
    ]


def test_a_file_that_lacks_is_named(config, tmp_path):
    write_separate_files(tmp_path, json.loads(config))
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(ModelFormatError, match=r"merges\.txt") as caught:
        Tokenizer.from_folder(tmp_path)
    assert str(tmp_path) not in caught.value.message


def test_merges_written_as_one_string_are_read(tokenizer, config, tmp_path):
    old = json.loads(config)
    old["model"]["merges"] = [" ".join(pair) for pair in old["model"]["merges"]]
    other = Tokenizer.from_folder(write(tmp_path, old))
    assert [other.encode_text(t) for t in TEXTS] == [tokenizer.encode_text(t) for t in TEXTS]


def test_what_a_file_says_about_truncation_and_padding_changes_nothing(tokenizer, config, tmp_path):
    saved = json.loads(config)
    saved["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    assert Tokenizer.from_folder(write(tmp_path, saved)).encode_text(
        TEXTS[3]
    ) == tokenizer.encode_text(TEXTS[3])


SPLIT_STEP = ("pre_tokenizer", "pretokenizers", 0)
REFUSED = [
    (("normalizer",), None, "normalizer"),
    (("normalizer", "type"), "NFKC", "normalizer"),
    (("pre_tokenizer",), {"type": "Metaspace"}, "pre_tokenizer"),
    (("pre_tokenizer", "pretokenizers"), [], "pre_tokenizer"),
    ((*SPLIT_STEP, "pattern"), {"Regex": r"\p{N}{1,3}"}, "split"),
    ((*SPLIT_STEP, "invert"), True, "invert"),
    (("pre_tokenizer", "pretokenizers", 1, "use_regex"), True, "use_regex"),
    (("decoder",), {"type": "Metaspace"}, "decoder"),
    (("post_processor",), {"type": "TemplateProcessing"}, "post_processor"),
    (("model", "type"), "WordPiece", "WordPiece"),
    (("model", "ignore_merges"), True, "ignore_merges"),
    (("model", "dropout"), 0.1, "dropout"),
    (("model", "unk_token"), "<|endoftext|>", "unk_token"),
    (("model", "vocab"), [["a", 0]], "vocabulary"),
    (("model", "vocab", "a"), "1", "not a whole number"),
    (("model", "vocab", "a"), True, "not a whole number"),
    (("model", "vocab", "a"), -1, "not a whole number"),
    (("model", "vocab", "кот"), 5000, "кот"),
    (("model", "vocab", "zzz"), 1, "id 1"),
    (("model", "vocab", "<|im_end|>"), 5000, "5000"),
    (("model", "merges", 0), ["a"], "merge"),
    (("model", "merges", 0), "a b c", "merge"),
    (("model", "merges", 0), ["<|im_", "end|>"], "<|im_"),
    (("added_tokens", 0, "lstrip"), True, "lstrip"),
    (("added_tokens", 0, "content"), "", "added token"),
    (("added_tokens", 0, "content"), "\ud800", "added token"),
    (("added_tokens", 0, "content"), "a", "'a'"),
    (("added_tokens", 0, "id"), 1, "id 1"),
    (("added_tokens", 0, "id"), "7", "added token"),
]


@pytest.mark.parametrize(("path", "value", "named"), REFUSED)
def test_a_tokenizer_of_another_kind_is_refused(config, tmp_path, path, value, named):
    changed = json.loads(config)
    target = changed
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(ConfigError) as caught:
        Tokenizer.from_folder(write(tmp_path, changed))
    assert named in caught.value.message


def test_a_merge_that_makes_an_added_token_is_refused(config, tmp_path):
    changed = json.loads(config)
    token = changed["added_tokens"][0]
    left, right = token["content"][0], token["content"][1:]
    changed["model"]["vocab"] |= {right: 5000, token["content"]: token["id"]}
    changed["model"]["merges"].append([left, right])
    with pytest.raises(ConfigError, match="ordinary"):
        Tokenizer.from_folder(write(tmp_path, changed))


def test_a_vocabulary_without_all_bytes_is_refused(config, tmp_path):
    changed = json.loads(config)
    del changed["model"]["vocab"]["Ċ"]
    with pytest.raises(ConfigError, match="1 of the 256 bytes"):
        Tokenizer.from_folder(write(tmp_path, changed))


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff", b"[" * 200_000, b'{"model": ' + b"1" * 5000 + b"}"]
)
def test_a_file_that_is_no_object_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
