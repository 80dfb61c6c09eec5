"""Settings and where each came from: flag > QVL_* > qvl.toml here > the user's qvl.toml > default.

`load_settings(model=..., ...)` gives the values, `explain_settings` the same with their origin, for
`qvl settings`. Each source is checked on its own, so an error names the very file or variable, also
when a stronger source hides the value. Plain pydantic, not pydantic-settings: that one knows neither
a value's origin nor an unknown QVL_* name, and costs 0.2 s at every start of the command.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from platformdirs import user_config_path, user_data_path
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from qvl.errors import UsageError, nearest
from qvl.types import MAX_NEW_TOKENS, DType, Usage

FILE_NAME = "qvl.toml"
ENV_PREFIX = "QVL_"
MAX_FILE_BYTES = 2**20  # of a settings file or one of prompts; a longer one is something else
# Read elsewhere (by libraries, the terminal code, kernels/build.py, vlm/remote.py, cli/serve.py);
# shown as they change what is done.
HONOURED = (
    "HF_HOME",
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "NO_COLOR",
    "QVL_NO_CC",
    "QVL_REMOTE_KEY",
    "OPENAI_API_KEY",
    "QVL_API_KEYS",
)
SECRET = frozenset({"HF_TOKEN", "QVL_REMOTE_KEY", "OPENAI_API_KEY", "QVL_API_KEYS"})


def _language_codes(value: str) -> str:
    # Which languages have wordings is the tasks' business, a layer above.
    if not re.fullmatch(r"[a-z]{2}(,[a-z]{2})*", value):
        raise ValueError("it should be a code such as 'en', or several joined by commas")
    return value


def _known_device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError("it should be 'auto', 'cpu', 'cuda' or 'cuda:N'")
    return value


Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Price(BaseModel):
    """Of a remote model: for a million tokens, in whatever currency; `cached_input` None: as input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Amount
    output: Amount
    cached_input: Amount | None = None

    def of(self, usage: Usage) -> float:
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        cached_input = self.input if self.cached_input is None else self.cached_input
        millionths = (usage.prompt_tokens - cached) * self.input + cached * cached_input
        return (millionths + usage.completion_tokens * self.output) / 1e6


class Settings(BaseModel):
    """Frozen; an unknown key or a bad value does not pass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, Field(min_length=1)] = "sprout"
    adapter: str = ""  # FOLDER or NAME=FOLDER
    language: Annotated[str, AfterValidator(_language_codes)] = "en"
    device: Annotated[str, AfterValidator(_known_device)] = "auto"
    dtype: DType = "auto"
    style: Annotated[str, Field(min_length=1)] = "plain"
    # None: each task's own
    max_new_tokens: Annotated[int | None, Field(ge=1, le=MAX_NEW_TOKENS)] = None
    # a folder, in which each batch run has one by its name
    runs: Annotated[str, Field(min_length=1)] = Field(default_factory=lambda: str(runs_folder()))
    prices: Mapping[str, Price] = {}  # by the MODEL of openai:MODEL@URL


KEYS = tuple(Settings.model_fields)


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of `qvl settings`; value None means: not set."""

    key: str
    value: object
    origin: str


def load_settings(**flags: object) -> Settings:
    """The settings in force; a flag that is None was not given.

    Raises UsageError naming the flag, variable or file, and the nearest known name.
    """
    return Settings.model_validate({s.key: s.value for s in _resolve(flags)}, strict=True)


def explain_settings(**flags: object) -> list[Setting]:
    """Every setting with its origin, then the honoured variables of others; secrets are hidden."""
    return [*_resolve(flags), *map(_honoured, HONOURED)]


def user_settings_file() -> Path:
    """The user's own settings file, whether it exists or not (XDG_CONFIG_HOME honoured)."""
    return user_config_path("qvl", appauthor=False) / FILE_NAME


def runs_folder() -> Path:
    """Where runs are unless the setting says otherwise (XDG_DATA_HOME honoured)."""
    return user_data_path("qvl", appauthor=False) / "runs"


