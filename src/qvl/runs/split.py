"""The shards of a run, each a run of its own that `merge` puts together again, made in one look at the items."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from qvl.errors import InputError, InvalidParamError, StorageError
from qvl.runs import identity as identities
from qvl.runs.disk import DISK, Disk
from qvl.runs.identity import Identity, Json
from qvl.runs.items import Items, Shard, write_shards
from qvl.runs.journal import FULL_HINT
from qvl.runs.lock import Lock
from qvl.runs.record import Item

MOST = 256  # each has a file open and up to 1 MiB of it in memory while they are made


def shard_folders(target: Path) -> list[Path]:
    """Those that `split` made, in order."""
    return sorted(path for path in target.iterdir() if (path / identities.FILE).exists())


def check_shards(folders: Sequence[Path], identity: Json, items: Iterable[Item]) -> None:
    """Raises RunChangedError where they are of another run or other items; StorageError."""
    given = identities.as_json(identity, "the identity")
    for folder in folders:
        identities.check(folder, identities.read(folder).values, given)
    first = identities.read(folders[0])
    Items(folders[0], first.manifest).check_same(items, first.shard)


def split(
    target: Path,
    of: int,
    identity: Json,
    items: Iterable[Item],
    *,
    environment: Json | None = None,
    disk: Disk = DISK,
) -> list[Path]:
    """Make a folder with the runs of `of` shards, to be opened by `Run.open`, whole or not at all.

    Raises InvalidParamError for more than MOST, InputError where the folder is there already,
    RunLockedError while another process makes it, StorageError, and what `items` raises.
    """
    if not 1 <= of <= MOST:
        raise InvalidParamError(f"{of} shards are not between 1 and {MOST}")
    target = target.absolute()
    if target.exists():
        raise InputError(f"{target.name!r} exists already", hint="give another name")
    part = target.with_name(target.name + ".part")
    try:
        disk.make_folder(target.parent)
        disk.make_folder(part, mode=0o700)
        with closing(Lock(part / "lock", f"the making of {target.name!r}")):
            _clear(part)
            folders = [part / f"{number:04}-of-{of:04}" for number in range(1, of + 1)]
            for folder in folders:
                disk.make_folder(folder, mode=0o700)
            _fill(folders, identity, items, environment or {}, disk)
            os.unlink(part / "lock")
            os.rename(part, target)
            disk.sync_folder(target.parent)
    except OSError as err:
        raise StorageError(
            f"{target.name!r} cannot be written: {err.strerror}", hint=FULL_HINT
        ) from err
    return shard_folders(target)


def _fill(
    folders: Sequence[Path], identity: Json, items: Iterable[Item], environment: Json, disk: Disk
) -> None:
    values = identities.as_json(identity, "the identity")
    recorded = identities.as_json(environment, "the environment")
    begun = disk.now()
    for number, manifest in enumerate(write_shards(folders, items, disk), start=1):
        one = Identity(
            values=values,
            environment=recorded,
            manifest=manifest,
            shard=Shard(number, len(folders)),
            begun=begun,
        )
        identities.write(folders[number - 1], one, disk)


def _clear(part: Path) -> None:
    """Remove what was left by one that was killed."""
    for path in part.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
