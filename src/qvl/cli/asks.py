"""What a run asks about each of its items, a task or the requests that the items are, and of whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qvl.cli.model import open_chosen
from qvl.errors import UsageError

if TYPE_CHECKING:
    from qvl.batch.asked import Asked, Asks
    from qvl.batch.job import Job
    from qvl.runs.record import Item
    from qvl.serve.requested import Requested
    from qvl.settings import Settings
    from qvl.vlm.chat_model import ChatModel

CHAT = "chat"  # batch.asked.REQUESTS, which `qvl --help` does not read


def asks_of(asked: Asked) -> Asks:
    """What is asked about each item. Raises UsageError where the server's parts are not installed."""
    if asked.task != CHAT:
        return asked
    return requested(asked)


def opened(job: Job, settings: Settings, *, offline: bool) -> ChatModel:
    """The model that the run was begun with, with today's prices."""
    return open_chosen(
        job.model,
        device=job.device,
        dtype=job.dtype,
        revision=job.revision,
        offline=offline,
        prices=settings.prices,
        adapter=job.adapter,
    )


def words_asked(asked: Asked, item: Item, generation: str) -> str:
    """The words that an item is asked with."""
    if asked.task == CHAT:
        return requested(asked).words(item)
    from qvl.batch.words import words_of

    return words_of(asked, item, generation)


def requested(asked: Asked) -> Requested:
    try:
        from qvl.serve.requested import Requested
    except ModuleNotFoundError as err:
        raise UsageError(
            f"requests to OpenAI's API need the package {err.name}", hint="pip install 'qvl[serve]'"
        ) from err
    return Requested(seed=asked.seed)
