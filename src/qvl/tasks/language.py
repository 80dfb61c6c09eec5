"""Is a text in the language that was asked for? By its script first, then, if long enough, its words.

Main path: is_in -> prose (what is quoted, addresses and formulas do not count) -> of the script, of the
alphabet, of the words.

- Two letters in a row of a script that is neither the language's own nor Latin, or one Chinese,
  Japanese or Korean one, are wrong.
- Where the language has another script, Latin words are names, sizes and brands, but not if they are
  written small and four come in a row, or three in a sentence without a letter of the language, or if
  they have most of the letters.
- Russian, Ukrainian and Kazakh have letters that the others lack: a sentence with several such words
  is wrong.
- Languages that share their letters are told apart by py3langid, in pieces of 40 letters or more;
  what is shorter is never wrong.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from qvl.tasks.prompts import LANGUAGES

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

SCRIPTS = {
    "ru": "CYRILLIC", "uk": "CYRILLIC", "kk": "CYRILLIC", "zh": "CJK", "ja": "CJK",
    "ko": "HANGUL", "ar": "ARABIC", "hi": "DEVANAGARI",
}  # fmt: skip
ALPHABETS = {
    "ru": frozenset("абвгдеёжзийклмнопрстуфхцчшщъыьэюя"),
    "uk": frozenset("абвгґдеєжзиіїйклмнопрстуфхцчшщьюя"),
    "kk": frozenset("аәбвгғдеёжзийкқлмнңоөпрстуұүфхһцчшщъыіьэюя"),
}
WORDLIKE = ("CJK", "KANA", "HANGUL")  # scripts of which one letter may be a word
LETTERS_PER_SIGN = 3  # a Chinese sign says about as much as three letters
WORDS_IN_ROW, WORDS_ALONE = 4, 3
ODD_WORDS = 0.15  # of a sentence's; in Ukrainian it is a third that Russian could not spell
PLAIN_WORDS = 0.7  # of an English piece's, at least, are ASCII
LEAST_LETTERS = 40
UNLIKELY = 0.25  # right pieces of 40 letters get more than 0.5, wrong ones less than 0.15
_QUOTED = re.compile(
    r"«[^»\n]*»|“[^”\n]*”|„[^“”\n]*[“”]|‘[^’\n]*’|(?<!\d)\"[^\"\n]*\"|(?<!\w)'[^'\n]*'(?!\w)"
    r"|「[^」\n]*」|『[^』\n]*』|《[^》\n]*》|`[^`]*`"
)
_NO_PROSE = re.compile(
    r"(?:https?://|www\.)[!-~]+|[\w.+-]+@[\w-]+\.[\w.]+"
    r"|\$(?=\S)[^$\n]*(?<=\S)\$(?!\d)|\\\(.*?\\\)|\\\[.*?\\\]|\\[A-Za-z]+",  # TeX
    re.ASCII,
)
_LETTERS = re.compile(r"[^\W\d_]+")
_CLAUSE = re.compile(r"[^,.;:!?()\[\]{}|/«»\"\n，。；：！？、（）]+")
_SENTENCE = re.compile(r"(?:[^.!?\n。！？]|\.(?=\w))+[.!?\n。！？]*")


def is_in(text: str, language: str) -> bool:
    """Nothing speaks against the text being in the language, one of `prompts.LANGUAGES`."""
    plain = prose(text)
    wanted = SCRIPTS.get(language, "LATIN")
    return not (
        _has_foreign_run(plain, wanted, language)
        or (wanted != "LATIN" and _has_latin_prose(plain, wanted))
        or (language in ALPHABETS and _has_odd_letters(plain, language))
        or (language == "ja" and _is_chinese(plain))
        or _has_words_of_another(plain, language)
    )


def language_of(text: str, otherwise: str) -> str:
    """The language that a text is in: `otherwise`, where nothing speaks against that."""
    if is_in(text, otherwise):
        return otherwise
    has_kana = False
    says = Counter[str]()
    for name, length in _runs(prose(text)):
        says["CJK" if name == "KANA" else name] += length * _weight(name)
        has_kana = has_kana or name == "KANA"
    wanted = max(says, key=says.__getitem__)
    if wanted == "CJK":
        return "ja" if has_kana else "zh"
    rivals = tuple(name for name in LANGUAGES if SCRIPTS.get(name, "LATIN") == wanted)
    likeliest = max(rivals, key=_told(text, rivals).__getitem__, default=otherwise)
    # a few words tell no more than their script
    return likeliest if _letters([text]) >= LEAST_LETTERS else next(iter(rivals), otherwise)


def prose(text: str) -> str:
    """The text without addresses, formulas and what it quotes, unless it is nothing but quotations."""
    text = unicodedata.normalize("NFKC", text)
    text = "".join(c for c in text if unicodedata.category(c)[0] != "M")  # signs upon letters
    text = _NO_PROSE.sub(" ", text)
    plain = _QUOTED.sub(" ", text)
    return plain if any(map(str.isalpha, plain)) else text


@cache
def script(letter: str) -> str:
    """LATIN, CYRILLIC, CJK, KANA, HANGUL, ... of a letter."""
    name = re.split(r"[ -]", unicodedata.name(letter, ""))[0]
    return {"HIRAGANA": "KANA", "KATAKANA": "KANA", "IDEOGRAPHIC": "CJK"}.get(name, name)


def _runs(text: str) -> Iterator[tuple[str, int]]:
    """(script, length) of the letters in a row that share one."""
    for word in _LETTERS.findall(text):
        scripts = [script(letter) for letter in word]
        start = 0
        for at in range(1, len(scripts) + 1):
            if at == len(scripts) or scripts[at] != scripts[start]:
                yield scripts[start], at - start
                start = at


def _weight(script: str) -> int:
    return LETTERS_PER_SIGN if script in WORDLIKE else 1


def _has_foreign_run(text: str, wanted: str, language: str) -> bool:
    own = {wanted, "LATIN"} | ({"KANA"} if language == "ja" else set())
    return any(name not in own and (length > 1 or name in WORDLIKE) for name, length in _runs(text))


def _has_latin_prose(text: str, wanted: str) -> bool:
    """Latin words that are no names, in a text whose script is another."""
    own = small = names = 0  # letters
    for sentence in _SENTENCE.findall(text):
        own_before, words_alone = own, 0
        for clause in _CLAUSE.findall(sentence):
            in_row = 0
            for index, word in enumerate(clause.split()):
                scripts = [script(c) for c in word if c.isalpha()]
                others = len(scripts) - scripts.count("LATIN")
                if others:  # a word of the language, or joined with it: USB-кабель
                    own, in_row = own + _weight(wanted) * others, 0
                elif _is_name(word, first=index == 0):
                    names += len(scripts)
                elif len(scripts) > 1:
                    small, words_alone = small + len(scripts), words_alone + 1
                    in_row += len(scripts) > 2  # shorter ones are units as often as words
                if in_row == WORDS_IN_ROW:
                    return True
        if own == own_before and words_alone >= WORDS_ALONE:
            return True
    return small > own + names


def _is_name(word: str, *, first: bool) -> bool:
    """By its capitals or digits; the capital that begins a clause says nothing."""
    telling = word[1:] if first else word
    return any(c.isupper() or c.isdigit() for c in telling)


def _has_odd_letters(text: str, language: str) -> bool:
    """A sentence has several words that the language's alphabet cannot spell, or half of its words."""
    for sentence in _SENTENCE.findall(text):
        words = [w.lower() for w in _LETTERS.findall(sentence) if script(w[0]) == "CYRILLIC"]
        odd = sum(not ALPHABETS[language].issuperset(word) for word in words)
        if odd and (2 * odd >= len(words) or (odd > 1 and odd > ODD_WORDS * len(words))):
            return True
    return False


