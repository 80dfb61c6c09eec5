"""`qvl serve`: the OpenAI-compatible server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from qvl.cli.model import ADAPTER_HELP, named_adapters, open_chosen
from qvl.errors import UsageError
from qvl.settings import load_settings
from qvl.vlm.chat_model import REMOTE

KEYS = "QVL_API_KEYS"
KEPT = ".served"  # of files and batches, among the runs, none of which may have such a name


def serve(
    *,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    model: Annotated[str | None, typer.Option(help="A hub id, a folder, or sprout.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help=f"{ADAPTER_HELP} A model of that name; may be repeated."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, fp32, bf16, fp8, int8, int4.")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Never download, and fetch no picture.")
    ] = False,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help=f"Lines NAME:KEY or NAME:sha256:HEX; also in {KEYS}, by commas."),
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Let anybody in who reaches the address.")
    ] = False,
    strict_api: Annotated[
        bool, typer.Option("--strict-api", help="Refuse fields that have no effect.")
    ] = False,
    served_model_name: Annotated[
        list[str] | None, typer.Option(help="What clients call the model; may be repeated.")
    ] = None,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Answer to any model's name.")
    ] = False,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Web pages that may ask; may be repeated.")
    ] = None,
    allowed_media_domain: Annotated[
        list[str] | None, typer.Option(help="Fetch pictures from there alone; may be repeated.")
    ] = None,
) -> None:
    """Serve OpenAI's API: chat completions, completions, responses, batches, models, tokenize."""
    chosen = load_settings(model=model, device=device, dtype=dtype)
    adapters = named_adapters(adapter or ([chosen.adapter] if chosen.adapter else []))
    try:
        from qvl.serve import app, auth, process
    except ModuleNotFoundError as err:
        raise UsageError(
            f"the server needs the package {err.name}", hint="pip install 'qvl[serve]'"
        ) from err

    keys = auth.read_keys(os.environ.get(KEYS, "").split(","))
    if api_key_file is not None:
        keys = auth.read_key_file(api_key_file)
    if no_auth and keys:
        raise UsageError("--no-auth is given, and so are API keys", hint="leave one of them out")
    is_private = process.is_loopback(host)
    if not is_private and not keys and not no_auth:
        raise UsageError(
            f"{host} can be reached from other machines, and there is no API key",
            hint=f"give --api-key-file or {KEYS}, or --no-auth if a proxy keeps strangers out",
        )
    sock = process.bound_socket(host, port)

    from qvl.fetch import set_policy

    set_policy(domains=allowed_media_domain, offline=offline)

    vlm = open_chosen(
        chosen.model,
        device=chosen.device,
        dtype=chosen.dtype,
        revision=None,
        offline=offline,
        prices=chosen.prices,
        adapters=adapters,
    )
    names = served_model_name or [public_name(vlm.info.name)]
    if both := [name for name in names if name in adapters]:
        raise UsageError(
            f"the model and an adapter are both called {both[0]!r}", hint="--adapter NAME=FOLDER"
        )
    served = app.create_app(
        vlm,
        keys=keys,
        names=names,
        adapters=tuple(adapters),
        any_model=any_model,
        is_strict=strict_api,
        cors_origins=cors_origin or (),
        kept=Path(chosen.runs).expanduser() / KEPT,
        hosts=("127.0.0.1", "localhost", "::1", host) if is_private and not keys else (),
    )
    process.run(served, sock)
    vlm.close()


def public_name(name: str) -> str:
    """What clients are told of a model's name: not where a folder lies, nor another server."""
    if name.startswith(REMOTE):
        return name.removeprefix(REMOTE).rpartition("@")[0]
    return Path(name).name if Path(name).is_dir() else name
