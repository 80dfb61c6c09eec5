"""The words of every task, by name and language: `wordings/TASK.toml`, and the user's own beside them.

A file has a table for each name, with a wording for each language, and a `version` that changes with
any of them. The user's files, `prompts/TASK.toml` beside the user's `qvl.toml`, add names and replace
wordings. The embedded model is trained on exactly the wordings that come with the package.
A language without its own wording uses the English one plus a request to answer in that language.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from qvl.errors import UsageError
from qvl.settings import check_size, user_settings_file

LANGUAGES = {
    "ru": "Russian", "en": "English", "zh": "Chinese", "de": "German", "es": "Spanish",
    "fr": "French", "it": "Italian", "pt": "Portuguese", "pl": "Polish", "tr": "Turkish",
    "uk": "Ukrainian", "kk": "Kazakh", "ja": "Japanese", "ko": "Korean", "vi": "Vietnamese",
    "ar": "Arabic", "hi": "Hindi",
}  # fmt: skip
FOLDER = Path(str(files("qvl.tasks"))) / "wordings"

Wordings = Mapping[str, str]  # by language


def wording(task: str, name: str, language: str, **given: str) -> str:
    """The words, with each `{field}` replaced by what is given; name and language are known ones."""
    wordings = presets(task)[name]
    return _filled(_in_language(wordings, language), given)


def instruction(task: str, name: str, language: str, **given: str) -> str:
    """As `wording`, where the answer is in no language of its own: a text that is read, places."""
    wordings = presets(task)[name]
    return _filled(wordings.get(language, wordings["en"]), given)


def presets(task: str) -> Mapping[str, Wordings]:
    """Every name of the task with its wordings; the user's own come last. Raises UsageError."""
    return {**shipped(task), **own(task)}


def own(task: str) -> Mapping[str, Wordings]:
    """The names and wordings of the user's own file, if there is one. Raises UsageError."""
    path = own_file(task)
    return _read(path) if path.exists() else {}


def own_file(task: str) -> Path:
    """Where the user's own wordings of the task are looked for."""
    return user_settings_file().parent / "prompts" / f"{task}.toml"


def shipped(task: str) -> Mapping[str, Wordings]:
    """The names and wordings that come with the package."""
    return _read(FOLDER / f"{task}.toml")


def version(task: str) -> int:
    """The number that changes with any wording of the task that comes with the package."""
    return tomllib.loads((FOLDER / f"{task}.toml").read_text("utf-8"))["version"]


def tasks_with_prompts() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


@cache
def _read(path: Path) -> dict[str, dict[str, str]]:
    try:
        check_size(path)
        tables: dict[str, Any] = tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        raise UsageError(
            f"the prompts in {path.name} cannot be read: {err}",
            hint=f"a table looks like: [name] and below it en = '...'; the file is {path}",
        ) from err
    tables.pop("version", None)
    for name, wordings in tables.items():
        is_table = isinstance(wordings, dict) and all(isinstance(w, str) for w in wordings.values())
        if not is_table or "en" not in wordings:
            raise UsageError(
                f"the prompt {name!r} in {path.name} has no English wording",
                hint=f"write [{name}] and below it en = '...'; other languages are optional",
            )
    return tables


def _in_language(wordings: Wordings, language: str) -> str:
    if language in wordings:
        return wordings[language]
    return f"{wordings['en']} Answer in {LANGUAGES[language]}."


def _filled(words: str, given: Mapping[str, str]) -> str:
    def value(field: re.Match[str]) -> str:
        if field[1] not in given:  # also {name.attribute}, {name!r}, {name:>8}, which do nothing
            raise UsageError(
                f"a prompt has the field {field[0]}, which nothing fills in",
                hint=f"fields here are {', '.join(f'{{{n}}}' for n in given) or 'none'}",
            )
        return given[field[1]]

    return re.sub(r"\{(\w*(?:[.!:\[][^{}]*)?)\}", value, words)
