"""Only public hosts are connected to, and no server can make a fetch long or large.

The servers here listen on an address of loopback that nothing else uses; a test that needs one lets
its one port pass. Every connection that this process makes is noted, and none leaves the machine.
"""

from __future__ import annotations

import io
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

import clips
from qvl import fetch as fetch_module
from qvl.errors import (
    FetchBlockedError,
    FetchError,
    ImageDecodeError,
    ImageTooLargeError,
    OfflineError,
    QvlError,
    StorageError,
    UsageError,
    VideoTooLargeError,
)
from qvl.fetch import Address, NotAllowedError, fetch, is_public, set_policy
from qvl.processing import source as source_module
from qvl.processing import video as video_module
from qvl.processing.image import read_image
from qvl.processing.patches import PixelRules
from qvl.processing.video import VideoRules, read_video
from qvl.types import Image, Url, Video, without_password

HERE = "127.77.0.1"
PUBLIC = "93.184.215.14"
CAP, DEADLINE_S = 256 * 1024, 1.0
SECRET = b"what the server says is nobody's business"
TLS = Path(__file__).parent / "data" / "tls"

DENIED_V4 = (
    "0.0.0.0 0.1.2.3 10.0.0.0 10.255.255.255 100.64.0.0 100.100.100.200 100.127.255.255 127.0.0.1 "
    "127.255.255.254 168.63.129.16 169.254.0.1 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 "
    "192.0.0.8 192.0.0.170 192.0.2.1 192.31.196.1 192.52.193.1 192.88.99.1 192.168.0.1 "
    "192.168.255.255 192.175.48.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 "
    "239.255.255.250 240.0.0.1 255.255.255.255"
)
DENIED_V6 = (
    ":: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:7f00:1 "
    "64:ff9b::a9fe:a9fe 64:ff9b::7f00:1 64:ff9b:1::1 64:ff9b:1::a9fe:a9fe 100::1 100:0:0:1::1 "
    "2001::1 2001:0:7f00:1::1 2001:1::1 2001:2::1 2001:3::1 2001:4:112::1 2001:10::1 2001:20::1 "
    "2001:30::1 2001:1ff:ffff::1 2001:db8::1 2002:7f00:1:: 2002:a9fe:a9fe:: 2002:a00:1::1 "
    "2620:4f:8000::1 3ffe::1 3fff::1 3fff:fff::1 4000::1 5f00::1 6000::1 8000::1 c000::1 e000::1 "
    "f000::1 fc00::1 fd00::1 fd00:ec2::254 fe80::1 febf::1 fec0::1 feff::1 ff00::1 ff01::1 ff02::1 "
    "ff05::1:3 ff0e::1 2606:4700::5efe:7f00:1 2606:4700::200:5efe:7f00:1"
)
DENIED = f"{DENIED_V4} {DENIED_V6}".split()
ALLOWED = (
    "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 "
    "168.63.129.15 168.63.129.17 169.253.255.255 172.15.255.255 172.32.0.0 192.0.1.1 192.167.255.255 "
    "198.17.255.255 198.20.0.0 223.255.255.255 2606:4700:4700::1111 2001:4860:4860::8888 2001:200::1 "
    "2003::1 2620:4f:8001::1 2a00:1450:4001::1 3ffd:ffff::1 2606:4700::5eff:7f00:1"
)

# ---------------------------------------------------------------- the ground


connected_to: list[str] | None = None  # while a test looks: every address that this process dials


def note_connections(event: str, args: tuple[Any, ...]) -> None:
    if event != "socket.connect" or connected_to is None:
        return
    host = args[1][0]
    connected_to.append(host)
    if not ip_address(host).is_loopback:
        raise ConnectionRefusedError


sys.addaudithook(note_connections)


