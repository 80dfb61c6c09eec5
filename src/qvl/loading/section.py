"""One JSON object of a checkpoint's file, read with types and ranges: what does not fit is an error by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvl.errors import ConfigError
from qvl.loading.files import read_json, shown

MAX_JSON_BYTES = 2**20


def json_file(folder: Path, name: str) -> Section:
    """The object of a file of the folder. Raises ConfigError."""
    return Section(name, "", read_json(folder, name, limit_bytes=MAX_JSON_BYTES, error=ConfigError))


@dataclass(frozen=True, slots=True)
class Section:
    """One JSON object of one file; reads are typed and ranged, null counts as absent."""

    file: str
    path: str  # "" at the top, else "vision_config." and so on
    values: Mapping[str, Any]

    def bad(self, key: str, why: str) -> ConfigError:
        return ConfigError(f"{self.file}: {self.path}{key} is {self.show(key)}, {why}")

    def missing(self, key: str) -> ConfigError:
        return ConfigError(f"{self.file}: {self.path}{key} is missing")

    def show(self, key: str) -> str:
        return shown(self.values.get(key))

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def section(self, key: str) -> Section:
        """The object under the key; an empty one when it is absent."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.bad(key, "not an object")
        return Section(self.file, f"{self.path}{key}.", value or {})

    def whole(self, key: str, low: int, high: int, fallback: int | None = None) -> int:
        return int(self._number(key, (int,), low, high, fallback))

    def real(self, key: str, low: float, high: float, fallback: float | None = None) -> float:
        return float(self._number(key, (int, float), low, high, fallback))

    def _number(
        self, key: str, kinds: tuple[type, ...], low: float, high: float, fallback: float | None
    ) -> float:
        value = self.values.get(key)
        if value is None:
            if fallback is None:
                raise self.missing(key)
            return fallback
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise self.bad(key, "not a whole number" if kinds == (int,) else "not a number")
        if not low <= value <= high:
            raise self.bad(key, f"out of range {low}..{high}")
        return value

    def numbers(
        self, key: str, kinds: tuple[type, ...], low: float, high: float, fallback: Any
    ) -> tuple[Any, ...]:
        """A list of numbers, each in the range; fallback when absent."""
        value = self.values.get(key)
        if value is None:
            return fallback
        if not isinstance(value, list):
            raise self.bad(key, "not a list")
        for item in value:
            if isinstance(item, bool) or not isinstance(item, kinds) or not low <= item <= high:
                raise self.bad(key, f"not a list of numbers in {low}..{high}")
        return tuple(value)

    def one_of(self, key: str, known: tuple[Any, ...], what: str) -> None:
        """Absent, or one of the values that we implement."""
        value = self.values.get(key)
        if value is not None and not any(type(value) is type(k) and value == k for k in known):
            raise ConfigError(
                f"{self.file}: {self.path}{key} is {self.show(key)}, {what}",
                hint=f"known here: {', '.join(str(k) for k in known)}",
            )
