"""Nobody comes in without a key, whatever the address looks like."""

from __future__ import annotations

import hashlib
import itertools
import json
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qvl.errors import UsageError
from qvl.serve.auth import OPEN, KeyGuard, host_name, read_key_file, read_keys
from qvl.serve.errors import Refusal
from qvl.serve.limits import Limits
from served import KEY, Running, StandIn, ask, running

REFUSED = {401, 403, 404, 405}
TRICKS = [
    "{path}",
    "/{path}",
    "{path}/",
    "/v1/..{path}",
    "/livez/..{path}",
    "/livez/%2e%2e{path}",
    "/%2e{path}",
    "{path}%2f",
    "{path}?x=/livez",
    "{path}#/livez",
    "{path};/livez",
    "http://127.0.0.1{path}",
]
HEADERS: list[dict[str, str]] = [
    {},
    {"Authorization": ""},
    {"Authorization": "Bearer"},
    {"Authorization": f"Bearer {KEY[:-1]}"},
    {"Authorization": f"Bearer {KEY}x"},
    {"Authorization": f"Basic {KEY}"},
    {"Authorization": "Bearer wrong", "X-Forwarded-Prefix": "/livez"},
    {"Host": "a/?x=/livez"},
    {"Host": "a/livez#"},
    {"X-Original-URL": "/livez", "X-Rewrite-URL": "/livez"},
]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(StandIn(), keys=read_keys([f"tests:{KEY}"])) as here:
        yield here


def flat(routes: Iterable[Any]) -> Iterator[Any]:
    """FastAPI keeps the routes of a router that is included within that."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        yield from [route] if inner is None else flat(inner.routes)


def routes(server: Running) -> list[tuple[str, str]]:
    """(method, path) of everything that the application serves, the document and unknown ones too."""
    found = [
        (method, route.path.replace("{name:path}", "stand-in"))
        for route in flat(server.app.routes)
        for method in sorted(getattr(route, "methods", None) or ["GET"])
    ]
    return [*found, ("GET", "/docs"), ("GET", "/redoc"), ("GET", "/ui"), ("POST", "/v1/batches")]


def test_the_routes_are_all_seen(server: Running) -> None:
    paths = {path for _, path in routes(server)}
    assert {"/v1/chat/completions", "/metrics", "/openapi.json", "/tokenize", "/livez"} <= paths


def test_no_route_opens_without_its_key(server: Running) -> None:
    counted = 0
    for (method, path), headers in itertools.product(routes(server), HEADERS):
        if path in OPEN:
            continue
        status, told, body = ask(server.port, method, path, headers)
        assert status == 401, (method, path, headers)
        assert told["www-authenticate"] == "Bearer"
        if method != "HEAD":
            assert json.loads(body)["error"]["code"] == "invalid_api_key"
        counted += 1
    assert counted > 100


@pytest.mark.parametrize("key", [KEY + "\0", "\0", KEY + "\u00e9", KEY + " x", "x" * 30_000])
def test_a_key_that_is_none_is_answered_like_any_other(server: Running, key: str) -> None:
    """S002."""
    told = []
    for given in (key, "wrong"):
        lines = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {given}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
            sock.sendall(lines.encode("latin-1"))
            told.append(sock.recv(65536).partition(b"\r\n")[0])
    if "\0" in key:  # no header holds that
        assert told[0].startswith(b"HTTP/1.1 400 ")
    else:
        assert told[0] == told[1] == b"HTTP/1.1 401 Unauthorized"


def test_a_key_of_a_megabyte_is_not_read_to_its_end(server: Running) -> None:
    """S002."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
        sock.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ")
        with suppress(OSError):
            sock.sendall(b"x" * 2**20 + b"\r\n\r\n")
        with suppress(ConnectionError):
            assert sock.recv(100)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431", b"")


def test_no_spelling_of_an_address_opens_it(server: Running) -> None:
    for (method, path), trick in itertools.product(routes(server), TRICKS):
        address = trick.format(path=path)
        if address.partition("?")[0].partition("#")[0] in OPEN:
            continue
        for headers in ({}, {"Host": "a/?x="}, {"Authorization": "Bearer wrong"}):
            status, _, _ = ask(server.port, method, address, headers)
            assert status in REFUSED, (method, address, headers)


def test_the_open_routes_say_nothing(server: Running) -> None:
    for path in OPEN:
        status, _, body = ask(server.port, "GET", path)
        assert (status, json.loads(body)) == (200, {"status": "ok"})


