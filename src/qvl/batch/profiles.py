"""Profiles of marketplaces: which fields a product has there, how long they may be, what may not be said.

Main path: load -> fields_of (an answer's values and the input's columns as the profile's fields) ->
check (what is wrong with them) or fit (the fields cut so that they pass, and all that was cut).
A profile is a TOML file, `profiles/NAME.toml`; a user's own of the same name, in `profiles/` beside the
user's `qvl.toml`, counts instead. Each limit says where it is from and whether that was seen at its source.
"""

from __future__ import annotations

import html
import re
import tomllib
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qvl.batch.texts import (
    Span,
    capitals,
    cut,
    sentences,
    spans,
    with_fewer_capitals,
    without,
)
from qvl.cells import is_formula
from qvl.errors import UsageError, nearest
from qvl.settings import check_size, user_settings_file

FOLDER = Path(str(files("qvl.batch"))) / "profiles"
Rule = Literal["html", "emoji", "url", "email", "phone", "price"]
Value = str | tuple[str, ...]
SENTENCES = frozenset(
    ("url", "email", "phone", "price")
)  # a sentence without its address says nothing
_ORPHANS = " ,.;:!?"
PASSES = 20  # what is removed may make what is left break a rule; beyond that, nothing is left


class Rules(BaseModel):
    """One field. Lengths are in characters after NFC, of each value where there are several.

    `of` are the answer's keys that it is made of, `columns` those of the input; the first that says
    something counts. With `most` over 1 it has several values, in as many columns, or in one where
    `joined` says by what.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, Field(min_length=1)]
    of: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    must: bool = False
    min: Annotated[int, Field(ge=0)] = 0
    max: Annotated[int, Field(ge=1, le=30_000)]
    best: tuple[int, int] | None = None
    most: Annotated[int, Field(ge=1, le=100)] = 1
    joined: str = ""
    lines: bool = False
    no: tuple[Rule, ...] = ()
    signs: str = ""
    forbidden: tuple[str, ...] = ()
    capitals: Annotated[float, Field(ge=0.1, le=1)] = 1.0
    source: Annotated[str, Field(min_length=1)]
    verified: bool

    @property
    def headings(self) -> tuple[str, ...]:
        if self.most == 1 or self.joined:
            return (self.name,)
        return tuple(f"{self.name}{number}" for number in range(1, self.most + 1))


class Profile(BaseModel):
    """`forbidden` words (see `texts.matches`) and `no` are of all fields that are made of answers.

    `file` is what it is exported as: a table, CSV or XLSX, or Google's feed, XML.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, Field(min_length=1)]
    title: str
    version: Annotated[int, Field(ge=1)]
    checked: date
    notes: str = ""
    file: Literal["table", "google"] = "table"
    no: tuple[Rule, ...] = ()
    forbidden: tuple[str, ...] = ()
    field: Annotated[tuple[Rules, ...], Field(min_length=1)]

    @property
    def headings(self) -> tuple[str, ...]:
        """The columns of its file, in order."""
        return tuple(heading for rules in self.field for heading in rules.headings)

    def rules(self, field: str) -> Rules:
        return next(rules for rules in self.field if rules.name == field)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a field. `found` is the piece; `advice` is not wrong, only not the best."""

    field: str
    rule: str
    message: str
    found: str = ""
    advice: bool = False


@dataclass(frozen=True, slots=True)
class Cut:
    """What was taken away of a field, and by which rule."""

    field: str
    rule: str
    what: str


def names() -> tuple[str, ...]:
    """Those that come with the package, and the user's own."""
    found = [*FOLDER.glob("*.toml"), *own_folder().glob("*.toml")]
    return tuple(sorted({path.stem for path in found}))


def own_folder() -> Path:
    return user_settings_file().parent / "profiles"


def load(name: str) -> Profile:
    """A profile by its name, or by the path of its file, which ends with .toml. Raises UsageError."""
    if name.endswith(".toml"):
        return read(Path(name))
    if name not in names():
        raise UsageError(
            f"there is no profile {name!r}",
            hint=nearest(name, names()) or f"there are {', '.join(names())}",
        )
    own = own_folder() / f"{name}.toml"
    return read(own if own.exists() else FOLDER / f"{name}.toml")


