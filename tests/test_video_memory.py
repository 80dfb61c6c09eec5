"""A long clip of large frames goes through the whole path within a gigabyte above the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

import clips
from qvl.types import Message, Request, Sampling, Video
from qvl.vlm.local import LocalModel
from tiny import save_tiny

SECONDS, FPS = 60, 10


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    quick = {"preset": "ultrafast", "crf": "35"}
    size = {"width": 1920, "height": 1080}
    path.write_bytes(clips.steady(SECONDS * FPS, FPS, key_every=250, options=quick, **size))
    return path


def growth_bytes(act: Callable[[], object]) -> int:
    """By how much this process and its children together grow at most while it acts."""
    me, most, is_over = psutil.Process(), 0, threading.Event()

    def total() -> int:
        sizes = 0
        for process in (me, *me.children(recursive=True)):
            try:
                sizes += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return sizes

    before = total()

    def watch() -> None:
        nonlocal most
        while not is_over.wait(0.01):
            most = max(most, total())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        act()
    finally:
        is_over.set()
        watcher.join()
    return most - before


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["qwen3_vl", "qwen2_5_vl"])
def test_a_minute_of_1080p_takes_less_than_a_gigabyte(
    generation: str, film: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    save_tiny(tmp_path, generation, max_position_embeddings=128_000, num_hidden_layers=2)
    model = LocalModel(str(tmp_path), dtype="fp32")
    asked = Request(
        messages=(Message.user(Video.of(film), "What happens?"),),
        sampling=Sampling(max_new_tokens=2, temperature=0),
    )
    told = []
    began_s = time.monotonic()
    grown = growth_bytes(lambda: told.extend(model.generate([asked])))
    seconds = time.monotonic() - began_s
    (video,) = told[0].provenance.videos
    wanted = np.linspace(0, SECONDS * FPS - 1, 2 * SECONDS).round() / FPS
    assert video.frame_times_s == pytest.approx(wanted, abs=5e-4)
    assert (video.width_px, video.height_px) == (1920, 1080)
    assert video.tokens > 10_000
    record_property("grown_bytes", grown)
    print(  # noqa: T201
        f"\n{generation}: {video.tokens} tokens, {grown / 2**20:.0f} MiB above the model, {seconds:.0f} s"
    )
    assert grown < 2**30
