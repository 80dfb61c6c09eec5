"""The tasks as MCP tools, as the real client sees them: what is listed, what is refused, over HTTP too."""

from __future__ import annotations

import base64
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.types import CallToolResult

import documents
from qvl.mcp_server import HOST, make_server
from qvl.tasks import TASKS
from qvl.vlm.local import LocalModel

PICTURE = sorted((Path(__file__).parents[1] / "examples" / "pictures").glob("*.png"))[0]
SHORT = {"max_new_tokens": 8, "temperature": 0.0}


@pytest.fixture(scope="module")
def sprout() -> LocalModel:
    return LocalModel()


def called(server: Any, name: str, body: dict[str, Any]) -> CallToolResult:
    async def call() -> CallToolResult:
        async with Client(server) as client:
            return await client.call_tool(name, body)

    return anyio.run(call)


def said(result: CallToolResult) -> str:
    (block,) = result.content
    return getattr(block, "text", "")


def test_every_task_is_listed_with_what_it_takes(sprout: LocalModel) -> None:
    async def listed() -> list[Any]:
        async with Client(make_server(sprout, paths=True)) as client:
            return (await client.list_tools()).tools

    tools = {tool.name: tool for tool in anyio.run(listed)}
    assert list(tools) == list(TASKS)
    for name, tool in tools.items():
        assert tool.description == TASKS[name].__doc__
        assert {"images", "videos", "language"} <= set(tool.input_schema["properties"])


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("describe", {"images": ["gone.png"]}, "'gone.png'"),
        ("describe", {"images": [str(PICTURE)], "langage": "ru"}, "did you mean 'language'"),
        ("describe", {"images": [str(PICTURE)], "language": "xx"}, "no language 'xx'"),
        ("describe", {"images": [str(PICTURE)] * 2}, "not 2"),
        ("describe", {"images": [str(PICTURE)], "sampling": {"temperature": 9}}, "temperature"),
        ("describe", {"images": {"a": 1}}, "not a list"),
        ("describe", {}, "not 0"),
        ("discribe", {}, "did you mean 'describe'"),
    ],
)
def test_a_wrong_call_is_an_error_that_says_what_is_right(
    sprout: LocalModel, name: str, body: dict[str, Any], says: str
) -> None:
    result = called(make_server(sprout, paths=True), name, body)
    assert result.is_error
    assert says in said(result)
    assert result.structured_content is None


def test_paths_are_read_only_where_they_may_be(sprout: LocalModel) -> None:
    body = {"images": [str(PICTURE)], "sampling": SHORT}
    assert not called(make_server(sprout, paths=True), "describe", body).is_error
    result = called(make_server(sprout, paths=False), "describe", body)
    assert result.is_error
    assert str(PICTURE) not in said(result)


def test_a_document_is_all_of_its_pages_or_says_that_it_is_not(
    sprout: LocalModel, tmp_path: Path
) -> None:
    path = tmp_path / "paper.pdf"
    path.write_bytes(documents.document(documents.RED_LEFT, b"0 0 1 rg 0 0 100 100 re f"))
    server = make_server(sprout, paths=True)
    body = {"images": [str(path)], "question": "What?", "sampling": SHORT}
    rows = [
        called(server, "ask", body).structured_content,
        called(server, "ocr", {"images": [str(path)], "sampling": SHORT}).structured_content,
        called(server, "ocr", {"images": [f"{path}#page=2"], "sampling": SHORT}).structured_content,
    ]
    seen = [[image["sha256"][-2:] for image in row["meta"]["images"]] for row in rows if row]
    assert seen == [["#1", "#2"], ["#1"], ["#2"]]
    assert [bool(row and row.get("warnings")) for row in rows] == [False, True, False]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the command itself, on a port that is free now."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "qvl", "mcp", "--http", "--port", str(port), "--offline"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    until_s = time.monotonic() + 60
    while not answers(port):
        assert process.poll() is None
        assert time.monotonic() < until_s
        time.sleep(0.1)
    yield f"http://{HOST}:{port}/mcp"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert b"Traceback" not in told
    assert f"http://{HOST}:{port}/mcp".encode() in told


def answers(port: int) -> bool:
    with socket.socket() as connection:
        return not connection.connect_ex((HOST, port))


def test_over_http_it_is_the_same(sprout: LocalModel, address: str) -> None:
    picture = base64.b64encode(PICTURE.read_bytes()).decode()
    body = {"images": [f"data:image/png;base64,{picture}"], "sampling": SHORT}
    over_http = called(address, "describe", body)
    direct = called(make_server(sprout, paths=False), "describe", body)
    assert not over_http.is_error
    assert said(over_http) == said(direct)


@pytest.mark.parametrize("header", [{"host": "evil.example"}, {"origin": "http://evil.example"}])
def test_a_page_in_a_browser_cannot_use_it(address: str, header: dict[str, str]) -> None:
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    headers = {"accept": "application/json, text/event-stream", **header}
    assert httpx2.post(address, json=call, headers=headers).status_code in (403, 421)
