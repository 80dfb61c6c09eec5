"""Training data for `qvl train`: a conversation a line of what reviewers approved.

The forms are those of `training/rows.py`: OpenAI's messages, pictures and videos by their paths.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qvl.batch.exports.jsonl import json_line
from qvl.batch.exports.table import cell_of
from qvl.runs.record import Finished, Item
from qvl.runs.whole import whole_file
from qvl.tasks.describe import LISTING

log = logging.getLogger(__name__)


def write(finished: Iterable[Finished], target: Path, asked: Callable[[Item], str]) -> int:
    """How many conversations were written; `asked` tells the words that the model was asked with.

    Left out, and counted in the log, are items that are not approved (edited ones, too: nobody has said
    yet that they are good), and those whose pictures are a part of another file. Raises StorageError.
    """
    written = edited = parts = 0
    with whole_file(target) as part, part.open("wb") as file:
        for one in finished:
            state = one.review.state if one.review is not None else "new"
            if state != "approved" or not cell_of(one.told("text")).strip():
                edited += state == "edited"
            elif any(source.part for source in one.item.sources):
                parts += 1
            else:
                file.write(json_line(conversation(one, asked(one.item))))
                written += 1
    if edited:
        log.warning("left out: %d items that are edited and not approved", edited)
    if parts:
        log.warning("left out: %d items about pages, members or pieces of a file", parts)
    return written


def conversation(one: Finished, asked: str) -> dict[str, Any]:
    kind = "video" if is_video(one) else "image"
    seen = [{"type": kind, kind: source.where} for source in one.item.sources]
    return {
        "id": one.item.id,
        "messages": [
            {"role": "user", "content": [*seen, {"type": "text", "text": asked}]},
            {"role": "assistant", "content": answer(one)},
        ],
    }


def is_video(one: Finished) -> bool:
    meta = one.outcome.out.get("meta") if one.outcome is not None else None
    return bool(meta and meta.get("videos"))


def answer(one: Finished) -> str:
    """What the model should have said: of a listing the object that it is asked for."""
    names = LISTING["required"]
    if not all(one.told(name) for name in names if name != "description"):
        return cell_of(one.told("text"))
    fields = {name: cell_of(one.told(name)) for name in names}
    keywords = [word for word in fields["keywords"].split("; ") if word]
    told = fields | {"description": cell_of(one.told("text")), "keywords": keywords}
    return json.dumps(told, ensure_ascii=False)
