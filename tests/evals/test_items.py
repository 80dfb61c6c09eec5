"""So many items of each skill and language, the same whoever draws."""

from collections import Counter

from qvl.evals import items as module
from qvl.evals.items import FIRST_SEED, items, skill_of
from qvl.scenes import KINDS, draw

WANTED = {
    ("relation", "ru"): 5,
    ("relation", "zh"): 3,
    ("read-words", "en"): 4,
    ("no such", "en"): 1,
}


def test_each_wanted_skill_gets_its_number(monkeypatch):
    monkeypatch.setattr(module, "KINDS", {kind: KINDS[kind] for kind in ("pair", "sign", "text-3")})
    found = list(items(WANTED, "held-out"))
    told = Counter((one.job.skill, one.job.options["language"]) for one in found)
    assert told == {key: n for key, n in WANTED.items() if key[0] != "no such"}
    again = list(items(WANTED, "held-out", processes=2))
    assert [one.job for one in found] == [one.job for one in again]
    other = list(items(WANTED, "held-out", first_seed=FIRST_SEED + 1000))
    assert [one.job for one in found] != [one.job for one in other]


def test_what_is_read_is_told_apart():
    def reading(kind: str) -> str:
        return next(skill_of(kind, j) for j in draw(kind, "train", 1).jobs if j.skill == "read")

    assert [reading(kind) for kind in ("sign", "text-3", "receipt", "notice")] == [
        "read-words", "read-words", "read-receipt", "read"]  # fmt: skip
