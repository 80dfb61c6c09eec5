"""`run.json`: what a run's answers depend on, which may not change, and where it was begun.

The identity is whatever JSON object the caller names it by (task, model and its hashes, sampling, seed,
prompts, ...); a run goes on only with an equal one. The environment (versions, device, host) is kept
for people, and a change of it is told.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qvl.errors import InputNotFoundError, InvalidParamError, RunChangedError, StorageError
from qvl.runs.disk import DISK, Disk
from qvl.runs.items import Manifest, Shard
from qvl.runs.journal import FULL_HINT
from qvl.runs.whole import write_whole

FORMAT = 1
FILE = "run.json"
SHOWN = 60  # characters of a value
NEW_HINT = "give what the run was begun with, or begin a new run"
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """`values` and `environment` as the caller gave them, as JSON has them."""

    values: Json
    environment: Json
    manifest: Manifest
    shard: Shard
    begun: str  # ISO 8601


def as_json(values: Json, what: str) -> dict[str, Any]:
    """As the values are read back. Raises InvalidParamError for what JSON does not have."""
    try:
        return json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as err:
        raise InvalidParamError(f"{what} of a run cannot be kept as JSON: {err}") from err


def write(folder: Path, identity: Identity, disk: Disk = DISK) -> None:
    """Raises StorageError."""
    kept = {
        "format": FORMAT,
        "checksum": "CRC-32 as of zlib, over each line without its crc",
        "begun": identity.begun,
        **_kept(identity),
        "fingerprint": _fingerprint(identity),
        "environment": identity.environment,
    }
    text = json.dumps(kept, indent=1) + "\n"
    shown = f"{FILE} of {folder.name!r}"
    write_whole(folder / FILE, text.encode(), hint=FULL_HINT, shown=shown, mode=0o600, disk=disk)


def read(folder: Path) -> Identity:
    """Raises InputNotFoundError where no run is, StorageError, and RunChangedError for a run.json that
    is missing, empty, of another version or edited by hand.
    """
    name = f"run {folder.name!r}"
    try:
        kept = json.loads((folder / FILE).read_bytes())
        if kept["format"] != FORMAT:
            raise RunChangedError(
                f"{name} has the format {kept['format']!r}, this version reads {FORMAT}",
                hint="use the version of qvl that it was begun with",
            )
        identity = Identity(
            values=kept["identity"],
            environment=kept["environment"],
            manifest=Manifest(**kept["items"]),
            shard=Shard.parse(kept["shard"]),
            begun=kept["begun"],
        )
        fingerprint = kept["fingerprint"]
    except FileNotFoundError as err:
        check_absent(folder)
        raise InputNotFoundError(
            f"there is no {name}", hint="`qvl batch run` begins one; its name or folder is meant"
        ) from err
    except OSError as err:
        raise StorageError(f"{FILE} of {name} cannot be read: {err.strerror}") from err
    except (ValueError, KeyError, TypeError, InvalidParamError) as err:
        raise _unusable(name, "is not as it was written") from err
    if fingerprint != _fingerprint(identity):
        raise _unusable(name, "was edited: its fingerprint is another")
    return identity


def check_absent(folder: Path) -> None:
    """Raises RunChangedError where a run is that has lost its run.json."""
    if any(folder.glob("results-*.jsonl")):
        raise _unusable(f"run {folder.name!r}", "is missing")


def check(folder: Path, kept: Json, given: Json) -> None:
    """Raises RunChangedError naming each field that differs, with both values."""
    changed = list(changes(kept, given))
    if changed:
        lines = "\n".join(f"  {name}: {old} -> {new}" for name, old, new in changed)
        raise RunChangedError(
            f"run {folder.name!r} was begun with other settings:\n{lines}", hint=NEW_HINT
        )


def changes(old: Json, new: Json) -> Iterator[tuple[str, str, str]]:
    """Each field that differs, as a path with dots, with its old and new value as text to show."""
    before, after = dict(_leaves(old, "")), dict(_leaves(new, ""))
    for name in sorted({*before, *after}):
        texts = [
            json.dumps(f[name], ensure_ascii=False) if name in f else "(none)"
            for f in (before, after)
        ]
        if texts[0] != texts[1]:
            yield name, *_shown(*texts)


def _leaves(values: Json, above: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield above + name, value


def _shown(old: str, new: str) -> tuple[str, str]:
    """Of long texts the part where they begin to differ."""
    pairs = enumerate(zip(old, new, strict=False))
    differs = next((at for at, (a, b) in pairs if a != b), min(len(old), len(new)))
    start = 0 if max(len(old), len(new)) <= SHOWN else max(0, differs - SHOWN // 3)

    def part(text: str) -> str:
        end = start + SHOWN
        return "..." * (start > 0) + text[start:end] + "..." * (end < len(text))

    return part(old), part(new)


def _kept(identity: Identity) -> dict[str, Any]:
    return {
        "identity": identity.values,
        "items": asdict(identity.manifest),
        "shard": f"{identity.shard.number}/{identity.shard.of}",
    }


def _fingerprint(identity: Identity) -> str:
    text = json.dumps(_kept(identity), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _unusable(name: str, why: str) -> RunChangedError:
    return RunChangedError(
        f"{FILE} of {name} {why}", hint="put the file back, or begin a new run with other folder"
    )
