"""All scenes with text and numbers: what `text`, papers, notices, charts and problems draw."""

from __future__ import annotations

from qvl.scenes import cards, charts, notices, problems, receipts, text

KINDS = {
    **text.KINDS,
    **receipts.KINDS,
    **cards.KINDS,
    **notices.KINDS,
    **charts.KINDS,
    **problems.KINDS,
}
