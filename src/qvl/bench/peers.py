"""Whom `--against` can name: transformers, any server that speaks OpenAI's chat API, llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qvl.errors import UsageError

if TYPE_CHECKING:  # the command line imports this before it knows that anything is to run
    from qvl.bench.work import Runner

KNOWN = ("transformers", "llama.cpp", "openai:URL")
OPENAI = "openai:"


def check_name(against: str) -> None:
    """Raises UsageError for a peer that is not known."""
    url = against.removeprefix(OPENAI)
    if against.startswith(OPENAI) and not url.startswith(("http://", "https://")):
        raise UsageError(
            f"--against {against!r} has no address", hint="give openai:http://127.0.0.1:8000"
        )
    if against not in KNOWN[:2] and not against.startswith(OPENAI):
        raise UsageError(f"--against {against!r} is not known", hint=f"take {' or '.join(KNOWN)}")


@contextmanager
def running(
    against: str, folder: Path, *, dtype: str, device: str, at_once: int, new_tokens: int
) -> Iterator[Runner]:
    """The peer, ready for up to `at_once` requests; what was started for it ends with the block.

    Raises UsageError for what is missing here, EngineError for a peer that does not start.
    """
    if against == "transformers":
        from qvl.bench.peer_transformers import run_transformers

        yield run_transformers(folder, dtype)
    elif against == "llama.cpp":
        from qvl.bench.peer_llama_cpp import llama_server

        with llama_server(
            folder, dtype=dtype, device=device, at_once=at_once, new_tokens=new_tokens
        ) as runner:
            yield runner
    else:
        from qvl.bench.peer_openai import run_openai

        yield run_openai(against.removeprefix(OPENAI))
