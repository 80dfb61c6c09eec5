"""A model's name -> a folder on this machine: a local folder as it is, or a download from the hub.

Main path: fetch_checkpoint -> _download (resolve one commit, check config.json and the free space,
then fetch) or, offline, the cache alone. The cache is huggingface_hub's own, so HF_HOME, HF_TOKEN,
HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean everywhere else.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
from huggingface_hub import (
    DeleteCacheStrategy,
    DryRunFileInfo,
    HfApi,
    constants,
    hf_hub_download,
    scan_cache_dir,
    snapshot_download,
)
from huggingface_hub.errors import (
    CacheNotFound,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from qvl.errors import (
    DownloadError,
    InvalidParamError,
    ModelFormatError,
    OfflineError,
    StorageError,
    UnknownModelError,
    nearest,
)
from qvl.loading.catalogue import CATALOGUE, find
from qvl.loading.config import parse_config
from qvl.loading.model import CheckpointFolder, local_folder

log = logging.getLogger(__name__)

# the files of a checkpoint that we read, and its card and licence; all at the top of the repo
WANTED = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.tiktoken", "README.md", "LICENSE*")
UNWANTED = ("*/*",)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG}


def fetch_checkpoint(
    name: str, *, revision: str | None = None, offline: bool | None = None
) -> CheckpointFolder:
    """The folder of a local path or a hub id; downloads what the cache lacks, from one commit.

    revision is a branch, tag or commit of the hub's repository; offline None means: as
    HF_HUB_OFFLINE says. When the hub cannot be reached, a whole copy in the cache will do.
    Raises UnknownModelError, OfflineError, DownloadError, StorageError; ModelFormatError or
    ConfigError, before the weights are fetched, for a model that cannot run here.
    """
    found = local_folder(name, revision)
    if found is not None:
        return found
    hub_id = _hub_id(name)
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise InvalidParamError(f"revision {revision!r} is no branch, tag or commit")
    if constants.is_offline_mode() if offline is None else offline:
        path = _cached(hub_id, revision)
        if path is None:
            raise OfflineError(
                f"{hub_id!r} is not in the local cache, and downloads are off",
                hint="ask for it once with a connection, or check the name: "
                + (_nearest_published(hub_id) or "`qvl models list` shows the published ones"),
            )
    else:
        path = _download_or_cached(hub_id, revision)
    return CheckpointFolder(path, hub_id, path.name)


@dataclass(frozen=True, slots=True)
class Cached:
    """A checkpoint in the local cache, all of its revisions, and the bytes that only it takes."""

    hub_id: str
    size_bytes: int
    folder: Path
    plan: DeleteCacheStrategy

    def remove(self) -> None:
        """Raises StorageError where something could not be deleted."""
        try:
            self.plan.execute()
        except OSError as err:
            raise StorageError(f"{self.hub_id!r} could not be removed: {err.strerror}") from err
        if self.folder.exists():
            raise StorageError(
                f"{self.hub_id!r} could not be removed whole",
                hint="check who may write to the cache, and that no program uses the model",
            )


def find_cached(name: str) -> Cached:
    """The cached checkpoint of that name, whole or not.

    Raises UnknownModelError, with the nearest names, for what the cache does not have or what is no
    checkpoint.
    """
    if local_folder(name, None) is not None:
        raise UnknownModelError(
            f"{name!r} is a folder of yours, not a cached checkpoint", hint="delete it yourself"
        )
    hub_id = _hub_id(name)
    missing = f"{hub_id!r} is not in the local cache"
    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound as err:
        raise UnknownModelError(missing, hint="nothing is in it") from err
    repos = {repo.repo_id: repo for repo in cache.repos if repo.repo_type == "model"}
    if hub_id not in repos:
        raise UnknownModelError(missing, hint=nearest(hub_id, repos) or "there is nothing to do")
    repo = repos[hub_id]
    if not any(file.file_name == "config.json" for r in repo.revisions for file in r.files):
        raise UnknownModelError(
            f"{hub_id!r} is in the local cache, but it is no checkpoint: it has no config.json",
            hint="remove it with the program that put it there",
        )
    # of this repository alone: a copy of it elsewhere on the hub has the same commits
    alone = replace(cache, repos=frozenset([repo]))
    plan = alone.delete_revisions(*(revision.commit_hash for revision in repo.revisions))
    return Cached(hub_id, plan.expected_freed_size, repo.repo_path, plan)


def _hub_id(name: str) -> str:
    entry = find(name)
    if entry is not None:
        if not entry.hub_id.lower().endswith(name.lower()):
            log.warning("there is no %s; using %s", name, entry.hub_id)
        return entry.hub_id
    if not _HUB_ID.fullmatch(name):
        raise UnknownModelError(
            f"no model {name!r}: there is no such folder, and a hub id looks like ORG/NAME",
            hint=_nearest_published(name),
        )
    return name


def _nearest_published(name: str) -> str | None:
    return nearest(name, [entry.hub_id for entry in CATALOGUE])


def _cached(hub_id: str, revision: str | None) -> Path | None:
    """The cached folder, or None unless it is whole; opens no socket."""
    try:
        path = Path(_snapshot(hub_id, revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return path if any(path.glob("*.safetensors")) else None


def _snapshot(hub_id: str, revision: str | None, *, local_files_only: bool) -> str:
    return snapshot_download(
        hub_id,
        revision=revision,
        local_files_only=local_files_only,
        allow_patterns=list(WANTED),
        ignore_patterns=list(UNWANTED),
    )


def _download_or_cached(hub_id: str, revision: str | None) -> Path:
    try:
        with _plain_errors(hub_id, revision):
            return _download(hub_id, revision)
    except DownloadError as err:
        path = _cached(hub_id, revision)
        if path is None:
            raise
        log.warning("%s; using the copy in the local cache", err.message)
        return path


def _download(hub_id: str, revision: str | None) -> Path:
    """All wanted files of the commit that the revision points at now."""
    # Asked first, with a limit: resolve_revision has none, and where nobody answers it falls back to
    # the cache, after which each file is tried again and again.
    HfApi().repo_info(hub_id, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    resolved = HfApi().resolve_revision(hub_id, revision=revision)
    # a few hundred bytes first: they say whether the gigabytes after them are of any use
    try:
        config = hf_hub_download(hub_id, "config.json", revision=resolved)
    except RemoteEntryNotFoundError as err:
        raise ModelFormatError(
            f"{hub_id!r} has no config.json", hint="it is not a model in the transformers layout"
        ) from err
    parse_config(Path(config).parent)
    plan = snapshot_download(
        hub_id,
        revision=resolved,
        allow_patterns=list(WANTED),
        ignore_patterns=list(UNWANTED),
        dry_run=True,
    )
    if not any(file.filename.endswith(".safetensors") for file in plan):
        raise ModelFormatError(
            f"{hub_id!r} has no safetensors weights",
            hint="pickled weights can run code and are not fetched; for Qwen-VL, the first: "
            f"`hf download {hub_id} --local-dir FOLDER`, then `qvl models convert FOLDER TARGET`",
        )
    missing_bytes = sum(file.file_size or 0 for file in plan if file.will_download)
    _check_space(hub_id, missing_bytes)
    if missing_bytes:
        log.warning("downloading %s: %.2f GiB", hub_id, missing_bytes / 2**30)
    try:
        path = Path(_snapshot(hub_id, resolved, local_files_only=False))
    except (OSError, httpx2.HTTPError, RuntimeError):
        # what did arrive counts as whole from now on
        _remove_damaged(Path(config).parent, plan)
        raise
    damaged = _remove_damaged(path, plan)
    if damaged:
        raise DownloadError(
            f"{len(damaged)} files of {hub_id!r} arrived damaged (another SHA-256): {damaged[0]}",
            hint="run the same command again: whole files are kept",
        )
    return path


def _check_space(hub_id: str, needed_bytes: int) -> None:
    cache = Path(constants.HF_HUB_CACHE).expanduser()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free_bytes = shutil.disk_usage(existing).free
    if needed_bytes > free_bytes:
        raise StorageError(
            f"downloading {hub_id!r} takes {needed_bytes / 2**30:.2f} GiB, "
            f"{free_bytes / 2**30:.2f} GiB are free",
            hint="make room, or set HF_HOME to a folder on a larger disk",
        )


def _remove_damaged(folder: Path, plan: Sequence[DryRunFileInfo]) -> list[str]:
    """Names of new large files that differ from the SHA-256 under which the hub lists them.

    They are removed, so that the next download fetches them again.
    """
    damaged = []
    for file in plan:
        pointer = folder / file.filename
        if not file.will_download or not pointer.is_symlink():
            continue
        blob = pointer.parent / os.readlink(pointer)
        if not _SHA256.fullmatch(blob.name):
            continue  # a small file, listed under its git hash
        with blob.open("rb") as data:
            is_whole = hashlib.file_digest(data, "sha256").hexdigest() == blob.name
        if not is_whole:
            blob.unlink()
            pointer.unlink()
            damaged.append(file.filename)
    return damaged


@contextmanager
def _plain_errors(hub_id: str, revision: str | None) -> Iterator[None]:
    """What goes wrong between us and the hub, as our own errors in plain words."""
    try:
        yield
    except GatedRepoError as err:
        raise UnknownModelError(
            f"{hub_id!r} is gated: its owner wants a licence accepted first",
            hint="accept it on the model's page, then set HF_TOKEN to a token of that account",
        ) from err
    except RevisionNotFoundError as err:
        raise UnknownModelError(
            f"{hub_id!r} has no revision {revision!r}", hint="leave the revision out for the newest"
        ) from err
    except (RepositoryNotFoundError, HFValidationError) as err:
        raise UnknownModelError(
            f"the hub has no model {hub_id!r}, or it is private",
            hint=_nearest_published(hub_id) or "if it is private, set HF_TOKEN",
        ) from err
    except HfHubHTTPError as err:
        status = err.response.status_code
        if status in (401, 403):
            raise UnknownModelError(
                f"the hub refuses access to {hub_id!r} (status {status})",
                hint="set HF_TOKEN to a token that may read it",
            ) from err
        raise _download_error(hub_id, f"the hub answered with status {status}") from err
    except httpx2.TimeoutException as err:
        raise _download_error(hub_id, "the hub did not answer in time") from err
    except (httpx2.HTTPError, RevisionResolutionError, EntryNotFoundError) as err:
        raise _download_error(hub_id, "the hub could not be reached, or the line was cut") from err
    except OSError as err:
        if err.errno in _DISK_ERRORS:
            raise StorageError(
                f"the cache could not take {hub_id!r}: {os.strerror(err.errno)}",
                hint="make room, or set HF_HOME to a folder that can be written",
            ) from err
        why = os.strerror(err.errno).lower() if err.errno else "a file arrived incomplete"
        raise _download_error(hub_id, why) from err
    except RuntimeError as err:  # hf_xet, the hub's transfer library, has no class of its own
        raise _download_error(hub_id, "the transfer was cut") from err


def _download_error(hub_id: str, why: str) -> DownloadError:
    return DownloadError(
        f"downloading {hub_id!r} failed: {why}",
        hint="check the connection and run the same command again: whole files are kept",
    )
