"""What the vision tower said about pictures seen lately, so that no picture is looked at twice."""

from __future__ import annotations

from collections import OrderedDict

from qvl.models.batch import VisionFeatures


class FeatureCache:
    """Features by what names the picture's content, the least recently used leave first.

    Who computes with features holds them by itself, so a budget of 0 works.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._by_content: OrderedDict[str, VisionFeatures] = OrderedDict()

    def get(self, content: str) -> VisionFeatures | None:
        features = self._by_content.get(content)
        if features is not None:
            self._by_content.move_to_end(content)
        return features

    def put(self, content: str, features: VisionFeatures) -> None:
        """Keep the features, unless they alone are over the budget."""
        size = features.size_bytes
        if content in self._by_content or size > self.budget_bytes:
            return
        while self.used_bytes + size > self.budget_bytes:
            _, oldest = self._by_content.popitem(last=False)
            self.used_bytes -= oldest.size_bytes
        self._by_content[content] = features
        self.used_bytes += size

    def drop(self, content: str) -> None:
        """Forget the features, if they are here; they may be wrong."""
        features = self._by_content.pop(content, None)
        if features is not None:
            self.used_bytes -= features.size_bytes
