"""The tasks as tools of the Model Context Protocol, over stdio or HTTP on this machine.

Main path: serve_stdio or serve_http -> make_server -> _answered (qvl.tasks.body, run_task).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import anyio.to_thread
import uvicorn
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp.types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)

import qvl
from qvl.errors import InvalidParamError, QvlError, nearest
from qvl.processing.pdf import pages_for
from qvl.tasks import TASKS
from qvl.tasks.body import body_schema, read_body
from qvl.tasks.task import as_row, run_task
from qvl.vlm.chat_model import ChatModel

HOST = "127.0.0.1"  # with it, the library refuses other Host and Origin headers
BODY_BYTES = 32 * 2**20  # room for pictures as data: URLs, as in qvl serve


def serve_stdio(model: ChatModel) -> None:
    """Serve whoever started this process, until it closes our input; it may name files."""
    server = make_server(model, paths=True)

    async def run() -> None:
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    anyio.run(run)


def serve_http(model: ChatModel, port: int) -> None:
    """Serve programs of this machine at /mcp, until a signal; they may not name files."""
    server = make_server(model, paths=False)
    app = server.streamable_http_app(
        host=HOST, stateless_http=True, json_response=True, max_request_body_size=BODY_BYTES
    )
    uvicorn.run(app, host=HOST, port=port, log_config=None, access_log=False)


def make_server(model: ChatModel, *, paths: bool) -> Server[Any]:
    """A server whose tools are all of TASKS; `paths` says whether a tool may be given paths."""
    tools = [
        Tool(
            name=task.name,
            description=task.__doc__,
            input_schema=body_schema(task, paths=paths),
            annotations=ToolAnnotations(read_only_hint=True),
        )
        for task in TASKS.values()
    ]

    async def list_tools(
        _: ServerRequestContext[Any], __: PaginatedRequestParams | None
    ) -> ListToolsResult:
        return ListToolsResult(tools=tools)

    async def call_tool(
        _: ServerRequestContext[Any], params: CallToolRequestParams
    ) -> CallToolResult:
        arguments = params.arguments or {}
        return await anyio.to_thread.run_sync(
            lambda: _answered(model, params.name, arguments, paths=paths), abandon_on_cancel=True
        )

    return Server(
        "qvl",
        version=qvl.__version__,
        instructions="Look at pictures and videos: describe them, answer questions about them.",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def _answered(
    model: ChatModel, name: str, arguments: Mapping[str, Any], *, paths: bool
) -> CallToolResult:
    """The text and the whole row, or an error that the caller's model can read and learn from."""
    try:
        if name not in TASKS:
            raise InvalidParamError(f"there is no tool {name!r:.80}", hint=nearest(name, TASKS))
        task, seen = read_body(TASKS[name], arguments, paths=paths)
        seen = pages_for(task.most, seen)
    except QvlError as err:
        return _failed(err)
    result = run_task(model, task, seen)
    if isinstance(result, QvlError):
        return _failed(result)
    return CallToolResult(
        content=[TextContent(type="text", text=result.text)],
        structured_content=as_row(", ".join(one.name for one in seen), result),
    )


def _failed(err: QvlError) -> CallToolResult:
    told = f"{err.message} ({err.hint})" if err.hint else err.message
    return CallToolResult(content=[TextContent(type="text", text=told)], is_error=True)
