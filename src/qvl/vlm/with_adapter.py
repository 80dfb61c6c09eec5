"""A model of which every request asks for one of its adapters."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qvl.types import Request
from qvl.vlm.altered import Altered


@dataclass(frozen=True, slots=True)
class WithAdapter(Altered):
    """`model`, asked for `adapter`; closing this closes the model."""

    adapter: str

    def altered(self, request: Request) -> Request:
        return replace(request, adapter=self.adapter)
