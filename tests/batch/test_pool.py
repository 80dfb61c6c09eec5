"""A run over several servers, of which some are ill: complete, each item once, in the healthy one's words."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qvl import scenes
from qvl.batch.asked import Asked
from qvl.batch.carry_out import carry_out
from qvl.runs.record import Item, Source
from qvl.runs.run import Run
from qvl.vlm import servers
from qvl.vlm.local import LocalModel
from qvl.vlm.remote import RemoteModel
from served import running
from stand_in_openai import Handler, serving

COUNT, SILENT_S = 30, 1.0


def carried(folder: Path, items: list[Item], *urls: str) -> dict[str, str]:
    asked = Asked(
        task="describe", options={"language": "en", "sampling": {"max_new_tokens": 24}}, seed=7
    )
    model = RemoteModel(f"openai:sprout@{','.join(urls)}")
    try:
        with Run.create(folder, {"made": "here"}, items) as run:
            carry_out(run, model, partial(asked.row, model), stops=lambda: 0)
            return {
                one.item.id: one.outcome.out["text"]
                for one in run.finished()
                if one.outcome and one.outcome.ok
            }
    finally:
        model.close()


def test_one_server_hangs_and_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "SILENT_S", (SILENT_S,) * 3)
    items = []
    for number in range(COUNT):
        path = tmp_path / f"{number}.png"
        scenes.draw("object", "train", number).pictures[0].save(path)
        items.append(Item(id=path.name, row=path.name, sources=(Source(str(path)),)))
    over = threading.Event()

    def hang(handler: Handler, body: Any) -> None:
        over.wait(60)

    def fail(handler: Handler, body: Any) -> None:
        handler.refuse(500, "it is broken")

    with (
        running(LocalModel()) as healthy,
        serving(hang) as hung,
        serving(fail) as broken,
    ):
        well = f"{healthy.url}/v1"
        began_s = time.monotonic()
        alone = carried(tmp_path / "alone", items, well)
        alone_s = time.monotonic() - began_s
        pooled = carried(tmp_path / "pooled", items, hung.url, broken.url, well)
        pooled_s = time.monotonic() - began_s - alone_s
        over.set()
    assert len(alone) == COUNT
    assert pooled == alone
    lines = (tmp_path / "pooled" / "results-000001.jsonl").read_text("utf-8").splitlines()
    assert set(Counter(json.loads(line)["id"] for line in lines).values()) == {1}
    # those that the first server holds when the run begins are held once
    assert pooled_s < alone_s + 2 * SILENT_S + 2
    assert 0 < len(hung.chats) <= servers.PER_SERVER
    assert 0 < len(broken.chats) <= servers.PER_SERVER
