"""The one way to remote pictures and videos: from public hosts only, within a time and a size.

Main path: fetch -> Address.of -> _connected, which looks the host up once, wants every address that it
has to be public, and connects to one of these -> _asked -> _write_body. A redirect begins anew. A URL is
taken apart once, and only its parts are used, so no two parsers can differ about its host. Proxies and
passwords of the environment play no part.
"""

from __future__ import annotations

import functools
import http.client
import io
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import BinaryIO, cast
from urllib.parse import quote, urljoin

from qvl.errors import (
    FetchBlockedError,
    FetchError,
    OfflineError,
    QvlError,
    StorageError,
    UsageError,
)

CONNECT_S = 3.0
MAX_REDIRECTS = 3
PORTS = frozenset({80, 443})
MAX_URL_CHARS = 8192
PIECE_BYTES = HEADROOM_BYTES = 64 * 1024  # read at a time; read beside the file, as headers
DEFAULT_PORTS = {"http": 80, "https": 443}
REDIRECTS = frozenset({301, 302, 303, 307, 308})

# Python's `is_global` lets multicast, NAT64, 6to4 and others pass, and not the same in each version.
NOT_PUBLIC_V4 = [
    ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # what a virtual machine's host answers at on Azure
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]
# Outside of it lie mapped, translated, local, multicast and unassigned addresses.
PUBLIC_V6 = ip_network("2000::/3")
NOT_PUBLIC_V6 = [
    ip_network(network)
    for network in (
        "2001::/23",  # Teredo, ORCHID, and what else the IETF assigned
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",
        "3ffe::/16",
        "3fff::/20",
    )
]
ISATAP = frozenset({0x00005EFE, 0x02005EFE})  # then come the 32 bits of an IPv4 address

# What parsers read in different ways: white space, control characters, backslashes, halves of pairs.
UNSAFE = re.compile(r"[\s\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")
URL = re.compile(
    r"(https?)://(\[[0-9a-f:.]+\]|[^\[\]:/?#@%]+)(?::([0-9]{1,5}))?([/?][^#]*)?(?:#.*)?",
    re.IGNORECASE | re.ASCII,
)
LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
MAX_HOST_CHARS = 253
HTML = re.compile(
    rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body|title|meta|script)\b", re.IGNORECASE
)
SUGGESTION = "give the file itself, or its address on a public host"


@dataclass(frozen=True, slots=True)
class Policy:
    """Of which hosts something may be fetched (None: of all public ones), and whether at all."""

    domains: frozenset[str] | None = None
    offline: bool = False


_policy = Policy()


def set_policy(*, domains: Iterable[str] | None = None, offline: bool = False) -> None:
    """For the whole process; called once, at its start. Raises UsageError for no name of a host."""
    global _policy
    try:
        allowed = None if domains is None else frozenset(map(host_name, domains))
    except ValueError as err:
        raise UsageError(
            "one of the domains to fetch from is not the name of a host",
            hint="a name looks like images.example.com",
        ) from err
    _policy = Policy(allowed, offline)


def is_offline() -> bool:
    """Whether no connection may be opened."""
    return _policy.offline


def fetch(
    url: str,
    into: BinaryIO,
    *,
    name: str,
    max_bytes: int,
    deadline_s: float,
    too_large: type[QvlError],
) -> None:
    """Write the file at an address, within `deadline_s` seconds; messages call it `name`.

    Raises FetchBlockedError for an address that may not be fetched, FetchError for one that gives no
    file, `too_large` for a file of more than `max_bytes`, OfflineError where nothing may be fetched,
    StorageError when it cannot be written.
    """
    if _policy.offline:
        raise OfflineError(
            f"{name} is an address, and nothing is fetched offline",
            hint="give the file itself, or leave out --offline",
        )
    budget = _Budget(time.monotonic() + deadline_s, max_bytes + HEADROOM_BYTES)
    try:
        address = Address.of(url)
        with suppress(OSError, http.client.HTTPException):
            return _fetch(address, into, budget, max_bytes)
        return _fetch(address, into, budget, max_bytes)  # the connection failed: once more
    except NotAllowedError as err:
        raise FetchBlockedError(f"{name} {err}", hint=SUGGESTION) from err
    except _TooLargeError as err:
        raise too_large(
            f"{name} is larger than {max_bytes / 2**20:.3g} MiB", hint="give a smaller copy"
        ) from err
    except (OSError, http.client.HTTPException, _NoFileError) as err:
        what = str(err if isinstance(err, _NoFileError) else _NoFileError())
        if budget.is_over:
            what = f"was not fetched within {deadline_s:g} s"
        hint = "check that the address opens for anybody, or give the file itself"
        raise FetchError(f"{name} {what}", hint=hint) from err