@pytest.fixture(autouse=True)
def dialled() -> Iterator[list[str]]:
    global connected_to
    connected_to = []
    set_policy()
    yield connected_to
    connected_to = None
    set_policy()


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Takes the addresses of all hosts, one list for each time that somebody asks; gives who asked for."""

    def answers(*each: list[str]) -> list[str]:
        asked: list[str] = []

        def resolve(host: str, _port: int) -> list[str]:
            asked.append(host)
            return each[min(len(asked), len(each)) - 1]

        monkeypatch.setattr(fetch_module, "resolve", resolve)
        return asked

    return answers


Behaviour = Callable[[socket.socket], None]


class Server:
    """Reads each request, then does as it was told; notes what it was asked."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave, self.asked, self.connections = behave, [], 0
        self.listener = socket.create_server((HERE, 0))
        self.port: int = self.listener.getsockname()[1]
        self.url = f"http://{HERE}:{self.port}"
        self.is_closed = threading.Event()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                one, _ = self.listener.accept()
                self.connections += 1
                threading.Thread(target=self.answer, args=(one,), daemon=True).start()

    def answer(self, one: socket.socket) -> None:
        with one, suppress(OSError):
            one.settimeout(10)
            asked = b""
            while b"\r\n\r\n" not in asked and (piece := one.recv(4096)):
                asked += piece
                if not asked.startswith(b"GET"):  # the beginning of a TLS handshake
                    break
            self.asked.append(asked.decode("latin-1"))
            self.behave(one)

    def close(self) -> None:
        self.is_closed.set()
        self.listener.close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Behaviour], Server]]:
    """Starts a server, and lets its port, which is no setting of anything, and no other pass."""
    servers: list[Server] = []

    def start(behave: Behaviour) -> Server:
        servers.append(Server(behave))
        monkeypatch.setattr(fetch_module, "PORTS", {server.port for server in servers})
        monkeypatch.setattr(fetch_module, "is_public", lambda a: a == HERE or is_public(a))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def get(url: str, *, max_bytes: int = CAP, deadline_s: float = DEADLINE_S) -> bytes:
    file = io.BytesIO()
    fetch(
        url,
        file,
        name="'it'",
        max_bytes=max_bytes,
        deadline_s=deadline_s,
        too_large=ImageTooLargeError,
    )
    return file.getvalue()


def says(head: str, body: bytes = b"") -> Behaviour:
    return lambda one: one.sendall(f"HTTP/1.1 {head}\r\n\r\n".encode("latin-1") + body)


def gives(body: bytes) -> Behaviour:
    return says(f"200 OK\r\nContent-Length: {len(body)}", body)


def leads_to(location: str) -> Behaviour:
    return says(f"302 Found\r\nLocation: {location}\r\nContent-Length: 0")


def in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


# ---------------------------------------------------------------- which addresses