def test_the_right_key_opens(server: Running) -> None:
    for scheme in ("Bearer", "bearer"):
        status, _, _ = ask(server.port, "GET", "/v1/models", {"Authorization": f"{scheme} {KEY}"})
        assert status == 200


def test_a_websocket_is_guarded_too() -> None:
    guard = KeyGuard(None, read_keys([f"tests:{KEY}"]))  # type: ignore[arg-type]
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": []}
    with pytest.raises(Refusal):
        guard.__call__(scope, None, None).send(None)  # type: ignore[arg-type]


def test_a_digest_serves_as_well_as_the_key(tmp_path: Path) -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\nanna:sha256:{digest}\nben:another-key\n", "utf-8")
    file.chmod(0o600)
    keys = read_key_file(file)
    assert keys.name_of(KEY.encode()) == "anna"
    assert keys.name_of(b"another-key") == "ben"
    assert keys.name_of(digest.encode()) is None
    assert keys.name_of(b"") is None


@pytest.mark.parametrize(
    "lines",
    [
        ["anna"],
        ["anna:"],
        [":key-of-anna"],
        ["a b:key-of-anna"],
        ["anna:short"],
        ["anna:sha256:12"],
        ["anna:key-of-anna", "anna:key-of-ben"],
    ],
)
def test_a_key_that_cannot_be_one_is_refused_without_being_shown(lines: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        read_keys(lines)
    assert "key-of" not in caught.value.message


def test_a_file_without_keys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# none\n")
    for name in ("empty", "missing"):
        with pytest.raises(UsageError):
            read_key_file(tmp_path / name)


def test_without_keys_only_this_machines_names_are_let_in() -> None:
    """A web page whose name leads to 127.0.0.1 must not reach the server of who looks at it."""
    with running(StandIn(), hosts=("127.0.0.1", "localhost", "::1")) as server:
        for host in ("127.0.0.1:80", "localhost", f"LOCALHOST:{server.port}", "[::1]:80"):
            assert ask(server.port, "GET", "/v1/models", {"Host": host})[0] == 200
        for host in ("evil.example", "127.0.0.1.evil.example", "a/?x=", "", "localhost.evil:80"):
            assert ask(server.port, "GET", "/v1/models", {"Host": host})[0] == 403


def test_the_name_of_a_host() -> None:
    assert host_name([(b"host", b"[::1]:80")]) == "::1"
    assert host_name([(b"host", b"a"), (b"host", b"b")]) == ""
    assert host_name([]) == ""


def test_pages_of_others_are_told_nothing(server: Running) -> None:
    asked = [("GET", "/v1/models"), ("OPTIONS", "/v1/chat/completions")]
    for origin, (method, path) in itertools.product(("http://evil.example", "null"), asked):
        headers = {"Authorization": f"Bearer {KEY}", "Origin": origin}
        _, told, _ = ask(server.port, method, path, headers)
        assert not [name for name in told if name.startswith("access-control")]


def test_a_page_that_is_named_may_ask() -> None:
    keys = read_keys([f"tests:{KEY}"])
    page = "https://shop.example"
    with running(StandIn(), keys=keys, cors_origins=[page]) as server:
        preflight = {
            "Origin": page,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        status, told, _ = ask(server.port, "OPTIONS", "/v1/chat/completions", preflight)
        assert (status, told["access-control-allow-origin"]) == (200, page)
        other = preflight | {"Origin": "https://evil.example"}
        assert ask(server.port, "OPTIONS", "/v1/chat/completions", other)[0] == 400
        assert ask(server.port, "GET", "/v1/models", {"Origin": page})[0] == 401


def test_a_key_that_asks_too_often_is_told_when_to_come_back() -> None:
    keys = read_keys([f"tests:{KEY}", "other:key-of-other"])
    limits = Limits(key_requests_per_minute=3)
    body = json.dumps({"messages": [{"role": "user", "content": "x"}]})
    with running(StandIn(), keys=keys, limits=limits) as server:

        def post(key: str) -> tuple[int, dict[str, str], bytes]:
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            return ask(server.port, "POST", "/v1/chat/completions", headers, body)

        assert [post(KEY)[0] for _ in range(4)] == [200, 200, 200, 429]
        _, told, answer = post(KEY)
        assert 1 <= int(told["retry-after"]) <= 60
        assert json.loads(answer)["error"]["code"] == "rate_limit_exceeded"
        assert post("key-of-other")[0] == 200