def _is_chinese(text: str) -> bool:
    """Of a text that should be Japanese: no kana in a whole sentence."""
    counted = Counter(name for name, length in _runs(text) for _ in range(length))
    return counted["CJK"] > 8 and not counted["KANA"]


def _has_words_of_another(text: str, language: str) -> bool:
    """A piece of the text is surely in another language of the same script."""
    wanted = SCRIPTS.get(language, "LATIN")
    rivals = tuple(name for name in LANGUAGES if SCRIPTS.get(name, "LATIN") == wanted)
    if wanted in WORDLIKE or len(rivals) < 2:
        return False
    return any(
        all(_told(variant, rivals)[language] < UNLIKELY for variant in variants)
        for variants in _pieces(text, is_english=language == "en")
    )


def _pieces(text: str, *, is_english: bool) -> Iterator[tuple[str, str]]:
    """Sentences, short ones joined until they have LEAST_LETTERS; and the same without what may be
    names. In English the few words that ASCII cannot spell are borrowed ones.
    """
    held: list[str] = []
    for sentence in _SENTENCE.findall(text):
        words = [word for word in sentence.split() if not _is_name(word, first=True)]
        if _letters(words) < LEAST_LETTERS:
            held += words
            words = held
        if _letters(words) < LEAST_LETTERS:
            continue
        plain = [word for word in words if word.isascii()]
        said = plain if is_english and len(plain) >= PLAIN_WORDS * len(words) else words
        yield " ".join(said), " ".join(word for word in said if word.islower())
        if words is held:
            held = []


def _letters(words: list[str]) -> int:
    return sum(c.isalpha() for word in words for c in word)


def _told(text: str, rivals: tuple[str, ...]) -> dict[str, float]:
    """The probability of each of the languages, if it is one of them."""
    told = dict(_identifier().rank(text))
    total = sum(told[language] for language in rivals)
    return {language: told[language] / total if total else 1.0 for language in rivals}


@cache
def _identifier() -> LanguageIdentifier:
    # a second to load, so not before a text needs it
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES)
    return identifier
