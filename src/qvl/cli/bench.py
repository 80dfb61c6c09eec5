"""`qvl bench`: how fast a model answers on this machine, beside another engine if asked."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from datetime import date
from typing import Annotated

import typer

from qvl.bench import peers
from qvl.cli.model import ADAPTER_HELP, named_adapters
from qvl.errors import UsageError
from qvl.settings import load_settings


def bench(
    *,
    model: Annotated[str | None, typer.Option(help="A hub id, a folder, or sprout.")] = None,
    adapter: Annotated[str | None, typer.Option(help=ADAPTER_HELP)] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, fp32, bf16, fp8, int8, int4.")] = None,
    against: Annotated[
        str | None, typer.Option(help="In turn with transformers, llama.cpp or openai:URL.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=2, max=512, help="Of every answer.")] = 32,
    batch: Annotated[str, typer.Option(help="Requests at once, such as 1,4,8.")] = "1,4,8",
    shared: Annotated[
        int, typer.Option(min=0, help="Pictures under one system prompt of 500 tokens, also.")
    ] = 0,
    repeat: Annotated[int, typer.Option(min=1, max=50, help="Times; medians are shown.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Time answers about pictures of noise, 448 x 448 pixels; Markdown on stdout."""
    if against is not None:
        peers.check_name(against)
    try:
        batches = [int(part) for part in batch.split(",")]
    except ValueError:
        batches = []
    if not batches or min(batches) < 1:
        raise UsageError(f"--batch {batch!r} is no list of numbers", hint="give 1,4,8")
    chosen = load_settings(model=model, adapter=adapter, device=device, dtype=dtype)
    adapters = named_adapters([chosen.adapter] if chosen.adapter else [])
    if adapters and against is not None:
        raise UsageError("the other engine has no adapter", hint="leave out --adapter or --against")

    import torch

    from qvl.bench import limits, report
    from qvl.bench.work import run_ours
    from qvl.loading.machine import bf16_instructions, processor_name
    from qvl.vlm.local import LocalModel, model_folder
    from qvl.vlm.with_adapter import WithAdapter

    with ExitStack() as until_done:
        # random weights repeat themselves, and guesses would come true as they rarely do in earnest
        ours = LocalModel(
            chosen.model,
            device=chosen.device,
            dtype=chosen.dtype,
            draft_tokens=0,
            adapters=adapters,
        )
        generate = WithAdapter(ours, next(iter(adapters), "")).generate
        info, never, runner, peer = ours.info, ours.end_ids, run_ours(generate), None
        if against is not None:
            folder = model_folder(chosen.model, revision=None, offline=None).path
            peer = until_done.enter_context(
                peers.running(
                    against,
                    folder,
                    dtype=info.dtype,
                    device=info.device,
                    at_once=max(batches),
                    new_tokens=new_tokens,
                )
            )
        in_bf16 = info.dtype == "bf16" and bool(bf16_instructions())
        machine = limits.measured(info.device, torch.bfloat16 if in_bf16 else torch.float32)
        # what is made once is made now, on both sides
        report.alternating("", report.workloads(2, never, [])["one request"], runner, peer, 1)
        rows = []
        for name, workload in report.workloads(new_tokens, never, batches).items():
            rows.append(report.alternating(name, workload, runner, peer, repeat))
            print(f"{name}: done", file=sys.stderr)
    again = report.second_question(runner, 2, never, repeat)
    together = report.shared_prompt(generate, shared, never) if shared else None
    if as_json:
        for row in rows:
            print(json.dumps(report.as_json(row)))
        return
    beside = "".join(f" with the adapter {name}" for name in adapters)
    print(f"# {info.name}{beside}, {info.dtype} on {info.device}\n")
    threads = torch.get_num_threads()
    print(f"{date.today()}, {processor_name() or 'unknown processor'}, {threads} threads.")
    for line in report.markdown(rows, machine, info.token_bytes, against):
        print(line)
    print(f"\nA second question about the same picture begins {again:.1f} times sooner.")
    if together is not None:
        print(together)
