"""The model that the flags and settings name."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from qvl.settings import Price
from qvl.types import DType
from qvl.vlm.chat_model import EMBEDDED, ChatModel

log = logging.getLogger(__name__)
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
) -> ChatModel:
    """Loaded, with a notice if it is the embedded one. Raises ModelError, OutOfMemoryError."""
    from qvl.vlm.open_model import open_model

    if name == EMBEDDED:
        log.warning(EMBEDDED_NOTICE)
    return open_model(
        name,
        device=device,
        dtype=dtype,
        revision=revision,
        offline=offline or None,
        prices=prices,
    )
