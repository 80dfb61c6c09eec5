"""Fill in the word forms of a table of kinds: Russian ones by pymorphy3, English plurals by rule.

    pip install pymorphy3
    python scripts/name_kinds.py < short.txt > src/qvl/scenes/data/kinds.tsv

A line of the short table is icon|English|Russian|Chinese|measure word|group|flags. Flags, parted by
";": `u` is not counted, `ru=u` not in Russian, `pl=` an irregular English plural, `many` an English
plural without a singular, `mass` an English name without an article.
"""

from __future__ import annotations

import sys

from qvl.scenes.russian import forms

NAMES = (
    "key group icon en en_number en_plural ru ru_gender ru_gen ru_acc ru_few ru_plural ru_gen_plural"
    " zh zh_measure counted"
)


def main() -> None:
    sys.stdout.write("\t".join(NAMES.split()) + "\n")
    for line in sys.stdin:
        if line.startswith("#") or not line.strip():
            continue
        icon, en, ru, zh, measure, group, *rest = line.strip().split("|")
        flags = dict(flag.partition("=")[::2] for flag in "".join(rest).split(";") if flag)
        number = next((name for name in ("many", "mass") if name in flags), "one")
        plural = "" if number != "one" else flags.get("pl") or f"{en}s"
        russian = forms(ru)
        counted = str(int(number == "one" and "u" not in flags and "ru" not in flags))
        key = en.replace(" ", "-").lower()
        row = (key, group, icon, en, number, plural, ru, *russian, zh, measure, counted)
        sys.stdout.write("\t".join(row) + "\n")


if __name__ == "__main__":
    main()