@pytest.mark.parametrize("address", DENIED)
def test_a_forbidden_address_is_refused_as_literal_by_name_and_by_redirect(
    address: str,
    dialled: list[str],
    looked_up: Callable[..., list[str]],
    serve: Callable[[Behaviour], Server],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for scheme in ("http", "https"):
        with pytest.raises(FetchBlockedError, match="not public"):
            get(f"{scheme}://{in_url(address)}/a.png")
    with monkeypatch.context() as patched:
        for found in ([address], [PUBLIC, address], [address, PUBLIC]):
            patched.setattr(fetch_module, "resolve", lambda *_, found=found: found)
            with pytest.raises(FetchBlockedError, match="not public"):
                get("http://pictures.example/a.png")
    assert dialled == []
    server = serve(lambda one: leads_to(f"http://{in_url(address)}:{server.port}/a.png")(one))
    with pytest.raises(FetchBlockedError, match="not public") as caught:
        get(server.url)
    assert dialled == [HERE]
    assert address not in f"{caught.value.message} {caught.value.hint}"


def test_there_are_enough_of_them_and_their_neighbours_are_public() -> None:
    assert len(set(DENIED)) >= 77
    assert [address for address in DENIED if is_public(address)] == []
    assert [address for address in ALLOWED.split() if not is_public(address)] == []


@pytest.mark.parametrize(
    "found", ["2606:4700::1%1", "2606:4700::1%eth0", "fe80::1%lo", "", "a", "1.1"]
)
def test_what_is_no_plain_address_is_not_dialled(
    found: str, dialled: list[str], looked_up: Callable[..., list[str]]
) -> None:
    looked_up([found])
    with pytest.raises(FetchBlockedError):
        get("http://pictures.example/")
    assert dialled == []


@pytest.mark.parametrize(
    "host",
    [
        "0",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "017700000001",
        "１２７.０.０.１",
        "①②⑦.⓪.⓪.①",
        "127。0。0。1",
        "localhost",
        "LocalHost.",
    ],
)
def test_s024_other_spellings_of_loopback_are_refused(host: str, dialled: list[str]) -> None:
    with pytest.raises(FetchBlockedError):
        get(f"http://{host}/")
    assert dialled == []


def test_s026_a_name_whose_address_changes_is_checked_each_time(
    dialled: list[str], looked_up: Callable[..., list[str]]
) -> None:
    asked = looked_up([PUBLIC], ["127.0.0.1"])
    with pytest.raises(FetchBlockedError):
        get("http://pictures.example/")
    assert dialled == [PUBLIC]
    assert len(asked) == 2  # for the second attempt, which it was checked for again


def test_the_address_that_was_checked_is_dialled_and_the_next_one_where_it_is_silent(
    dialled: list[str], looked_up: Callable[..., list[str]]
) -> None:
    asked = looked_up([PUBLIC, "8.8.8.8"])
    with pytest.raises(FetchError):
        get("http://pictures.example/")
    assert asked == ["pictures.example"] * 2
    assert dialled == [PUBLIC, "8.8.8.8"] * 2


def test_a_connection_that_went_elsewhere_is_not_used(
    serve: Callable[[Behaviour], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(gives(SECRET))

    class Astray(socket.socket):
        def getpeername(self) -> Any:
            return ("127.0.0.1", server.port)

    monkeypatch.setattr(socket, "socket", Astray)
    with pytest.raises(FetchBlockedError):
        get(server.url)
    assert server.asked in ([], [""])


# ---------------------------------------------------------------- which URLs


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:6666\\@1.1.1.1/",
        "http://1.1.1.1\\.example.com/",
        "http:\\\\1.1.1.1/",
        "http:/1.1.1.1/",
        "http:1.1.1.1",
        "//1.1.1.1/",
        "http://",
        "http:///a.png",
        "http://?a",
        "http://.example.com/",
        "http://a..b/",
        "http://-a.com/",
        f"http://{'a' * 64}.com/",
        f"http://{'a.' * 127}com/",
        f"http://a.com/{'a' * 9000}",
        "http://user@a.com/",
        "http://user:password@a.com/",
        "http://:@a.com/",
        "http://a.com:/",
        "http://a.com:0/",
        "http://a.com:22/",
        "https://a.com:25/",
        "https://a.com:6379/",
        "http://a.com:8080/",
        "http://a.com:99999/",
        "http://a.com:８０/",
        "http://a.com:+80/",
        "http://a.com:80:80/",
        "http://a%2ecom/",
        "http://%31.1.1.1/",
        "http://[fe80::1%25lo]/",
        "http://[fe80::1%lo]/",
        "http://[1.1.1.1]/",
        "http://[::1/",
        "http://::1/",
        "http://[]/",
        "http://[v1.a]/",
        "http://[2606:4700::1]a/",
        "http://a.com b/",
        "http://a.com/a b",
        "http://a.com/\r\nHost: b",
        "http://a.com/\x00",
        "http://a\u00a0b.com/",
        "http://a\u2028b.com/",
        "http://a.com/\ud800",
        " http://a.com/",
        "http://a.com/ ",
        "http://a_b!.com/",
        "http://a,b.com/",
        "http://xn--\u00e9.com/",
        "http://\u2603\u2603\u200d.com/",
        "http\u017f://a.com/",
        "http://a\u212a.com:8080/",
        "file:///etc/passwd",
        "ftp://a.com/",
        "gopher://a.com/",
        "data:image/png;base64,AAAA",
        "",
    ],
)
def test_s029_s031_s032_what_is_not_plainly_an_address_is_refused_before_anybody_is_asked(
    url: str, looked_up: Callable[..., list[str]]
) -> None:
    asked = looked_up([PUBLIC])
    with pytest.raises(FetchBlockedError) as caught:
        get(url)
    assert asked == []
    assert "password" not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("HTTP://Example.COM", Address("http", "example.com", 80, "/")),
        ("https://a.com.", Address("https", "a.com", 443, "/")),
        ("https://a.com:80/b#c?d", Address("https", "a.com", 80, "/b")),
        ("http://a.com?b=c&d", Address("http", "a.com", 80, "/?b=c&d")),
        ("http://a_b.c-d.com/%20/é", Address("http", "a_b.c-d.com", 80, "/%20/%C3%A9")),
        ("http://пример.рф/я?я", Address("http", "xn--e1afmkfd.xn--p1ai", 80, "/%D1%8F?%D1%8F")),
        ("http://[2606:4700::0:1]:80/", Address("http", "2606:4700::1", 80, "/")),
        ('http://a.com/"<>^`{|}', Address("http", "a.com", 80, "/%22%3C%3E%5E%60%7B%7C%7D")),
    ],
)
def test_what_is_an_address_is_taken_apart_once(url: str, address: Address) -> None:
    assert Address.of(url) == address


