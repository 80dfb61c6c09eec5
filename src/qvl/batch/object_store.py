"""Object stores, s3://bucket/prefix, gs:// and az://: pictures, listed and read when they are needed, and
what is written once and never changed.

Who asks is said by the environment, in the variables of each cloud (AWS_ACCESS_KEY_ID, ...).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from qvl.batch.row import Refused, Row
from qvl.errors import (
    FetchError,
    InputError,
    InputNotFoundError,
    OfflineError,
    QvlError,
    StorageError,
    UsageError,
)
from qvl.fetch import is_offline
from qvl.processing.source import quoted
from qvl.runs.record import Source
from qvl.types import PICTURE_SUFFIXES, VIDEO_SUFFIXES

SCHEMES = ("s3://", "gs://", "az://")
LISTED_AT_ONCE = 1000
LIMITS: Any = {"timeout": "60s", "connect_timeout": "5s"}
RETRIES: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}


def is_store(where: str) -> bool:
    return where[:5].lower() in SCHEMES


def rows(name: str, every_s: float | None = None) -> Iterator[Row | Refused]:
    """The picture of that name, or all below it, in the store's order; listed page by page.

    Raises as `read`, and InputNotFoundError where there is none.
    """
    bucket, key = _taken_apart(name)
    suffix = Path(key).suffix.lower()
    if suffix in PICTURE_SUFFIXES | VIDEO_SUFFIXES:
        yield Row(table=name, id=os.path.basename(key), sources=(Source(name),))
        return
    store = _store(bucket)
    wanted = PICTURE_SUFFIXES if every_s is None else PICTURE_SUFFIXES | VIDEO_SUFFIXES
    found = 0
    prefix = key.rstrip("/")
    try:
        for page in _obstore().list(store, prefix or None, chunk_size=LISTED_AT_ONCE):
            for one in page:
                path = one["path"]
                if Path(path).suffix.lower() in wanted - {".pdf"}:
                    found += 1
                    own = path.removeprefix(prefix).lstrip("/") if prefix else path
                    yield Row(table=name, id=own, sources=(Source(f"{bucket}/{path}"),))
    except Exception as err:
        raise _failed(name, err) from err
    if not found:
        raise InputNotFoundError(f"{quoted(name)} holds no pictures")


def read(where: str, max_bytes: int) -> bytes:
    """An object's bytes.

    Raises InputNotFoundError where it is not there, InputError where it is larger, FetchError for all
    that the store does not give, OfflineError, UsageError without obstore or without a key.
    """
    bucket, key = _taken_apart(where)
    obstore, store = _obstore(), _store(bucket)
    try:
        found = obstore.get(store, key)
        size_bytes = found.meta["size"]
        if size_bytes > max_bytes:
            raise InputError(
                f"{quoted(where)} has {size_bytes / 2**20:.1f} MiB, the limit is {max_bytes >> 20}",
                hint="make it smaller",
            )
        return bytes(found.bytes())
    except QvlError:
        raise
    except Exception as err:
        raise _failed(where, err) from err


def size_of(where: str) -> int:
    """An object's size in bytes, without its content. Raises as `read`."""
    bucket, key = _taken_apart(where)
    try:
        return _obstore().head(_store(bucket), key)["size"]
    except Exception as err:
        raise _failed(where, err) from err


def put_new(where: str, data: bytes) -> bool:
    """Write an object that is there whole or not at all; False where another is there already.

    Raises StorageError, OfflineError, UsageError.
    """
    bucket, key = _taken_apart(where)
    obstore, store = _obstore(), _store(bucket)
    try:
        obstore.put(store, key, data, mode="create", use_multipart=False)
        return True
    except Exception as err:  # noqa: BLE001 - told below
        fault = err
    try:  # it is there already, or the answer to a first try was lost
        return bytes(obstore.get(store, key).bytes()) == data
    except Exception:  # noqa: BLE001 - the first fault says more
        raise _unwritten(where) from fault


def sizes_below(where: str) -> dict[str, int]:
    """Bytes of each object below a prefix, by the rest of its name. Raises as `read`."""
    bucket, key = _taken_apart(where)
    prefix = key.rstrip("/") + "/" if key else ""
    try:
        pages = _obstore().list(_store(bucket), prefix or None, chunk_size=LISTED_AT_ONCE)
        return {one["path"].removeprefix(prefix): one["size"] for page in pages for one in page}
    except QvlError:
        raise
    except Exception as err:
        raise _failed(where, err) from err


def _taken_apart(where: str) -> tuple[str, str]:
    scheme, _, rest = where.partition("://")
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise InputError(f"{quoted(where)} names no bucket", hint="as in s3://bucket/folder")
    return f"{scheme.lower()}://{bucket}", key


def _obstore() -> Any:
    if is_offline():
        raise OfflineError("nothing is read from object stores offline", hint="leave out --offline")
    try:
        import obstore
    except ImportError as err:
        raise UsageError(
            "object stores need the package obstore", hint="pip install 'qvl[storage]'"
        ) from err
    return obstore


@lru_cache(16)
def _store(bucket: str) -> Any:
    _obstore()
    from obstore.store import from_url

    # with options of a client, obstore no longer looks for this one in the environment
    plain = {"allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")}
    try:
        return from_url(bucket, client_options=LIMITS | plain, retry_config=RETRIES)
    except Exception as err:
        raise UsageError(
            f"{quoted(bucket)} cannot be opened with what the environment says of it",
            hint="for s3:// set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION",
        ) from err


def _unwritten(where: str) -> StorageError:
    return StorageError(
        f"{quoted(where)} could not be written to its store",
        hint="check the bucket and the key in the environment; what is kept here is not lost",
    )


def _failed(where: str, err: Exception) -> QvlError:
    """Its words may hold addresses and headers: only their kind is told."""
    if isinstance(err, FileNotFoundError):
        return InputNotFoundError(f"{quoted(where)} does not exist")
    kind = type(err).__name__
    if kind in ("PermissionDeniedError", "UnauthenticatedError"):
        return InputError(
            f"{quoted(where)} may not be read by who asks", hint="check the key in the environment"
        )
    return FetchError(f"{quoted(where)} could not be read from its store")