class NotAllowedError(ValueError):
    """Its words, and those of a _NoFileError, go on after the name of what was to be fetched."""


class _NoFileError(Exception):
    """The server has answered, and not with the whole file."""

    def __init__(self, words: str = "could not be fetched") -> None:
        super().__init__(words)


class _TooLargeError(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of an http(s) URL: host in ASCII, without brackets; target: path and query, to be sent."""

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def of(cls, url: str) -> Address:
        """Raises NotAllowedError for all that is not plainly an address."""
        is_plain = len(url) <= MAX_URL_CHARS and not UNSAFE.search(url)
        if not is_plain or (parts := URL.fullmatch(url)) is None:
            raise NotAllowedError("is not a valid address, such as https://host/picture.jpg")
        scheme, host, port, target = parts.groups(default="")
        scheme = scheme.lower()
        number = int(port or DEFAULT_PORTS[scheme])
        if number not in PORTS:
            raise NotAllowedError("has another port in its address than 80 and 443")
        target = quote(target, safe="/?%:@!$&'()*+,;=~[]")
        target = target if target.startswith("/") else "/" + target
        return cls(scheme, host_name(host), number, target)

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def join(self, location: str) -> Address:
        """Where a redirect leads. Raises NotAllowedError."""
        try:
            # http.client reads headers as Latin-1
            location = location.encode("latin-1").decode("utf-8")
            url = urljoin(f"{self.scheme}://{self.authority}{self.target}", location)
        except ValueError as err:
            raise NotAllowedError("leads to no valid address") from err
        return Address.of(url)


def host_name(host: str) -> str:
    """In ASCII and lower case, without a dot at the end; an IPv6 address without its brackets.

    Whether 127.1 or 0x7f.1 is an address shows when it is looked up. Raises NotAllowedError.
    """
    try:
        if host.startswith("["):
            return str(IPv6Address(host[1:-1]))
        if not host.isascii():
            import idna  # large tables, for few

            host = idna.encode(host, uts46=True).decode()
    except ValueError as err:
        raise NotAllowedError("has no valid host in its address") from err
    host = host.lower().removesuffix(".")
    if len(host) > MAX_HOST_CHARS or not all(map(LABEL.fullmatch, host.split("."))):
        raise NotAllowedError("has no valid host in its address")
    return host


def is_public(address: str) -> bool:
    """Whether a numeric address is one of a host that everybody can reach, and of nobody's network."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in NOT_PUBLIC_V4)
    holds_v4 = (int(ip) >> 32 & 0xFFFFFFFF) in ISATAP
    return (
        ip in PUBLIC_V6
        and not any(ip in network for network in NOT_PUBLIC_V6)
        and ip.scope_id is None
        and not holds_v4
    )


@dataclass(slots=True)
class _Budget:
    """What one fetch may still take, redirects included; `ends_s` by time.monotonic."""

    ends_s: float
    bytes_left: int

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.ends_s

    def seconds_left(self) -> float:
        """Raises TimeoutError where there are none."""
        left_s = self.ends_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s


class _Reader(io.RawIOBase):
    """What a socket receives, within a budget; `makefile` is all that http.client asks of a socket."""

    def __init__(self, sock: socket.socket, budget: _Budget) -> None:
        self.sock, self.budget = sock, budget

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyrefly: ignore[bad-override]
        if not self.budget.bytes_left:
            raise _TooLargeError
        self.sock.settimeout(self.budget.seconds_left())
        count = self.sock.recv_into(buffer[: self.budget.bytes_left])
        self.budget.bytes_left -= count
        return count


def _fetch(address: Address, into: BinaryIO, budget: _Budget, max_bytes: int) -> None:
    for _ in range(MAX_REDIRECTS + 1):
        with closing(_connected(address, budget)) as sock:
            answer = _asked(sock, address, budget)
            if answer.status not in REDIRECTS:
                return _write_body(answer, into, max_bytes)
        if not (location := answer.headers.get("Location")):
            raise _NoFileError
        address = address.join(location)
    raise NotAllowedError(f"is redirected more than {MAX_REDIRECTS} times")


def _connected(address: Address, budget: _Budget) -> socket.socket:
    """A connection to the first address of the host that takes one; all of them must be allowed."""
    if _policy.domains is not None and address.host not in _policy.domains:
        raise NotAllowedError("is on a host that nothing may be fetched from")
    found = _looked_up(address, budget)
    if not all(map(is_public, found)):
        raise NotAllowedError("is on a host that is not public")
    failed = OSError("the host has no address")
    for numeric in found:
        try:
            return _dialled(numeric, address, budget)
        except OSError as err:
            failed = err
    raise failed


def _looked_up(address: Address, budget: _Budget) -> list[str]:
    """The host's addresses, asked for in a thread, as the system's resolver knows no deadline."""
    answer: Future[list[str]] = Future()

    def ask() -> None:
        try:
            answer.set_result(resolve(address.host, address.port))
        except Exception as err:  # noqa: BLE001 - raised again by whoever waits
            answer.set_exception(err)

    threading.Thread(target=ask, daemon=True, name="qvl-resolve").start()
    return answer.result(budget.seconds_left())


def resolve(host: str, port: int) -> list[str]:
    """The numeric addresses of a host, each once, in the system's order. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(where[0]) for *_, where in found))


def _dialled(numeric: str, address: Address, budget: _Budget) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in numeric else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.settimeout(min(CONNECT_S, budget.seconds_left()))
        sock.connect((numeric, address.port))
        if ip_address(sock.getpeername()[0]) != ip_address(numeric):
            raise NotAllowedError("is on a host that is not the one that was asked for")
        if address.scheme == "https":
            sock.settimeout(budget.seconds_left())
            sock = _tls().wrap_socket(sock, server_hostname=address.host)
    except BaseException:
        sock.close()
        raise
    return sock


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _asked(sock: socket.socket, address: Address, budget: _Budget) -> http.client.HTTPResponse:
    lines = (
        f"GET {address.target} HTTP/1.1",
        f"Host: {address.authority}",
        "User-Agent: qvl",
        "Accept: image/*, video/*, application/pdf, */*;q=0.5",
        "Accept-Encoding: identity",
        "Connection: close",
    )
    sock.settimeout(budget.seconds_left())
    sock.sendall("\r\n".join((*lines, "", "")).encode("ascii"))
    answer = http.client.HTTPResponse(cast(socket.socket, _Reader(sock, budget)), method="GET")
    answer.begin()
    return answer


def _write_body(answer: http.client.HTTPResponse, into: BinaryIO, max_bytes: int) -> None:
    """Raises _NoFileError for what is not a whole file, _TooLargeError for more than max_bytes."""
    headers = answer.headers
    coding = headers.get("Content-Encoding", "identity").lower()
    transfer = headers.get("Transfer-Encoding", "chunked").lower()
    if answer.status != http.client.OK or (coding, transfer) != ("identity", "chunked"):
        raise _NoFileError
    if answer.length is not None and answer.length > max_bytes:
        raise _TooLargeError
    written_bytes = 0
    while piece := _piece(answer):
        if not written_bytes and HTML.match(piece):
            raise _NoFileError("is a web page, not a picture or video itself")
        written_bytes += len(piece)
        if written_bytes > max_bytes:
            raise _TooLargeError
        try:
            into.write(piece)
        except OSError as err:
            hint = "free some space where temporary files are kept"
            raise StorageError("what was fetched cannot be kept here", hint=hint) from err
    if answer.length:  # less came than it had said
        raise _NoFileError


def _piece(answer: http.client.HTTPResponse) -> bytes:
    """The next of the file, nothing at its end. What fails is not tried again, as something was read."""
    try:
        return answer.read(PIECE_BYTES)
    except (OSError, http.client.HTTPException, ValueError) as err:  # a chunk of -15 bytes
        raise _NoFileError from err