PIECES = (
    "http:// https:// http: / // \\ @ : :80 :443 :22 ? # [ ] [::1] % %2f . .. a B 1 127.0.0.1 "
    "example.com - é 。 \u00ad \u200b \U0001f600"
)
pieces = st.lists(st.sampled_from([*PIECES.split(" "), " ", "\t", "\n"]), max_size=6).map("".join)
beginnings = st.sampled_from(["", "http://", "https://a.com", "HTTP://[2606::1]", "http://1.1.1.1"])
urls = st.builds("".join, st.tuples(beginnings, pieces | st.text(max_size=20)))


@settings(max_examples=500)
@given(urls)
def test_every_parser_that_reads_an_accepted_url_reads_the_same_host(url: str) -> None:
    asked = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["127.0.0.1"]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fetch_module, "resolve", resolve)
        with pytest.raises(FetchBlockedError):
            get(url)
    try:
        address = Address.of(url)
    except NotAllowedError:
        assert asked == []
        return
    assert asked == [(address.host, address.port)]
    split = urlsplit(url)
    assert split.scheme == address.scheme
    assert (split.port or {"http": 80, "https": 443}[split.scheme]) == address.port
    assert split.username is None
    if (split.hostname or "").isascii():
        assert same_host(split.hostname or "", address.host)
    with suppress(httpx2.InvalidURL):
        assert same_host(httpx2.URL(url).raw_host.decode(), address.host)


def same_host(one: str, other: str) -> bool:
    with suppress(ValueError):
        return ip_address(one) == ip_address(other)
    return one.lower().removesuffix(".") == other


def test_names_hold_no_password() -> None:
    for url in ("https://me:secret@a.com/b.png", "https://me:se@cret@a.com/b.png"):
        assert Image.of(url).name == Video.of(url).name == "https://a.com/b.png"
        assert Image.of(url).source == Url(url)
    assert without_password("https://a.com/@b/c@d?e@f") == "https://a.com/@b/c@d?e@f"


# ---------------------------------------------------------------- honest servers


def test_a_file_comes_as_it_is(serve: Callable[[Behaviour], Server]) -> None:
    body = bytes(range(256)) * 700
    chunks = b"".join(b"%x;note\r\n%s\r\n" % (len(c), c) for c in (body[:9], body[9:70_000]))
    ways = (
        gives(body[:70_000]),
        says("200 OK", body[:70_000]),
        says("200 OK\r\nTransfer-Encoding: chunked", chunks + b"0\r\n\r\n"),
    )
    for way in ways:
        assert get(serve(way).url) == body[:70_000]


def test_a_file_of_just_the_allowed_size_comes_and_one_byte_more_does_not(
    serve: Callable[[Behaviour], Server],
) -> None:
    assert len(get(serve(gives(bytes(CAP))).url)) == CAP
    for way in (gives(bytes(CAP + 1)), says("200 OK", bytes(CAP + 1))):
        with pytest.raises(ImageTooLargeError, match=r"^'it' is larger than 0\.25 MiB$"):
            get(serve(way).url)


