"""The model that the flags and settings name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from qvl.errors import UsageError
from qvl.settings import Price
from qvl.types import DType
from qvl.vlm.chat_model import EMBEDDED, ChatModel
from qvl.vlm.with_adapter import WithAdapter

log = logging.getLogger(__name__)
ADAPTER_HELP = "A LoRA or DoRA adapter in PEFT's format: FOLDER or NAME=FOLDER."
EMBEDDED_NOTICE = (
    "answered by sprout, the embedded demonstration model: it knows drawn scenes, not photographs; "
    "--model takes another"
)


def open_chosen(
    name: str,
    *,
    device: str,
    dtype: DType,
    revision: str | None,
    offline: bool,
    prices: Mapping[str, Price],
    adapter: str = "",
    adapters: Mapping[str, str] = MappingProxyType({}),
) -> ChatModel:
    """Loaded, with a notice if it is the embedded one. Every request asks for the `adapter`, FOLDER or
    NAME=FOLDER, if one is given; for one of the `adapters` if it says so itself.

    Raises ModelError, OutOfMemoryError, UsageError.
    """
    from qvl.vlm.open_model import open_model

    if name == EMBEDDED:
        log.warning(EMBEDDED_NOTICE)
    every = named_adapters([adapter] if adapter else [])
    model = open_model(
        name,
        device=device,
        dtype=dtype,
        revision=revision,
        offline=offline or None,
        prices=prices,
        adapters={**adapters, **every},
    )
    return WithAdapter(model, next(iter(every))) if every else model


def named_adapters(given: Sequence[str]) -> dict[str, str]:
    """Folders by name, of FOLDER, which is its own name, or NAME=FOLDER. Raises UsageError."""
    adapters: dict[str, str] = {}
    for one in given:
        name, sign, folder = one.partition("=")
        if not sign or Path(one).expanduser().is_dir():
            name, folder = Path(one).expanduser().resolve().name, one
        if not name or not folder:
            raise UsageError(f"--adapter is {one!r}", hint="give FOLDER or NAME=FOLDER")
        if name in adapters:
            raise UsageError(
                f"two adapters are called {name!r}", hint="name one of them otherwise: NAME=FOLDER"
            )
        adapters[name] = folder
    return adapters
