"""The tools of an MCP server, which is a command that is started here, or an address.

The library is asynchronous: a thread of its own runs it, and calls wait for that.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from qvl.chat.conversation import Function
from qvl.errors import OfflineError, RemoteError, UsageError
from qvl.types import Tool, is_address

ANSWER_S = 60.0


@contextmanager
def mcp_functions(where: str, *, offline: bool) -> Iterator[list[Function]]:
    """Its tools while the block runs. `where` is an http(s) address, or a command with its arguments.

    Raises RemoteError where there is no such server, OfflineError for an address where none may
    be used, UsageError without the package `mcp`.
    """
    try:
        from anyio.from_thread import start_blocking_portal
        from mcp import Client, StdioServerParameters
    except ModuleNotFoundError as err:
        raise UsageError(
            "tools of an MCP server need the package mcp", hint="pip install 'qvl[mcp]'"
        ) from err
    if is_address(where):
        if offline:
            raise OfflineError(f"{where!r} is an address, and no connection may be opened")
        server: Any = where
    else:
        command, *arguments = _words(where)
        server = StdioServerParameters(command=command, args=arguments)
    with ExitStack() as stack:
        try:
            portal = stack.enter_context(start_blocking_portal())
            client = stack.enter_context(
                portal.wrap_async_context_manager(Client(server, read_timeout_seconds=ANSWER_S))
            )
            tools = portal.call(_listed, client)
        except Exception as err:  # of transports of every kind, some of them in groups
            raise RemoteError(
                f"the MCP server {where!r} does not answer",
                hint="check that it runs by itself; its own messages are above",
            ) from err
        yield [Function(tool, partial(_call, portal, client, tool.name)) for tool in tools]


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError:  # a quote that is not closed
        words = []
    if not words:
        raise UsageError(
            f"{command!r} is neither an address nor a command of an MCP server",
            hint="write mcp:http://localhost:8377/mcp, or mcp:COMMAND with its arguments",
        )
    return words


async def _listed(client: Any) -> list[Tool]:
    tools: list[Tool] = []
    cursor = None
    while True:
        page = await client.list_tools(cursor=cursor)
        tools += [Tool(t.name, t.description or "", t.input_schema) for t in page.tools]
        cursor = page.next_cursor
        if cursor is None:
            return tools


def _call(portal: Any, client: Any, name: str, arguments: Mapping[str, Any]) -> str:
    result = portal.call(client.call_tool, name, dict(arguments))
    texts = [
        block.text if block.type == "text" else f"(here is a part of type {block.type})"
        for block in result.content
    ]
    said = "\n".join(texts)
    return f"error: {said}" if result.is_error else said
