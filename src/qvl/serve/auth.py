"""Named API keys, and the layer that lets nobody in without one.

The layer stands around the whole application and decides by `scope["path"]`, which a Host header
cannot change; what is not open is closed, whether or not there is such a route.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from qvl.errors import UsageError
from qvl.serve.errors import Refusal

OPEN = frozenset({"/livez", "/readyz", "/health"})
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEX = re.compile(r"[0-9a-f]{64}")
SHORTEST = 8  # characters of a key
OTHERS = stat.S_IRWXG | stat.S_IRWXO
log = logging.getLogger(__name__)


class Keys:
    """API keys by name, of which only SHA-256 digests are kept."""

    def __init__(self, digests: Mapping[str, bytes]) -> None:
        self._digests = dict(digests)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def name_of(self, key: bytes) -> str | None:
        """The name of a key; takes as long for one that is nearly right as for any other."""
        given, found = hashlib.sha256(key).digest(), None
        for name, digest in self._digests.items():
            if hmac.compare_digest(given, digest):
                found = name
        return found


def read_keys(lines: Iterable[str]) -> Keys:
    """Keys of lines `NAME:KEY` or `NAME:sha256:HEX`; empty lines and those with a # are left out.

    Raises UsageError, which names the line and never a key.
    """
    digests: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not (line := line.strip()) or line.startswith("#"):
            continue
        name, _, secret = line.partition(":")
        if not _NAME.fullmatch(name) or not secret:
            raise UsageError(
                f"key {number} is not NAME:KEY or NAME:sha256:HEX",
                hint="names are 1 to 64 letters, digits, dots, dashes and underscores",
            )
        if name in digests:
            raise UsageError(f"two keys are called {name!r}", hint="give each its own name")
        digests[name] = _digest(secret, name)
    return Keys(digests)


def read_key_file(path: Path) -> Keys:
    """Raises UsageError for a file that cannot be read, or that holds no key.

    A file that other users of the machine may read is used, with a warning.
    """
    try:
        keys = read_keys(path.read_text("utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(f"the key file {str(path)!r} cannot be read") from err
    if not keys:
        raise UsageError(f"the key file {str(path)!r} holds no key", hint="a line is NAME:KEY")
    if os.name == "posix" and path.stat().st_mode & OTHERS:
        log.warning("the key file %r can be read by others: chmod 600 it", str(path))
    return keys


def _digest(secret: str, name: str) -> bytes:
    kind, _, digest = secret.partition(":")
    if kind == "sha256" and digest:
        if not _HEX.fullmatch(digest.lower()):
            raise UsageError(f"the digest of {name!r} is not 64 hexadecimal digits")
        return bytes.fromhex(digest)
    if len(secret) < SHORTEST:
        raise UsageError(f"the key of {name!r} is shorter than {SHORTEST} characters")
    return hashlib.sha256(secret.encode()).digest()


class KeyGuard:
    """Around an application: lets requests in whose bearer key is known, and says whose it is.

    Without keys everybody may come in, under one of the names `hosts` if there are any: a server for
    this machine alone must not be reached by the name of somebody's web page (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, keys: Keys, hosts: Sequence[str] = ()) -> None:
        self._app = app
        self._keys = keys
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            state = scope.setdefault("state", {})
            state["key"] = ""
            if self._keys:
                if scope["path"] not in OPEN:
                    state["key"] = self._authenticated(scope["headers"])
            elif self._hosts and host_name(scope["headers"]) not in self._hosts:
                raise Refusal(
                    403,
                    "host_not_allowed",
                    "the Host header does not name this machine",
                    hint="use 127.0.0.1 or localhost, or start the server with API keys",
                )
        await self._app(scope, receive, send)

    def _authenticated(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        given = [value for name, value in headers if name == b"authorization"]
        kind, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        name = self._keys.name_of(key.strip()) if kind.lower() == b"bearer" else None
        if name is None:
            raise Refusal(
                401,
                "invalid_api_key",
                "the API key is missing or wrong",
                hint="send it as `Authorization: Bearer KEY`",
                headers={"www-authenticate": "Bearer"},
            )
        return name


def host_name(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The Host header without its port, in small letters; "" unless there is exactly one."""
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1:
        return ""
    host = hosts[0].decode("latin-1").lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] or host
