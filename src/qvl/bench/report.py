"""Workloads, run alternately by us and by a peer, to a table of medians and ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median

from qvl.bench.limits import Limits
from qvl.bench.work import Runner, Timed, asked, picture, under_rules
from qvl.types import Completion, Request

Workload = Callable[[], Sequence[Request]]


@dataclass(frozen=True, slots=True)
class Row:
    """One workload: our runs, and those of a peer made between them."""

    name: str
    ours: tuple[Timed, ...]
    peer: tuple[Timed, ...] = ()


def workloads(new_tokens: int, never: Sequence[int], batches: Sequence[int]) -> dict[str, Workload]:
    def together(count: int) -> Workload:
        return lambda: [asked(new_tokens, never) for _ in range(count)]

    named = {f"{count} at once": together(count) for count in batches if count > 1}
    return {"one request": together(1)} | named


def alternating(
    name: str, workload: Workload, ours: Runner, peer: Runner | None, repeat: int
) -> Row:
    """Both sides on requests of their own, one after the other, `repeat` times."""
    own: list[Timed] = []
    other: list[Timed] = []
    for _ in range(repeat):
        own.append(ours(workload()))
        if peer is not None:
            other.append(peer(workload()))
    return Row(name, tuple(own), tuple(other))


def second_question(ours: Runner, new_tokens: int, never: Sequence[int], repeat: int) -> float:
    """How many times sooner the second question about a picture has its first token than the first."""
    ratios = []
    for _ in range(repeat):
        image = picture()
        first = ours([asked(new_tokens, never, about=image)])
        second = ours([asked(new_tokens, never, about=image, text="Is there any text in it?")])
        ratios.append(first.first_token_s / second.first_token_s)
    return median(ratios)


def shared_prompt(
    generate: Callable[[Sequence[Request]], list[Completion]], pictures: int, never: Sequence[int]
) -> str:
    """As many requests, a new picture each, under one system prompt: what of their prompts was found
    computed, and how much sooner that was than the same with a tenant each, who share nothing.
    """
    seconds, cached, prompt = {}, 0, 0
    for apart in (True, False):
        requests = [
            replace(under_rules(asked(2, never)), tenant=f"tenant {i}" if apart else "")
            for i in range(pictures)
        ]
        began = time.perf_counter()
        usages = [completion.usage for completion in generate(requests)]
        seconds[apart] = time.perf_counter() - began
        cached, prompt = (
            sum(usage.cached_tokens for usage in usages),
            sum(usage.prompt_tokens for usage in usages),
        )
    return (
        f"{pictures} pictures under one system prompt ({prompt // pictures} tokens each):"
        f" {cached / prompt:.0%} of the prompts were found computed,"
        f" {seconds[True] / seconds[False]:.2f} times as fast as without sharing."
    )


def markdown(
    rows: Sequence[Row], limits: Limits, token_bytes: int, against: str | None
) -> Iterator[str]:
    """Medians, and the least and the greatest of our runs; a ratio over 1 means that we are faster."""
    numbers = str(limits.dtype).removeprefix("torch.")
    yield (
        f"This machine reads {limits.read_bytes_s / 1e9:.1f} GB/s and multiplies at"
        f" {limits.gemm_flop_s / 1e9:.0f} GFLOP/s ({numbers}); a token reads {token_bytes / 1e9:.2f} GB."
    )
    yield ""
    header = ["", "first token, s", "tokens/s each", "requests/s", "share of the read limit"]
    header += (
        [f"first token: x {against}", f"tokens/s: x {against}", f"requests/s: x {against}"]
        if against
        else []
    )
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield f"| {' | '.join([row.name, *cells(row, limits, token_bytes)])} |"
    yield ""
    yield prompt_sizes(rows[0], against)


def prompt_sizes(row: Row, against: str | None) -> str:
    """Whether both sides had the same work."""
    ours = f"A prompt has {row.ours[0].prompt_tokens} tokens, most of them the picture's"
    return f"{ours}; {row.peer[0].prompt_tokens} with {against}." if row.peer else f"{ours}."


def cells(row: Row, limits: Limits, token_bytes: int) -> list[str]:
    first, rate, requests = (figures(row.ours, name) for name in FIGURES)
    out = [spread(first, 2), spread(rate, 2), spread(requests, 3)]
    out.append(f"{median(rate) * token_bytes / limits.read_bytes_s:.0%}")
    if row.peer:
        their_first, their_rate, their_requests = (figures(row.peer, name) for name in FIGURES)
        out.append(f"{median(their_first) / median(first):.2f}")
        out.append(f"{median(rate) / median(their_rate):.2f}")
        out.append(f"{median(requests) / median(their_requests):.2f}")
    return out


FIGURES: dict[str, Callable[[Timed], float]] = {
    "first_token_s": lambda t: t.first_token_s,
    "tokens_s": lambda t: t.tokens_s,
    "requests_s": lambda t: t.requests / t.total_s,
}


def figures(runs: Sequence[Timed], name: str) -> list[float]:
    return [FIGURES[name](run) for run in runs]


def spread(values: Sequence[float], digits: int) -> str:
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def as_json(row: Row) -> dict[str, object]:
    return {
        "id": row.name,
        "ours": [asdict(run) for run in row.ours],
        "peer": [asdict(run) for run in row.peer],
    }
