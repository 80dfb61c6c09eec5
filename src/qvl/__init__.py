"""qvl: local vision-language models of the Qwen-VL family.

    >>> from qvl import VLM, Image, Message, Request

The public names are looked up at first use (PEP 562), so that `import qvl` stays instant and loads
neither torch nor any other heavy library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qvl.api import VLM
    from qvl.errors import QvlError
    from qvl.types import (
        Box,
        Completion,
        Delta,
        Image,
        Message,
        Request,
        ResponseFormat,
        Sampling,
        Text,
    )

__version__ = "0.1.0"

__all__ = [
    "VLM",
    "Box",
    "Completion",
    "Delta",
    "Image",
    "Message",
    "QvlError",
    "Request",
    "ResponseFormat",
    "Sampling",
    "Text",
    "__version__",
]

# public name -> the module that defines it; everything else is in qvl.types
_HOMES = {"VLM": "qvl.api", "QvlError": "qvl.errors"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'qvl' has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "qvl.types")), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
