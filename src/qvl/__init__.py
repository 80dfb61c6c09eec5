"""qvl: local vision-language models of the Qwen-VL family.

    >>> from qvl import VLM, Image, Message, Request

The public names are looked up at first use (PEP 562), so that `import qvl` stays instant and loads
neither torch nor any other heavy library.
"""

from __future__ import annotations

import os
from importlib import import_module

# not typing's: `python -m qvl` runs this before it leaves the folder out that it was started in
TYPE_CHECKING = False
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

# Threads that wait for the next product spin for some microseconds and then sleep: to sleep at once
# costs a tenth of a decode step, to spin on, as OpenMP's default is, takes the core from others. Read
# when torch is first imported; what the user has set stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

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