def test_s033_the_request_says_no_more_than_it_must(
    serve: Callable[[Behaviour], Server], dialled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.9:9")
    monkeypatch.setenv("NO_PROXY", "")
    server = serve(says("200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 1", b"x"))
    get(f"{server.url}/a%20b/я.png?c=d#e")
    get(server.url)
    first, second = server.asked
    lines = first.split("\r\n")
    assert lines[0] == "GET /a%20b/%D1%8F.png?c=d HTTP/1.1"
    assert f"Host: {HERE}:{server.port}" in lines
    assert "Accept-Encoding: identity" in lines
    names = {line.split(":")[0] for line in (*lines[1:], *second.split("\r\n")[1:]) if line}
    assert names == {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}
    assert set(dialled) == {HERE}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location", ["/b?c", "b?c", "//HERE/b?c", "http://HERE/b?c#d", "./x/../b?c"]
)
def test_a_redirect_is_followed(
    status: int, location: str, serve: Callable[[Behaviour], Server]
) -> None:
    def behave(one: socket.socket) -> None:
        where = location.replace("HERE", f"{HERE}:{server.port}")
        first = says(f"{status} Moved\r\nLocation: {where}")
        (first if len(server.asked) == 1 else gives(b"found"))(one)

    server = serve(behave)
    assert get(f"{server.url}/a") == b"found"
    assert server.asked[1].startswith("GET /b?c HTTP/1.1\r\n")


def test_a_redirect_may_be_written_in_utf8(serve: Callable[[Behaviour], Server]) -> None:
    def behave(one: socket.socket) -> None:
        moved = "HTTP/1.1 302 Found\r\nLocation: /фото\r\n\r\n".encode()
        one.sendall(moved) if len(server.asked) == 1 else gives(b"found")(one)

    server = serve(behave)
    assert get(server.url) == b"found"
    assert server.asked[1].startswith("GET /%D1%84%D0%BE%D1%82%D0%BE ")


def test_three_redirects_are_followed_and_no_fourth(serve: Callable[[Behaviour], Server]) -> None:
    def behave(one: socket.socket) -> None:
        left = int(server.asked[-1].split()[1].strip("/"))
        (leads_to(f"/{left - 1}") if left else gives(b"found"))(one)

    server = serve(behave)
    assert get(f"{server.url}/3") == b"found"
    with pytest.raises(FetchBlockedError, match="redirected more than 3 times"):
        get(f"{server.url}/20")
    assert server.connections == 8


def test_a_connection_that_breaks_before_the_answer_is_tried_once_more(
    serve: Callable[[Behaviour], Server],
) -> None:
    server = serve(lambda one: None if server.connections == 1 else gives(b"found")(one))
    assert get(server.url) == b"found"
    server = serve(lambda one: None)
    with pytest.raises(FetchError):
        get(server.url)
    assert server.connections == 2


def over_tls(certificate: str, body: bytes) -> Behaviour:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / f"{certificate}.pem")

    def behave(one: socket.socket) -> None:
        with context.wrap_socket(one, server_side=True) as wrapped:
            wrapped.recv(4096)
            gives(body)(wrapped)

    return behave


class TlsServer(Server):
    def answer(self, one: socket.socket) -> None:
        with one, suppress(OSError):
            self.behave(one)
            self.asked.append("the whole handshake")


@pytest.mark.parametrize(
    ("certificate", "host", "trusted", "error"),
    [
        ("valid", "pictures.example", True, None),
        ("valid", "pictures.example", False, FetchError),
        ("valid", "other.example", True, FetchError),
        ("expired", "pictures.example", True, FetchError),
    ],
)
def test_s038_certificates_are_checked_for_the_name_that_was_asked_for(
    certificate: str,
    host: str,
    trusted: bool,
    error: type[QvlError] | None,
    monkeypatch: pytest.MonkeyPatch,
    looked_up: Callable[..., list[str]],
) -> None:
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(TLS / f"{certificate}.pem"))
    fetch_module._tls.cache_clear()
    server = TlsServer(over_tls(certificate, b"found"))
    monkeypatch.setattr(fetch_module, "PORTS", {server.port})
    monkeypatch.setattr(fetch_module, "is_public", HERE.__eq__)
    looked_up([HERE])
    try:
        if error is None:
            assert get(f"https://{host}:{server.port}/", deadline_s=5) == b"found"
        else:
            with pytest.raises(error, match=r"^'it' could not be fetched$"):
                get(f"https://{host}:{server.port}/", deadline_s=5)
            assert server.asked == []
    finally:
        server.close()
        fetch_module._tls.cache_clear()