def read(path: Path) -> Profile:
    try:
        check_size(path)
        profile = Profile.model_validate(tomllib.loads(path.read_text("utf-8-sig")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        raise UsageError(f"the profile {path.name!r} cannot be read: {err}") from err
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"the profile {path.name!r}, {place}: {first['msg'].lower()}") from err
    twice = [one for one in profile.headings if profile.headings.count(one) > 1]
    if twice:
        raise UsageError(f"the profile {path.name!r} has the field {twice[0]!r} twice")
    return profile


def fields_of(
    profile: Profile, told: Callable[[str], Any], columns: Mapping[str, str]
) -> dict[str, Value]:
    """The profile's fields: of an answer, whose values `told` gives by their keys, and of the input."""
    found: dict[str, Value] = {}
    for rules in profile.field:
        values = (*map(told, rules.of), *map(columns.get, rules.columns))
        value = next((value for value in values if value), "")
        found[rules.name] = several(value) if rules.most > 1 else single(value)
    return found


def single(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def several(value: Any) -> tuple[str, ...]:
    """A list's values; of a text its lines, or what stands between semicolons, or its sentences."""
    if isinstance(value, list | tuple):
        parts = list(map(str, value))
    else:
        text = str(value)
        mark = next((mark for mark in ("\n", ";") if mark in text.strip()), None)
        parts = text.split(mark) if mark else [text[a:b] for a, b in sentences(text)]
    return tuple(part.strip() for part in parts if part.strip())


def check(profile: Profile, fields: Mapping[str, Value]) -> tuple[Finding, ...]:
    """All that is wrong with the fields, in the profile's order; advice too."""
    return tuple(
        finding
        for rules in profile.field
        for finding in _found(profile, rules, fields.get(rules.name, ""))
    )


def fit(profile: Profile, fields: Mapping[str, Value]) -> tuple[dict[str, Value], tuple[Cut, ...]]:
    """The fields as the profile wants them, and all that was taken away for it.

    Nothing is made up: a field that has to be there and is empty, or is too short, stays so, and so does
    one of the input alone, such as an article's number, of which a part would be another; `check` finds
    them.
    """
    fitted: dict[str, Value] = {}
    cuts: list[Cut] = []
    for rules in profile.field:
        value = fields.get(rules.name, "")
        if isinstance(value, str):
            fitted[rules.name], removed = _fitted(profile, rules, value)
            cuts += removed
            continue
        kept: list[str] = []
        for one in value:
            text, removed = _fitted(profile, rules, one)
            cuts += removed
            is_twice = text.casefold() in map(str.casefold, kept)
            if text and (is_twice or len(text) < rules.min):
                cuts.append(Cut(rules.name, "twice" if is_twice else "min", text))
            elif text:
                kept.append(text)
        cuts += [Cut(rules.name, "most", one) for one in kept[rules.most :]]
        fitted[rules.name] = tuple(kept[: rules.most])
    return fitted, tuple(cuts)


def written(profile: Profile, fields: Mapping[str, Value]) -> dict[str, str]:
    """The cells of the profile's file, by its columns."""
    cells: dict[str, str] = {}
    for rules in profile.field:
        value = fields.get(rules.name, "")
        texts = [value] if isinstance(value, str) else [*value]
        if len(rules.headings) == 1:
            texts = [rules.joined.join(texts)]
        padded = [*texts, *[""] * len(rules.headings)]
        cells |= dict(zip(rules.headings, padded, strict=False))
    return cells


def _found(profile: Profile, rules: Rules, value: Value) -> Iterator[Finding]:
    texts: Sequence[str] = (value,) if isinstance(value, str) else value
    if rules.must and not any(text.strip() for text in texts):
        yield Finding(rules.name, "must", f"{rules.name} is empty, and has to be there")
    if len(texts) > rules.most:
        yield Finding(
            rules.name, "most", f"{rules.name} has {len(texts)} values, at most {rules.most}"
        )
    for given in texts:
        text = unicodedata.normalize("NFC", given)
        if not text:
            continue
        for span in _spans(profile, rules, text):
            piece = text[span.start : span.end]
            yield Finding(
                rules.name, span.rule, f"{rules.name} has {span.rule}: {piece[:60]!r}", piece
            )
        length = len(text)
        if length > rules.max:
            yield Finding(
                rules.name, "max", f"{rules.name} has {length} characters, at most {rules.max}"
            )
        if length < rules.min:
            yield Finding(
                rules.name, "min", f"{rules.name} has {length} characters, at least {rules.min}"
            )
        if rules.best and not rules.best[0] <= length <= rules.best[1]:
            low, high = rules.best
            message = f"{rules.name} has {length} characters, best are {low} to {high}"
            yield Finding(rules.name, "best", message, advice=True)
        if capitals(text) > rules.capitals:
            share = f"{capitals(text):.0%}"
            yield Finding(
                rules.name,
                "capitals",
                f"{rules.name} has {share} capitals, at most {rules.capitals:.0%}",
            )
        if is_formula(text):
            yield Finding(
                rules.name, "formula", f"{rules.name} begins as a spreadsheet's formula", text[:1]
            )


def _spans(profile: Profile, rules: Rules, text: str) -> list[Span]:
    is_said = bool(rules.of)  # what the input says, such as a link, is not the answer's
    no = dict.fromkeys((*rules.no, *(profile.no if is_said else ())))
    forbidden = (*rules.forbidden, *(profile.forbidden if is_said else ()))
    signs = rules.signs + ("" if rules.lines else "\n\r\t") + (rules.joined.strip())
    return spans(text, no, forbidden, signs)


def _fitted(profile: Profile, rules: Rules, value: str) -> tuple[str, list[Cut]]:
    if not rules.of:
        return _tidy(value, rules), []
    cuts: list[Cut] = []
    text = html.unescape(value) if "html" in (*rules.no, *profile.no) else value
    text = _tidy(text, rules)
    for _ in range(PASSES):
        before = text
        found = _spans(profile, rules, text)
        found = (rules.lines and _widened(text, found)) or found
        cuts += [Cut(rules.name, span.rule, text[span.start : span.end]) for span in found]
        if found:
            text = _joined(without(text, found))
        if capitals(text) > rules.capitals:
            cuts.append(Cut(rules.name, "capitals", text))
            text = with_fewer_capitals(text, rules.capitals)
        while is_formula(text):
            cuts.append(Cut(rules.name, "formula", text[:1]))
            text = text[1:].lstrip(_ORPHANS)
        if len(text) > rules.max:
            kept = cut(text, rules.max, rules.min)
            cuts.append(Cut(rules.name, "max", text[len(kept) :].strip()))
            text = kept
        text = _tidy(text, rules)
        if text == before:
            return text, cuts
    cuts.append(Cut(rules.name, "all", text))
    return "", cuts


def _widened(text: str, found: Sequence[Span]) -> list[Span]:
    """The spans, of an address or a price the whole sentence, unless nothing but those would be left out."""
    ends = [0, *(end for _, end in sentences(text))]
    wide = [
        Span(
            span.rule,
            ends[bisect_right(ends, span.start) - 1],
            ends[min(bisect_left(ends, span.end), len(ends) - 1)],
        )
        if span.rule in SENTENCES
        else span
        for span in found
    ]
    return wide if without(text, wide).strip() else []


def _tidy(text: str, rules: Rules) -> str:
    """NFC, single spaces, at most one empty line; in a field of one line, no line breaks."""
    normal = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    if not rules.lines:
        return " ".join(normal.split())
    lines = [" ".join(line.split()) for line in normal.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _joined(text: str) -> str:
    """Without what a removed piece leaves: a space before a sign, a sign at the beginning."""
    close = re.sub(r"(?<![^\S\n])[^\S\n]+([,.;:!?])(?=\s|$)", r"\1", text)
    return close.lstrip(_ORPHANS)
