"""Drawn scenes with known truth, for every task of the product: what `sprout` is trained and scored on."""

from __future__ import annotations

import random
from dataclasses import replace

from qvl.scenes import changes, documents, goods, objects, shop
from qvl.scenes.scene import Scene, Split

KINDS = {**objects.KINDS, **goods.KINDS, **changes.KINDS, **shop.KINDS, **documents.KINDS}


def draw(kind: str, split: Split, seed: int, size: tuple[int, int] | None = None) -> Scene:
    """A scene of one of KINDS, whose pictures have the size (width, height) in pixels if one is given.

    The same arguments always give the same scene.
    """
    function, _ = KINDS[kind]
    scene = function(split, random.Random(f"{kind}/{split}/{seed}"), size)
    distinct = [job for n, job in enumerate(scene.jobs) if job not in scene.jobs[:n]]
    return replace(scene, jobs=tuple(distinct))
