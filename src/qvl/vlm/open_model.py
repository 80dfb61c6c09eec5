"""Where a model's name leads: the one place that knows the doors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from qvl.errors import InvalidParamError
from qvl.settings import Price
from qvl.types import DType
from qvl.vlm.chat_model import REMOTE, ChatModel, refuse_later

log = logging.getLogger(__name__)


def open_model(
    name: str,
    *,
    device: str = "auto",
    dtype: DType = "auto",
    revision: str | None = None,
    offline: bool | None = None,
    prices: Mapping[str, Price] | None = None,
    adapters: Mapping[str, str | Path] = MappingProxyType({}),
) -> ChatModel:
    """The model of that name: `openai:MODEL@URL` of a server, anything else on this machine.

    `prices` by names of models are what the costs of a remote one's completions are made of;
    `adapters` are folders by name, of which a server's model has none.

    Raises ModelError for a name that cannot be used, and what RemoteModel and LocalModel raise.
    """
    refuse_later(name)
    if name.startswith(REMOTE):
        if adapters:
            raise InvalidParamError(
                "the adapters of a remote model are on its server",
                hint=f"ask for one by its name there, as in {REMOTE}NAME@https://host/v1",
            )
        from qvl.vlm.remote import RemoteModel  # no torch, and for the others no HTTP client

        idle = {"device": device != "auto", "dtype": dtype != "auto", "revision": bool(revision)}
        if any(idle.values()):
            given = ", ".join(what for what, is_given in idle.items() if is_given)
            log.warning("the server decides about its model: %s does nothing here", given)
        return RemoteModel(name, offline=offline, prices=prices)
    from qvl.vlm.local import LocalModel  # brings torch

    return LocalModel(
        name, device=device, dtype=dtype, revision=revision, offline=offline, adapters=adapters
    )
