"""Ctrl-C and SIGTERM for work that ends in order: what is going on is finished, what is done is kept."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupts(
    limit: int = 2, told: Callable[[int], None] = lambda _: None
) -> Iterator[list[signal.Signals]]:
    """Those that came so far; `told` is told how many at each. The one number `limit` raises
    KeyboardInterrupt, for what does not end.
    """
    came: list[signal.Signals] = []
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}

    def note(kind: int, _frame: object) -> None:
        came.append(signal.Signals(kind))
        if len(came) >= limit:
            raise KeyboardInterrupt
        told(len(came))

    for kind in before:
        signal.signal(kind, note)
    try:
        yield came
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
