"""What a shop does not want in its texts: words of its own list, and what a marketplace's profile forbids.

An answer that breaks a rule is asked for once more, with what was wrong with it; what is still wrong is
flagged and told, never passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qvl.batch import profiles
from qvl.batch.texts import matches
from qvl.tasks.guards import with_words
from qvl.tasks.prompts import wording
from qvl.tasks.task import Result, Seen, Task, as_row
from qvl.types import Request
from qvl.vlm.altered import Altered
from qvl.vlm.chat_model import ChatModel

TEXTS = ("text", "title", "alt_text", "keywords")  # of an answer, that a person reads


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that an answer breaks: the flag, and what to say of it."""

    flag: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """`forbidden` are words as `texts.matches` has them, `profile` is the name of a marketplace's."""

    forbidden: tuple[str, ...] = ()
    profile: str = ""

    def broken(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Broken]:
        """All rules that an answer breaks. Raises UsageError for an unknown profile."""
        told = "\n".join(profiles.single(row[key]) for key in TEXTS if row.get(key))
        words = dict.fromkeys(told[start:end] for start, end in matches(told, self.forbidden))
        found = [Broken("forbidden", f"it has the word {word!r}") for word in words]
        if self.profile:
            profile = profiles.load(self.profile)
            fields = profiles.fields_of(profile, row.get, columns)
            found += [
                Broken("profile", one.message)
                for one in profiles.check(profile, fields)
                if not one.advice and profile.rules(one.field).of
            ]
        return found


def guarded(
    guards: Guards, model: ChatModel, task: Task[Result], seen: Sequence[Seen], item_id: str,
    columns: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """The row of an answer that breaks no rule, or of the one that breaks fewer. Raises QvlError."""
    row = as_row(item_id, task.run(model, seen))
    broken = guards.broken(row, columns)
    if broken:
        why = "; ".join(dict.fromkeys(one.why for one in broken))
        again = Reminded(model, wording("guards", "refused", task.language, why=why))
        second = as_row(item_id, task.run(again, seen))
        still = guards.broken(second, columns)
        if len(still) < len(broken):
            row, broken = second, still
    if broken:
        row["flags"] = [*row["flags"], *dict.fromkeys(one.flag for one in broken)]
        row["warnings"] = [*row.get("warnings", ()), *(one.why for one in broken)]
    return row


@dataclass(frozen=True, slots=True)
class Reminded(Altered):
    """`model`, told `words` behind all that a task asks it."""

    words: str

    def altered(self, request: Request) -> Request:
        return with_words(request, self.words)
