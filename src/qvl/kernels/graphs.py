"""A function over fixed buffers as one CUDA graph, replayed instead of launched kernel by kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


@cache
def pool(device: torch.device) -> Any:
    """The memory that all graphs share: of two outputs only that of the last replay is good."""
    return torch.cuda.graph_pool_handle()


def captured(compute: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """What computes the same from the buffers that `compute` reads, whatever is in them by then.

    The output is overwritten by the next call of any captured function. Not on CUDA, or where the
    capture fails (the reason goes to the log): `compute`.
    `compute` runs twice, allocates from a pool of the graphs' own, and must not wait for the device.
    """
    if device.type != "cuda":
        return compute
    before = torch.cuda.memory_reserved(device)
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):  # kernels are compiled and libraries loaded outside of the graph
        compute()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool(device)):
            output = compute()
    except RuntimeError as err:  # memory too
        log.warning("a step could not be captured as a CUDA graph, it runs slower: %s", err)
        return compute
    grown = (torch.cuda.memory_reserved(device) - before) / 2**20
    log.info("a CUDA graph for %d rows was captured: %.0f MiB more", len(output), grown)

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
