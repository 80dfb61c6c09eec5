"""Is a text in the language that was asked for? By its script first, then, if long enough, its words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

SCRIPTS = {
    "ru": "CYRILLIC", "uk": "CYRILLIC", "kk": "CYRILLIC", "zh": "CJK", "ja": "CJK",
    "ko": "HANGUL", "ar": "ARABIC", "hi": "DEVANAGARI",
}  # fmt: skip
LEAST_SHARE = 0.5  # of letters, since names and sizes are often Latin
QUOTED = re.compile(r"«[^»]*»|“[^”]*”|\"[^\"]*\"|「[^」]*」|『[^』]*』|`[^`]*`")


def is_in(text: str, language: str) -> bool:
    """Nothing speaks against the text being in the language; what it quotes does not count."""
    letters = Counter(map(script, filter(str.isalpha, QUOTED.sub(" ", text))))
    total = letters.total()
    if not total:
        return True
    wanted = SCRIPTS.get(language, "LATIN")
    foreign = total - letters[wanted] - (letters["KANA"] if language == "ja" else 0)
    if wanted != "LATIN":
        foreign -= letters["LATIN"] * (letters["LATIN"] <= LEAST_SHARE * total)
    return foreign == 0 or foreign / total < 0.02


def script(letter: str) -> str:
    """LATIN, CYRILLIC, CJK, KANA, HANGUL, ... of a letter."""
    name = unicodedata.name(letter, "").split(" ", 1)[0]
    return "KANA" if name in ("HIRAGANA", "KATAKANA") else name
