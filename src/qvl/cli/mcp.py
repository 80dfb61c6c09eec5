"""`qvl mcp`: the tasks as tools for other programs, over stdio or HTTP."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import Annotated

import typer

from qvl.cli.model import ADAPTER_HELP, open_chosen
from qvl.errors import UsageError
from qvl.settings import load_settings

log = logging.getLogger(__name__)


def mcp(
    *,
    http: Annotated[bool, typer.Option("--http", help="Serve HTTP on this machine.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of --http.")] = 8377,
    model: Annotated[str | None, typer.Option(help="As in qvl describe.")] = None,
    adapter: Annotated[str | None, typer.Option(help=ADAPTER_HELP)] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection.")] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, fp32, bf16, fp8, int8, int4.")] = None,
) -> None:
    """Offer every task as a tool of the Model Context Protocol, over stdio unless --http."""
    from qvl.fetch import set_policy  # brings ssl: not for `qvl --help`

    settings = load_settings(model=model, adapter=adapter, device=device, dtype=dtype)
    try:
        from qvl.mcp_server import serve_http, serve_stdio
    except ModuleNotFoundError as err:
        raise UsageError(
            "the MCP server needs the package mcp", hint="pip install 'qvl[mcp]'"
        ) from err
    set_policy(offline=offline)
    opened = open_chosen(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        revision=revision,
        offline=offline,
        prices=settings.prices,
        adapter=settings.adapter,
    )
    with closing(opened):
        if not http:
            serve_stdio(opened)
            return
        log.warning("serving programs of this machine at http://127.0.0.1:%d/mcp", port)
        serve_http(opened, port)