@dataclass(frozen=True, slots=True)
class _Source:
    """Values as one place gives them: `names` maps each name allowed there to its key."""

    place: str  # as an error calls it, for example "in qvl.toml"
    names: Mapping[str, str]
    values: Mapping[str, object]
    strings: bool = False  # all values are strings, to be read as their key's type

    def settings(self) -> Iterator[Setting]:
        for name in self.values:
            if name not in self.names:
                known = f"the known ones are {', '.join(self.names)}"
                raise UsageError(
                    f"unknown setting {name!r} {self.place}",
                    hint=nearest(name, self.names) or known,
                )
        origins = {self.names[name]: name for name in self.values}
        given = {key: self.values[name] for key, name in origins.items()}
        for key, value in self._read(given, origins).model_dump(include=set(given)).items():
            yield Setting(key, value, f"{origins[key]} {self.place}")

    def _read(self, given: Mapping[str, object], origins: Mapping[str, str]) -> Settings:
        try:
            if self.strings:
                return Settings.model_validate_strings(given)
            return Settings.model_validate(given, strict=True)  # lax mode would read true as 1
        except ValidationError as err:
            first = err.errors(include_url=False)[0]
            key, *within = map(str, first["loc"])
            name = ".".join([origins[key], *within])
            reason = first["msg"].removeprefix("Value error, ")
            raise UsageError(
                f"{name} is {first['input']!r} {self.place}: {reason[0].lower()}{reason[1:]}",
                hint="change the value there, or remove it",
            ) from err


def _resolve(flags: Mapping[str, object]) -> list[Setting]:
    chosen = {key: Setting(key, value, "default") for key, value in Settings()}
    weakest_first = (
        _file_source(user_settings_file()),
        _file_source(Path(FILE_NAME)),
        _environment_source(os.environ),
        _flag_source(flags),
    )
    for source in weakest_first:
        chosen |= {setting.key: setting for setting in source.settings()}
    return list(chosen.values())


def _flag_source(flags: Mapping[str, object]) -> _Source:
    names = {_flag(key): key for key in KEYS}
    given = {_flag(key): value for key, value in flags.items() if value is not None}
    return _Source("on the command line", names, given)


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _environment_source(environ: Mapping[str, str]) -> _Source:
    """Empty counts as unset, as shells and compose files often leave a variable."""
    names = {ENV_PREFIX + key.upper(): key for key in KEYS}
    given = {
        name: value
        for name, value in environ.items()
        if name.startswith(ENV_PREFIX) and name not in HONOURED and value
    }
    return _Source("in the environment", names, given, strings=True)


def _file_source(path: Path) -> _Source:
    return _Source(f"in {path}", {key: key for key in KEYS}, _read_toml(path))


def check_size(path: Path) -> None:
    """Raises UsageError for a file that is too large to be settings, and OSError."""
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise UsageError(
            f"{path} has {size} bytes, the limit is {MAX_FILE_BYTES}", hint="shorten or remove it"
        )


def _read_toml(path: Path) -> dict[str, object]:
    try:
        check_size(path)
        return tomllib.loads(path.read_text("utf-8-sig"))  # some editors begin a file with a BOM
    except FileNotFoundError:
        return {}
    except OSError as err:
        raise UsageError(
            f"{path} cannot be read: {err.strerror}", hint="make it readable, or remove it"
        ) from err
    except UnicodeDecodeError as err:
        raise UsageError(
            f"{path} is not UTF-8 text (byte {err.start})", hint="save it as UTF-8"
        ) from err
    except tomllib.TOMLDecodeError as err:
        raise UsageError(
            f"{path} is not valid TOML: {err}",
            hint='a line looks like: model = "sprout"',
        ) from err


def _honoured(name: str) -> Setting:
    value = os.environ.get(name)
    if value is None:
        return Setting(name, None, "not set")
    return Setting(name, "(hidden)" if name in SECRET else value, f"{name} in the environment")