# ---------------------------------------------------------------- servers that lie


def slowly(data: bytes, *, every_s: float) -> Behaviour:
    def behave(one: socket.socket) -> None:
        for number in range(len(data)):
            one.sendall(data[number : number + 1])
            time.sleep(every_s)

    return behave


def endlessly(piece: bytes, first: bytes = b"") -> Behaviour:
    def behave(one: socket.socket) -> None:
        one.sendall(first)
        while True:
            one.sendall(piece)

    return behave


def resets(one: socket.socket) -> None:
    one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + SECRET)
    linger = (1).to_bytes(4, sys.byteorder) + (0).to_bytes(4, sys.byteorder)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


OK = b"HTTP/1.1 200 OK\r\n"
PAGE = b"\xef\xbb\xbf \n<!DOCTYPE HTML><title>Log in</title>" + SECRET
FILES = (ImageTooLargeError, "larger than")
FAILED = (FetchError, "could not be fetched")
LATE = (FetchError, "was not fetched within 1 s")
LYING: dict[str, tuple[Behaviour, type[QvlError], str]] = {
    "no length, no end": (endlessly(bytes(4096), OK + b"\r\n"), *FILES),
    "less than its length": (says("200 OK\r\nContent-Length: 10000", SECRET), *FAILED),
    "a length of 1 TB": (says("200 OK\r\nContent-Length: 1099511627776", SECRET), *FILES),
    "a byte a second": (slowly(OK + b"\r\n" + SECRET, every_s=0.25), *LATE),
    "drips of a body": (
        lambda one: (one.sendall(OK + b"\r\n"), slowly(SECRET, every_s=0.25)(one))[1],
        *LATE,
    ),
    "headers without end": (endlessly(b"X-Header: a\r\n", OK), *FAILED),
    "one header without end": (endlessly(b"a" * 4096, OK + b"X-Header: "), *FAILED),
    "silence": (lambda _: time.sleep(3), *LATE),
    "gzip": (says("200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 20", SECRET[:20]), *FAILED),
    "gzip on the way": (says("200 OK\r\nTransfer-Encoding: gzip, chunked", SECRET), *FAILED),
    "chunks without end": (
        endlessly(b"400\r\n" + bytes(1024) + b"\r\n", OK + b"Transfer-Encoding: chunked\r\n\r\n"),
        *FILES,
    ),
    "tiny chunks": (
        endlessly(b"1\r\na\r\n", OK + b"Transfer-Encoding: chunked\r\n\r\n"),
        *FILES,
    ),
    "a chunk of 2^64": (
        endlessly(bytes(4096), OK + b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n"),
        *FILES,
    ),
    "a chunk of -1": (
        endlessly(bytes(4096), OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n"),
        *FILES,
    ),
    "a chunk of -15": (
        says("200 OK\r\nTransfer-Encoding: chunked", b"-15\r\nhello\r\n0\r\n\r\n"),
        *FAILED,
    ),
    "no chunk": (says("200 OK\r\nTransfer-Encoding: chunked", SECRET), *FAILED),
    "a redirect loop": (leads_to("/"), FetchBlockedError, "more than 3 times"),
    "a redirect inside": (leads_to("http://127.0.0.1/"), FetchBlockedError, "port|not public"),
    "a redirect to a file": (leads_to("file:///etc/passwd"), FetchBlockedError, "valid address"),
    "a redirect with a password": (leads_to("http://a:b@c.com/"), FetchBlockedError, "valid"),
    "a redirect to nowhere": (says("302 Found"), *FAILED),
    "a redirect to noise": (leads_to("http://[\xff"), FetchBlockedError, "valid address"),
    "reset in the body": (resets, *FAILED),
    "TLS junk": (lambda one: one.sendall(SECRET), *FAILED),
    "no HTTP": (lambda one: one.sendall(SECRET + b"\r\n\r\n"), *FAILED),
    "HTML": (gives(PAGE), FetchError, "is a web page"),
    "HTML as PNG": (
        says(f"200 OK\r\nContent-Type: image/png\r\nContent-Length: {len(PAGE)}", PAGE),
        FetchError,
        "is a web page",
    ),
    "206": (says("206 Partial Content\r\nContent-Length: 9", SECRET[:9]), *FAILED),
    "204": (says("204 No Content"), *FAILED),
    "continue for ever": (endlessly(b"HTTP/1.1 100 Continue\r\n\r\n"), *FILES),
    "429": (says("429 Too Many Requests\r\nRetry-After: 0", SECRET), *FAILED),
    "404": (says("404 Not Found", SECRET), *FAILED),
    "500": (says("500 Oops", SECRET), *FAILED),
    "401": (says("401 Unauthorized\r\nWWW-Authenticate: Basic", SECRET), *FAILED),
    "empty": (lambda _: None, *FAILED),
}


@pytest.mark.parametrize("name", LYING)
def test_p15_a_server_that_lies_costs_little_and_tells_nothing(
    name: str,
    serve: Callable[[Behaviour], Server],
    dialled: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    behave, error, words = LYING[name]
    read_bytes = 0
    readinto = fetch_module._Reader.readinto

    def counted(self: Any, buffer: memoryview) -> int:
        nonlocal read_bytes
        count = readinto(self, buffer)
        read_bytes += count
        return count

    monkeypatch.setattr(fetch_module._Reader, "readinto", counted)
    server = serve(behave)
    url = server.url.replace("http:", "https:") if name == "TLS junk" else server.url
    began_s = time.monotonic()
    with pytest.raises(error, match=f"^'it' .*({words})") as caught:
        get(url)
    assert time.monotonic() - began_s < DEADLINE_S + 1
    assert read_bytes <= CAP + 64 * 1024
    assert server.connections <= 4
    assert set(dialled) == {HERE}
    told = f"{caught.value.message} {caught.value.hint}"
    assert not re.search(rf"nobody|127\.|\b{re.escape(name)}\b", told)
    assert caught.value.exit_code == 4
    assert caught.value.http_status == 400


ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nT: a\r\n\r\n",
    b"HTTP/1.0 200\r\n\r\nhello",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 302 Found\r\nLocation: http://a.com/\xd1\x8f\r\n\r\n",
)
NOISE = st.binary(max_size=3) | st.sampled_from(
    [
        b"\r\n",
        b"-1",
        b"9" * 20,
        b"9" * 5000,
        b"Content-Length: ",
        b"Location: //[::1\r\n",
        b"HTTP/1.1 ",
    ]
)


class Played:
    """A socket on which an answer has come."""

    def __init__(self, answer: bytes) -> None:
        self.recv_into = io.BytesIO(answer).readinto

    def sendall(self, _data: bytes) -> None: ...

    def settimeout(self, _seconds: float) -> None: ...

    def close(self) -> None: ...


@settings(max_examples=500)
@given(st.sampled_from(ANSWERS), st.lists(st.tuples(st.floats(0, 1), NOISE), max_size=3))
def test_damage_anywhere_in_an_answer_gives_a_file_or_a_typed_error(
    answer: bytes, damage: list[tuple[float, bytes]]
) -> None:
    for where, noise in damage:
        at = int(where * len(answer))
        answer = answer[:at] + noise + answer[at + len(noise) // 2 :]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fetch_module, "_connected", lambda *_: Played(answer))
        with suppress(QvlError):
            assert len(get("http://a.com/", max_bytes=1000)) <= 1000


def test_a_resolver_that_never_answers_does_not_outlast_the_deadline(
    monkeypatch: pytest.MonkeyPatch, dialled: list[str]
) -> None:
    is_over = threading.Event()
    monkeypatch.setattr(fetch_module, "resolve", lambda *_: is_over.wait(20))
    began_s = time.monotonic()
    with pytest.raises(FetchError, match="within 1 s"):
        get("http://pictures.example/")
    is_over.set()
    assert time.monotonic() - began_s < DEADLINE_S + 1
    assert dialled == []


def test_a_host_that_does_not_exist_is_an_error_of_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolve(*_: object) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(fetch_module, "resolve", resolve)
    with pytest.raises(FetchError, match=r"^'it' could not be fetched$"):
        get("http://no.such.host.example/")


# ---------------------------------------------------------------- the operator's policy


def test_only_domains_on_the_list_are_fetched_from(
    looked_up: Callable[..., list[str]], serve: Callable[[Behaviour], Server]
) -> None:
    server = serve(lambda one: leads_to(f"http://other.example:{server.port}/")(one))
    asked = looked_up([HERE])
    set_policy(domains=["Pictures.EXAMPLE.", "пример.рф"])
    for host in ("other.example", "a.pictures.example", "pictures.example.com", "example"):
        with pytest.raises(FetchBlockedError, match="nothing may be fetched from"):
            get(f"http://{host}:{server.port}/")
    assert asked == []
    for host in ("PICTURES.example", "pictures.example.", "xn--e1afmkfd.xn--p1ai"):
        with pytest.raises(FetchBlockedError, match="nothing may be fetched from"):
            get(f"http://{host}:{server.port}/")  # which leads to another one
    assert asked == ["pictures.example"] * 2 + ["xn--e1afmkfd.xn--p1ai"]
    with pytest.raises(UsageError):
        set_policy(domains=["https://pictures.example/"])


def test_offline_nobody_is_asked(looked_up: Callable[..., list[str]], dialled: list[str]) -> None:
    asked = looked_up([PUBLIC])
    set_policy(offline=True)
    with pytest.raises(OfflineError):
        get("http://pictures.example/")
    with pytest.raises(OfflineError, match=r"^'https://pictures\.example/a\.png' is an address"):
        read_image(Image.of("https://pictures.example/a.png"))
    assert asked == dialled == []


# ---------------------------------------------------------------- pictures and videos


PIXELS = PixelRules(
    patch_px=16,
    merge=2,
    temporal_patch=2,
    min_px=1024,
    max_px=10**6,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
)


def test_a_picture_at_an_address_is_the_picture_in_the_file(
    serve: Callable[[Behaviour], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    Pillow.new("RGB", (40, 30), "red").save(file, "PNG")
    server = serve(gives(file.getvalue()))
    picture, same = read_image(Image.of(f"{server.url}/a.png")), read_image(Image(file.getvalue()))
    assert np.array_equal(picture.pixels, same.pixels)
    assert picture.sha256 == same.sha256
    assert picture.name == f"{server.url}/a.png"
    with pytest.raises(ImageDecodeError, match="is empty"):
        read_image(Image.of(serve(gives(b"")).url))
    monkeypatch.setattr(source_module, "MAX_BYTES", 50)
    with pytest.raises(ImageTooLargeError):
        read_image(Image.of(f"{server.url}/a.png"))


def test_a_video_at_an_address_is_the_video_in_the_file(
    serve: Callable[[Behaviour], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, rules = clips.steady(8, 4), VideoRules(stamps=True, min_px=4096, max_px=10**7)
    server = serve(gives(data))
    video = read_video(Video.of(f"{server.url}/a.mp4"), PIXELS, rules)
    same = read_video(Video(source=data), PIXELS, rules)
    assert video.contents == same.contents
    monkeypatch.setattr(video_module, "MAX_BYTES", 50)
    with pytest.raises(VideoTooLargeError):
        read_video(Video.of(f"{server.url}/a.mp4"), PIXELS, rules)


def test_a_full_disk_is_no_fault_of_the_address(serve: Callable[[Behaviour], Server]) -> None:
    server = serve(gives(bytes(100_000)))
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(StorageError):
        fetch(
            server.url,
            full,
            name="'it'",
            max_bytes=CAP,
            deadline_s=DEADLINE_S,
            too_large=ImageTooLargeError,
        )
    assert server.connections == 1
